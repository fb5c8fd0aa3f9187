"""How far each series is from what it usually is beside its peers: the same metric on the other servers of the fleet."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

from openmanager_analysis.detection import state
from openmanager_analysis.detection.clock import Moment

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

LEAST_PEERS = 5
"""Series of a metric, this one included, from which on they are held against each other."""

_LEAST_PRESENT = 3
_SIGMA = np.float32(1.25)  # mean absolute deviation to standard deviation, for a normal
_SMALLEST = np.float32(0.005)  # a share of the usual size: what is less is no deviation
_FAR = np.float32(8.0)  # standard deviations: no series is more unusual than that
_MAGNITUDE_DAYS, _SLOPE_DAYS = 10.0, 4.0
_SLOPE_PRIOR = np.float32(0.002)  # of the common movement's square, at which a series is believed to follow half of it
_HUGE = 1e30  # of float32; what is beyond is as far


def settle(level: Floats, spread: Floats, rest: Floats, *, limit: Floats, pace: Floats, rate: Floats) -> Floats:
    """Move levels, and spreads about them, towards what is left over; return that as far as it counts. All float32[N].

    It counts to a limit, wider while little is known (Huber's psi); where a rate is more than 1 the level takes all of it.
    """
    clipped: Floats = np.clip(rest, -limit, limit)
    level += pace * np.where(rate > 1, rest, clipped)
    spread += pace * (np.minimum(np.abs(rest), 1.25 * limit) - spread)
    return clipped


class Peers:
    """K series, each of a metric.

    A value v becomes x = asinh(v / its usual size), nearly linear for small values and a logarithm for large ones, so that
    what multiplies the load of every server moves all of them alike. Of its difference d from its usual level a series
    owes β·c to the fleet, where c is the median of d over all series of the metric. The rest over its usual size is z.
    A series with fewer than four peers is held against what its own past expects, and c is 0.
    """

    STATE = ("count", "magnitude", "level", "spread", "product", "square", "is_alone")

    def __init__(self, metric: Ints) -> None:
        """Take the metric of each series, int64[K], as a number from 0."""
        series = len(metric)
        self._metric = metric
        self._metrics = int(metric.max()) + 1
        self._few = np.bincount(metric)[metric] < LEAST_PEERS
        self.count = np.zeros(series, np.float32)
        self.magnitude = np.zeros(series, np.float32)
        self.level = np.zeros(series, np.float32)
        self.spread = np.zeros(series, np.float32)
        self.product = np.zeros(series, np.float32)
        self.square = np.zeros(series, np.float32)
        self.is_alone = self._few.copy()

    def grown(self, metric: Ints) -> Self:
        """Return one of more series, which knows of the first what this one does."""
        more = type(self)(metric)
        state.carry(self, more, self.STATE)
        return more

    def observe(
        self, moment: Moment, values: NDArray[np.float64], expected: NDArray[np.float64], rate: Floats
    ) -> Floats:
        """Return z, float32[K], 0 where there is no value, and learn.

        values: float64[K]; expected: what each series' own past says; rate: float32[K], how much to learn, 1 as usual and
        more than 1 to take what is now as the new normal.
        """
        changed = self._few != self.is_alone
        if changed.any():  # a level beside the peers is none beside the own past
            self.count[changed] = 0
            self.is_alone = self._few.copy()
        seen = np.isfinite(values)
        v = np.clip(np.where(seen, values, 0), -_HUGE, _HUGE).astype(np.float32)
        fresh = 1 / (self.count + 1)
        day = np.float32(1 / moment.day)
        self._size(v, np.maximum(day / _MAGNITUDE_DAYS, fresh) * seen * np.minimum(rate, 1))
        x = np.arcsinh(v / self.magnitude)
        if self._few.any():
            own = np.clip(
                np.where(np.isfinite(expected), expected, 0), -_HUGE, _HUGE
            )  # may be far beyond the magnitude
            x -= np.where(self._few, np.arcsinh(own / self.magnitude), np.float32(0))
        self.level = np.where(seen & (self.count == 0), x, self.level)
        away = x - self.level
        common, seen = self._common(away, seen)
        owed = (self.product + _SLOPE_PRIOR) / (self.square + _SLOPE_PRIOR) * common
        rest = np.where(seen, away - owed, np.float32(0))
        scale = _SIGMA * self.spread + _SMALLEST
        z: Floats = np.clip(rest / scale, -_FAR, _FAR)
        pace = np.minimum(np.maximum(day, fresh) * seen * rate, 1)
        clipped = settle(self.level, self.spread, rest, limit=(2 + 200 * fresh) * scale, pace=pace, rate=rate)
        slow = np.maximum(day / _SLOPE_DAYS, fresh) * seen * np.minimum(rate, 1)
        self.product += slow * ((owed + clipped) * common - self.product)
        self.square += slow * (common * common - self.square)
        self.count += seen
        return z

    def _size(self, values: Floats, rate: Floats) -> None:
        """Follow the usual size of the values; one that is far above it counts as five times as large."""
        size = np.abs(values)
        most = np.where(self.count < 10, size, 5 * self.magnitude)
        self.magnitude += rate * (np.minimum(size, most) - self.magnitude)
        np.maximum(self.magnitude, np.float32(1e-9), out=self.magnitude)

    def _common(self, away: Floats, seen: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.bool_]]:
        """Return the median of each series' metric, and which series can be judged."""
        use = np.flatnonzero(seen & ~self._few)
        metric = self._metric[use]
        order = np.lexsort((away[use], metric))
        counts = np.bincount(metric, minlength=self._metrics)
        starts = np.cumsum(counts) - counts
        there = np.flatnonzero(counts)
        ordered = away[use][order]
        median = np.zeros(self._metrics, np.float32)
        low, high = starts[there] + (counts[there] - 1) // 2, starts[there] + counts[there] // 2
        median[there] = (ordered[low] + ordered[high]) / 2
        judged = seen & (self._few | (counts >= _LEAST_PRESENT)[self._metric])
        return np.where(judged & ~self._few, median[self._metric], np.float32(0)), judged
