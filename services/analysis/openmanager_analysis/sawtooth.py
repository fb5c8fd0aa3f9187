"""Levels that are cleared again and again: log rotation, clean-ups, restarts of what leaks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmanager_analysis.grid import Grid

Floats = NDArray[np.float64]
HOUR_MILLIS = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycles:
    """What clearing leaves of a series: `stitched` float64[T] is it without the drops, so that its end is unchanged.

    peaks: float64[N] before each drop, at peak_hours: float64[N] before the last sample (negative); `period_hours` from
    one drop to the next; `is_regular` where at least three drops make a cycle that goes on.
    """

    stitched: Floats
    peaks: Floats
    peak_hours: Floats
    period_hours: float
    is_regular: bool


def find(grid: Grid) -> Cycles | None:
    """Return the cycles of a series that rises and is cleared, None where nothing is."""
    known = np.flatnonzero(~np.isnan(grid.values))
    values = grid.values[known]
    steps = np.diff(values)
    width = np.quantile(values, 0.98) - np.quantile(values, 0.02)
    usual = 1.4826 * float(np.median(np.abs(steps - np.median(steps))))
    is_drop = steps < -max(8 * usual, 0.2 * width, 1e-12)
    # A burst comes down again: a drop counts when what follows stays below what was before.
    places = np.array([place for place in np.flatnonzero(is_drop) if _stays(values, int(place))], dtype=np.int64)
    if not places.size:
        return None
    hours = (known - (len(grid.values) - 1)) * grid.interval_millis / HOUR_MILLIS
    stitched = grid.values.copy()
    for place in places.tolist():
        drop = values[place] - values[place + 1]
        stitched[: known[place] + 1] -= drop
    peak_hours = hours[places]
    period = float(np.median(np.diff(peak_hours))) if places.size > 1 else np.inf
    is_regular = places.size >= 3 and -float(peak_hours[-1]) < 2 * period
    return Cycles(
        stitched=stitched, peaks=values[places], peak_hours=peak_hours, period_hours=period, is_regular=is_regular
    )


def _stays(values: Floats, place: int) -> bool:
    before, after = values[max(0, place - 5) : place + 1], values[place + 1 : place + 7]
    drop = values[place] - values[place + 1]
    return bool(np.median(before) - np.median(after) > 0.5 * drop)


def passages(cycles: Cycles, limit: float, horizon_hours: float, count: int, random: np.random.Generator) -> Floats:
    """Return when peaks to come reach the limit, float64[B] hours, infinite beyond the horizon."""
    times, peaks = cycles.peak_hours, cycles.peaks
    first, second = np.triu_indices(len(peaks), 1)
    slopes = (peaks[second] - peaks[first]) / (times[second] - times[first])
    slope = float(np.median(slopes))
    off = peaks - slope * times
    base = float(np.median(off))
    left = off - base
    error = 1.4826 * float(np.median(np.abs(left))) / max(1e-9, float(np.sqrt(((times - times.mean()) ** 2).sum())))
    future = np.arange(times[-1] + cycles.period_hours, horizon_hours, cycles.period_hours)
    future = future[future > 0]
    if not future.size:
        return np.full(count, np.inf)
    drawn = slope + error * random.standard_normal((count, 1))
    pivot = times.mean()
    paths = base + slope * pivot + drawn * (future - pivot) + random.choice(left, (count, len(future)))
    reached = paths >= limit
    place = reached.argmax(axis=1)
    return np.where(reached.any(axis=1), future[place], np.inf)
