"""What a fleet takes: processor, memory, disk, network, machines and money, computed from measured unit costs.

A model and nothing else: no I/O. `unit_cost.py` has what one sample, series, server and process were measured to take,
`price.py` what things cost. Processor, memory and disk are what is used; machines are counted with headroom.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Literal

from openmanager.errors import invalid
from openmanager.price import Machine, Prices
from openmanager.unit_cost import MEASURED, Process, UnitCosts

Engine = Literal["blocks", "influxdb", "victoriametrics"]

LOG, RAW = "log", "raw"
WIDTHS: Mapping[str, timedelta] = MappingProxyType({"5m": timedelta(minutes=5), "1h": timedelta(hours=1)})
RETENTION: Mapping[str, timedelta] = MappingProxyType(
    {LOG: timedelta(days=1), RAW: timedelta(days=14), "5m": timedelta(days=90), "1h": timedelta(days=1825)}
)
MAX_SERVERS, MAX_METRICS = 1_000_000, 100_000
MIN_INTERVAL, MAX_INTERVAL = timedelta(seconds=1), timedelta(hours=1)
MAX_RETENTION = timedelta(days=36_500)
MAX_HEADROOM = 0.9
# A frame holds so many bytes of doubles at most; its names go with it.
FRAME_BYTES = 4 * 2**20
# Metadata's copy of the inventory in memory holds so many servers.
INVENTORY_COPY = 20_000
# Series that a shard of history takes unless told otherwise, and bytes of its log.
MAX_SERIES, LOG_MAX_SIZE = 1_000_000, 8 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A fleet, how often it is sampled, and how long what is kept, by tier: RETENTION for those that are not named.

    With `by_otlp` every server sends an OTLP export of its own; otherwise samples come as frames of many servers.
    """

    servers: int
    metrics: int = 511
    interval: timedelta = timedelta(seconds=10)
    retention: Mapping[str, timedelta] = field(default_factory=dict)
    engine: Engine = "blocks"
    by_otlp: bool = False

    def __post_init__(self) -> None:
        """Raise InvalidArgumentError, naming the field, for what cannot be planned."""
        for name, found, most in (("servers", self.servers, MAX_SERVERS), ("metrics", self.metrics, MAX_METRICS)):
            if not 1 <= found <= most:
                raise invalid(name, f"is not between 1 and {most:,}")
        if not MIN_INTERVAL <= self.interval <= MAX_INTERVAL:
            raise invalid("interval", "is not between 1s and 1h")
        for tier, kept in self.retention.items():
            if tier not in RETENTION:
                raise invalid("retention", f"names {tier!r}; there is {', '.join(RETENTION)}")
            if not timedelta() < kept <= MAX_RETENTION:
                raise invalid(f"retention of {tier}", f"is not between 1ms and {MAX_RETENTION.days}d")

    @property
    def series(self) -> int:
        """How many series there are."""
        return self.servers * self.metrics

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.series / self.interval.total_seconds()

    def kept(self, tier: str) -> timedelta:
        """Return how long a tier is kept."""
        return self.retention.get(tier, RETENTION[tier])


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What all processes of a part take together: cores, bytes of memory and of disk; NaN where it was not measured."""

    name: str
    processes: int
    cores: float
    memory_bytes: float
    disk_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """What is kept of history at one resolution: samples or buckets, and their bytes."""

    name: str
    retention: timedelta
    rows: float
    disk_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """What goes from one part to another, in bytes a second."""

    source: str
    target: str
    bytes_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a workload takes. Money is for a month, NaN where no price is known."""

    workload: Workload
    headroom: float
    machine: Machine
    parts: tuple[Part, ...]
    tiers: tuple[Tier, ...]
    flows: tuple[Flow, ...]
    machines: int
    # Of what there have to be so many machines: cores, memory or disk.
    limit: str
    currency: str
    self_hosted_month: float
    managed_month: float
    # Settings that have to be raised, and to what.
    settings: Mapping[str, int]

    @property
    def cores(self) -> float:
        """Cores that are busy."""
        return _known(part.cores for part in self.parts)

    @property
    def memory_bytes(self) -> float:
        """Bytes of memory, of the parts whose memory is known."""
        return _known(part.memory_bytes for part in self.parts)

    @property
    def disk_bytes(self) -> float:
        """Bytes on disk when everything has become as old as it gets, of the parts whose disk is known."""
        return _known(part.disk_bytes for part in self.parts)

    @property
    def shards(self) -> int:
        """Shards of history."""
        return next(part.processes for part in self.parts if part.name == "timeseries")

    @property
    def saved(self) -> float:
        """The share of the managed price that is saved; NaN where it is not known."""
        return 1 - self.self_hosted_month / self.managed_month


def plan(workload: Workload, prices: Prices, *, headroom: float = 0.5, costs: UnitCosts = MEASURED) -> Plan:
    """Return what a workload takes, on machines of which the share `headroom` stays free, 0 to 0.9.

    InvalidArgumentError for a machine that has no room for a single process of some part.
    """
    if not 0 <= headroom <= MAX_HEADROOM:
        raise invalid("headroom", f"is not between 0 and {MAX_HEADROOM:.0%}")
    machine, usable = prices.machine, 1 - headroom
    tiers = tuple(_tiers(workload, costs))
    parts = tuple(_parts(workload, costs, machine, usable, sum(tier.disk_bytes for tier in tiers)))
    machines, limit = _machines(parts, machine, usable)
    shards = next(part.processes for part in parts if part.name == "timeseries")
    return Plan(
        workload=workload,
        headroom=headroom,
        machine=machine,
        parts=parts,
        tiers=tiers,
        flows=tuple(_flows(workload, costs)),
        machines=machines,
        limit=limit,
        currency=prices.currency,
        self_hosted_month=machines * machine.month,
        managed_month=prices.managed(workload.rate),
        settings=MappingProxyType(dict(_settings(workload, shards, tiers[0]))),
    )


# ── parts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _parts(workload: Workload, costs: UnitCosts, machine: Machine, usable: float, history: float) -> Iterator[Part]:
    """Yield every part, with as many processes as bear it.

    A process bears one core at most, as Python does. What keeps state is split by servers; gateways share calls, and
    each of them holds the newest value of everything.
    """
    for name, unit in costs.processes.items():
        cores, memory = used(name, unit, workload, costs)
        count = 1
        if unit.scales != "single":
            count = math.ceil(max(1.0, cores / _room(name, usable, unit.idle_cores.value)))
        if unit.scales == "split":
            room = _room(name, usable * machine.memory_bytes, unit.idle_memory.value)
            count = max(count, math.ceil(memory / room))
        elif (needed := unit.idle_memory.value + memory) > usable * machine.memory_bytes:
            least = math.ceil(needed / usable / 2**30)
            raise invalid(
                "machine", f"has too little memory: {name} holds the whole fleet and needs one with {least}GiB"
            )
        disk = workload.series * unit.disk_per_series.value + workload.servers * unit.disk_per_server.value
        yield Part(
            name=name,
            processes=count,
            cores=count * unit.idle_cores.value + cores,
            memory_bytes=count * unit.idle_memory.value + memory * (count if unit.scales == "replicate" else 1),
            disk_bytes=count * unit.idle_disk.value + disk + (history if name == "timeseries" else 0.0),
        )
    if workload.engine != "blocks":
        engine = costs.engines[workload.engine]
        rows = workload.rate * workload.kept(RAW).total_seconds()
        yield Part(
            name=workload.engine,
            processes=1,
            cores=workload.rate * engine.cores_per_rate.value,
            memory_bytes=math.nan,
            disk_bytes=rows * engine.row_bytes.value,
        )


def used(name: str, unit: Process, workload: Workload, costs: UnitCosts = MEASURED) -> tuple[float, float]:
    """Return the cores and bytes of memory that a workload takes of a part, beside what its processes take at rest."""
    cores = workload.rate * unit.cores_per_rate.value
    if workload.by_otlp:
        cores += workload.rate * unit.otlp_per_rate.value
    if name == "timeseries" and workload.engine != "blocks":
        cores += workload.rate * costs.engines[workload.engine].encode_per_rate.value
    servers = min(workload.servers, INVENTORY_COPY) if name == "metadata" else workload.servers
    return (
        cores + workload.series * unit.cores_per_series.value + servers * unit.cores_per_server.value,
        workload.series * unit.memory_per_series.value + servers * unit.memory_per_server.value,
    )


def _room(name: str, limit: float, base: float) -> float:
    if base >= limit:
        raise invalid("machine", f"is too small for {name}, which takes more than may be used when it is idle")
    return limit - base


# ── disk and network ───────────────────────────────────────────────────────────────────────────────────────────────


def _tiers(workload: Workload, costs: UnitCosts) -> Iterator[Tier]:
    for name in RETENTION:
        kept = workload.kept(name)
        # A series that is sampled less often than a bucket is wide has no more buckets than samples.
        spacing = max(WIDTHS.get(name, workload.interval), workload.interval)
        rows = workload.series * (kept / spacing)
        size = frame_bytes(workload, costs) if name == LOG else costs.row_bytes[name].value
        yield Tier(name=name, retention=kept, rows=rows, disk_bytes=rows * size)


def frame_bytes(workload: Workload, costs: UnitCosts = MEASURED) -> float:
    """Return the bytes of a sample in a frame: its double, and its share of the names."""
    servers = 1 if workload.by_otlp else min(workload.servers, max(1, FRAME_BYTES // (8 * workload.metrics)))
    names = servers * costs.server_bytes.value + workload.metrics * costs.metric_bytes.value
    return 8 + names / (servers * workload.metrics)


def _flows(workload: Workload, costs: UnitCosts) -> Iterator[Flow]:
    frames, hot = workload.rate * frame_bytes(workload, costs), workload.rate * costs.hot_bytes.value
    sent = workload.rate * costs.otlp_bytes.value if workload.by_otlp else frames
    yield Flow(source="producers", target="gateway", bytes_per_second=sent)
    yield Flow(source="gateway", target="timeseries", bytes_per_second=frames)
    yield Flow(source="timeseries", target="cache", bytes_per_second=frames)
    yield Flow(source="timeseries", target="analysis", bytes_per_second=frames)
    yield Flow(source="cache", target="redis", bytes_per_second=hot)
    yield Flow(source="cache", target="gateway", bytes_per_second=hot)
    if workload.engine != "blocks":
        lines = workload.rate * costs.engines[workload.engine].line_bytes.value
        yield Flow(source="timeseries", target=workload.engine, bytes_per_second=lines)


# ── machines ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _machines(parts: Sequence[Part], machine: Machine, usable: float) -> tuple[int, str]:
    """Return how many machines there have to be, and what decides it: sums do, as headroom leaves room to pack."""
    shares = {
        "cores": _known(part.cores for part in parts) / machine.cores,
        "memory": _known(part.memory_bytes for part in parts) / machine.memory_bytes,
        "disk": _known(part.disk_bytes for part in parts) / machine.disk_bytes,
    }
    limit = max(shares, key=shares.__getitem__)
    return max(1, math.ceil(shares[limit] / usable)), limit


def _settings(workload: Workload, shards: int, log: Tier) -> Iterator[tuple[str, int]]:
    if (series := math.ceil(workload.series / shards)) > MAX_SERIES:
        yield "timeseries.max_series", series
    if (size := math.ceil(log.disk_bytes / shards)) > LOG_MAX_SIZE:
        yield "timeseries.log_max_size", size


def _known(values: Iterator[float]) -> float:
    return sum(value for value in values if not math.isnan(value))
