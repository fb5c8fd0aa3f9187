"""Blocks: a range of the log's samples as one sealed file.

A row is a sample. Its value is `scaled / 10^exponent` where that is exactly the double that was written, and `value`
otherwise: decimals as sensors give them become small integers whose differences pack into a few bits. A series whose
integers do not fit 32 bits has them in `large` instead of `scaled`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from openmanager_timeseries import sealed
from openmanager_timeseries.catalog import Catalog
from openmanager_timeseries.head import Chunk, Generation, as_slice
from openmanager_timeseries.samples import Bools, Floats, Ints, Long, Piece
from openmanager_timeseries.sealed import KEY_FIELDS, About, Batch, Found, Rows, Sealed, Values

MAX_EXPONENT = 6
POWERS = np.array([10.0**exponent for exponent in range(MAX_EXPONENT + 1)])
_MAX_EXACT = 2.0**53
_MAX_SCALED = 2**31 - 1


def encode_values(values: Floats, starts: Ints) -> tuple[Ints, Ints, Bools]:
    """Return the scaled integers of samples, and of each series its exponent and whether it is exact that way.

    `values` is float64[K], finite, the samples of each series beginning at `starts` (int64[N]). A series gets the
    smallest exponent e in 0…6 for which rint(v·10^e) / 10^e is v for all its samples, bit for bit; −0.0 and what is
    beyond 2^53 stay doubles.
    """
    scaled = np.zeros(len(values), np.int64)
    exponents = np.zeros(len(starts), np.int64)
    exact = np.zeros(len(starts), np.bool_)
    possible = ~np.logical_or.reduceat(np.signbit(values) & (values == 0), starts)
    counts = np.diff(np.append(starts, len(values)))
    for exponent in range(MAX_EXPONENT + 1):
        # One sample decides, mostly, that an exponent is too small.
        likely = possible & ~exact
        likely[likely] = _fits(values[starts[likely]], exponent)[1]
        if not likely.any():
            continue
        chosen = np.repeat(likely, counts)
        integers, fits = _fits(values[chosen], exponent)
        good = likely.copy()
        good[likely] = np.logical_and.reduceat(fits, np.cumsum(counts[likely]) - counts[likely])
        rows = np.repeat(good, counts)
        scaled[rows] = integers[rows[chosen]]
        exponents[good] = exponent
        exact |= good
        if exact.all():
            break
    return scaled, exponents, exact


def _fits(values: Floats, exponent: int) -> tuple[Floats, Bools]:
    """Return rint(v·10^e), and where that over 10^e is v."""
    power = 10.0**exponent
    with np.errstate(over="ignore", invalid="ignore"):
        integers = np.rint(values * power)
        return integers, (integers / power == values) & (np.abs(integers) < _MAX_EXACT)


class BlockFormat:
    """Samples; the only column of a row is `value`."""

    schema = pa.schema(
        [
            *KEY_FIELDS,
            pa.field("scaled", pa.int32()),
            pa.field("large", pa.int64()),
            pa.field("exponent", pa.int8()),
            pa.field("value", pa.float64()),
        ]
    )
    options: Mapping[str, Mapping[str, Any]] = {
        # Packed differences leave nothing to compress.
        "compression": {"scaled": "none", "large": "zstd", "exponent": "zstd", "value": "zstd"},
        "dictionary": {"exponent": True},
        "encoding": {
            "scaled": "DELTA_BINARY_PACKED",
            "large": "DELTA_BINARY_PACKED",
            "value": "BYTE_STREAM_SPLIT",
        },
    }
    names: tuple[str, ...] = ("value",)
    group_rows = 128 << 10

    def encode(self, values: Values, starts: Ints) -> list[pa.Array]:
        """Return scaled, large, exponent and value."""
        doubles = values["value"]
        scaled, exponents, exact_series = encode_values(doubles, starts)
        counts = np.diff(np.append(starts, len(doubles)))
        exact = np.repeat(exact_series, counts)
        small = exact & (np.abs(scaled) <= _MAX_SCALED)
        return [
            present_where(small, scaled.astype(np.int32), pa.int32()),
            present_where(exact & ~small, scaled, pa.int64()),
            present_where(exact, np.repeat(exponents.astype(np.int8), counts), pa.int8()),
            present_where(~exact, doubles, pa.float64()),
        ]

    def stored(self, names: Sequence[str]) -> list[str]:  # noqa: ARG002
        """Return the columns that make up a value."""
        return ["scaled", "large", "exponent", "value"]

    def decode(self, table: pa.Table, names: Sequence[str]) -> dict[str, Any]:  # noqa: ARG002
        """Return the values, exactly as they were written: float64[K]."""
        values = np.asarray(table.column("value").to_numpy(zero_copy_only=False), np.float64)
        for name in ("large", "scaled"):
            column = table.column(name)
            if column.null_count == len(column):
                continue
            powers = POWERS.take(table.column("exponent").fill_null(0).to_numpy(), mode="clip")
            found: Floats = column.fill_null(0).to_numpy() / powers
            if column.null_count:
                found = np.where(column.is_valid().to_numpy(zero_copy_only=False), found, values)
            values = found
        return {"value": values}


FORMAT = BlockFormat()


def present_where(present: Bools, values: Any, kind: pa.DataType) -> pa.Array:
    """Return an array of values, null where none is present."""
    if present.all():
        return pa.array(values, kind)
    return pa.array(values, kind, mask=~present) if present.any() else pa.nulls(len(present), kind)


def _batches(generation: Generation, catalog: Catalog, servers: Sequence[str]) -> Iterator[Batch]:
    """Yield the samples of a closed generation in the order of metric keys, servers in the order of `servers`."""
    code = np.full(len(catalog.servers), -1, np.int64)
    code[[catalog.server_index(server) for server in servers]] = np.arange(len(servers))
    places: dict[int, list[tuple[Chunk, int]]] = {}
    for chunk in generation.chunks:
        for at, metric in enumerate(chunk.layout.metrics.tolist()):
            places.setdefault(metric, []).append((chunk, at))
    order = sorted(places, key=catalog.metrics.__getitem__)
    if not _is_plain(generation.chunks):
        for some in _groups(order, places):
            yield Batch(
                [catalog.metrics[metric] for metric in some], _scattered([places[metric] for metric in some], code)
            )
        return
    rows_of_one = len(servers) * sum(chunk.count for chunk in generation.chunks)
    step = -(-FORMAT.group_rows // rows_of_one)
    for begin in range(0, len(order), step):
        some = order[begin : begin + step]
        yield _batch([catalog.metrics[metric] for metric in some], *_joined([places[metric] for metric in some], code))


def _batch(metrics: Sequence[str], servers: Ints, times: Ints, values: Floats) -> Batch:
    """Return the rows of dense samples: `servers` int64[S], ascending codes, `times` int64[T], `values` float64[M, S, T]."""
    shape = values.shape
    metric_codes = np.broadcast_to(np.arange(shape[0])[:, None, None], shape)
    server_codes = np.broadcast_to(servers[None, :, None], shape)
    ticks = np.broadcast_to(times, shape)
    present = ~np.isnan(values)
    if present.all():
        return Batch(
            metrics, Rows(metric_codes.ravel(), server_codes.ravel(), ticks.ravel(), {"value": values.ravel()})
        )
    return Batch(
        metrics, Rows(metric_codes[present], server_codes[present], ticks[present], {"value": values[present]})
    )


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
    values = [chunk.series(as_slice(order), as_slice(metrics), slice(None)) for chunk in chunks]
    times = np.concatenate([chunk.times[: chunk.count] for chunk in chunks])
    return codes[order], times, np.concatenate(values, axis=2)


def _groups(order: Sequence[int], places: Mapping[int, Sequence[tuple[Chunk, int]]]) -> Iterator[list[int]]:
    """Yield metrics in order, as many at once as make up a row group: every chunk is then looked at a few times only."""
    some: list[int] = []
    rows = 0
    for metric in order:
        more = sum(chunk.count * chunk.layout.ids.shape[0] for chunk, _ in places[metric])
        if some and rows + more > FORMAT.group_rows:
            yield some
            some, rows = [], 0
        some.append(metric)
        rows += more
    if some:
        yield some


def _scattered(places: Sequence[Sequence[tuple[Chunk, int]]], code: Ints) -> Rows:
    """Return the rows of some metrics from any chunks: of what was written several times, the last by position."""
    chunks: dict[int, tuple[Chunk, list[int], list[int]]] = {}
    for rank, found in enumerate(places):
        for chunk, at in found:
            _, ranks, columns = chunks.setdefault(id(chunk), (chunk, [], []))
            ranks.append(rank)
            columns.append(at)
    parts = [_flat(chunk, np.array(ranks), np.array(columns), code) for chunk, ranks, columns in chunks.values()]
    metrics, servers, times, positions, values = (np.concatenate(each) for each in zip(*parts, strict=True))
    series = metrics * len(code) + servers
    order = np.lexsort((positions, times, series))
    series, times = series[order], times[order]
    last = np.append((series[1:] != series[:-1]) | (times[1:] != times[:-1]), True)[: len(order)]
    order = order[last]
    return Rows(metrics[order], servers[order], times[last], {"value": values[order]})


def _flat(chunk: Chunk, ranks: Ints, columns: Ints, code: Ints) -> tuple[Ints, Ints, Ints, Ints, Floats]:
    """Return the samples of some metrics of a chunk one by one: rank, server code, time, position, value."""
    values = chunk.series(slice(None), as_slice(columns), slice(None))
    present = ~np.isnan(values)
    metric, server, tick = np.nonzero(present)
    codes = code[chunk.layout.servers]
    return ranks[metric], codes[server], chunk.times[tick], chunk.positions[tick], values[present]


def write(folder: Path, generation: Generation, catalog: Catalog, revision: int = 0) -> Sealed:
    """Seal a closed generation into a block (blocking)."""
    generation.turn()
    servers = _server_names(generation, catalog)
    about = About(
        first=generation.first,
        last=generation.last,
        revision=revision,
        accepted=generation.accepted,
        spans=generation.spans,
    )
    return sealed.write(folder, FORMAT, about, servers, _batches(generation, catalog, servers))


def _server_names(generation: Generation, catalog: Catalog) -> list[str]:
    indices = {index for chunk in generation.chunks for index in chunk.layout.servers.tolist()}
    return sorted(catalog.servers[index] for index in indices)


def samples(file: Sealed, found: Found) -> Piece | Long:
    """Return what was read of a block as samples; as one piece where all series have the same times."""
    values, number = found.values["value"], file.about.last
    size = int(found.counts[0])
    if (found.counts == size).all() and len(np.unique(found.of)) == len(found.of):
        times = found.times.reshape(-1, size)
        if (times[1:] == times[0]).all() and (times[0, 1:] > times[0, :-1]).all():
            return Piece(found.of, times[0], np.full(size, number), values.reshape(-1, size))
    return Long(found.rows, found.times, np.full(len(values), number), values)
