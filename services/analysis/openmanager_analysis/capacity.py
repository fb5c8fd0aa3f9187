"""What a series is expected to do, when it reaches a limit, and what would have to be added."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmanager_analysis.exhaustion import Exhaustion, time_to_limit
from openmanager_analysis.explanation import figure, span
from openmanager_analysis.forecast import QUANTILES, Forecast, forecast

HOUR_SECONDS = 3_600
# What capacity is planned for: so probable is it that the limit holds.
PLANNED = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The expectation of one series.

    `factor` is by how much its capacity has to be multiplied so that the limit holds to the horizon with a probability of
    90 %, 1 where it does as it is.
    """

    server: str
    metric: str
    limit: float
    value: float
    exhaustion: Exhaustion
    forecast: Forecast
    factor: float

    @property
    def explanation(self) -> str:
        """The same in a sentence."""
        text = f"{self.metric} {figure(self.value)}: {_reach(self.exhaustion, self.limit)}"
        if self.factor > 1:
            text += f"; to stay below to the horizon it needs {figure((self.factor - 1) * 100)} % more capacity"
        return text


def plan(
    name: tuple[str, str], time_unix_millis: NDArray[np.int64], values: NDArray[np.float64], limit: float, hours: int
) -> Capacity:
    """Return what is expected of a series by hours: int64[T] and float64[T], NaN for missing.

    FailedPreconditionError for one with too few samples.
    """
    expected = forecast(time_unix_millis, values, hours, QUANTILES)
    found = time_to_limit(time_unix_millis, values, limit, hours)
    known = values[~np.isnan(values)]
    highest = float(expected.quantiles[:, QUANTILES.index(PLANNED)].max())
    return Capacity(
        server=name[0],
        metric=name[1],
        limit=limit,
        value=float(known[-1]),
        exhaustion=found,
        forecast=expected,
        factor=max(1.0, highest / limit) if limit > 0 else 1.0,
    )


def _reach(found: Exhaustion, limit: float) -> str:
    if found.hours is None:
        return f"does not reach {figure(limit)} within the horizon"
    if found.hours == 0:
        return f"is beyond {figure(limit)} now"
    low, high = (span(each * HOUR_SECONDS) if each is not None else "later" for each in (found.low, found.high))
    return f"reaches {figure(limit)} in {span(found.hours * HOUR_SECONDS)} ({low} to {high}, 80 %)"
