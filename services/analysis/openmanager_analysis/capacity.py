"""What to add, and by when, so that load stays below a limit: arithmetic on forecasts."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from openmanager.errors import invalid
from openmanager_analysis.forecast import Forecast

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What keeps a use below `limit` until the end of a forecast.

    `peak` is the highest that the use comes with `certainty` (at each step by itself); `factor`, at least 1, by how much
    capacity has to grow, as use is load over capacity; `by_unix_millis` when it is needed, None for not within the forecast.
    """

    limit: float
    certainty: float
    peak: float
    factor: float
    by_unix_millis: int | None


def need(expected: Forecast, limit: float, certainty: float) -> Need:
    """Return what to add for a use (a percentage, say) to stay below `limit`, above 0, with `certainty` in (0.5, 1).

    InvalidArgumentError where the forecast's quantiles do not reach so far.
    """
    if not 0 < limit < np.inf:
        raise invalid("limit", "must be more than 0")
    path = upper(expected, certainty)
    over = np.flatnonzero(path >= limit)
    peak = float(path.max())
    return Need(
        limit=limit,
        certainty=certainty,
        peak=peak,
        factor=max(1.0, peak / limit),
        by_unix_millis=int(expected.time_unix_millis[over[0]]) if over.size else None,
    )


def upper(expected: Forecast, certainty: float) -> Floats:
    """Return what is not passed at a step with `certainty`, float64[H]: between the quantiles on either side of it."""
    levels = np.array(expected.levels)
    if not 0.5 < certainty <= levels[-1]:
        raise invalid("certainty", f"must be more than 0.5 and at most {levels[-1]:g}, the forecast's highest quantile")
    above = int(np.searchsorted(levels, certainty))
    below = max(0, above - 1)
    part = (certainty - levels[below]) / (levels[above] - levels[below]) if above > below else 0.0
    made: Floats = (1 - part) * expected.quantiles[:, below] + part * expected.quantiles[:, above]
    return made


def to_add(capacity: float, factor: float, unit: float = 1.0) -> float:
    """Return how much to add to a capacity so that it grows by `factor`, in whole units (servers, disks of so many GB)."""
    if capacity <= 0 or unit <= 0:
        raise invalid("capacity" if capacity <= 0 else "unit", "must be more than 0")
    return unit * max(0, ceil(capacity * (factor - 1) / unit - 1e-9))
