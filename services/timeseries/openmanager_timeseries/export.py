"""Exports: the rows of a selection as small Parquet files, one after the other, in an order that can be resumed.

Rows come by metric, server and time. A few series are read at a time, so that memory stays bounded whatever is asked for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from openmanager import page
from openmanager.errors import InvalidArgumentError, invalid
from openmanager.rollup import COLUMNS
from openmanager_timeseries.catalog import Selection
from openmanager_timeseries.history import History
from openmanager_timeseries.query import BUDGET_SECONDS, RangeQuery
from openmanager_timeseries.samples import Floats, Ints
from openmanager_timeseries.sealed import KEY_FIELDS
from openmanager_timeseries.tier import RAW

# Rows of a chunk, at most. Not even random doubles make more than 3 MiB of them, with seven columns a fifth as many.
CHUNK_ROWS = {True: 200_000, False: 40_000}  # of raw samples, of buckets
# Rows that are read at once, about.
READ_ROWS = 2_000_000
FIRST_SERIES, MAX_SERIES = 32, 10_000
_NANOS_PER_MILLI = 1_000_000
_TIME = KEY_FIELDS[2].type


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is exported: [start, end) nanoseconds of a tier."""

    servers: tuple[str, ...]
    server_filter: str
    metrics: tuple[str, ...]
    start: int
    end: int
    tier: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A whole Parquet file with the next rows, where to go on after it, and how many series are complete with it."""

    parquet: bytes
    rows: int
    token: str
    done_series: int


@dataclass(frozen=True, slots=True)
class _Place:
    """A row: metric, server, time in milliseconds."""

    metric: str
    server: str
    millis: int


class Export:
    """One export. InvalidArgumentError, naming the field, when it cannot be made."""

    def __init__(self, history: History, asked: Asked, token: str) -> None:
        self._history = history
        self._asked = asked
        # An end that was not given moves with the clock; the token is bound to what was.
        self._key = (asked.servers, asked.server_filter, asked.metrics, asked.start, asked.tier)
        self._tiers = {files.tier.name: files for files in history.roller.tiers}
        if asked.tier != RAW and asked.tier not in self._tiers:
            raise invalid("tier", f"must be one of {', '.join([RAW, *self._tiers])}")
        self._after = _place(self._key, token)
        ids = history.catalog.select(asked.servers, asked.server_filter, asked.metrics).ids
        servers, metrics = history.catalog.names(ids)
        order = np.lexsort((np.asarray(servers, object), np.asarray(metrics, object))) if len(ids) else ids
        self._ids = ids[order]
        self._names = [(metrics[at], servers[at]) for at in order.tolist()]

    @property
    def series_count(self) -> int:
        """How many series were chosen."""
        return len(self._ids)

    async def chunks(self) -> AsyncIterator[Chunk]:
        """Yield the rows."""
        after = self._after
        at = 0 if after is None else sum(name < (after.metric, after.server) for name in self._names)
        size = FIRST_SERIES
        while at < len(self._ids):
            end = min(at + size, len(self._ids))
            table = await self._read(self._ids[at:end], self._names[at:end])
            if after is not None:
                table, after = _beyond(table, after), None
            limit = CHUNK_ROWS[self._asked.tier == RAW]
            for first in range(0, table.num_rows, limit):
                yield self._chunk(table.slice(first, limit), at, end, last=first + limit >= table.num_rows)
            size = max(1, min(MAX_SERIES, size * 8, (end - at) * READ_ROWS // max(1, table.num_rows)))
            at = end

    def _chunk(self, table: pa.Table, at: int, end: int, *, last: bool) -> Chunk:
        row = table.slice(table.num_rows - 1)
        place = _Place(
            row.column("metric")[0].as_py(),
            row.column("server")[0].as_py(),
            row.column("time").cast(pa.int64())[0].as_py(),
        )
        done = end if last else self._names.index((place.metric, place.server), at, end)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        return Chunk(
            parquet=sink.getvalue().to_pybytes(),
            rows=table.num_rows,
            token=page.encode_token(self._key, [place.metric, place.server, str(place.millis)]),
            done_series=done,
        )

    async def _read(self, ids: Ints, names: Sequence[tuple[str, str]]) -> pa.Table:
        selection = self._selection(ids)
        asked = self._asked
        if asked.tier == RAW:
            query = RangeQuery(
                servers=(),
                server_filter="",
                metrics=(),
                start=asked.start,
                end=asked.end,
                step=0,
                aggregation="MEAN",
                group_by="SERVER",
            )
            raw = (await self._history.query_range(query, BUDGET_SECONDS, selection)).raw
            assert raw is not None  # noqa: S101  (that is what a query without a step answers)
            return _table(names, raw.rows, raw.times, {"value": raw.values})
        cells = await self._history.read_buckets(
            self._tiers[asked.tier], selection, asked.start, asked.end, BUDGET_SECONDS
        )
        return _table(names, cells.rows, cells.times, {name: cells.columns[name] for name in COLUMNS})

    def _selection(self, ids: Ints) -> Selection:
        """Return the selection of some series, whose rows are in the order of the export."""
        catalog = self._history.catalog
        servers, metrics = np.zeros(len(catalog.servers), np.bool_), np.zeros(len(catalog.metrics), np.bool_)
        servers[catalog.server_of(ids)] = True
        metrics[catalog.metric_of(ids)] = True
        rows = np.full(catalog.count, -1, np.int64)
        rows[ids] = np.arange(len(ids))
        return Selection(servers, metrics, ids, rows)


def _place(key: tuple[object, ...], token: str) -> _Place | None:
    after = page.decode_token(key, token, parts=3)
    if after is None:
        return None
    metric, server, millis = after
    if not millis.removeprefix("-").isdigit() or len(millis) > 15:
        raise InvalidArgumentError("invalid page token", field="resume_token")
    return _Place(metric, server, int(millis))


def _table(names: Sequence[tuple[str, str]], rows: Ints, times: Ints, columns: dict[str, Floats]) -> pa.Table:
    """Return rows as a table, by metric, server and time; the names are those of the rows' numbers."""
    metrics, servers = zip(*names, strict=True)
    arrays = {
        "metric": _named(metrics, rows),
        "server": _named(servers, rows),
        "time": pa.array(times // _NANOS_PER_MILLI).cast(_TIME),
        **{name: pa.array(column, from_pandas=name in {"first", "growth"}) for name, column in columns.items()},
    }
    if "count" in arrays:
        arrays["count"] = arrays["count"].cast(pa.int64())
    return pa.table(arrays)


def _named(names: Sequence[str], rows: Ints) -> pa.DictionaryArray:
    """Return the name of each row, each name once in the dictionary."""
    distinct = sorted(set(names))
    code = {name: at for at, name in enumerate(distinct)}
    codes = np.asarray([code[name] for name in names], np.int32)
    return pa.DictionaryArray.from_arrays(codes[rows], pa.array(distinct, pa.string()))


def _beyond(table: pa.Table, after: _Place) -> pa.Table:
    """Return the rows after a place; those of a series follow each other."""
    same = pc.and_(pc.equal(table.column("metric"), after.metric), pc.equal(table.column("server"), after.server))
    sent = pc.less_equal(table.column("time").cast(pa.int64()), after.millis)
    return table.filter(pc.invert(pc.and_(same, sent)))
