"""What the client gives and takes: plain dataclasses, aware datetimes in UTC, numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from openmanager.client.enumeration import FaultPattern, MetricKind, ServerState, StorageState, WatchKind
from openmanager.frame import Frame, MetricInfo

if TYPE_CHECKING:
    import pyarrow as pa

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def _no_floats() -> Floats:
    return np.empty(0, np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of a range, [start, end), that one tier of one store answered."""

    source: str
    tier: str
    start_time: datetime | None
    end_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where an answer came from and how far it can be trusted.

    `resolution` is the width of the coarsest buckets that were read, None for raw samples alone; what lies in none of
    `segments` is not kept any more; `rank_error` is the largest error of a percentile's rank, 0 where it is exact.
    """

    source: str = ""
    tier: str = ""
    as_of: datetime | None = None
    staleness: timedelta = timedelta()
    degraded: bool = False
    partial: bool = False
    reason: str = ""
    resolution: timedelta | None = None
    segments: tuple[Segment, ...] = ()
    rank_error: float = 0.0


# ── servers ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server as it is now.

    Usage in percent, None when it never came. `metrics` and `values` (float64[M], NaN where there is none) only in the
    full view.
    """

    id: str
    hostname: str = ""
    environment: str = ""
    role: str = ""
    location: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    state: ServerState | None = None
    state_reason: str = ""
    cpu_usage: float | None = None
    memory_usage: float | None = None
    disk_usage: float | None = None
    sample_time: datetime | None = None
    state_since: datetime | None = None
    interval: timedelta | None = None
    metric_count: int = 0
    metrics: tuple[str, ...] = ()
    values: Floats = field(default_factory=_no_floats, compare=False)
    provenance: Provenance = field(default_factory=Provenance, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerEvent:
    """One event of a watch over servers.

    `reset` says that the watch begins anew: what was known before is void, a snapshot follows.
    """

    kind: WatchKind
    reset: bool
    servers: tuple[Server, ...]
    deleted_ids: tuple[str, ...]
    provenance: Provenance
    resume_token: str

    def apply(self, servers: dict[str, Server]) -> None:
        """Bring a mapping from id to server up to date with this event."""
        if self.reset:
            servers.clear()
        servers.update((server.id, server) for server in self.servers)
        for server_id in self.deleted_ids:
            servers.pop(server_id, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSummary:
    """Counts for one environment or role; usage in percent."""

    name: str
    total: int
    healthy: int
    warning: int
    critical: int
    offline: int
    mean_cpu_usage: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSummary:
    """Counts and means over the fleet; usage in percent."""

    total: int
    healthy: int
    warning: int
    critical: int
    offline: int
    series_count: int
    mean_cpu_usage: float
    mean_memory_usage: float
    mean_disk_usage: float
    environments: tuple[GroupSummary, ...]
    roles: tuple[GroupSummary, ...]
    provenance: Provenance


# ── writing and history ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Samples of a frame that were refused while the rest was accepted."""

    server: str
    metric: str
    reason: str
    sample_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteAck:
    """The acknowledgement of one frame: it is on disk."""

    position: int
    accepted_sample_count: int
    rejected_sample_count: int
    rejections: tuple[Rejection, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesName:
    """Whose values these are: a server's metric, or that of a group."""

    server: str
    metric: str
    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Raw samples of one series, in time order: `times` int64[K] nanoseconds since the epoch, `values` float64[K]."""

    times: Ints
    values: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnswerPart:
    """One series of an answer, or the next part of a long raw one: `times` int64[K], `values` float64[K]."""

    name: SeriesName
    times: Ints
    values: Floats
    provenance: Provenance


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RangeResult:
    """The answer to a range query over N series.

    For buckets `times` is int64[B], their starts in nanoseconds since the epoch, and `values` float64[N, B], NaN where
    a bucket has no sample. For raw samples both are empty and `raw` holds one entry for each series.
    """

    series: tuple[SeriesName, ...]
    times: Ints
    values: Floats
    raw: tuple[Samples, ...]
    provenance: Provenance


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Latest:
    """The newest sample of each chosen series, as frames of one time each; `position` is where the log stood.

    Where history has several shards `resume_token` says that instead.
    """

    frames: tuple[Frame, ...]
    position: int
    provenance: Provenance
    resume_token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesInfo:
    """A series that exists."""

    server: str
    metric: str
    info: MetricInfo
    last_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LogRecord:
    """A frame as it stands in the log, of a `shard` where history has several; a watch goes on after `resume_token` then."""

    position: int
    frame: Frame
    receive_time: datetime | None
    trace_parent: str
    resume_token: str = ""
    shard: int = 0


# ── moving and keeping history ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExportChunk:
    """Some rows of an export: a whole Parquet file.

    `series_count` is how many series were chosen, `done_series_count` how many of them are whole with this chunk; after
    `resume_token` an export goes on.
    """

    parquet: bytes = field(repr=False)
    row_count: int
    resume_token: str
    done_series_count: int
    series_count: int
    provenance: Provenance

    def table(self) -> pa.Table:
        """Return the rows: `metric`, `server`, `time`, and `value` or the columns of a rollup tier."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        return pq.read_table(pa.BufferReader(self.parquet))


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """What was deleted, or would be."""

    series_count: int
    sample_count: int
    bucket_count: int
    freed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RollupAck:
    """How many buckets of one frame were taken, and how many not."""

    accepted_bucket_count: int
    rejected_bucket_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Chooses series: metric keys, names or globs, of server ids and of a filter on servers; empty chooses all."""

    metrics: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    where: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionRule:
    """How long some series are kept in a tier: `raw`, the name of a rollup tier, or empty for every tier."""

    retention: timedelta
    tier: str = ""
    selector: Selector = Selector()


@dataclass(frozen=True, slots=True, kw_only=True)
class LegalHold:
    """Series that must not be deleted in [start, end); None is open."""

    name: str
    selector: Selector = Selector()
    start_time: datetime | None = None
    end_time: datetime | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """What is kept how long: of the rules that match a series in a tier the last one counts.

    An `etag` makes an update conditional; `update_time` is set by the service.
    """

    rules: tuple[RetentionRule, ...] = ()
    holds: tuple[LegalHold, ...] = ()
    etag: str = ""
    update_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A tier of history: `raw`, which has no resolution, or buckets of a width.

    Rows are samples or buckets, times None while there are none; `waiting_bucket_count` is 0 when it is up to date.
    """

    name: str
    resolution: timedelta | None
    retention: timedelta
    oldest_time: datetime | None
    newest_time: datetime | None
    row_count: int
    file_count: int
    size_bytes: int
    waiting_bucket_count: int
    deleted_row_count: int
    freed_bytes: int
    damaged_file_count: int
    sketch_metrics: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskBudget:
    """How much disk history may take and does; `full_time` is when it will be used up, as far as that is known."""

    limit_bytes: int
    used_bytes: int
    full_time: datetime | None
    plan: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiers:
    """The tiers, the finest first, and the disk they take."""

    tiers: tuple[Tier, ...]
    disk: DiskBudget


# ── status ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageStatus:
    """A store as its service sees it."""

    name: str
    role: str
    engine: str
    state: StorageState | None
    version: str
    latency: timedelta
    reason: str
    since: datetime | None
    size_bytes: int
    item_count: int
    warnings: tuple[str, ...]
    hit_count: int
    miss_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """One server process and its stores."""

    service: str
    address: str
    state: StorageState | None
    version: str
    start_time: datetime | None
    storages: tuple[StorageStatus, ...]
    reason: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """A reader of the log and what became of the samples it has to read."""

    name: str
    position: int
    delivered: int
    waiting: int
    dead_lettered: int
    resynced: int
    damaged: int
    lag: timedelta
    # How it is, why and since when; None for a reader in another process.
    state: StorageState | None = None
    reason: str = ""
    since_time: datetime | None = None

    @property
    def accounted(self) -> int:
        """The samples that are accounted for: all that were ever accepted, if the books balance."""
        return self.delivered + self.waiting + self.dead_lettered + self.resynced + self.damaged


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The books of the log."""

    accepted_sample_count: int
    head_position: int
    consumers: tuple[Consumer, ...]

    @property
    def balanced(self) -> bool:
        """Whether every accepted sample is accounted for, for every consumer."""
        return all(consumer.accounted == self.accepted_sample_count for consumer in self.consumers)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """Samples of some servers from `start_time` to `end_time` that a consumer refused for one reason."""

    id: str
    consumer: str
    reason: str
    sample_count: int
    # At most 100 of them.
    servers: tuple[str, ...]
    start_time: datetime | None
    end_time: datetime | None
    first_position: int
    last_position: int
    create_time: datetime | None
    update_time: datetime | None
    retry_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """The state of every service and store; `ledger` is None while timeseries cannot be reached."""

    overall_state: StorageState | None
    services: tuple[ServiceStatus, ...]
    ledger: Ledger | None
    observe_time: datetime | None


# ── inventory, simulation, entries ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """At which use, in percent, a server is in WARNING or CRITICAL; None follows the role and then the defaults."""

    cpu_warning: float | None = None
    cpu_critical: float | None = None
    memory_warning: float | None = None
    memory_critical: float | None = None
    disk_warning: float | None = None
    disk_critical: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryServer:
    """A server of the inventory; the fields from `etag` on are set by the service."""

    id: str
    hostname: str = ""
    environment: str = ""
    role: str = ""
    location: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    thresholds: Thresholds = field(default_factory=Thresholds)
    etag: str = ""
    create_time: datetime | None = None
    update_time: datetime | None = None
    delete_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """The simulation as it is."""

    running: bool
    server_count: int
    metric_count: int
    interval: timedelta
    seed: int
    tick_count: int
    last_tick_time: datetime | None
    buffered_frame_count: int
    dropped_frame_count: int
    acknowledged_sample_count: int
    last_error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric of the simulator's catalogue; None bounds are open."""

    key: str
    unit: str
    kind: MetricKind
    description: str
    minimum: float | None
    maximum: float | None
    resolution: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault as it was injected."""

    id: str
    pattern: FaultPattern
    servers: tuple[str, ...]
    start_time: datetime | None
    end_time: datetime | None
    severity: float
    seed: int
    root: str
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Something stored for a while; `value` is empty in the answer to a write, `expire_time` None in that to a read."""

    namespace: str
    key: str
    value: bytes
    expire_time: datetime | None
