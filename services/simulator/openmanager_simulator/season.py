"""The seasons of load: hour, weekday, time of year, and their integral, which counters follow.

Only additions, multiplications and divisions are used, so that every machine gets the same bits.
"""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from functools import cache

import numpy as np
from numpy.typing import NDArray

_DAY = 86_400
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Hours of the day and the factor there, joined by smoothsteps: nights 23–5 × 0.4, 9–11 and 14–16 × 1.8.
_HOURS = ((0, 0.4), (5, 0.4), (9, 1.8), (11, 1.8), (12.5, 1.2), (14, 1.8), (16, 1.8), (19, 1.0), (23, 0.4), (24, 0.4))
_WEEKDAYS = (1.2, 1.0, 1.0, 1.0, 0.9, 0.6, 0.6)
# The day's curve is integrated on a grid of this many seconds.
_GRID = 60
# What can be simulated: the years 2000–2099, as days since the epoch, the last one excluded.
FIRST_DAY, LAST_DAY = 10_957, 47_482
# The tables go as far beyond as the longest block of ticks may reach out.
_FIRST_DAY, _LAST_DAY = FIRST_DAY - 60, LAST_DAY + 60


def _hour_factor(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    hours = seconds / 3600.0
    out = np.empty_like(hours)
    for (left, low), (right, high) in itertools.pairwise(_HOURS):
        inside = (hours >= left) & (hours <= right)
        share = (hours[inside] - left) / (right - left)
        out[inside] = low + (high - low) * share * share * (3.0 - 2.0 * share)
    return out


def _day_factor(day: int) -> float:
    date = _EPOCH + timedelta(days=day)
    year = 1.0
    if (date.month, date.day) >= (12, 15) or (date.month, date.day) <= (1, 5):
        year = 1.5
    elif date.month in {7, 8}:
        year = 0.8
    elif date.month in {3, 9}:
        year = 1.3
    return _WEEKDAYS[date.weekday()] * year


@cache
def _tables() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the factor of each day of the tables, the sum of them before each day, and the day's curve integrated."""
    days = np.asarray([_day_factor(day) for day in range(_FIRST_DAY, _LAST_DAY)])
    before = np.concatenate(([0.0], np.cumsum(days)))
    edges = np.arange(0, _DAY + _GRID, _GRID, dtype=np.float64)
    middles = _hour_factor((edges[1:] + edges[:-1]) / 2.0)
    return days, before, np.concatenate(([0.0], np.cumsum(middles * _GRID)))


def factor(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the product of all seasons at times in seconds since the epoch: float64[T]."""
    days, _, _ = _tables()
    day = np.floor(seconds / _DAY)
    found: NDArray[np.float64] = days[day.astype(np.int64) - _FIRST_DAY] * _hour_factor(seconds - day * _DAY)
    return found


def integral(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the integral of `factor` from the tables' first day on, in seconds: float64[T]; strictly increasing."""
    days, before, curve = _tables()
    day = np.floor(seconds / _DAY)
    index = day.astype(np.int64) - _FIRST_DAY
    within = (seconds - day * _DAY) / _GRID
    cell = np.minimum(within.astype(np.int64), len(curve) - 2)
    part = curve[cell] + (curve[cell + 1] - curve[cell]) * (within - cell)
    found: NDArray[np.float64] = before[index] * curve[-1] + days[index] * part
    return found
