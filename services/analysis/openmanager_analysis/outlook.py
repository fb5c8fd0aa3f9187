"""What a series is expected to do, when it reaches a limit, and what would have to be added."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from openmanager_analysis import crossing
from openmanager_analysis.capacity import Need, need
from openmanager_analysis.exhaustion import Course, Exhaustion, time_to_limit
from openmanager_analysis.explanation import figure, span
from openmanager_analysis.forecast import QUANTILES, Forecast, forecast
from openmanager_analysis.grid import DAY_MILLIS

HOUR_SECONDS, HOUR_MILLIS = 3_600, 3_600_000
# What capacity is planned for: so probable is it that the limit holds.
PLANNED = 0.9
# How far beyond the median an interval is told, in ways to the limit: what explodes tells nothing more.
FURTHEST = 2.0
# What is said of the time after crossing.HORIZON_HOURS.
LATER_HOURS = (7 * 24, 30 * 24, 90 * 24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """The expectation of one series; `need` keeps it below its limit to the horizon with 90 %, None for a limit of 0 or less.

    `chances` are hours and the probability that the limit is reached within them, as far as they are known.
    """

    server: str
    metric: str
    limit: float
    value: float
    exhaustion: Exhaustion
    forecast: Forecast
    need: Need | None
    chances: tuple[tuple[int, float], ...] = ()

    @property
    def explanation(self) -> str:
        """The same in a sentence."""
        text = f"{self.metric} {figure(self.value)}: {_reach(self.exhaustion, self.limit)}"
        text += self._soon()
        if self.need is not None and self.need.factor > 1:
            text += f"; to stay below to the horizon it needs {figure((self.need.factor - 1) * 100)} % more capacity"
        return text

    def _soon(self) -> str:
        """Return how likely single samples reach the limit within the longest of the near horizons."""
        near = [each for each in self.chances if each[0] in crossing.HORIZON_HOURS]
        if not near or self.exhaustion.hours == 0:
            return ""
        hours, chance = near[-1]
        return f"; a sample does so within {span(hours * HOUR_SECONDS)} with {chance:.0%}"


def plan(
    name: tuple[str, str], time_unix_millis: NDArray[np.int64], values: NDArray[np.float64], limit: float, hours: int
) -> Outlook:
    """Return what is expected of a series by hours: int64[T] and float64[T], NaN for missing.

    FailedPreconditionError for one with too few samples.
    """
    found = time_to_limit(time_unix_millis, values, limit, hours)
    expected = forecast(time_unix_millis, values, hours, QUANTILES)
    if found.hours is not None:
        expected = _growing(expected, found.course, limit)
    known = values[~np.isnan(values)]
    return Outlook(
        server=name[0],
        metric=name[1],
        limit=limit,
        value=float(known[-1]),
        exhaustion=found,
        forecast=expected,
        need=need(expected, limit, PLANNED) if limit > 0 else None,
    )


def chances(found: Exhaustion, soon: NDArray[np.float64], hours: int) -> tuple[tuple[int, float], ...]:
    """Return within how many hours, up to `hours`, the limit is reached how likely, rising.

    Soon, by single samples: float64[3] of crossing.HORIZON_HOURS, NaN for what is not known; later, by drawn futures.
    """
    early = zip(crossing.HORIZON_HOURS, soon.tolist() if found.is_rising else (), strict=False)
    made, least = [], 0.0
    for within, chance in (*early, *((later, found.within(later)) for later in LATER_HOURS)):
        if within <= hours and not np.isnan(chance):
            least = max(least, chance)
            made.append((within, least))
    return tuple(made)


def _growing(expected: Forecast, course: Course | None, limit: float) -> Forecast:
    """Return a forecast whose level goes where growth takes it, with the wider of both spreads.

    A forecast of a week ahead dampens growth, and does well to; a limit that is months away is reached by it.
    """
    if course is None:
        return expected
    hours = np.arange(1, len(expected.points) + 1) * (expected.interval_millis / HOUR_MILLIS)
    level = np.stack([np.interp(hours, course.hours, each) for each in course.quantiles.T], axis=1)
    middle = QUANTILES.index(0.5)
    shift = level[:, middle] - _daily(expected.points, round(DAY_MILLIS / expected.interval_millis))
    points = expected.points + shift
    spread = expected.quantiles - expected.points[:, None]
    other = level - level[:, [middle]]
    wider = np.where(np.abs(other) > np.abs(spread), other, spread)
    bound = np.abs(points).max() + FURTHEST * max(abs(limit - expected.points[0]), float(np.ptp(expected.points)))
    quantiles = np.clip(points[:, None] + wider, -bound, bound)
    return replace(expected, points=points, quantiles=quantiles)


def _daily(values: NDArray[np.float64], day: int) -> NDArray[np.float64]:
    """Return the mean of a day around each value, float64[T]; of what there is at the ends."""
    sums = np.concatenate([np.zeros(1), np.cumsum(values)])
    last = np.minimum(np.arange(len(values)) + max(1, day // 2), len(values))
    first = np.maximum(last - max(1, day), 0)
    last = np.minimum(np.maximum(last, first + max(1, day)), len(values))
    means: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return means


def _reach(found: Exhaustion, limit: float) -> str:
    if found.hours is None:
        return f"does not reach {figure(limit)} within the horizon"
    if found.hours == 0:
        return f"is beyond {figure(limit)} now"
    low, high = (span(each * HOUR_SECONDS) if each is not None else "later" for each in (found.low, found.high))
    return f"reaches {figure(limit)} in {span(found.hours * HOUR_SECONDS)} ({low} to {high}, 80 %)"
