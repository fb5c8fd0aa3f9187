"""Queries over head and blocks: what is asked, what is read, what is computed.

A query is planned on the event loop, where nothing can change under it, and computed in a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from openmanager.api.frame.v1 import frame_pb2
from openmanager.errors import (
    CancelledCallError,
    DeadlineExceededError,
    OutOfRangeError,
    Reason,
    ResourceExhaustedError,
    invalid,
)
from openmanager.frame import NANOS_PER_MILLI
from openmanager.runtime.clock import Clock
from openmanager_timeseries import aggregate as buckets
from openmanager_timeseries import block
from openmanager_timeseries import head as recent
from openmanager_timeseries.catalog import Catalog, Selection
from openmanager_timeseries.head import Generation, Head
from openmanager_timeseries.samples import Floats, Ints, Long, Piece, Ragged, merge
from openmanager_timeseries.sealed import Sealed
from openmanager_timeseries.sealed_store import SealedStore

BUDGET_SECONDS = 30.0
# How far before the range a counter's sample before is looked for, at least.
LOOKBACK_NANOS = 300 * 10**9
EARLIEST_NANOS = -9_214_560_000 * 10**9  # 1678-01-01, inside int64 nanoseconds
DAMAGED = "a block is damaged and was set aside"
LATEST_NANOS = 9_214_646_400 * 10**9  # 2262-01-01


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeQuery:
    """What is asked: times and step in nanoseconds, step 0 for raw samples, names as in the contract."""

    servers: Sequence[str]
    server_filter: str
    metrics: Sequence[str]
    start: int
    end: int
    step: int
    aggregation: str
    group_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesName:
    """Whose values these are."""

    server: str
    metric: str
    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer: `starts` and `values` float64[N, B] for buckets, `raw` for raw samples; `names` for each row."""

    names: Sequence[SeriesName]
    source: str
    partial_reason: str
    starts: Ints
    values: Floats | None
    raw: Ragged | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    query: RangeQuery
    selection: Selection
    generations: tuple[Generation, ...]
    blocks: tuple[Sealed, ...]
    partial_reason: str


class Stop:
    """Tells a computation in a thread that nobody waits for it any more."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._end = clock.monotonic() + seconds
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Give up."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise when the answer is no longer wanted."""
        if self._cancelled.is_set():
            raise CancelledCallError("the query was cancelled")
        if self._clock.monotonic() > self._end:
            raise DeadlineExceededError("the query took longer than it may; ask for less")


class Planner:
    """Checks a query and decides what to read for it."""

    def __init__(self, *, catalog: Catalog, head: Head, blocks: SealedStore, clock: Clock, limits: Limits) -> None:
        self._catalog = catalog
        self._head = head
        self._blocks = blocks
        self._clock = clock
        self._limits = limits

    def plan(self, query: RangeQuery) -> _Plan:
        """Return what a query reads; InvalidArgumentError, OutOfRangeError or ResourceExhaustedError when it may not."""
        self._check(query)
        selection = self._catalog.select(query.servers, query.server_filter, query.metrics)
        if len(selection.ids) > self._limits.max_series:
            raise ResourceExhaustedError(
                f"the selector chooses {len(selection.ids)} series; at most {self._limits.max_series} can be answered",
                reason=Reason.TOO_MANY_SERIES,
            )
        oldest = self._clock.now_nanos() - self._limits.raw_retention_nanos
        reason = ""
        if query.start < oldest and len(selection.ids):
            reason = "raw samples are kept for a limited time, and the range begins before it"
        if self._blocks.quarantined:
            reason = DAMAGED
        begin = query.start - _lookback(query)
        return _Plan(
            query=query,
            selection=selection,
            generations=tuple(self._head.generations),
            blocks=tuple(
                file
                for file in self._blocks.files
                if file.about.first < self._head.first_position and file.meets(begin, query.end)
            ),
            partial_reason=reason,
        )

    def _check(self, query: RangeQuery) -> None:
        for name, time in (("start_time", query.start), ("end_time", query.end)):
            if not EARLIEST_NANOS <= time <= LATEST_NANOS:
                raise OutOfRangeError(f"{name} is outside the years 1678–2262", field=name)
        if query.end <= query.start:
            raise invalid("end_time", "must be after start_time")
        if query.step < 0 or query.step % NANOS_PER_MILLI:
            raise invalid("step", "must be a whole number of milliseconds, not negative")
        if query.step == 0 and query.group_by != "SERVER":
            raise invalid("group_by", "needs a step")
        if query.step:
            count = (query.end - query.start) // query.step + 1
            if count > self._limits.max_buckets:
                raise ResourceExhaustedError(
                    f"the range has {count} buckets; at most {self._limits.max_buckets} can be answered: widen the step",
                    reason=Reason.TOO_MANY_BUCKETS,
                )

    def compute(self, plan: _Plan, stop: Stop) -> Answer:
        """Return the answer to a plan (in a thread)."""
        damaged = len(self._blocks.quarantined)
        read = list(self._read(plan, stop))
        if len(self._blocks.quarantined) > damaged:
            plan = replace(plan, partial_reason=DAMAGED)
        samples = merge(len(plan.selection.ids), read)
        source = "+".join(
            name
            for name, used in (("head", any(isinstance(p, Piece) for p in read)), ("blocks", bool(plan.blocks)))
            if used
        )
        stop.check()
        if plan.query.step == 0:
            return self._answer(plan, source or "head", raw=samples)
        return self._bucketed(plan, source or "head", samples)

    def _read(self, plan: _Plan, stop: Stop) -> Iterator[Piece | Long]:
        begin, end = plan.query.start - _lookback(plan.query), plan.query.end
        for file in plan.blocks:
            for found in self._blocks.read(file, plan.selection, begin, end, block.FORMAT.names, stop.check):
                yield block.samples(file, found)
        yield from recent.pieces(plan.generations, plan.selection, begin, end)

    def _answer(self, plan: _Plan, source: str, raw: Ragged) -> Answer:
        return Answer(
            names=[self._name(series) for series in plan.selection.ids.tolist()],
            source=source,
            partial_reason=plan.partial_reason,
            starts=np.empty(0, np.int64),
            values=None,
            raw=raw,
        )

    def _name(self, series: int) -> SeriesName:
        ids = np.asarray([series])
        return SeriesName(
            server=self._catalog.servers[int(self._catalog.server_of(ids)[0])],
            metric=self._catalog.metrics[int(self._catalog.metric_of(ids)[0])],
        )

    def _bucketed(self, plan: _Plan, source: str, samples: Ragged) -> Answer:
        query, ids = plan.query, plan.selection.ids
        starts = buckets.bucket_starts(query.start, query.end, query.step)
        names, groups = self._groups(ids, query.group_by)
        is_delta = {
            key: self._catalog.metric_info(key).temporality == frame_pb2.TEMPORALITY_DELTA
            for key in {self._catalog.metrics[m] for m in self._catalog.metric_of(ids).tolist()}
        }
        delta = np.asarray(
            [is_delta[self._catalog.metrics[m]] for m in self._catalog.metric_of(ids).tolist()], np.bool_
        )
        values = buckets.aggregate(
            _clip(samples, query), query.aggregation, starts=starts, step=query.step, groups=groups, delta=delta
        )
        return Answer(
            names=names, source=source, partial_reason=plan.partial_reason, starts=starts, values=values, raw=None
        )

    def _groups(self, ids: Ints, group_by: str) -> tuple[list[SeriesName], Ints]:
        """Return the name of every group and the group of every series, groups sorted by name and metric."""
        servers = [self._catalog.servers[index] for index in self._catalog.server_of(ids).tolist()]
        metrics = [self._catalog.metrics[index] for index in self._catalog.metric_of(ids).tolist()]
        if group_by == "SERVER":
            pairs = zip(servers, metrics, strict=True)
            return [SeriesName(server=s, metric=m) for s, m in pairs], np.arange(len(ids))
        of_server = {server: self._group_of(server, group_by) for server in set(servers)}
        keys = [(of_server[server], metric) for server, metric in zip(servers, metrics, strict=True)]
        ordered = sorted(set(keys))
        index = {key: at for at, key in enumerate(ordered)}
        names = [SeriesName(server="", metric=metric, group=group) for group, metric in ordered]
        return names, np.asarray([index[key] for key in keys], np.int64)

    def _group_of(self, server: str, group_by: str) -> str:
        info = self._catalog.infos.get(server)
        if group_by == "ALL":
            return "all"
        return (info.role if group_by == "ROLE" else info.environment) if info else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one query may ask for."""

    max_series: int
    max_buckets: int
    raw_retention_nanos: int


def _lookback(query: RangeQuery) -> int:
    return max(LOOKBACK_NANOS, query.step) if query.step and query.aggregation in {"RATE", "INCREASE"} else 0


def _clip(samples: Ragged, query: RangeQuery) -> Ragged:
    """Leave out what is before the range although its first bucket covers it; growth still needs the sample before."""
    if query.aggregation in {"RATE", "INCREASE"} or query.start % query.step == 0:
        return samples
    keep = samples.times >= query.start
    kept = np.concatenate(([0], np.cumsum(keep)))
    return Ragged(kept[samples.offsets], samples.times[keep], samples.values[keep])
