"""Trends of months and years: slope, test, changes, seasons, and this period against the one before.

All over daily means, of many series at once. Slopes are Theil's and Sen's (Theil 1950; Sen 1968) with Gilbert's interval
(1987), the test is that of Mann and Kendall with ties and with Hamed and Rao's (1998) variance for correlated days.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from openmanager.errors import FailedPreconditionError, Reason, invalid
from openmanager_analysis.grid import DAY_MILLIS

Floats = NDArray[np.float64]
HOURS, DAYS = 24, 7
MIN_DAYS = 8
# Of two weeks any noise makes a season.
MIN_WEEKS = 3
# A day with fewer hours would be its season more than its level.
MIN_HOURS = 18
HOUR_MILLIS = 3_600_000
# 1 January 1970 was a Thursday; Monday is 0.
FIRST_WEEKDAY = 3
# A change is a step between two fortnights (whole weeks: weekdays cancel) of more than so many standard errors.
FORTNIGHT, CHANGE = 14, 5.0
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A lasting step: the median of the fortnight `before` and `after` the time."""

    time_unix_millis: int
    before: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """What S series did over D days; NaN for a series with fewer than 8 days.

    slope, low, high: float64[S], per day, with the interval of `confidence`; p_value: float64[S], two-sided, of there being
    no trend; by_hour: float64[S, 24] and by_weekday: float64[S, 7] (Monday first, UTC) are what is added to the day's and
    to the week's level, hour_strength and weekday_strength: float64[S] in [0, 1] the share of the variance within days and
    weeks that they explain; recent, before: float64[S] are the means of the last period and of the one before it.
    """

    slope: Floats
    low: Floats
    high: Floats
    p_value: Floats
    confidence: float
    by_hour: Floats
    hour_strength: Floats
    by_weekday: Floats
    weekday_strength: Floats
    recent: Floats
    before: Floats
    changes: tuple[tuple[Change, ...], ...]


def trend(
    time_unix_millis: NDArray[np.int64], values: Floats, *, period_days: int | None = None, confidence: float = 0.95
) -> Trend:
    """Return the trends of values: float64[T, S] (NaN missing) at times int64[T], rising, an hour apart or less.

    `period_days` is the period that is compared with the one before it, by default half of the days. Bad input is an
    InvalidArgumentError, fewer than 8 days a FailedPreconditionError.
    """
    _check(time_unix_millis, values, confidence)
    hourly, first_day = _by_hour(time_unix_millis, values)
    known = np.isfinite(hourly).sum(axis=1)
    daily = np.where(known >= MIN_HOURS, np.nansum(hourly, axis=1) / np.maximum(known, 1), np.nan)
    count = len(daily)
    if count < MIN_DAYS or not (np.isfinite(daily).sum(axis=0) >= MIN_DAYS).any():
        raise FailedPreconditionError(
            f"there are fewer than {MIN_DAYS} days of values, the least to judge a trend by",
            reason=Reason.TOO_LITTLE_DATA,
        )
    period = period_days or count // 2
    if not 1 <= period <= count // 2:
        raise invalid("period_days", f"must be 1 to {count // 2}, half of the days there are")
    slopes = np.array([_slope(column, confidence) for column in daily.T]).T
    growth = np.nan_to_num(slopes[0])
    profile, strength = _hours(hourly, daily, growth)
    weekly, weekly_strength = _weekdays(daily, first_day, growth)
    return Trend(
        slope=slopes[0],
        low=slopes[1],
        high=slopes[2],
        p_value=slopes[3],
        confidence=confidence,
        by_hour=profile,
        hour_strength=strength,
        by_weekday=weekly,
        weekday_strength=weekly_strength,
        recent=_mean(daily[-period:]),
        before=_mean(daily[-2 * period : -period]),
        changes=tuple(_changes(column, first_day) for column in daily.T),
    )


def _check(time_unix_millis: NDArray[np.int64], values: Floats, confidence: float) -> None:
    if values.ndim != 2 or time_unix_millis.shape != values.shape[:1]:
        raise invalid("values", "must have a row for each time")
    if (np.diff(time_unix_millis) <= 0).any():
        raise invalid("time_unix_millis", "must increase strictly")
    if np.isinf(values).any():
        raise invalid("values", "must be finite")
    if not 0.5 <= confidence < 1:
        raise invalid("confidence", "must be in [0.5, 1)")


def _by_hour(time_unix_millis: NDArray[np.int64], values: Floats) -> tuple[Floats, int]:
    """Return the means of hours, float64[D, 24, S], in whole days (UTC), and the number of the first since 1970."""
    if not len(values):
        return np.empty((0, HOURS, values.shape[1])), 0
    hours = time_unix_millis // HOUR_MILLIS
    first_day = int(hours[0] // HOURS)
    place = hours - first_day * HOURS
    size = (int(place[-1]) // HOURS + 1) * HOURS
    made = np.full((size, values.shape[1]), np.nan)
    if len(place) == 1 or (np.diff(place) > 0).all():
        made[place] = values
    else:
        starts = np.flatnonzero(np.diff(place, prepend=-1) > 0)
        counts = np.add.reduceat(np.isfinite(values), starts, axis=0, dtype=np.int64)
        sums = np.add.reduceat(np.nan_to_num(values), starts, axis=0)
        made[place[starts]] = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return made.reshape(-1, HOURS, values.shape[1]), first_day


def _slope(daily: Floats, confidence: float) -> tuple[float, float, float, float]:
    """Return the slope a day of daily: float64[D] with its interval, and the p-value of there being none."""
    days = np.flatnonzero(np.isfinite(daily))
    count = len(days)
    if count < MIN_DAYS:
        return (np.nan,) * 4
    values = daily[days]
    first, second = np.triu_indices(count, 1)
    steps = values[second] - values[first]
    ups = float(np.count_nonzero(steps > 0) - np.count_nonzero(steps < 0))
    steps /= days[second] - days[first]
    pairs = len(steps)
    middle = float(np.median(steps))
    variance = _variance(values, values - middle * days)
    reach = -NormalDist().inv_cdf((1 - confidence) / 2) * np.sqrt(variance)
    low, high = max(0, round((pairs - reach) / 2)), min(pairs - 1, round((pairs + reach) / 2))
    ordered = np.partition(steps, (low, high))
    score = np.sign(ups) * max(0.0, abs(ups) - 1) / np.sqrt(variance) if variance > 0 else 0.0
    # Both tails of the normal distribution, which erfc keeps exact however small they are.
    return middle, float(ordered[low]), float(ordered[high]), math.erfc(abs(score) / math.sqrt(2))


def _variance(values: Floats, detrended: Floats) -> float:
    """Return the variance of Kendall's S with ties, and with the correlation of the ranks of what is detrended.

    Hamed and Rao (1998), eq. 8, over the lags that are significant at 95 %, or that of an AR(1) process (Yue and Wang
    2004), whichever is more; never less than for independent days.
    """
    count = len(values)
    ties = np.unique(values, return_counts=True)[1]
    plain = (count * (count - 1) * (2 * count + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    ranks = _ranks(detrended)
    ranks -= ranks.mean()
    power = np.abs(np.fft.rfft(ranks, 2 * count)) ** 2
    together = np.fft.irfft(power)[:count]
    if together[0] <= 0:
        return plain
    lags = np.arange(1, count - 2)
    correlation = together[1 : count - 2] / together[0]
    correlation = np.where(np.abs(correlation) > 1.96 / np.sqrt(count), correlation, 0.0)
    weights = (count - lags) * (count - lags - 1.0) * (count - lags - 2.0)
    by_lags = 1 + 2 / (count * (count - 1.0) * (count - 2.0)) * float(weights @ correlation)
    next_day = min(0.95, float(together[1] / together[0]) * (1 + 4 / count) + 1 / count)
    return plain * max(1.0, by_lags, (1 + next_day) / (1 - next_day) if correlation[0] > 0 else 1.0)


def _ranks(values: Floats) -> Floats:
    """Return the rank of each value, from 1; equal ones share their mean. scipy.stats would take a second to load."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2)[places]
    return ranks


def _hours(hourly: Floats, daily: Floats, slope: Floats) -> tuple[Floats, Floats]:
    """Return what each hour adds to its day, float64[S, 24], and the share of the variance it explains, float64[S]."""
    ramp = slope * ((np.arange(HOURS)[:, None] - (HOURS - 1) / 2) / HOURS)  # growth is no season
    return _profile(hourly - daily[:, None] - ramp, _size(daily))


def _weekdays(daily: Floats, first_day: int, slope: Floats) -> tuple[Floats, Floats]:
    """Return what each weekday adds to its week, float64[S, 7], and the share of the variance it explains, float64[S]."""
    start = -(first_day + FIRST_WEEKDAY) % DAYS
    weeks = (len(daily) - start) // DAYS
    if weeks < MIN_WEEKS:
        return np.full((daily.shape[1], DAYS), np.nan), np.full(daily.shape[1], np.nan)
    rows = daily[start : start + weeks * DAYS].reshape(weeks, DAYS, -1)
    rows = rows - slope * (np.arange(DAYS)[:, None] - (DAYS - 1) / 2)
    profile, strength = _profile(rows - _mean(rows, axis=1)[:, None], _size(daily))
    few = np.isfinite(rows).sum(axis=(0, 1)) < MIN_WEEKS * DAYS
    profile[few], strength[few] = np.nan, np.nan
    return profile, strength


def _size(daily: Floats) -> Floats:
    """Return the largest of the values without their signs, float64[S]; 0 where none is known."""
    largest: Floats = np.nanmax(np.abs(daily), axis=0, initial=0)
    return largest


def _profile(off: Floats, size: Floats) -> tuple[Floats, Floats]:
    """Return the mean of off: float64[N, K, S] by place, float64[S, K], and the share of the variance that it is.

    The share is adjusted for what a mean of N explains by chance: 0 where there is no season. What is below a billionth
    of values of `size` is none: they are no more exact.
    """
    known = np.isfinite(off)
    count = np.maximum(known.sum(axis=0), 1)
    filled = np.where(known, off, 0.0)
    profile = filled.sum(axis=0) / count
    left = np.where(known, filled - profile, 0.0)
    whole, rest = (filled * filled).sum(axis=(0, 1)), (left * left).sum(axis=(0, 1))
    total = known.sum(axis=(0, 1))
    freedom = np.maximum(total - off.shape[1], 1)
    share = 1 - (rest / freedom) / np.maximum(whole / np.maximum(total, 1), 1e-300)
    is_there = np.abs(profile).max(axis=0) > ROUNDING * size
    return profile.T, np.where(is_there, np.clip(share, 0, 1), 0.0)


def _mean(values: Floats, axis: int = 0) -> Floats:
    """Return the mean of what is known along an axis, NaN where nothing is."""
    known = np.isfinite(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _changes(daily: Floats, first_day: int) -> tuple[Change, ...]:
    """Return the days from which a fortnight differs from the one before by more than drift and noise."""
    known = np.isfinite(daily)
    if known.sum() < 2 * FORTNIGHT:
        return ()
    filled = np.interp(np.arange(len(daily)), np.flatnonzero(known), daily[known])
    # The median of a slope is one of its days, and as uncertain as that: what grows is laid flat first.
    flat = filled - np.median(filled[FORTNIGHT:] - filled[:-FORTNIGHT]) / FORTNIGHT * np.arange(len(filled))
    before, after = _levels(filled)
    flat_before, flat_after = _levels(flat)
    step = flat_after - flat_before
    left = np.abs(step - np.median(step))
    error = _step_error(flat)
    if len(filled) > 8 * FORTNIGHT:  # what steps are like anyway, where changes cannot be most of them
        error = max(error, 1.4826 * float(np.median(left)))
    found = []
    while left.size and left.max() > CHANGE * error:
        place = int(left.argmax())
        found.append(place)
        left[max(0, place - FORTNIGHT) : place + FORTNIGHT + 1] = 0

    return tuple(
        Change(
            time_unix_millis=(first_day + _sharpest(flat, place + FORTNIGHT)) * DAY_MILLIS,
            before=float(before[place]),
            after=float(after[place]),
        )
        for place in sorted(found)
    )


def _levels(daily: Floats) -> tuple[Floats, Floats]:
    """Return the medians of a fortnight, and those of the fortnights right after them."""
    windows = np.median(np.lib.stride_tricks.sliding_window_view(daily, FORTNIGHT), axis=1)
    return windows[:-FORTNIGHT], windows[FORTNIGHT:]


def _step_error(daily: Floats) -> float:
    """Return the standard error of the difference of two medians of a fortnight, of days that are correlated."""
    weeks = np.lib.stride_tricks.sliding_window_view(daily, DAYS)
    left = daily[DAYS // 2 : len(daily) - DAYS // 2] - np.median(weeks, axis=1)
    spread = 1.4826 * float(np.median(np.abs(left - np.median(left))))
    ordered = np.clip(left, -3 * spread, 3 * spread)
    power = float(ordered @ ordered)
    kept = min(0.8, max(0.0, float(ordered[1:] @ ordered[:-1]) / power)) if power > 0 else 0.0
    floor = ROUNDING * max(ROUNDING, float(np.abs(daily).max()))
    return max(floor, 1.2533 * spread * float(np.sqrt(2 / FORTNIGHT * (1 + kept) / (1 - kept))))


def _sharpest(daily: Floats, place: int) -> int:
    """Return the day within a week of place that parts its surroundings best in two means."""
    start, end = max(0, place - FORTNIGHT), min(len(daily), place + FORTNIGHT)
    around = daily[start:end]
    sums = np.cumsum(around)
    many = np.arange(1, len(around))
    contrast = np.abs(sums[:-1] / many - (sums[-1] - sums[:-1]) / (len(around) - many)) * np.sqrt(
        many * (len(around) - many)
    )
    return start + 1 + int(contrast.argmax())
