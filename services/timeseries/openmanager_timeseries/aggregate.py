"""Aggregation of samples into aligned, half-open buckets: the one implementation that every store's data goes through.

Bucket k of step s covers [k·s, (k+1)·s) and is named by its start. A bucket without samples is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from openmanager_timeseries.samples import Floats, Ints, Ragged

_PERCENTILES = {"P50": 50.0, "P90": 90.0, "P95": 95.0, "P99": 99.0}
AGGREGATIONS = (
    "MEAN",
    "MIN",
    "MAX",
    "SUM",
    "COUNT",
    "FIRST",
    "LAST",
    "STDDEV",
    *_PERCENTILES,
    "RATE",
    "INCREASE",
)


def bucket_starts(start: int, end: int, step: int) -> Ints:
    """Return the starts of the buckets that meet [start, end), all in nanoseconds: int64[B]."""
    first = start // step * step
    return np.arange(first, end, step, dtype=np.int64)


# The largest doubles add up to infinity.
@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def aggregate(samples: Ragged, name: str, *, starts: Ints, step: int, groups: Ints, delta: NDArray[np.bool_]) -> Floats:
    """Return the aggregate of every group and bucket: float64[G, B].

    `groups` (int64[N]) gives the group of each row; rows of one group are pooled. `delta` (bool[N]) marks rows whose
    samples are changes. Samples before the first bucket are used by RATE and INCREASE only, as what came before.
    """
    if name in {"RATE", "INCREASE"}:
        grown = Ragged(samples.offsets, samples.times, increases(samples, delta))
        found = _aggregate(grown, _BY_NAME["SUM"], starts, step, groups, may_lack=True)
        return found / (step / 1e9) if name == "RATE" else found
    return _aggregate(samples, _BY_NAME[name], starts, step, groups)


def _aggregate(
    samples: Ragged, reducer: Reducer, starts: Ints, step: int, groups: Ints, *, may_lack: bool = False
) -> Floats:
    times = samples.shared_times
    sizes = np.bincount(groups)
    if times is not None and len(starts) and (sizes == sizes[0]).all():
        grid = samples.values.reshape(len(groups), len(times))
        first, last = np.searchsorted(times, [starts[0], starts[-1] + step]).tolist()
        # Of samples none is NaN; what a counter grew by is, where nothing came before.
        if not may_lack or not np.isnan(grid[:, first:last]).any():
            return _reduce_grid(grid[:, first:last], times[first:last], reducer, starts, step, groups)
    cells = _Cells(groups[samples.rows], samples.times, samples.values)
    return _reduce(cells, starts, step, int(groups.max(initial=-1)) + 1, reducer)


def _reduce_grid(  # noqa: PLR0917
    grid: Floats, times: Ints, reducer: Reducer, starts: Ints, step: int, groups: Ints
) -> Floats:
    """Do as `_reduce` does where all rows have the same times, all in buckets, and all groups as many rows.

    `grid` is float64[N, T]. Where the buckets begin is found once, not for every row.
    """
    group_count = int(groups[-1] if len(groups) == 1 else groups.max()) + 1
    out = np.full((group_count, len(starts)), np.nan)
    if not len(times):
        return out
    size = len(groups) // group_count
    if group_count < len(groups) or (groups[1:] < groups[:-1]).any():
        grid = grid[np.argsort(groups, kind="stable")]
    # Pooled samples come by time, and those of one time by row.
    values = np.ascontiguousarray(grid.reshape(group_count, size, len(times)).transpose(0, 2, 1)).ravel()
    buckets = (times - starts[0]) // step
    begins = np.flatnonzero(np.concatenate(([True], buckets[1:] != buckets[:-1])))
    counts = np.diff(np.append(begins, len(times)))
    firsts = (np.arange(group_count)[:, None] * len(times) + begins) * size
    found = reducer(values, firsts.ravel(), np.tile(counts * size, group_count))
    out[:, buckets[begins]] = found.reshape(group_count, len(begins))
    return out


def increases(samples: Ragged, delta: NDArray[np.bool_]) -> Floats:
    """Return what each sample of a counter adds to the one before it: float64[K], NaN for the first of a row.

    After a fall the counter has restarted and the sample itself is the growth. Of a delta row, the sample itself.
    """
    values = samples.values
    grown = np.empty_like(values)
    if len(values) == 0:
        return grown
    grown[1:] = values[1:] - values[:-1]
    grown = np.where(grown < 0, values, grown)
    starts = samples.offsets[:-1]
    grown[starts[starts < samples.offsets[1:]]] = np.nan
    return np.where(delta[samples.rows], values, grown)


Reducer = Callable[[Floats, Ints, Ints], Floats]


class _Cells(NamedTuple):
    """Samples with the group each belongs to: all [K]."""

    groups: Ints
    times: Ints
    values: Floats


def _reduce(cells_of: _Cells, starts: Ints, step: int, group_count: int, reducer: Reducer) -> Floats:
    """Reduce the samples of every (group, bucket) by `reducer(values, begins, counts)`, the values sorted by them."""
    groups, times, values = cells_of
    out = np.full((group_count, len(starts)), np.nan)
    if len(values) == 0 or len(starts) == 0:
        return out
    buckets = (times - starts[0]) // step
    inside = (buckets >= 0) & (buckets < len(starts)) & ~np.isnan(values)
    if not inside.all():
        groups, times, values, buckets = groups[inside], times[inside], values[inside], buckets[inside]
    if len(values) == 0:
        return out
    cells = groups * len(starts) + buckets
    if np.any(cells[1:] < cells[:-1]) or np.any((cells[1:] == cells[:-1]) & (times[1:] < times[:-1])):
        order = np.lexsort((times, cells))
        cells, values = cells[order], values[order]
    begins = np.flatnonzero(np.concatenate(([True], cells[1:] != cells[:-1])))
    counts = np.diff(np.append(begins, len(cells)))
    out.ravel()[cells[begins]] = reducer(values, begins, counts)
    return out


def _mean(values: Floats, begins: Ints, counts: Ints) -> Floats:
    means: Floats = np.add.reduceat(values, begins) / counts
    return means


def _stddev(values: Floats, begins: Ints, counts: Ints) -> Floats:
    deviations = values - np.repeat(_mean(values, begins, counts), counts)
    squares = np.add.reduceat(deviations * deviations, begins)
    found: Floats = np.sqrt(squares / np.where(counts > 1, counts - 1, np.nan))
    return found


def _percentile(percent: float) -> Reducer:
    def reduce(values: Floats, begins: Ints, counts: Ints) -> Floats:
        ordered = values[np.lexsort((values, np.repeat(np.arange(len(begins)), counts)))]
        at = (counts - 1) * (percent / 100.0)
        low = np.floor(at).astype(np.int64)
        high = np.minimum(low + 1, counts - 1)
        below, above = ordered[begins + low], ordered[begins + high]
        # The form that numpy.percentile uses: exact at both ends and monotone in the fraction.
        share = at - low
        difference = above - below
        found: Floats = np.where(share >= 0.5, above - difference * (1 - share), below + difference * share)
        return found

    return reduce


_BY_NAME: dict[str, Reducer] = {
    "MEAN": _mean,
    "MIN": lambda values, begins, _: np.minimum.reduceat(values, begins),
    "MAX": lambda values, begins, _: np.maximum.reduceat(values, begins),
    "SUM": lambda values, begins, _: np.add.reduceat(values, begins),
    "COUNT": lambda _, __, counts: counts.astype(np.float64),
    "FIRST": lambda values, begins, _: values[begins],
    "LAST": lambda values, begins, counts: values[begins + counts - 1],
    "STDDEV": _stddev,
    **{name: _percentile(percent) for name, percent in _PERCENTILES.items()},
}
