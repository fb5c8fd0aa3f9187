"""Rollups: what is left of the samples of a bucket of time, for tiers of history.

Every bucket of a series has the columns of COLUMNS. `first` and `growth` are those of counters, NaN elsewhere; with them
the growth of a counter over any buckets is exact: what it grew inside each, and from the last sample of one to the first
of the next. A coarser bucket is made of finer ones and nothing else, in the order of time, so that whoever makes it from
the same samples gets the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.errors import InvalidArgumentError, Reason, invalid
from openmanager.frame import (
    MetricInfo,
    ServerInfo,
    check_metrics,
    check_servers,
    checked_info,
    checked_metric_info,
    encode_names,
    info_message,
    length_delimited,
    metric_message,
    packed,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

COLUMNS = ("min", "max", "sum", "count", "last", "first", "growth")
# Their numbers in RollupFrame.
_FIELDS = dict(zip(COLUMNS, range(5, 12), strict=True))
_MAX_DECIMALS = 6
_EPSILON = 2.0**-53


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Buckets of S servers and M metrics that start at T times: int64[T] nanoseconds; each column float64[T, S, M].

    `count` is 0 where there is no bucket; the other columns are NaN there.
    """

    times: Ints
    servers: tuple[str, ...]
    metrics: tuple[str, ...]
    columns: Mapping[str, Floats]
    server_infos: tuple[ServerInfo, ...] = ()
    metric_infos: tuple[MetricInfo, ...] = ()


def settle(sums: Floats, counts: Floats, reach: Floats) -> Floats:
    """Return sums of decimals as decimals, where the rounding errors of their addition are all that is in the way.

    `reach` is the largest magnitude among the samples of each. A sum of n floats is off by at most n · ε · Σ|x| (Higham,
    Accuracy and Stability of Numerical Algorithms, §4.2), and sensors give decimals: where the nearest decimal of up to
    six places is within that bound it is what was meant, whatever the order of addition was.
    """
    bound = counts * counts * _EPSILON * reach
    finest = 10.0**_MAX_DECIMALS
    with np.errstate(over="ignore", invalid="ignore"):
        out: Floats = np.rint(sums * finest) / finest
        # With a bound this small the nearest decimal of six places is the only one within it, also when it has fewer.
        away = np.abs(out - sums)
    if not (settled := (away <= bound) & (bound < 0.25 / finest)).all():
        rest = np.nonzero(~settled)
        out[rest] = _settle_by_places(sums[rest], bound[rest])
    return out


def _settle_by_places(sums: Floats, bound: Floats) -> Floats:
    """Return the decimal with the fewest places within `bound` (float64[K], as `sums`) of each sum; the sum if none is."""
    out = sums.copy()
    open_ = np.flatnonzero(np.isfinite(sums))
    for places in range(_MAX_DECIMALS + 1):
        power = 10.0**places
        near = np.rint(sums[open_] * power) / power
        hit = np.abs(near - sums[open_]) <= bound[open_]
        out[open_[hit]] = near[hit]
        open_ = open_[~hit]
        if not len(open_):
            break
    return out


def reduce_ticks(values: Floats, counters: Bools) -> dict[str, Floats]:
    """Return the bucket of T ticks: `values` float64[T, N] without NaN, each column float64[N].

    `counters` (bool[N]) says which of the N series are counters.
    """
    low, high = values.min(axis=0), values.max(axis=0)
    count = np.full(values.shape[1], float(len(values)))
    first, growth = np.full((2, values.shape[1]), np.nan)
    first[counters] = values[0, counters]
    growth[counters] = (values[-1] - values[0])[counters]
    if len(values) > 1:
        fallen = counters & (values[1:] < values[:-1]).any(axis=0)
        for at in np.flatnonzero(fallen).tolist():
            series = values[:, at]
            for lost in series[:-1][series[1:] < series[:-1]].tolist():
                growth[at] += lost
    reach = np.maximum(np.abs(low), np.abs(high))
    return {
        "min": low,
        "max": high,
        "sum": settle(_added(values), count, reach),
        "count": count,
        "last": values[-1].copy(),
        "first": first,
        "growth": settle(growth, count, reach),
    }


def _added(values: Floats) -> Floats:
    """Return the sums of ticks, added one after the other: numpy's own sums have no order to rely on."""
    sums: Floats = values[0] + 0.0  # −0.0 and nothing is 0.0
    for tick in values[1:]:
        sums += tick
    return sums


def reduce_samples(values: Floats, cells: Ints, counters: Bools) -> tuple[Ints, dict[str, Floats]]:
    """Return the cells there are, ascending, and the bucket of each: columns float64[C].

    `values` (float64[K], without NaN) are samples by cell and then by time, `cells` (int64[K]) ascending: a series and a
    bucket. `counters` (bool[K]) says which are samples of counters.
    """
    if len(values) == 0:
        return cells, {name: values.copy() for name in COLUMNS}
    begins = np.flatnonzero(np.concatenate(([True], cells[1:] != cells[:-1])))
    ends = np.append(begins[1:], len(values)) - 1
    group = np.cumsum(np.concatenate(([False], cells[1:] != cells[:-1])))
    count = np.diff(np.append(begins, len(values))).astype(np.float64)
    low, high = np.minimum.reduceat(values, begins), np.maximum.reduceat(values, begins)
    is_counter = counters[begins]
    fell = np.zeros(len(values), np.bool_)
    fell[1:] = (values[1:] < values[:-1]) & (cells[1:] == cells[:-1]) & counters[1:]
    at = np.flatnonzero(fell)
    growth = np.where(is_counter, values[ends] - values[begins], np.nan)
    np.add.at(growth, group[at], values[at - 1])
    reach = np.maximum(np.abs(low), np.abs(high))
    return cells[begins], {
        "min": low,
        "max": high,
        "sum": settle(_binned(group, values, len(begins)), count, reach),
        "count": count,
        "last": values[ends],
        "first": np.where(is_counter, values[begins], np.nan),
        "growth": settle(growth, count, reach),
    }


def coarsen(columns: Mapping[str, Floats], cells: Ints) -> tuple[Ints, dict[str, Floats]]:
    """Return the coarser cells there are, ascending, and the bucket of each, made of finer ones.

    `cells` (int64[K], ascending) says into which each of the K finer buckets goes; within one they are in the order of
    time, and each has samples.
    """
    if len(cells) == 0:
        return cells, {name: np.empty(0) for name in COLUMNS}
    begins = np.flatnonzero(np.concatenate(([True], cells[1:] != cells[:-1])))
    ends = np.append(begins[1:], len(cells)) - 1
    group = np.cumsum(np.concatenate(([False], cells[1:] != cells[:-1])))
    size = len(begins)
    low, high = np.minimum.reduceat(columns["min"], begins), np.maximum.reduceat(columns["max"], begins)
    count = _binned(group, columns["count"], size)
    sums = _binned(group, columns["sum"], size)
    grown = columns["growth"].copy()
    grown[1:] += np.where(group[1:] == group[:-1], between(columns["last"][:-1], columns["first"][1:]), 0.0)
    growth = _binned(group, grown, size)
    reach = np.maximum(np.abs(low), np.abs(high))
    return cells[begins], {
        "min": low,
        "max": high,
        "sum": settle(sums, count, reach),
        "count": count,
        "last": columns["last"][ends],
        "first": columns["first"][begins],
        "growth": settle(growth, count, reach),
    }


def _binned(group: Ints, values: Floats, size: int) -> Floats:
    """Return the sum of each of `size` groups, added in the order of the samples, as `reduce_ticks` does."""
    return np.asarray(np.bincount(group, values, size), np.float64)


def between(before: Floats, after: Floats) -> Floats:
    """Return what a counter grew from one sample to the next; after a fall it has restarted, and the sample is it."""
    return np.where(after < before, after, after - before)


# ── on the wire ────────────────────────────────────────────────────────────────────────────────────────────────────


def encode_grid(tier: str, grid: Grid) -> bytes:
    """Return the wire form of a RollupFrame."""
    parts = [
        length_delimited(1, tier.encode()),
        packed(2, grid.times),
        encode_names(3, grid.servers),
        encode_names(4, grid.metrics),
    ]
    for name, number in _FIELDS.items():
        column = np.asarray(grid.columns[name], np.float64)
        if name in {"first", "growth"} and np.isnan(column).all():
            continue
        parts.append(packed(number, column))
    parts.extend(length_delimited(12, info_message(info).SerializeToString()) for info in grid.server_infos)
    parts.extend(length_delimited(13, metric_message(info).SerializeToString()) for info in grid.metric_infos)
    return b"".join(parts)


def decode_grid(data: bytes) -> tuple[str, Grid]:
    """Return the tier and the checked buckets of a RollupFrame; InvalidArgumentError naming what is wrong with it."""
    message = timeseries_pb2.RollupFrame()
    try:
        message.ParseFromString(data)
    except DecodeError as err:
        raise InvalidArgumentError("the bytes are not a RollupFrame", reason=Reason.MALFORMED_MESSAGE) from err
    times = np.asarray(message.time_unix_nanos, np.int64)
    if np.any(times[1:] <= times[:-1]):
        raise invalid("frame.time_unix_nanos", "must be strictly increasing")
    servers, metrics = check_servers(tuple(message.servers)), check_metrics(tuple(message.metrics))
    shape = (len(times), len(servers), len(metrics))
    columns = {name: _column(message, name, shape) for name in COLUMNS}
    _check_columns(columns)
    return message.tier, Grid(
        times=times,
        servers=servers,
        metrics=metrics,
        columns=columns,
        server_infos=tuple(checked_info(item) for item in message.server_infos),
        metric_infos=tuple(checked_metric_info(item) for item in message.metric_infos),
    )


def _column(message: timeseries_pb2.RollupFrame, name: str, shape: Sequence[int]) -> Floats:
    values = np.asarray(getattr(message, name), np.float64)
    size = int(np.prod(shape))
    if len(values) == 0 and name in {"first", "growth"}:
        values = np.full(size, np.nan)
    if len(values) != size:
        told = f"{shape[0]} times × {shape[1]} servers × {shape[2]} metrics"
        raise invalid(f"frame.{name}", f"has {len(values)} values where {told} make {size}")
    return values.reshape(shape)


def _check_columns(columns: Mapping[str, Floats]) -> None:
    count = columns["count"]
    if not (np.isfinite(count) & (count >= 0) & (count == np.floor(count)) & (count < 2.0**53)).all():
        raise invalid("frame.count", "must hold whole numbers from 0 on")
    there = count > 0
    for name in ("min", "max", "sum", "last"):
        if not np.isfinite(columns[name][there]).all():
            raise invalid(f"frame.{name}", "must be finite where count is not 0")
    for name in ("first", "growth"):
        if np.isinf(columns[name]).any():
            raise invalid(f"frame.{name}", "must be finite, or NaN where it is not known")
    if (columns["min"][there] > columns["max"][there]).any():
        raise invalid("frame.min", "must not be above max")
    for name in ("last", "first"):
        outside = (columns[name] < columns["min"]) | (columns[name] > columns["max"])
        if outside[there].any():
            raise invalid(f"frame.{name}", "must be between min and max")
    if (np.isnan(columns["first"]) != np.isnan(columns["growth"]))[there].any():
        raise invalid("frame.first", "must be known where growth is, and only there")
