"""Exports: the rows of a selection as small Parquet files, one after the other, in an order that can be resumed.

Rows come by metric, server and time. As many series are read at a time as fit in memory, by what the files say of
themselves, and a series that does not is read in parts.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openmanager import page
from openmanager.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    Reason,
    UnavailableError,
    invalid,
)
from openmanager.rollup import COLUMNS
from openmanager_timeseries import selection, span
from openmanager_timeseries.history import History
from openmanager_timeseries.planner import DAMAGED, DAMAGED_TIER, KEPT_SHORTER, TOO_OLD
from openmanager_timeseries.query import BUDGET_SECONDS, EARLIEST_NANOS, LATEST_NANOS, RangeQuery
from openmanager_timeseries.samples import Floats, Ints
from openmanager_timeseries.sealed import KEY_FIELDS, Sealed
from openmanager_timeseries.span import Span
from openmanager_timeseries.tier import RAW

CHUNK_BYTES = 3 << 20
# Rows of a chunk, at most: of raw samples, and of buckets, whose columns are seven.
CHUNK_ROWS = {True: 200_000, False: 40_000}
# Rows that are held at once, about: some 200 MB with all that is made of them. And rows that are decoded for them.
READ_ROWS = {True: 2_000_000, False: 1_000_000}
DECODE_ROWS = 100_000_000
MAX_SERIES = 10_000
_NANOS_PER_MILLI = 1_000_000
_TIME = KEY_FIELDS[2].type
_NOT_COMPUTED = "the newest buckets, or some that late samples have touched, are not computed yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is exported: [start, end) nanoseconds of a tier; `open_end` when the end is only when it was asked for."""

    servers: tuple[str, ...]
    server_filter: str
    metrics: tuple[str, ...]
    start: int
    end: int
    tier: str
    open_end: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A whole Parquet file with the next rows, where to go on after it, and how many series are complete with it."""

    parquet: bytes
    rows: int
    token: str
    done_series: int


@dataclass(frozen=True, slots=True)
class _Place:
    """A row: metric, server, time in milliseconds; and the end of the range that it was exported from."""

    metric: str
    server: str
    millis: int
    end: int


@dataclass(frozen=True, slots=True)
class _Unit:
    """Series [first, last) that are read together, each in the parts of the range."""

    first: int
    last: int
    parts: Sequence[Span]
    # One series alone: its parts need not be held together.
    alone: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Rows by series and time: `series` int64[K], numbers in the export, `times` int64[K] and columns float64[K]."""

    series: Ints
    times: Ints
    columns: Mapping[str, Floats]

    def __len__(self) -> int:
        return len(self.series)

    def take(self, at: Ints | slice) -> _Rows:
        return _Rows(self.series[at], self.times[at], {name: column[at] for name, column in self.columns.items()})


class Export:
    """One export. InvalidArgumentError, naming the field, when it cannot be made."""

    def __init__(self, history: History, asked: Asked, token: str) -> None:
        self._history = history
        self._tiers = {files.tier.name: files for files in history.roller.tiers}
        if asked.tier != RAW and asked.tier not in self._tiers:
            raise invalid("tier", f"must be one of {', '.join([RAW, *self._tiers])}")
        end = () if asked.open_end else (asked.end,)
        self._key = (asked.servers, asked.server_filter, asked.metrics, asked.start, *end, asked.tier)
        self._after = _place(self._key, token)
        if self._after is not None and asked.open_end:
            if self._after.end <= asked.start:
                raise _invalid_token()
            asked = replace(asked, end=self._after.end)  # an export has one end, however often it is resumed
        self._asked = asked
        self._is_raw = asked.tier == RAW
        self._chunk_rows = CHUNK_ROWS[self._is_raw]
        chosen = history.catalog.select(asked.servers, asked.server_filter, asked.metrics)
        servers, metrics = history.catalog.names(chosen.ids)
        order = (
            np.lexsort((np.asarray(servers, object), np.asarray(metrics, object))) if len(chosen.ids) else chosen.ids
        )
        self._ids = chosen.ids[order]
        self._names = [(metrics[at], servers[at]) for at in order.tolist()]
        self.partial_reason = self._missing()

    @property
    def series_count(self) -> int:
        """How many series were chosen."""
        return len(self._ids)

    def _missing(self) -> str:
        """Return why something is missing from the export; empty when nothing is."""
        history, asked = self._history, self._asked
        some, whole = history.retention.kept_of(
            asked.tier, history.clock.now_nanos(), selection.of_series(history.catalog, self._ids)
        )
        if history.blocks.quarantined and self._is_raw:
            return DAMAGED
        if not self._is_raw and self._tiers[asked.tier].buckets.quarantined:
            return DAMAGED_TIER
        if asked.start < whole:
            return TOO_OLD if asked.start < some else KEPT_SHORTER
        return "" if self._is_raw else self._not_computed()

    def _not_computed(self) -> str:
        roller, head, asked = self._history.roller, self._history.head, self._asked
        at = [files.tier.name for files in roller.tiers].index(asked.tier)
        fresh = (part for each in head.generations if not each.sealed for part in each.spans)
        dirty = span.outward(span.union((*roller.dirty(at), *fresh)), roller.tiers[at].tier.width)
        return _NOT_COMPUTED if span.clip(dirty, asked.start, asked.end) else ""

    # ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def chunks(self) -> AsyncIterator[Chunk]:
        """Yield the rows; UnavailableError when a file turns out to be damaged: what is left is there to be resumed."""
        last: Chunk | None = None
        for unit in self._units(await asyncio.to_thread(self._estimate)):
            for parts in [(part,) for part in unit.parts] if unit.alone else [unit.parts]:
                rows = await self._read(unit, parts)
                async for chunk in self._chunks(rows):
                    if last is not None:
                        yield last
                    last = chunk
            if last is not None:  # series without rows are complete too
                last = replace(last, done_series=unit.last)
        if last is not None:
            yield last

    def _estimate(self) -> tuple[Counter[str], Span]:
        """Return how many rows each metric has in the range, about, and from when to when there are some (blocking)."""
        asked = self._asked
        store = self._history.blocks if self._is_raw else self._tiers[asked.tier].buckets
        found: Counter[str] = Counter()
        low, high = asked.end, asked.start
        for file in store.files:
            if file.about.row_count and file.meets(asked.start, asked.end):
                low, high = min(low, file.about.min_time), max(high, file.about.max_time + 1)
                found.update(_rows_by_metric(file, asked.start, asked.end))
        metrics = self._history.catalog.metrics
        for generation in tuple(self._history.head.generations) if self._is_raw else ():
            if generation.sealed or generation.max_time < asked.start or generation.min_time >= asked.end:
                continue
            low, high = min(low, generation.min_time), max(high, generation.max_time + 1)
            for chunk in tuple(generation.chunks):
                rows = chunk.count * len(chunk.layout.servers)
                found.update({metrics[at]: rows for at in chunk.layout.metrics.tolist()})
        if self._is_raw and self._history.engine is not None:  # it may have more
            low, high = asked.start, asked.end
        return found, (max(low, asked.start), min(high, asked.end))

    def _units(self, estimate: tuple[Counter[str], Span]) -> Iterator[_Unit]:
        """Yield what is read together, from where the export goes on."""
        rows_of, within = estimate
        catalog, after = self._history.catalog, self._after
        living = catalog.select((), "", ()).ids
        series_of = np.bincount(catalog.metric_of(living), minlength=len(catalog.metrics))
        at = 0 if after is None else sum(name < (after.metric, after.server) for name in self._names)
        if after is not None and at < len(self._names) and self._names[at] == (after.metric, after.server):
            rest = max(within[0], (after.millis + 1) * _NANOS_PER_MILLI), within[1]
            metric = int(catalog.metric_of(self._ids[at : at + 1])[0])
            yield self._unit(
                at, at + 1, rows_of[after.metric], rows_of[after.metric] // max(1, series_of[metric]), rest
            )
            at += 1
        limit = min(MAX_SERIES, self._history.config.max_query_series)
        first, held, decoded = at, 0, 0
        numbers = catalog.metric_of(self._ids)
        for index in range(at, len(self._names)):
            metric = self._names[index][0]
            rows = int(rows_of[metric] // max(1, series_of[numbers[index]]))
            more = rows_of[metric] if index == first or self._names[index - 1][0] != metric else 0
            if index > first and (
                held + rows > READ_ROWS[self._is_raw] or decoded + more > DECODE_ROWS or index - first >= limit
            ):
                yield self._unit(first, index, decoded, held, within)
                first, held, decoded, more = index, 0, 0, rows_of[metric]
            held, decoded = held + rows, decoded + more
        if first < len(self._names):
            yield self._unit(first, len(self._names), decoded, held, within)

    def _unit(self, first: int, last: int, decoded: int, held: int, within: Span) -> _Unit:
        alone = last - first == 1
        count = max(1, -(-decoded // DECODE_ROWS), -(-held // READ_ROWS[self._is_raw]) if alone else 1)
        start, end = within
        if end <= start:
            return _Unit(first, last, (), alone)
        count = min(count, end - start)
        edges = [start + (end - start) * at // count for at in range(count + 1)]
        return _Unit(first, last, tuple(pairwise(edges)), alone)

    async def _read(self, unit: _Unit, parts: Sequence[Span]) -> _Rows:
        ids = self._ids[unit.first : unit.last]
        found = [await self._read_part(ids, *part) for part in parts]
        names = COLUMNS if not self._is_raw else ("value",)
        rows = _Rows(
            np.concatenate([each.series for each in found]) + unit.first if found else np.empty(0, np.int64),
            np.concatenate([each.times for each in found]) if found else np.empty(0, np.int64),
            {name: np.concatenate([each.columns[name] for each in found]) if found else np.empty(0) for name in names},
        )
        return rows if len(found) < 2 else rows.take(np.argsort(rows.series, kind="stable"))

    async def _read_part(self, ids: Ints, start: int, end: int) -> _Rows:
        try:
            return await (self._samples if self._is_raw else self._buckets)(ids, start, end)
        except DeadlineExceededError:
            if end - start < 2 * _NANOS_PER_MILLI:
                raise
        middle = (start + end) // 2
        some, others = await self._read_part(ids, start, middle), await self._read_part(ids, middle, end)
        rows = _Rows(
            np.concatenate([some.series, others.series]),
            np.concatenate([some.times, others.times]),
            {name: np.concatenate([column, others.columns[name]]) for name, column in some.columns.items()},
        )
        return rows.take(np.argsort(rows.series, kind="stable"))

    async def _samples(self, ids: Ints, start: int, end: int) -> _Rows:
        query = RangeQuery(
            servers=(),
            server_filter="",
            metrics=(),
            start=start,
            end=end,
            step=0,
            aggregation="MEAN",
            group_by="SERVER",
        )
        history = self._history
        try:
            answer = await history.query_range(query, BUDGET_SECONDS, selection.of_series(history.catalog, ids))
        except FailedPreconditionError:  # none of it is kept any more, as the header says
            return _Rows(np.empty(0, np.int64), np.empty(0, np.int64), {"value": np.empty(0)})
        if answer.partial_reason == DAMAGED != self.partial_reason:
            raise _damaged()
        assert answer.raw is not None  # noqa: S101  (that is what a query without a step answers)
        return _Rows(answer.raw.rows, answer.raw.times, {"value": answer.raw.values})

    async def _buckets(self, ids: Ints, start: int, end: int) -> _Rows:
        history, files = self._history, self._tiers[self._asked.tier]
        damages = files.buckets.damages
        cells = await history.read_buckets(files, selection.of_series(history.catalog, ids), start, end, BUDGET_SECONDS)
        if files.buckets.damages != damages and self.partial_reason != DAMAGED_TIER:
            raise _damaged()
        return _Rows(cells.rows, cells.times, {name: cells.columns[name] for name in COLUMNS})

    # ── writing ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _chunks(self, rows: _Rows) -> AsyncIterator[Chunk]:
        first = 0
        while first < len(rows):
            some = rows.take(slice(first, first + self._chunk_rows))
            chunk = await asyncio.to_thread(self._chunk, some)
            if len(chunk.parquet) > CHUNK_BYTES and len(some) > 1:
                self._chunk_rows = max(1, min(len(some) // 2, len(some) * CHUNK_BYTES // (len(chunk.parquet) + 1)))
                continue
            yield chunk
            first += len(some)

    def _chunk(self, rows: _Rows) -> Chunk:
        """Return rows as a chunk (blocking)."""
        sink = pa.BufferOutputStream()
        pq.write_table(self._table(rows), sink, compression="zstd")
        last = int(rows.series[-1])
        place = [*self._names[last], str(int(rows.times[-1]) // _NANOS_PER_MILLI), str(self._asked.end)]
        return Chunk(
            parquet=sink.getvalue().to_pybytes(),
            rows=len(rows),
            token=page.encode_token(self._key, place),
            done_series=last,
        )

    def _table(self, rows: _Rows) -> pa.Table:
        """Return rows as a table, with the names that they have."""
        series, codes = np.unique(rows.series, return_inverse=True)
        names = [self._names[at] for at in series.tolist()]
        arrays = {
            "metric": _named([metric for metric, _ in names], codes),
            "server": _named([server for _, server in names], codes),
            "time": pa.array(rows.times // _NANOS_PER_MILLI).cast(_TIME),
            **{
                name: pa.array(column, from_pandas=name in {"first", "growth"}) for name, column in rows.columns.items()
            },
        }
        if "count" in arrays:
            arrays["count"] = arrays["count"].cast(pa.int64())
        return pa.table(arrays)


def _rows_by_metric(file: Sealed, start: int, end: int) -> Counter[str]:
    """Return how many rows of a file each metric has in [start, end), about."""
    found: Counter[str] = Counter()
    length = span.length(file.spans)
    share = span.length(span.clip(file.spans, start, end)) / length if length else 0.0
    for index, keys in enumerate(file.groups):
        rows = int(file.metadata.row_group(index).num_rows * share)
        for key in keys:
            found[key] += -(-rows // len(keys))
    return found


def _place(key: tuple[object, ...], token: str) -> _Place | None:
    try:
        after = page.decode_token(key, token, parts=4)
    except InvalidArgumentError as err:
        raise _invalid_token() from err
    if after is None:
        return None
    metric, server, *numbers = after
    if not all(each.isascii() and each.removeprefix("-").isdigit() and len(each) <= 20 for each in numbers):
        raise _invalid_token()
    millis, end = map(int, numbers)
    if not (EARLIEST_NANOS <= millis * _NANOS_PER_MILLI <= LATEST_NANOS and EARLIEST_NANOS <= end <= LATEST_NANOS):
        raise _invalid_token()
    return _Place(metric, server, millis, end)


def _invalid_token() -> InvalidArgumentError:
    return InvalidArgumentError("invalid page token", reason=Reason.INVALID_PAGE_TOKEN, field="resume_token")


def _damaged() -> UnavailableError:
    return UnavailableError(
        "a damaged file was found and set aside: go on with the last resume_token", reason=Reason.DAMAGED
    )


def _named(names: Sequence[str], codes: Ints) -> pa.DictionaryArray:
    """Return the name of each row, each name once in the dictionary."""
    distinct = sorted(set(names))
    place = {name: at for at, name in enumerate(distinct)}
    places = np.asarray([place[name] for name in names], np.int32)
    return pa.DictionaryArray.from_arrays(places[codes], pa.array(distinct, pa.string()))
