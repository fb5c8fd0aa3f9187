"""How likely a limit is passed within hours: the forecast of the highest value to come, with the errors it made before.

Not the value at the end of the horizon but the highest until then decides whether a limit is passed. It is forecast from
every past moment by what the hours of the day usually hold, moved by how far the level is from usual now; the errors of
those forecasts are what may come of this one (split conformal prediction by rolling origin, as in interval.py), with an
exponential tail beyond their 0.9 quantile. That probability, how far the limit is, how often it was passed within the
last day, and on how many days from this time on, are weighed by a logistic calibration (Platt 1999), which was fitted once on simulated fleets and series.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
HORIZON_HOURS = (1, 6, 24)
STEP_MINUTES = 10
DAY = 24 * 60 // STEP_MINUTES
HISTORY_DAYS, LEAST_DAYS, LEAST_KNOWN = 14, 3, 0.5
"""Days that are looked at, the fewest that an answer is given from, and the least share of them that is known."""

_USUAL_DAYS = 7
_LEVEL = 3  # steps whose median is the level now
_EVERY = 3  # steps from one past origin to the next
_TAIL = 0.1
_LEAST_EXCESS, _LEAST_SCALE = 0.002, 0.01  # shares of the range of the history
_TINY = 1e-9
_SURE = 1e-4
_FAR, _NEAR = -6.0, 2.0
_SELDOM = 0.002
# Series that are worked on at once: what is needed in between stays small.
_CHUNK = 256
# By horizon: constant, and weights of what `evidence` returns.
_CALIBRATION = np.array(
    [[1.247, 0.237, 0.626, 0.227, 0.504], [0.552, 0.433, 0.074, 0.117, 0.592], [0.603, 0.336, 0.0, 0.119, 0.608]]
)


def chances(highest: Floats, limits: Floats) -> Floats:
    """Return how likely each series passes its limit from below within each of HORIZON_HOURS, float64[K, 3] in [0, 1].

    highest: float64[K, T], the highest value of every ten minutes, the newest last, NaN where nothing is; limits: float64[K].
    NaN where the values begin less than three days ago, where less than half of them is known since, or nothing of the last
    hour; 1 where the newest value is at the limit or beyond it.
    """
    parts = [
        _some(highest[at : at + _CHUNK], limits[at : at + _CHUNK]) for at in range(0, max(1, len(highest)), _CHUNK)
    ]
    return np.concatenate(parts)


def evidence(highest: Floats, limits: Floats, hours: int) -> Floats:
    """Return what the calibration weighs, float64[K, 4]: log odds, distance, log share, log odds of the past; highest: float64[K, D · DAY], whole."""
    count = hours * 60 // STEP_MINUTES
    days = highest.shape[1] // DAY
    usual = np.median(highest.reshape(len(highest), days, DAY)[:, -_USUAL_DAYS:], axis=1)  # the first follows now
    cycle = np.concatenate([usual, usual, usual], axis=1)
    expected = _rolling(cycle, count)[:, DAY : 2 * DAY]  # the highest of the steps from each phase on
    before = _means(cycle, _LEVEL)[:, DAY - _LEVEL : 2 * DAY - _LEVEL]  # of the steps before each phase
    levels = _medians(highest)
    origins = np.arange(DAY, highest.shape[1] - count, _EVERY)  # the first step that is to come
    phase = origins % DAY
    foreseen = expected[:, phase] + levels[:, origins - _LEVEL] - before[:, phase]
    reached = _rolling(highest, count)
    errors = reached[:, origins] - foreseen
    gap = limits - (expected[:, 0] + levels[:, -1] - before[:, 0])
    span = np.ptp(highest, axis=1) + _TINY
    chance = _beyond(errors, gap, _LEAST_EXCESS * span)
    scale = np.maximum(errors.std(axis=1), _LEAST_SCALE * span)
    distance = np.clip((highest[:, -1] - limits) / scale, _FAR, _NEAR)
    share = (highest[:, -DAY:] >= limits[:, None]).mean(axis=1)
    often = (reached[:, DAY::DAY] >= limits[:, None]).mean(axis=1)  # from this time of the day
    often = (often * (days - 1) + 0.5) / days
    return np.stack(
        [np.log(chance / (1 - chance)), distance, np.log(share + _SELDOM), np.log(often / (1 - often))], axis=1
    )


def _some(highest: Floats, limits: Floats) -> Floats:
    found = np.full((len(highest), len(HORIZON_HOURS)), np.nan)
    if not highest.size:
        return found
    known = ~np.isnan(highest)
    days = np.minimum((highest.shape[1] - known.argmax(axis=1)) // DAY, HISTORY_DAYS)
    days[~known[:, -DAY // 24 :].any(axis=1)] = 0
    for many in np.unique(days[days >= LEAST_DAYS]).tolist():
        kept = slice(-many * DAY, None)
        use = np.flatnonzero((days == many) & (known[:, kept].mean(axis=1) >= LEAST_KNOWN))
        found[use] = _whole(_filled(highest[use, kept], known[use, kept]), limits[use])
    return found


def _whole(highest: Floats, limits: Floats) -> Floats:
    found = np.empty((len(highest), len(HORIZON_HOURS)))
    for column, (hours, weights) in enumerate(zip(HORIZON_HOURS, _CALIBRATION, strict=True)):
        found[:, column] = 1 / (1 + np.exp(-(weights[0] + evidence(highest, limits, hours) @ weights[1:])))
    found = np.maximum.accumulate(found, axis=1)  # longer is no less likely
    found[highest[:, -1] >= limits] = 1.0
    return found


def _filled(values: Floats, known: NDArray[np.bool_]) -> Floats:
    """Return values with every NaN replaced by the one before it, the first ones by the first that is known."""
    place = np.where(known, np.arange(values.shape[1]), 0)
    np.maximum.accumulate(place, axis=1, out=place)
    place = np.maximum(place, known.argmax(axis=1)[:, None])
    filled: Floats = np.take_along_axis(values, place, axis=1)
    return filled


def _beyond(errors: Floats, gap: Floats, least: Floats) -> Floats:
    """Return how likely an error is as large as a gap, float64[K]: as often as it was, beyond the 0.9 quantile by the tail."""
    edge = np.quantile(errors, 1 - _TAIL, axis=1)
    over = np.maximum(errors - edge[:, None], 0)
    excess = over.sum(axis=1) / np.maximum((over > 0).sum(axis=1), 1) + least
    often = np.maximum((errors >= gap[:, None]).mean(axis=1), _TAIL)
    chance: Floats = np.where(gap > edge, _TAIL * np.exp(-np.maximum(gap - edge, 0) / excess), often)
    return np.clip(chance, _SURE, 1 - 10 * _SURE)


def _rolling(values: Floats, count: int) -> Floats:
    """Return the highest of `count` values from each on, float64[K, T − count + 1], by windows that double."""
    made, size = values, 1
    while size < count:
        step = min(size, count - size)
        made = np.maximum(made[:, :-step], made[:, step:])
        size += step
    return made


def _means(values: Floats, count: int) -> Floats:
    sums = np.cumsum(np.pad(values, ((0, 0), (1, 0))), axis=1)
    made: Floats = (sums[:, count:] - sums[:, :-count]) / count
    return made


def _medians(values: Floats) -> Floats:
    """Return the median of three values from each on, float64[K, T − 2]."""
    a, b, c = values[:, :-2], values[:, 1:-1], values[:, 2:]
    return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))
