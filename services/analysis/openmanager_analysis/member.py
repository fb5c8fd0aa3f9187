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
DAMPING = 0.95
FADING = 0.85
# Rows that a median of all looks back: days of a season, or stretches of a short history.
DAYS, SHORT = 28, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a history is cut: `origins` int64[O] are the rows before which a forecast is made, `ahead` rows each.

    `is_seasonal` where a row resembles the next, `has_weeks` where rows are days and every origin has a week before it.
    """

    origins: NDArray[np.int64]
    ahead: int
    is_seasonal: bool
    has_weeks: bool


def forecasts(rows: Floats, layout: Layout) -> Floats:
    """Return every member's forecast, float64[M, O, R, P], from each origin, seeing only rows before it."""
    origins, ahead = layout.origins, layout.ahead
    count = DAYS if layout.is_seasonal else SHORT
    back = _back(origins, count)
    recent, levels = rows[back], _median(rows, axis=1)[back]
    last, median, week = recent[:, 0], _median(recent, axis=1), _median(recent[:, :WEEK], axis=1)
    if not layout.is_seasonal:
        week = median = np.broadcast_to(_median(levels[:, :3], axis=1)[:, None], last.shape)
    fading = FADING ** np.arange(count)
    flat = _median(levels[:, :WEEK], axis=1)
    repeated = [
        median + (_median(levels[:, :3], axis=1) - _median(levels, axis=1))[:, None],
        np.tensordot(recent, fading / fading.sum(), axes=(1, 0)),
        np.broadcast_to(flat[:, None], last.shape),
    ]
    if layout.is_seasonal:
        repeated += [median, last]
    made = [np.broadcast_to(member[:, None], (len(origins), ahead, rows.shape[1])) for member in repeated]
    made += _returning(week, last, ahead)
    made.append(week[:, None] + _drift(levels, origins, ahead)[:, :, None])
    if layout.has_weeks:
        made += _weekly(rows, origins, ahead)
    return np.stack(made)


def _back(origins: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the last `count` rows before each origin, newest first, int64[O, count]; where they are too few, again."""
    return origins[:, None] - 1 - np.arange(count) % origins[:, None]


def _returning(base: Floats, last: Floats, ahead: int) -> list[Floats]:
    """Return the newest values again; the base moved by the last deviation from it; that, dying away over two rows."""
    count, size = base.shape
    tail = max(1, size // 12)
    off = _median((last - base)[:, -tail:], axis=1)[:, None]
    fading = np.exp(-np.arange(1, ahead * size + 1) / (2 * size)).reshape(ahead, size)
    newest = _median(last[:, -tail:], axis=1)[:, None, None]
    return [
        np.broadcast_to(newest, (count, ahead, size)),
        np.broadcast_to((base + off)[:, None], (count, ahead, size)),
        base[:, None] + off[:, :, None] * fading,
    ]


def _drift(levels: Floats, origins: NDArray[np.int64], ahead: int) -> Floats:
    """Return how far a damped robust drift goes from the middle of the last week, float64[O, R].

    levels: float64[O, K], newest first. The drift is the difference of the medians of the last two weeks, or of the
    halves of what there is; it is damped as in Gardner and McKenzie (1985).
    """
    half = np.clip(origins // 2, 1, min(WEEK, levels.shape[1] // 2))
    slopes = np.empty(len(origins))
    for size in np.unique(half):
        which = half == size
        newer, older = _median(levels[which, :size], axis=1), _median(levels[which, size : 2 * size], axis=1)
        slopes[which] = (newer - older) / size
    reach = (half[:, None] - 1) / 2 + np.cumsum(DAMPING ** np.arange(1, ahead + 1))
    return slopes[:, None] * reach


def _weekly(rows: Floats, origins: NDArray[np.int64], ahead: int) -> list[Floats]:
    """Return the last week again, and the median of the last four (as many as there are)."""
    day = np.arange(ahead)
    back = WEEK - day % WEEK
    weeks = origins // WEEK
    picked = [rows[origins[:, None] - back - WEEK * (week % weeks)[:, None]] for week in range(4)]
    return [picked[0], _median(np.stack(picked), axis=0)]


def _median(values: Floats, axis: int) -> Floats:
    """Return the medians along an axis: by sorting, in half the time of numpy.median for arrays as small as these."""
    ordered = np.sort(values, axis=axis)
    half, is_odd = divmod(values.shape[axis], 2)
    middle: Floats = ordered.take(half, axis=axis)
    return middle if is_odd else (middle + ordered.take(half - 1, axis=axis)) / 2
