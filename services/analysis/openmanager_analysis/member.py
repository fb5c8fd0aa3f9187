"""The members of the combination: simple robust forecasts, made at many origins at once.

A history is cut into rows of one day (or of a shorter stretch where there is no season to see): rows: float64[D, P], of
which the last is the newest. Every member is a row of medians, or one row repeated: seasonal naive, seasonal medians
over 3 to 28 days, the hour of the week, levels of different memory under one seasonal shape, a damped drift.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
WEEK = 7
DAMPING = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a history is cut: `origins` int64[O] are the rows before which a forecast is made, `ahead` rows each."""

    origins: NDArray[np.int64]
    ahead: int
    is_seasonal: bool
    is_day: bool

    @property
    def has_weeks(self) -> bool:
        """Whether every origin has a week before it."""
        return self.is_day and int(self.origins[0]) >= WEEK


def forecasts(rows: Floats, layout: Layout) -> Floats:
    """Return every member's forecast, float64[M, O, R, P], from each origin, seeing only rows before it."""
    origins, ahead = layout.origins, layout.ahead
    count = 28 if layout.is_seasonal else 12
    recent = _recent(rows, origins, count)
    last = recent[:, 0]
    medians = {days: np.median(recent[:, :days], axis=1) for days in (3, 7, count)}
    levels = np.median(recent, axis=2)
    shape = medians[count] - np.median(levels, axis=1)[:, None]
    if not layout.is_seasonal:
        shape = np.zeros_like(shape)
    repeated = [
        medians[3],
        medians[7],
        medians[count],
        shape + levels[:, :1],
        shape + np.median(levels[:, :3], axis=1)[:, None],
        np.broadcast_to(levels[:, :1], shape.shape),
        np.broadcast_to(np.median(levels[:, :7], axis=1)[:, None], shape.shape),
    ]
    if layout.is_seasonal:
        repeated.append(last)
    made = [np.broadcast_to(member[:, None], (len(origins), ahead, rows.shape[1])) for member in repeated]
    base = medians[7] if layout.is_seasonal else np.broadcast_to(np.median(levels[:, :3], axis=1)[:, None], shape.shape)
    made += _returning(base, last, ahead)
    made.append(made[4] + _drift(levels, ahead)[:, :, None])
    if layout.has_weeks:
        made += _weekly(rows, origins, ahead)
    return np.stack(made)


def _recent(rows: Floats, origins: NDArray[np.int64], count: int) -> Floats:
    """Return the last `count` rows before each origin, newest first: float64[O, count, P]; too few are repeated."""
    steps = np.arange(count)
    return rows[origins[:, None] - 1 - steps % origins[:, None]]


def _returning(base: Floats, last: Floats, ahead: int) -> list[Floats]:
    """Return the base with the last deviation from it, dying away over a quarter of a row, and over two rows."""
    size = base.shape[1]
    tail = max(1, size // 12)
    off = np.median((last - base)[:, -tail:], axis=1)
    step = np.arange(1, ahead * size + 1)
    return [
        base[:, None] + (off[:, None] * np.exp(-step / scale)).reshape(len(base), ahead, size)
        for scale in (max(1.0, size / 4), 2.0 * size)
    ]


def _drift(levels: Floats, ahead: int) -> Floats:
    """Return how far a damped robust drift of the levels goes, float64[O, R]; levels: float64[O, K], newest first.

    The drift is the difference of the medians of the newer and the older half of the last 14 levels.
    """
    half = min(7, levels.shape[1] // 2)
    newer, older = np.median(levels[:, :half], axis=1), np.median(levels[:, half : 2 * half], axis=1)
    reach = np.cumsum(DAMPING ** np.arange(1, ahead + 1))
    return (newer - older)[:, None] / half * reach


def _weekly(rows: Floats, origins: NDArray[np.int64], ahead: int) -> list[Floats]:
    """Return the last week again, and the median of the last four (as many as there are)."""
    day = np.arange(ahead)
    back = WEEK - day % WEEK
    weeks = origins // WEEK
    picked = [rows[origins[:, None] - back - WEEK * (week % weeks)[:, None]] for week in range(4)]
    return [picked[0], np.median(np.stack(picked), axis=0)]
