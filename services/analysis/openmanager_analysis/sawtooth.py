"""Levels that are cleared again and again: log rotation, clean-ups, restarts of what leaks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmanager_analysis.grid import Grid

Floats = NDArray[np.float64]
HOUR_MILLIS = 3_600_000
# A drop is what falls by a fifth of the range, and by eight times what a step usually does, and stays down.
DROP_OF_RANGE, DROP_OF_USUAL = 0.2, 8.0
# Two drops make a cycle only where the second repeats the first, to this share of it.
ALIKE = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycles:
    """What clearing leaves of a series: `stitched` float64[T] is it without the drops, its end unchanged.

    peaks, troughs: float64[N] before and after each drop, at `hours` float64[N] before the last sample (negative);
    `period_hours` from one drop to the next, infinite for one; `is_regular` where the drops make a cycle that goes on.
    """

    stitched: Floats
    peaks: Floats
    troughs: Floats
    hours: Floats
    period_hours: float
    is_regular: bool


def find(grid: Grid) -> Cycles | None:
    """Return the cycles of a series that rises and is cleared, None where nothing is."""
    known = np.flatnonzero(~np.isnan(grid.values))
    values = grid.values[known]
    places = _drops(values)
    if not places.size:
        return None
    stitched = grid.values.copy()
    for place in places.tolist():
        stitched[: known[place] + 1] -= values[place] - values[place + 1]
    hours = (known[places] - (len(grid.values) - 1)) * grid.interval_millis / HOUR_MILLIS
    peaks = np.maximum(values[places], values[np.maximum(places - 1, 0)])
    troughs = values[places + 1]
    period = float(np.median(np.diff(hours))) if places.size > 1 else np.inf
    return Cycles(
        stitched=stitched,
        peaks=peaks,
        troughs=troughs,
        hours=hours,
        period_hours=period,
        is_regular=-float(hours[-1]) < 2 * period and _repeats(peaks, troughs),
    )


def _drops(values: Floats) -> NDArray[np.int64]:
    """Return the places before which values: float64[T] fall and stay down, int64[N]: a burst comes down too."""
    steps = np.diff(values)
    width = np.quantile(values, 0.98) - np.quantile(values, 0.02)
    usual = 1.4826 * float(np.median(np.abs(steps - np.median(steps))))
    least = max(DROP_OF_USUAL * usual, DROP_OF_RANGE * float(width), 1e-12)
    return np.array([one for one in np.flatnonzero(steps < -least).tolist() if _stays(values, one)], np.int64)


def _stays(values: Floats, place: int) -> bool:
    before, after = values[max(0, place - 5) : place + 1], values[place + 1 : place + 7]
    drop = values[place] - values[place + 1]
    return bool(np.median(before) - np.median(after) > 0.5 * drop)


def _repeats(peaks: Floats, troughs: Floats) -> bool:
    if len(peaks) != 2:
        return len(peaks) > 2
    drop = float(np.mean(peaks - troughs))
    return bool(abs(peaks[1] - peaks[0]) < ALIKE * drop and abs(troughs[1] - troughs[0]) < ALIKE * drop)


def passages(cycles: Cycles, limit: float, horizon_hours: float, count: int, random: np.random.Generator) -> Floats:
    """Return when cycles to come reach the limit, float64[B] hours, infinite beyond the horizon.

    The peaks follow a robust line (Theil 1950, Sen 1968) or stay where they are, by exp(−BIC/2), and differ from it as
    they did. Within a cycle the level rises evenly.
    """
    hours, period = cycles.hours, cycles.period_hours
    slope, error, is_flat = _slope(cycles)
    future = np.arange(hours[-1] + period, horizon_hours + period, period)
    future = future[future > 0]
    drawn = np.where(random.random(count) < is_flat, 0.0, slope + error * random.standard_normal(count))
    lines = cycles.peaks - drawn[:, None] * hours
    base = np.median(lines, axis=1)
    left = np.take_along_axis(lines - base[:, None], random.integers(len(hours), size=(count, len(future))), axis=1)
    peaks = base[:, None] + drawn[:, None] * future + left
    reached = peaks >= limit
    place = reached.argmax(axis=1)
    rise = max(float(np.median(cycles.peaks - cycles.troughs)), 1e-12) / period
    early = np.minimum((peaks[np.arange(count), place] - limit) / rise, period - 1)
    times = np.maximum(future[place] - early, 0.0)
    return np.where(reached.any(axis=1) & (times <= horizon_hours), times, np.inf)


def back_test(cycles: Cycles) -> float | None:
    """Return the last peak as the ones before foresee it by a robust line, None where these are fewer than three."""
    hours, peaks = cycles.hours[:-1], cycles.peaks[:-1]
    if len(peaks) < 3:
        return None
    first, second = np.triu_indices(len(peaks), 1)
    slope = float(np.median((peaks[second] - peaks[first]) / (hours[second] - hours[first])))
    return float(np.median(peaks - slope * hours)) + slope * float(cycles.hours[-1])


def _slope(cycles: Cycles) -> tuple[float, float, float]:
    """Return the slope of peaks and troughs an hour, its standard error, and the weight of there being none."""
    hours, count = cycles.hours, len(cycles.hours)
    first, second = np.triu_indices(count, 1)
    gaps = hours[second] - hours[first]
    both = np.stack([cycles.peaks, cycles.troughs])
    slope = float(np.median((both[:, second] - both[:, first]) / gaps))
    left = both - slope * hours
    left -= np.median(left, axis=1, keepdims=True)
    flat = both - np.median(both, axis=1, keepdims=True)
    floor = 1e-4 * float(np.ptp(both)) + 1e-12
    spread = max(floor, float(np.sqrt(np.mean(left * left) * count / max(1, count - 2))))
    error = spread / float(np.sqrt(2 * ((hours - hours.mean()) ** 2).sum()))
    gain = (
        2 * count * float(np.log(max(floor, np.sqrt(np.mean(flat * flat))) / max(floor, np.sqrt(np.mean(left * left)))))
    )
    return slope, error, float(1 / (1 + np.exp(np.clip(gain - np.log(2 * count) / 2, -50, 50))))
