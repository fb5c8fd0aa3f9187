"""Faults: the ground truth. What each pattern does to a server, and how a cascade spreads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from openmanager_simulator.fleet import GROUP, index_of, make_group
from openmanager_simulator.noise import generator

SECOND = 10**9
_MINUTE = 60 * SECOND
DEFAULT_SEVERITY = 0.8
# Points that a fault can add, and the factor on response time, at most.
CPU_CAP, MEMORY_CAP, DISK_CAP, RESPONSE_CAP = 80.0, 70.0, 60.0, 20.0
_HOP_SEVERITY = 0.6
_LEAST_SEVERITY = 0.1


class FaultPattern(StrEnum):
    """What goes wrong."""

    MEMORY_LEAK = "memory_leak"
    CPU_SPIKE = "cpu_spike"
    DISK_FULL = "disk_full"
    CASCADE_FAILURE = "cascade_failure"
    NETWORK_LATENCY = "network_latency"
    DATABASE_LOCK = "database_lock"
    GRADUAL_DEGRADATION = "gradual_degradation"


# Shortest and longest duration in minutes.
DURATIONS: Mapping[FaultPattern, tuple[float, float]] = {
    FaultPattern.MEMORY_LEAK: (120, 360),
    FaultPattern.CPU_SPIKE: (10, 60),
    FaultPattern.DISK_FULL: (60, 420),
    FaultPattern.CASCADE_FAILURE: (60, 240),
    FaultPattern.NETWORK_LATENCY: (30, 140),
    FaultPattern.DATABASE_LOCK: (20, 90),
    FaultPattern.GRADUAL_DEGRADATION: (240, 720),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault: times in nanoseconds, severity in (0, 1], all servers that it hits, `root` where a cascade began.

    What it does at a time follows from its planned end; `end_nanos` is earlier when somebody cleared it.
    """

    id: str
    pattern: FaultPattern
    servers: tuple[str, ...]
    start_nanos: int
    end_nanos: int
    planned_end_nanos: int
    severity: float
    seed: int
    root: str = ""
    origin: str = "injected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A fault as one server feels it: from `start_nanos` on, shaped for `planned_end_nanos`, over at `end_nanos`."""

    pattern: FaultPattern
    server: str
    start_nanos: int
    end_nanos: int
    planned_end_nanos: int
    severity: float


def plan_fault(
    *,
    id: str,  # noqa: A002
    pattern: FaultPattern,
    servers: Sequence[str],
    start_nanos: int,
    end_nanos: int | None = None,
    severity: float | None = None,
    seed: int,
    origin: str = "injected",
) -> Fault:
    """Return a complete fault: the pattern's middle duration and a severity of 0.8 where nothing is said.

    A cascade begins at the first server and spreads by itself; the others are hit, more weakly, from the start.
    """
    low, high = DURATIONS[pattern]
    end = end_nanos if end_nanos is not None else start_nanos + int((low + high) / 2 * _MINUTE)
    cascade = pattern is FaultPattern.CASCADE_FAILURE
    fault = Fault(
        id=id,
        pattern=pattern,
        servers=tuple(dict.fromkeys(servers)),
        start_nanos=start_nanos,
        end_nanos=end,
        planned_end_nanos=end,
        severity=severity or DEFAULT_SEVERITY,
        seed=seed,
        root=servers[0] if cascade else "",
        origin=origin,
    )
    return replace(fault, servers=tuple(hit.server for hit in hits(fault))) if cascade else fault


def hits(fault: Fault) -> list[Hit]:
    """Return whom a fault hits, when and how badly."""
    if not fault.root:
        return [_hit(fault, server, fault.start_nanos, fault.severity) for server in fault.servers]
    reached = dict(_spread(fault))
    for server in fault.servers:
        reached.setdefault(server, (fault.start_nanos, fault.severity * _HOP_SEVERITY))
    return [_hit(fault, server, start, severity) for server, (start, severity) in reached.items()]


def _hit(fault: Fault, server: str, start: int, severity: float) -> Hit:
    return Hit(
        pattern=fault.pattern,
        server=server,
        start_nanos=start,
        end_nanos=fault.end_nanos,
        planned_end_nanos=fault.planned_end_nanos,
        severity=severity,
    )


@lru_cache(maxsize=1024)
def _spread(fault: Fault) -> Mapping[str, tuple[int, float]]:
    """Follow a cascade through its root's group: when it reaches a server, and how badly.

    Database → web, api in 80 % of cases, else the same role in 60 %; 3–8 min and × 0.6 a hop.
    """
    reached = {fault.root: (fault.start_nanos, fault.severity)}
    index = index_of(fault.root)
    if index is None:
        return reached
    group = make_group(index // GROUP)
    random = generator("fault", fault.seed)
    edge = [group[index % GROUP]]
    while edge:
        source = edge.pop(0)
        start, severity = reached[source.id]
        severity *= _HOP_SEVERITY
        if severity < _LEAST_SEVERITY:
            continue
        draws, waits = random.random(GROUP), random.uniform(3, 8, GROUP)
        for server, draw, wait in zip(group, draws.tolist(), waits.tolist(), strict=True):
            downstream = source.role == "database" and server.role in {"web", "api"}
            chance = 0.8 if downstream else 0.6 if server.role == source.role else 0.0
            begin = start + int(wait * _MINUTE)
            if server.id not in reached and draw < chance and begin < fault.planned_end_nanos:
                reached[server.id] = (begin, severity)
                edge.append(server)
    return reached


# ── what a hit does ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, eq=False)
class Effect:
    """What a hit adds at times: points to cpu, memory and disk, a factor on response, load on the network; float64[T]."""

    cpu: NDArray[np.float64]
    memory: NDArray[np.float64]
    disk: NDArray[np.float64]
    response: NDArray[np.float64]
    network: NDArray[np.float64]


def effect(hit: Hit, times: NDArray[np.int64]) -> Effect:
    """Return what a hit adds at times in nanoseconds; nothing outside its time."""
    share = (times - hit.start_nanos) / float(hit.planned_end_nanos - hit.start_nanos)
    inside = (times >= hit.start_nanos) & (times < hit.end_nanos)
    x = np.where(inside, share, 0.0)
    s = hit.severity
    zero = np.zeros(len(times))
    on = inside.astype(np.float64)
    match hit.pattern:
        case FaultPattern.MEMORY_LEAK:
            found = Effect(on * 8.0 * s * x, MEMORY_CAP * s * x, zero, 1.0 + 2.0 * s * x * x, zero)
        case FaultPattern.CPU_SPIKE:
            wave = _half_wave(x) * on
            found = Effect(CPU_CAP * s * wave, 5.0 * s * wave, zero, 1.0 + 3.0 * s * wave, zero)
        case FaultPattern.DISK_FULL:
            late = np.where(x > 0.7, (x - 0.7) / 0.3, 0.0)
            found = Effect(25.0 * s * late, zero, DISK_CAP * s * x, 1.0 + 6.0 * s * late, zero)
        case FaultPattern.CASCADE_FAILURE:
            rise = np.minimum(1.0, x * 4.0) * on
            found = Effect(60.0 * s * rise, 30.0 * s * rise, zero, 1.0 + 8.0 * s * rise, -0.3 * s * rise)
        case FaultPattern.NETWORK_LATENCY:
            found = Effect(zero, zero, zero, 1.0 + 6.0 * s * on, 0.2 * s * on)
        case FaultPattern.DATABASE_LOCK:
            found = Effect(10.0 * s * on, 8.0 * s * on, zero, 1.0 + 10.0 * s * on, -0.4 * s * on)
        case FaultPattern.GRADUAL_DEGRADATION:
            found = Effect(25.0 * s * x, 25.0 * s * x, 10.0 * s * x, 1.0 + 2.0 * s * x, zero)
    return found


def _half_wave(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sin(πx) on [0, 1] to 0.2 % by Bhaskara's formula: additions and divisions only, the same everywhere."""
    product = x * (1.0 - x)
    return 16.0 * product / (5.0 - 4.0 * product)


def retransmits(hit: Hit, times: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the seconds of network trouble, weighted by severity, that a hit has made up to times: float64[T]."""
    if hit.pattern is not FaultPattern.NETWORK_LATENCY:
        return np.zeros(len(times))
    return np.clip(times - hit.start_nanos, 0, max(0, hit.end_nanos - hit.start_nanos)) / float(SECOND) * hit.severity
