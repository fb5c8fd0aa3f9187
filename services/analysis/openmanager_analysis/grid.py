"""Samples at any times, as values on an even grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmanager.errors import FailedPreconditionError, Reason, invalid

DAY_MILLIS = 86_400_000
MIN_SAMPLES = 8
# A gap of years in a short series must not become a grid of millions of empty cells: the newest part is kept.
CELLS_PER_SAMPLE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """values: float64[T], NaN where nothing was measured; the last one is at `end_unix_millis`."""

    values: NDArray[np.float64]
    interval_millis: int
    end_unix_millis: int

    @property
    def per_day(self) -> int:
        """Cells in a day, at least 1."""
        return max(1, round(DAY_MILLIS / self.interval_millis))

    def times(self) -> NDArray[np.int64]:
        """Return the time of every cell, in milliseconds since the epoch."""
        return self.end_unix_millis - self.interval_millis * np.arange(len(self.values) - 1, -1, -1)


def regularize(time_unix_millis: NDArray[np.int64], values: NDArray[np.float64]) -> Grid:
    """Return the samples on a grid of their median interval; cells with several samples hold their mean.

    time_unix_millis: int64[T], strictly increasing; values: float64[T], NaN for missing. Infinite values are an
    InvalidArgumentError, fewer than 8 valid ones a FailedPreconditionError.
    """
    _check(time_unix_millis, values)
    gaps = np.diff(time_unix_millis)
    interval = int(np.median(gaps))
    end = int(time_unix_millis[-1])
    if gaps.min() == gaps.max():
        return Grid(values=values, interval_millis=interval, end_unix_millis=end)
    size = len(values) * CELLS_PER_SAMPLE
    back = np.rint((end - time_unix_millis) / interval).astype(np.int64)
    known = ~np.isnan(values) & (back < size)
    cells = min(int(back[0]) + 1, size)
    place = cells - 1 - back[known]
    counts = np.bincount(place, minlength=cells)
    sums = np.bincount(place, weights=values[known], minlength=cells)
    on_grid = np.full(cells, np.nan)
    np.divide(sums, counts, out=on_grid, where=counts > 0)
    _check_enough(int(np.count_nonzero(counts)))
    return Grid(values=on_grid, interval_millis=interval, end_unix_millis=end)


def _check(time_unix_millis: NDArray[np.int64], values: NDArray[np.float64]) -> None:
    if time_unix_millis.ndim != 1 or time_unix_millis.shape != values.shape:
        raise invalid("values", "must be as many as the times")
    _check_enough(len(values) - int(np.count_nonzero(np.isnan(values))))
    if np.isinf(values).any():
        raise invalid("values", "must be finite")
    if (np.diff(time_unix_millis) <= 0).any():
        raise invalid("time_unix_millis", "must increase strictly")


def _check_enough(valid: int) -> None:
    if valid < MIN_SAMPLES:
        raise FailedPreconditionError(
            f"there are {valid} valid samples, and {MIN_SAMPLES} are the least to judge by",
            reason=Reason.TOO_LITTLE_DATA,
        )


def fill(values: NDArray[np.float64], period: int) -> NDArray[np.float64]:
    """Return values: float64[T] with every NaN replaced: by a line, or in a gap of a quarter of a period by the one before.

    At least one value has to be known.
    """
    known = np.flatnonzero(~np.isnan(values))
    if len(known) == len(values):
        return values
    filled = np.interp(np.arange(len(values)), known, values[known])
    edges = np.concatenate([known, [len(values)]])
    for last, following in zip(edges[:-1], edges[1:], strict=True):
        if period > 1 and following - last > 1 + period // 4:
            for start in range(max(int(last) + 1, period), int(following), period):
                end = min(start + period, int(following))
                filled[start:end] = filled[start - period : end - period]
    return filled
