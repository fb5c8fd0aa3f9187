"""Blocks: a range of the log's samples as one immutable Parquet file that anybody can read.

A row is a sample, sorted by metric, server and time. Its value is `scaled / 10^exponent` where that is exactly the
double that was written, and `value` otherwise: decimals as sensors give them become small integers whose differences
pack into a few bits. Each file says in its metadata which log positions and times it holds, and which metrics stand in
which row group, so that a query reads no more than it needs.
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
from openmanager_timeseries.head import Generation
from openmanager_timeseries.samples import Bools, Floats, Ints, Long

SUFFIX = ".parquet"
ROW_GROUP_ROWS = 64 << 10
MAX_EXPONENT = 6
_KEY = b"openmanager"
_MAX_EXACT = 2.0**53
_NANOS_PER_MILLI = 1_000_000
_DICTIONARY = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        pa.field("metric", _DICTIONARY, nullable=False),
        pa.field("server", _DICTIONARY, nullable=False),
        pa.field("time", pa.timestamp("ms", tz="UTC"), nullable=False),
        pa.field("scaled", pa.int64()),
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
    present = ~np.isnan(values)
    scaled = np.zeros(values.shape, np.int64)
    exponents = np.zeros(len(values), np.int64)
    exact = np.zeros(len(values), np.bool_)
    possible = ~(np.signbit(values) & (values == 0)).any(axis=1)
    for exponent in range(MAX_EXPONENT + 1):
        rows = np.flatnonzero(possible & ~exact)
        if not len(rows):
            break
        power = 10.0**exponent
        with np.errstate(over="ignore", invalid="ignore"):
            integers = np.rint(values[rows] * power)
            fits = ((integers / power == values[rows]) & (np.abs(integers) < _MAX_EXACT)) | ~present[rows]
        good = fits.all(axis=1)
        scaled[rows[good]] = np.where(present[rows[good]], integers[good], 0).astype(np.int64)
        exponents[rows[good]] = exponent
        exact[rows[good]] = True
    return scaled, exponents, exact


class _Rows(NamedTuple):
    """The rows of one metric as columns: all [K]."""

    servers: Ints
    times: Ints
    scaled: Ints
    exponents: Ints
    exact: Bools
    values: Floats


def _rows(servers: Ints, times: Ints, values: Floats) -> _Rows:
    """Return the rows of one metric: `servers` int64[S], `times` int64[T] nanoseconds, `values` float64[S, T]."""
    scaled, exponents, exact = encode_values(values)
    present = ~np.isnan(values)
    counts = np.count_nonzero(present, axis=1)
    whole = len(times) * len(servers) == int(counts.sum())
    return _Rows(
        servers=np.repeat(servers, counts),
        times=np.tile(times, len(servers)) if whole else np.broadcast_to(times, values.shape)[present],
        scaled=scaled.ravel() if whole else scaled[present],
        exponents=np.repeat(exponents, counts),
        exact=np.repeat(exact, counts),
        values=values.ravel() if whole else values[present],
    )


def _table(metrics: Sequence[str], servers: Sequence[str], parts: Sequence[_Rows]) -> pa.Table:
    """Return a row group: the rows of some metrics, server codes being indices into `servers`."""
    rows = _Rows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    codes = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.times) for part in parts])
    inexact = None if rows.exact.all() else ~rows.exact
    values = pa.nulls(len(codes), pa.float64()) if inexact is None else pa.array(rows.values, mask=rows.exact)
    columns: list[pa.Array] = [
        pa.DictionaryArray.from_arrays(codes, pa.array(metrics, pa.string())),
        pa.DictionaryArray.from_arrays(rows.servers.astype(np.int32), pa.array(servers, pa.string())),
        pa.array(rows.times // _NANOS_PER_MILLI).cast(SCHEMA.field("time").type),
        pa.array(rows.scaled, mask=inexact),
        pa.array(rows.exponents.astype(np.int8), mask=inexact),
        values,
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _metric_rows(generation: Generation, catalog: Catalog, servers: Sequence[str]) -> Iterator[tuple[str, _Rows]]:
    """Yield the rows of each metric of a closed generation, in the order of keys, servers in the order of `servers`."""
    code = np.full(len(catalog.servers), -1, np.int64)
    code[[catalog.server_index(server) for server in servers]] = np.arange(len(servers))
    found: dict[int, list[tuple[Any, int]]] = {}
    for chunk in generation.chunks:
        for at, metric in enumerate(chunk.layout.metrics.tolist()):
            found.setdefault(metric, []).append((chunk, at))
    for metric in sorted(found, key=catalog.metrics.__getitem__):
        codes, times, values = _gather(found[metric], code)
        keep = ~np.all(np.isnan(values), axis=1)
        if keep.any():
            yield catalog.metrics[metric], _rows(codes[keep], times, values[keep])


def _gather(places: Sequence[tuple[Any, int]], code: Ints) -> tuple[Ints, Ints, Floats]:
    """Return the samples of one metric over its servers: codes int64[S], ascending, times int64[T], values float64[S, T].

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
        return codes, times, values
    ticks = [(int(chunk.positions[tick]), tick, chunk, at) for chunk, at in places for tick in range(chunk.count)]
    for _, tick, chunk, at in sorted(ticks, key=lambda item: item[0]):
        column = np.searchsorted(times, chunk.times[tick : tick + 1])
        tick_values = chunk.series(_all(chunk, 0), np.array([at]), slice(tick, tick + 1))[0]
        _lay(values, row_of[code[chunk.layout.servers]], column, tick_values)
    return codes, times, values


_ALL = slice(None)


def _all(chunk: Any, axis: int) -> Ints:
    return np.arange(chunk.layout.ids.shape[axis])


def _in_order(places: Sequence[tuple[Any, int]]) -> bool:
    """Say whether no chunk begins before the one laid down earlier has ended, in positions."""
    ends = [(int(chunk.positions[0]), int(chunk.positions[chunk.count - 1])) for chunk, _ in places]
    return all(before[1] <= after[0] for before, after in pairwise(ends))


def _lay(values: Floats, rows: Ints, columns: Ints, new: Floats) -> None:
    at = np.ix_(rows, columns)
    values[at] = np.where(np.isnan(new), values[at], new)


def write(folder: Path, generation: Generation, catalog: Catalog) -> Block:
    """Seal a closed generation into a block: written aside, synced, renamed."""
    name = f"{generation.first:020d}-{generation.last:020d}{SUFFIX}"
    aside, path = folder / f"{name}.new", folder / name
    groups: list[tuple[str, ...]] = []
    with pq.ParquetWriter(
        aside,
        SCHEMA,
        compression="zstd",
        use_dictionary=["metric", "server", "exponent"],
        column_encoding={
            "time": "DELTA_BINARY_PACKED",
            "scaled": "DELTA_BINARY_PACKED",
            "value": "BYTE_STREAM_SPLIT",
        },
        write_statistics=["time"],
    ) as writer:
        servers = _server_names(generation, catalog)
        waiting: dict[str, _Rows] = {}
        for metric, rows in _metric_rows(generation, catalog, servers):
            waiting[metric] = rows
            if sum(len(each.times) for each in waiting.values()) >= ROW_GROUP_ROWS:
                groups.append(_flush(writer, servers, waiting))
        if waiting:
            groups.append(_flush(writer, servers, waiting))
        about = {
            "first_position": generation.first,
            "last_position": generation.last,
            "accepted": generation.accepted,
            "min_time": generation.min_time,
            "max_time": generation.max_time,
            "sample_count": generation.sample_count,
            "groups": groups,
        }
        writer.add_key_value_metadata({_KEY: json.dumps(about, separators=(",", ":")).encode()})
    _sync(aside)
    aside.replace(path)
    _sync(folder)
    return open_block(path)


def _server_names(generation: Generation, catalog: Catalog) -> list[str]:
    indices = {index for chunk in generation.chunks for index in chunk.layout.servers.tolist()}
    return sorted(catalog.servers[index] for index in indices)


def _flush(writer: pq.ParquetWriter, servers: Sequence[str], waiting: dict[str, _Rows]) -> tuple[str, ...]:
    metrics = tuple(waiting)
    table = _table(metrics, servers, list(waiting.values()))
    writer.write_table(table, row_group_size=len(table))
    waiting.clear()
    return metrics


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
    scaled = table.column("scaled")
    if scaled.null_count == len(scaled):
        return np.asarray(table.column("value").to_numpy(), np.float64)
    powers = 10.0 ** table.column("exponent").fill_null(0).to_numpy().astype(np.float64)
    values: Floats = scaled.fill_null(0).to_numpy() / powers
    if scaled.null_count:
        raw = table.column("value").to_numpy(zero_copy_only=False)
        values = np.where(scaled.is_valid().to_numpy(), values, raw)
    return values
