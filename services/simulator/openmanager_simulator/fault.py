"""Faults: the ground truth. What each pattern does to a server, how it spreads, and which come by themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmanager_simulator.fleet import Server
from openmanager_simulator.noise import generator

SECOND = 10**9
_MINUTE = 60 * SECOND
_DAY = 86_400 * SECOND
DEFAULT_SEVERITY = 0.8
# Points that a fault can add, and the factor on response time, at most.
CPU_CAP, MEMORY_CAP, DISK_CAP, RESPONSE_CAP = 80.0, 70.0, 60.0, 20.0
_HOP_SEVERITY = 0.6
_LEAST_SEVERITY = 0.1
# A day of twenty servers has 2–9 scheduled faults.
_FLEET = 20
_PER_DAY = (2, 9)


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
    """A fault: times in nanoseconds, severity in (0, 1], `root` where a cascade began."""

    id: str
    pattern: FaultPattern
    servers: tuple[str, ...]
    start_nanos: int
    end_nanos: int
    severity: float
    seed: int
    root: str = ""
    origin: str = "injected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A fault as one server feels it: `shift_nanos` after it began elsewhere, weaker by the hop."""

    pattern: FaultPattern
    server: str
    start_nanos: int
    end_nanos: int
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
    """Return a complete fault: the pattern's middle duration and a severity of 0.8 where nothing is said."""
    low, high = DURATIONS[pattern]
    end = end_nanos if end_nanos is not None else start_nanos + int((low + high) / 2 * _MINUTE)
    root = servers[0] if pattern is FaultPattern.CASCADE_FAILURE else ""
    return Fault(
        id=id,
        pattern=pattern,
        servers=tuple(servers),
        start_nanos=start_nanos,
        end_nanos=end,
        severity=severity or DEFAULT_SEVERITY,
        seed=seed,
        root=root,
        origin=origin,
    )


def hits(fault: Fault, fleet: Sequence[Server]) -> list[Hit]:
    """Return whom a fault hits, when and how badly; a cascade spreads from its first server by itself."""
    if fault.pattern is not FaultPattern.CASCADE_FAILURE:
        return [_hit(fault, server, fault.start_nanos, fault.severity) for server in fault.servers]
    return [_hit(fault, server, start, severity) for server, start, severity in _spread(fault, fleet)]


def _hit(fault: Fault, server: str, start: int, severity: float) -> Hit:
    return Hit(pattern=fault.pattern, server=server, start_nanos=start, end_nanos=fault.end_nanos, severity=severity)


def _spread(fault: Fault, fleet: Sequence[Server]) -> list[tuple[str, int, float]]:
    """Follow a cascade: database → web, api in 80 % of cases, else the same role in 60 %; 3–8 min and × 0.6 a hop."""
    by_id = {server.id: server for server in fleet}
    random = generator("fault", fault.seed)
    reached = {fault.servers[0]: (fault.start_nanos, fault.severity)}
    edge = [fault.servers[0]]
    while edge:
        at = edge.pop(0)
        start, severity = reached[at]
        severity *= _HOP_SEVERITY
        source = by_id.get(at)
        if severity < _LEAST_SEVERITY or source is None:
            continue
        for server in fleet:
            draw, wait = random.random(), random.uniform(3, 8)
            if server.id in reached or server.environment != source.environment:
                continue
            downstream = source.role == "database" and server.role in {"web", "api"}
            chance = 0.8 if downstream else 0.6 if server.role == source.role else 0.0
            begin = start + int(wait * _MINUTE)
            if draw < chance and begin < fault.end_nanos:
                reached[server.id] = (begin, severity)
                edge.append(server.id)
    for server_id in fault.servers[1:]:
        reached.setdefault(server_id, (fault.start_nanos, fault.severity * _HOP_SEVERITY))
    return [(server, start, severity) for server, (start, severity) in reached.items()]


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
    share = (times - hit.start_nanos) / float(hit.end_nanos - hit.start_nanos)
    inside = (share >= 0.0) & (share < 1.0)
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
    return np.clip(times - hit.start_nanos, 0, hit.end_nanos - hit.start_nanos) / float(SECOND) * hit.severity


# ── which come by themselves, and which are told ───────────────────────────────────────────────────────────────────


def scheduled_faults(seed: int, fleet: Sequence[Server], day: int) -> tuple[Fault, ...]:
    """Return the faults that begin on a day (days since the epoch): 2–9 for twenty servers, more for more."""
    random = generator("schedule", seed, day)
    low, high = _PER_DAY
    count = round(int(random.integers(low, high + 1)) * max(1.0, len(fleet) / _FLEET))
    patterns = tuple(FaultPattern)
    found = []
    for index in range(count):
        pattern = patterns[int(random.integers(len(patterns)))]
        server = fleet[int(random.integers(len(fleet)))].id
        start = day * _DAY + int(random.integers(_DAY // SECOND)) * SECOND
        shortest, longest = DURATIONS[pattern]
        end = start + int(random.integers(int(shortest * 60), int(longest * 60) + 1)) * SECOND
        severity = round(0.3 + 0.7 * float(random.random()), 2)
        found.append(
            plan_fault(
                id=f"scheduled-{seed}-{day}-{index}",
                pattern=pattern,
                servers=(server,),
                start_nanos=start,
                end_nanos=end,
                severity=severity,
                seed=int(random.integers(2**62)),
                origin="scheduled",
            )
        )
    return tuple(found)


def to_document(fault: Fault) -> dict[str, Any]:
    """Return a fault as it is recorded; whole numbers as text, for JSON has only doubles."""
    return {
        **asdict(fault),
        "pattern": str(fault.pattern),
        "servers": list(fault.servers),
        "start_nanos": str(fault.start_nanos),
        "end_nanos": str(fault.end_nanos),
        "seed": str(fault.seed),
    }


def from_document(document: Mapping[str, Any]) -> Fault:
    """Undo `to_document`; KeyError, TypeError or ValueError for what is no record."""
    return Fault(
        id=str(document["id"]),
        pattern=FaultPattern(document["pattern"]),
        servers=tuple(str(server) for server in document["servers"]),
        start_nanos=int(document["start_nanos"]),
        end_nanos=int(document["end_nanos"]),
        severity=float(document["severity"]),
        seed=int(document["seed"]),
        root=str(document.get("root", "")),
        origin=str(document.get("origin", "injected")),
    )


def load_scenario(path: Path) -> tuple[Fault, ...]:
    """Return the faults of a file: a JSON list of objects with pattern, servers, start, end (epoch seconds), severity.

    The same file gives the same faults. ValueError naming the entry and the field for anything else.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ValueError(f"{path} is not a JSON file: {err}") from err
    if not isinstance(entries, list):
        raise ValueError(f"{path} is not a list of faults")  # noqa: TRY004  (it is the value of a file)
    return tuple(_from_entry(index, entry) for index, entry in enumerate(entries))


def _from_entry(index: int, entry: Any) -> Fault:
    known = {"pattern", "servers", "start", "end", "severity", "seed"}
    if not isinstance(entry, dict) or not {"pattern", "servers", "start"} <= entry.keys() <= known:
        raise ValueError(f"fault {index} must have pattern, servers and start, and may have end, severity and seed")
    try:
        pattern = FaultPattern(entry["pattern"])
    except ValueError as err:
        raise ValueError(f"fault {index} has the unknown pattern {entry['pattern']!r}") from err
    servers, severity = entry["servers"], entry.get("severity", DEFAULT_SEVERITY)
    if not isinstance(servers, list) or not servers or not all(isinstance(each, str) for each in servers):
        raise ValueError(f"fault {index}: servers must be a list of ids")
    if not isinstance(severity, int | float) or not 0 < severity <= 1:
        raise ValueError(f"fault {index}: severity must be more than 0 and at most 1")
    for name in ("start", "end"):
        if name in entry and (isinstance(entry[name], bool) or not isinstance(entry[name], int | float)):
            raise ValueError(f"fault {index}: {name} must be seconds since the epoch")
    if "end" in entry and entry["end"] <= entry["start"]:
        raise ValueError(f"fault {index}: end must be after start")
    digest = hashlib.blake2b(json.dumps(entry, sort_keys=True).encode(), digest_size=7).digest()
    return plan_fault(
        id=f"scenario-{index}",
        pattern=pattern,
        servers=servers,
        start_nanos=int(entry["start"] * SECOND),
        end_nanos=int(entry["end"] * SECOND) if "end" in entry else None,
        severity=float(severity),
        seed=int(entry.get("seed", int.from_bytes(digest, "big"))),
        origin="scenario",
    )
