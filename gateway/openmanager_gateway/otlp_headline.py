"""The three headline percentages, derived from OpenTelemetry's host metrics where an export has them."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from openmanager.metric import parse_key

MAX_SERVERS = 100_000
_IMAGES = ("squashfs", "iso9660", "overlay", "tmpfs", "devtmpfs")


@dataclass(slots=True)
class HeadlineState:
    """Remembers the processor totals of each server from one export to the next; a bounded number of servers."""

    _totals: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def derive(
        self, server: str, times: Sequence[int], keys: Sequence[str], values: Sequence[float]
    ) -> Iterator[tuple[int, str, float]]:
        """Yield time, metric and percent for each headline figure that the samples of an export allow."""
        found: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
        newest: dict[str, int] = {}
        for time, key, value in zip(times, keys, values, strict=True):
            if key.startswith("system."):
                name, attributes = parse_key(key)
                found[name].append((dict(attributes), value))
                newest[name] = max(newest.get(name, 0), time)
        for metric, sources in (
            ("cpu_usage", (("system.cpu.utilization", _cpu), ("system.cpu.time", None))),
            ("memory_usage", (("system.memory.utilization", _used), ("system.memory.usage", _used_share))),
            ("disk_usage", (("system.filesystem.utilization", _fullest), ("system.filesystem.usage", _fullest_share))),
        ):
            for name, compute in sources:
                if name not in found:
                    continue
                percent = compute(found[name]) if compute else self._cpu_from_totals(server, found[name])
                if percent is not None:
                    yield newest[name], metric, min(100.0, max(0.0, round(percent, 3)))
                    break

    def _cpu_from_totals(self, server: str, points: list[tuple[dict[str, str], float]]) -> float | None:
        total = sum(value for _, value in points)
        idle = sum(value for attributes, value in points if attributes.get("state") == "idle")
        before = self._totals.pop(server, None)
        self._totals[server] = (total, idle)
        if len(self._totals) > MAX_SERVERS:
            self._totals.popitem(last=False)
        if before is None or total <= before[0] or idle < before[1]:
            return None  # the first export, or the host has restarted
        return 100.0 * (1.0 - (idle - before[1]) / (total - before[0]))


Points = list[tuple[dict[str, str], float]]


def _cpu(points: Points) -> float | None:
    idle = [value for attributes, value in points if attributes.get("state") == "idle"]
    return 100.0 * (1.0 - sum(idle) / len(idle)) if idle else None


def _used(points: Points) -> float | None:
    used = [value for attributes, value in points if attributes.get("state") == "used"]
    return 100.0 * used[0] if used else None


def _used_share(points: Points) -> float | None:
    # `available` is an estimate over the other states and would be counted twice.
    states = [(a.get("state"), value) for a, value in points if a.get("state") not in {"available", "total"}]
    total = sum(value for _, value in states)
    used = sum(value for state, value in states if state == "used")
    return 100.0 * used / total if total > 0 and used else None


def _fullest(points: Points) -> float | None:
    shares = [v for a, v in points if a.get("state", "used") == "used" and a.get("type") not in _IMAGES]
    return 100.0 * max(shares) if shares else None


def _fullest_share(points: Points) -> float | None:
    mounts: dict[str, dict[str, float]] = defaultdict(dict)
    for attributes, value in points:
        if attributes.get("type") not in _IMAGES:
            mounts[attributes.get("mountpoint", "")][attributes.get("state", "")] = value
    shares = [
        states["used"] / (states["used"] + states["free"])
        for states in mounts.values()
        if "used" in states and states.get("free", 0.0) + states["used"] > 0
    ]
    return 100.0 * max(shares) if shares else None
