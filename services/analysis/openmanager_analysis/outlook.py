"""What a series is expected to do, when it reaches a limit, and what would have to be added."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmanager_analysis.capacity import Need, need
from openmanager_analysis.exhaustion import Exhaustion, time_to_limit
from openmanager_analysis.explanation import figure, span
from openmanager_analysis.forecast import QUANTILES, Forecast, forecast

HOUR_SECONDS = 3_600
# What capacity is planned for: so probable is it that the limit holds.
PLANNED = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """The expectation of one series; `need` keeps it below its limit to the horizon with 90 %, None for a limit of 0 or less."""

    server: str
    metric: str
    limit: float
    value: float
    exhaustion: Exhaustion
    forecast: Forecast
    need: Need | None

    @property
    def explanation(self) -> str:
        """The same in a sentence."""
        text = f"{self.metric} {figure(self.value)}: {_reach(self.exhaustion, self.limit)}"
        if self.need is not None and self.need.factor > 1:
            text += f"; to stay below to the horizon it needs {figure((self.need.factor - 1) * 100)} % more capacity"
        return text


def plan(
    name: tuple[str, str], time_unix_millis: NDArray[np.int64], values: NDArray[np.float64], limit: float, hours: int
) -> Outlook:
    """Return what is expected of a series by hours: int64[T] and float64[T], NaN for missing.

    FailedPreconditionError for one with too few samples.
    """
    expected = forecast(time_unix_millis, values, hours, QUANTILES)
    found = time_to_limit(time_unix_millis, values, limit, hours)
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


def _reach(found: Exhaustion, limit: float) -> str:
    if found.hours is None:
        return f"does not reach {figure(limit)} within the horizon"
    if found.hours == 0:
        return f"is beyond {figure(limit)} now"
    low, high = (span(each * HOUR_SECONDS) if each is not None else "later" for each in (found.low, found.high))
    return f"reaches {figure(limit)} in {span(found.hours * HOUR_SECONDS)} ({low} to {high}, 80 %)"
