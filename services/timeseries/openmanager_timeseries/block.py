"""Blocks: a range of the log's samples as one immutable Parquet file that anybody can read.

A row is a sample, sorted by metric, server and time. Its value is `scaled / 10^exponent` where that is exactly the
double that was written, and `value` otherwise: decimals as sensors give them become small integers whose differences
pack into a few bits. A series whose integers do not fit 32 bits has them in `large` instead of `scaled`. Each file says
in its metadata which log positions and times it holds, and which metrics stand in which row group, so that a query
reads no more than it needs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openmanager_timeseries.catalog import Catalog, Selection
from openmanager_timeseries.head import Chunk, Generation
from openmanager_timeseries.samples import Bools, Floats, Ints, Long

SUFFIX = ".parquet"
ROW_GROUP_ROWS = 128 << 10
MAX_EXPONENT = 6
_KEY = b"openmanager"
_MAX_EXACT = 2.0**53
_MAX_SCALED = 2**31 - 1
# What decides that an exponent is too small for a series, mostly.
_GLANCE = 8
_NANOS_PER_MILLI = 1_000_000
_DICTIONARY = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        pa.field("metric", _DICTIONARY, nullable=False),
        pa.field("server", _DICTIONARY, nullable=False),
        pa.field("time", pa.timestamp("ms", tz="UTC"), nullable=False),
        pa.field("scaled", pa.int32()),
        pa.field("large", pa.int64()),
        pa.field("exponent", pa.int8()),
        pa.field("value", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A sealed file. Times are nanoseconds: `min_time` and `max_time` are those of samples in it."""

    path: Path
    first_position: int
    last_position: int
    accepted: int
    min_time: int
    max_time: int
    sample_count: int
    size_bytes: int
    # For every row group its metric keys.
    groups: tuple[tuple[str, ...], ...]


class Cancelled(Exception):  # noqa: N818  (nothing went wrong)
    """The caller gave up while a block was read."""


def encode_values(values: Floats) -> tuple[Ints, Ints, Bools]:
    """Return scaled integers and exponents of series, and which series are exact that way.

    `values` is float64[N, T] with NaN for no sample. A series gets the smallest exponent e in 0…6 for which
    rint(v·10^e) / 10^e is v for all its samples, bit for bit; −0.0 and what is beyond 2^53 stay doubles.
    """
    scaled = np.zeros(values.shape, np.int64)
    exponents = np.zeros(len(values), np.int64)
    exact = np.zeros(len(values), np.bool_)
    open_rows = np.flatnonzero(~(np.signbit(values) & (values == 0)).any(axis=1))
    for exponent in range(MAX_EXPONENT + 1):
        likely = open_rows[_fits(values[open_rows, :_GLANCE], exponent)[1].all(axis=1)]
        # Without a copy where all series are at the same exponent, as those of one metric mostly are.
        integers, fits = _fits(values if len(likely) == len(values) else values[likely], exponent)
        good = fits.all(axis=1)
        rows = likely[good]
        scaled[rows] = (integers if good.all() else integers[good]).astype(np.int64)
        exponents[rows] = exponent
        exact[rows] = True
        open_rows = np.setdiff1d(open_rows, rows, assume_unique=True)
        if not len(open_rows):
            break
    return scaled, exponents, exact


def _fits(values: Floats, exponent: int) -> tuple[Floats, Bools]:
    """Return rint(v·10^e), 0 where v is NaN, and where that over 10^e is v or v is NaN."""
    power = 10.0**exponent
    with np.errstate(over="ignore", invalid="ignore"):
        integers = np.rint(values * power)
        fits = (integers / power == values) & (np.abs(integers) < _MAX_EXACT)
        if not fits.all():
            absent = np.isnan(values)
            fits |= absent
            integers[absent] = 0
    return integers, fits


class _Rows(NamedTuple):
    """Rows of some metrics as columns, all [K]; `metrics` are indices into the keys of the row group."""

    metrics: Ints
    servers: Ints
    times: Ints
    scaled: Ints
    exponents: Ints
    exact: Bools
    values: Floats


class _Dense(NamedTuple):
    """Samples of metrics: `servers` int64[S], ascending codes, `times` int64[T], `values` float64[M, S, T]."""

    metrics: Sequence[str]
    servers: Ints
    times: Ints
    values: Floats


def _rows(dense: _Dense, first_metric: int) -> _Rows:
    """Return the rows of some metrics, their indices beginning at `first_metric`."""
    metrics, servers, ticks = dense.values.shape
    values = dense.values.reshape(metrics * servers, ticks)
    scaled, exponents, exact = encode_values(values)
    present = ~np.isnan(values)
    counts = np.count_nonzero(present, axis=1)
    whole = values.size == int(counts.sum())
    return _Rows(
        metrics=np.repeat(np.repeat(np.arange(metrics) + first_metric, servers), counts),
        servers=np.repeat(np.tile(dense.servers, metrics), counts),
        times=np.tile(dense.times, len(values)) if whole else np.broadcast_to(dense.times, values.shape)[present],
        scaled=scaled.ravel() if whole else scaled[present],
        exponents=np.repeat(exponents, counts),
        exact=np.repeat(exact, counts),
        values=values.ravel() if whole else values[present],
    )


def _table(metrics: Sequence[str], servers: Sequence[str], rows: _Rows) -> pa.Table:
    """Return a row group, metric and server codes being indices into the names."""
    small = rows.exact & (np.abs(rows.scaled) <= _MAX_SCALED)
    columns: list[pa.Array] = [
        pa.DictionaryArray.from_arrays(rows.metrics.astype(np.int32), pa.array(metrics, pa.string())),
        pa.DictionaryArray.from_arrays(rows.servers.astype(np.int32), pa.array(servers, pa.string())),
        pa.array(rows.times // _NANOS_PER_MILLI).cast(SCHEMA.field("time").type),
        _where(small, rows.scaled.astype(np.int32), pa.int32()),
        _where(rows.exact & ~small, rows.scaled, pa.int64()),
        _where(rows.exact, rows.exponents.astype(np.int8), pa.int8()),
        _where(~rows.exact, rows.values, pa.float64()),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _where(present: Bools, values: Any, kind: pa.DataType) -> pa.Array:
    if present.all():
        return pa.array(values, kind)
    return pa.array(values, kind, mask=~present) if present.any() else pa.nulls(len(present), kind)


def _dense(generation: Generation, catalog: Catalog, servers: Sequence[str]) -> Iterator[_Dense]:
    """Yield the samples of a closed generation in the order of metric keys, servers in the order of `servers`."""
    code = np.full(len(catalog.servers), -1, np.int64)
    code[[catalog.server_index(server) for server in servers]] = np.arange(len(servers))
    places: dict[int, list[tuple[Chunk, int]]] = {}
    for chunk in generation.chunks:
        for at, metric in enumerate(chunk.layout.metrics.tolist()):
            places.setdefault(metric, []).append((chunk, at))
    order = sorted(places, key=catalog.metrics.__getitem__)
    if not _is_plain(generation.chunks):
        for metric in order:
            yield _Dense([catalog.metrics[metric]], *_laid(places[metric], code))
        return
    rows_of_one = len(servers) * sum(chunk.count for chunk in generation.chunks)
    step = -(-ROW_GROUP_ROWS // rows_of_one)
    for begin in range(0, len(order), step):
        some = order[begin : begin + step]
        yield _Dense([catalog.metrics[metric] for metric in some], *_joined([places[metric] for metric in some], code))


def _is_plain(chunks: Sequence[Chunk]) -> bool:
    """Say whether chunks of one layout follow each other in time and position."""
    return all(
        after.layout is before.layout
        and after.times[0] > before.times[before.count - 1]
        and after.positions[0] >= before.positions[before.count - 1]
        for before, after in pairwise(chunks)
    )


def _joined(places: Sequence[Sequence[tuple[Chunk, int]]], code: Ints) -> tuple[Ints, Ints, Floats]:
    """Return the samples of some metrics from plain chunks: codes int64[S], times int64[T], values float64[M, S, T]."""
    chunks = [chunk for chunk, _ in places[0]]
    metrics = np.array([at for (_, at), *_ in places])
    codes = code[chunks[0].layout.servers]
    order = np.argsort(codes)
    values = [chunk.series(order, metrics, _ALL) for chunk in chunks]
    times = np.concatenate([chunk.times[: chunk.count] for chunk in chunks])
    return codes[order], times, np.concatenate(values, axis=2)


def _laid(places: Sequence[tuple[Chunk, int]], code: Ints) -> tuple[Ints, Ints, Floats]:
    """Return the samples of one metric from any chunks: codes int64[S], times int64[T], values float64[1, S, T].

    The last write by position wins: chunks are laid over each other in the order of their positions, row by row.
    """
    codes = np.unique(code[np.concatenate([chunk.layout.servers for chunk, _ in places])])
    row_of = np.full(len(code), -1, np.int64)
    row_of[codes] = np.arange(len(codes))
    times = np.unique(np.concatenate([chunk.times[: chunk.count] for chunk, _ in places]))
    values = np.full((len(codes), len(times)), np.nan)
    if _in_order(places):
        for chunk, at in places:
            columns = np.searchsorted(times, chunk.times[: chunk.count])
            rows = row_of[code[chunk.layout.servers]]
            _lay(values, rows, columns, chunk.series(_all(chunk, 0), np.array([at]), _ALL)[0])
        return codes, times, values[None]
    ticks = [(int(chunk.positions[tick]), tick, chunk, at) for chunk, at in places for tick in range(chunk.count)]
    for _, tick, chunk, at in sorted(ticks, key=lambda item: item[0]):
        column = np.searchsorted(times, chunk.times[tick : tick + 1])
        tick_values = chunk.series(_all(chunk, 0), np.array([at]), slice(tick, tick + 1))[0]
        _lay(values, row_of[code[chunk.layout.servers]], column, tick_values)
    return codes, times, values[None]


_ALL = slice(None)


def _all(chunk: Chunk, axis: int) -> Ints:
    return np.arange(chunk.layout.ids.shape[axis])


def _in_order(places: Sequence[tuple[Chunk, int]]) -> bool:
    """Say whether no chunk begins before the one laid down earlier has ended, in positions."""
    ends = [(int(chunk.positions[0]), int(chunk.positions[chunk.count - 1])) for chunk, _ in places]
    return all(before[1] <= after[0] for before, after in pairwise(ends))


def _lay(values: Floats, rows: Ints, columns: Ints, new: Floats) -> None:
    at = np.ix_(rows, columns)
    values[at] = np.where(np.isnan(new), values[at], new)


class _Writer:
    """Gathers rows into row groups of one file."""

    def __init__(self, writer: pq.ParquetWriter, servers: Sequence[str]) -> None:
        self._writer = writer
        self._servers = servers
        self._parts: list[_Rows] = []
        self._metrics: list[str] = []
        self.groups: list[tuple[str, ...]] = []

    def add(self, dense: _Dense) -> None:
        """Take the samples of some metrics, keys ascending."""
        rows = _rows(dense, len(self._metrics))
        if len(rows.times):
            self._parts.append(rows)
            self._metrics.extend(dense.metrics)
        if sum(len(part.times) for part in self._parts) >= ROW_GROUP_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered as a row group."""
        if self._parts:
            joined = (each[0] if len(each) == 1 else np.concatenate(each) for each in zip(*self._parts, strict=True))
            table = _table(self._metrics, self._servers, _Rows(*joined))
            self._writer.write_table(table, row_group_size=len(table))
            self.groups.append(tuple(self._metrics))
            self._parts, self._metrics = [], []


def write(folder: Path, generation: Generation, catalog: Catalog) -> Block:
    """Seal a closed generation into a block: written aside, synced, renamed."""
    name = f"{generation.first:020d}-{generation.last:020d}{SUFFIX}"
    aside, path = folder / f"{name}.new", folder / name
    with pq.ParquetWriter(
        aside,
        SCHEMA,
        # Packed differences leave nothing to compress.
        compression={name: "none" if name == "scaled" else "zstd" for name in SCHEMA.names},
        compression_level={"time": 9},
        use_dictionary=["metric", "server", "exponent"],
        column_encoding={
            "time": "DELTA_BINARY_PACKED",
            "scaled": "DELTA_BINARY_PACKED",
            "large": "DELTA_BINARY_PACKED",
            "value": "BYTE_STREAM_SPLIT",
        },
        write_statistics=["time"],
        max_rows_per_page=1 << 20,  # the limit is a page's bytes
    ) as writer:
        servers = _server_names(generation, catalog)
        groups = _Writer(writer, servers)
        for dense in _dense(generation, catalog, servers):
            groups.add(dense)
        groups.flush()
        about = {
            "first_position": generation.first,
            "last_position": generation.last,
            "accepted": generation.accepted,
            "min_time": generation.min_time,
            "max_time": generation.max_time,
            "sample_count": generation.sample_count,
            "groups": groups.groups,
        }
        writer.add_key_value_metadata({_KEY: json.dumps(about, separators=(",", ":")).encode()})
    _sync(aside)
    aside.replace(path)
    _sync(folder)
    return open_block(path)


def _server_names(generation: Generation, catalog: Catalog) -> list[str]:
    indices = {index for chunk in generation.chunks for index in chunk.layout.servers.tolist()}
    return sorted(catalog.servers[index] for index in indices)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_block(path: Path) -> Block:
    """Return what a file says of itself; pa.ArrowInvalid, KeyError or ValueError when it is no block."""
    metadata = pq.read_metadata(path)
    about = json.loads(metadata.metadata[_KEY])
    groups = tuple(tuple(keys) for keys in about.pop("groups"))
    if metadata.num_row_groups != len(groups):
        raise ValueError("the row groups are not those that the metadata names")
    return Block(path=path, size_bytes=path.stat().st_size, groups=groups, **about)


def read(
    block: Block,
    catalog: Catalog,
    selection: Selection,
    start: int,
    end: int,
    *,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Long]:
    """Yield the samples of a selection in [start, end); `check` is called between row groups and may raise."""
    chosen = [key for key, wanted in zip(catalog.metrics, selection.metrics.tolist(), strict=False) if wanted]
    wanted = set(chosen)
    with pq.ParquetFile(block.path, pre_buffer=False) as file:
        for index, keys in enumerate(block.groups):
            if wanted.isdisjoint(keys):
                continue
            check()
            table = file.read_row_group(index, use_threads=False)
            found = _samples(table, catalog, selection, start, end, block.last_position)
            if found is not None:
                yield found


def _samples(  # noqa: PLR0917
    table: pa.Table, catalog: Catalog, selection: Selection, start: int, end: int, position: int
) -> Long | None:
    metrics, servers = _codes(table, "metric"), _codes(table, "server")
    ids = catalog.find(servers, metrics)
    rows = np.where((ids >= 0) & (ids < len(selection.rows)), selection.rows[np.clip(ids, 0, None)], -1)
    times = table.column("time").cast(pa.int64()).to_numpy() * _NANOS_PER_MILLI
    keep = (rows >= 0) & (times >= start) & (times < end)
    if not keep.any():
        return None
    values = values_of(table)[keep]
    return Long(rows[keep], times[keep], np.full(len(values), position), values)


def _codes(table: pa.Table, name: str) -> tuple[list[str], Ints]:
    """Return the dictionary of a column and the index of every row in it."""
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    if not isinstance(column, pa.DictionaryArray):
        column = column.dictionary_encode()
    return column.dictionary.to_pylist(), column.indices.to_numpy().astype(np.int64)


def values_of(table: pa.Table) -> Floats:
    """Return the values of a block's rows, exactly as they were written: float64[K]."""
    values = np.asarray(table.column("value").to_numpy(zero_copy_only=False), np.float64)
    for name in ("large", "scaled"):
        column = table.column(name)
        if column.null_count == len(column):
            continue
        powers = 10.0 ** table.column("exponent").fill_null(0).to_numpy().astype(np.float64)
        found: Floats = column.fill_null(0).to_numpy() / powers
        values = (
            np.where(column.is_valid().to_numpy(zero_copy_only=False), found, values) if column.null_count else found
        )
    return values
