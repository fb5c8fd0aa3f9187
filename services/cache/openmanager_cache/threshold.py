"""From use to state: the one place where HEALTHY, WARNING and CRITICAL are decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from openmanager.api.server.v1 import server_pb2

HEADLINES = ("cpu", "memory", "disk")
# A state is left only when the figure is this many points below the threshold that brought it.
HYSTERESIS = 2.0

ServerState = server_pb2.ServerState


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """At which use, in percent, a server is in WARNING or CRITICAL."""

    cpu_warning: float = 70.0
    cpu_critical: float = 85.0
    memory_warning: float = 75.0
    memory_critical: float = 90.0
    disk_warning: float = 80.0
    disk_critical: float = 90.0

    def with_overrides(self, overrides: Mapping[str, float]) -> Thresholds:
        """Return these thresholds with some replaced; unknown names are passed over."""
        known = {name: float(value) for name, value in overrides.items() if name in self.__slots__}
        return replace(self, **known)


@dataclass(slots=True)
class ThresholdTable:
    """The thresholds in force: defaults, overridden by role, overridden by server."""

    default: Thresholds = field(default_factory=Thresholds)
    roles: dict[str, Mapping[str, float]] = field(default_factory=dict)
    servers: dict[str, Mapping[str, float]] = field(default_factory=dict)

    def of(self, server_id: str, role: str) -> Thresholds:
        """Return the thresholds of one server."""
        found = self.default
        if role in self.roles:
            found = found.with_overrides(self.roles[role])
        if server_id in self.servers:
            found = found.with_overrides(self.servers[server_id])
        return found


def judge(
    usage: Mapping[str, float], thresholds: Thresholds, before: ServerState.ValueType
) -> tuple[ServerState.ValueType, str]:
    """Return the state of a server and what decided it.

    `usage` maps `cpu`, `memory`, `disk` to percent, as far as they are known; `before` is the state it was in, which
    is left only HYSTERESIS points below its threshold.
    """
    for state, level in (
        (server_pb2.SERVER_STATE_CRITICAL, "critical"),
        (server_pb2.SERVER_STATE_WARNING, "warning"),
    ):
        slack = HYSTERESIS if before in {state, server_pb2.SERVER_STATE_CRITICAL} else 0.0
        for name in HEADLINES:
            limit = getattr(thresholds, f"{name}_{level}")
            if name in usage and usage[name] >= limit - slack:
                return state, f"{name}_usage {usage[name]:.1f} ≥ {limit - slack:g}"
    return server_pb2.SERVER_STATE_HEALTHY, ""
