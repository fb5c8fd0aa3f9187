"""What may be odd about a sample: how far off it is, at several scales, how lively the series is, and whether it moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from openmanager_analysis.detection.clock import HOUR_SECONDS, Moment

Floats = NDArray[np.float32]

NAMES = (
    "high", "above_recent", "high_for_a_while", "high_for_long", "drift_up",
    "low", "below_recent", "low_for_a_while", "low_for_long", "drift_down",
    "lively", "stuck", "frozen",
)  # fmt: skip
STATISTICS = len(NAMES)
_SIDED, _LIVELY, _STUCK, _FROZEN = 5, 10, 11, 12

_FAST, _SHORT, _LONG = 1 / 8, 1 / 6, 1 / 36  # weights of a sample in running means
_SIGMA = np.float32(1.25)  # mean absolute deviation to standard deviation, for a normal
_FAR = 30.0  # standard deviations: what one sample may add to a mean
_FROZEN_SAMPLES = 24.0  # equal samples in a row that are as odd as a deviation of one
_RESOLUTION = np.float32(1e-4)  # of the usual size of the values: what is smaller is no deviation
_HUGE, _NOTHING = 1e20, 1e-15  # of values; their ratio has to fit float32
_FAST_MEAN, _SHORT_MEAN = 0, 1  # of the residual, of its ratio to the scale; the third and fourth are slower
_DAY_SPREAD, _SHORT_SPREAD, _LONG_SPREAD, _SLOW_SPREAD = range(4)
# A mean of n independent deviations is 1/sqrt(n) of one; those of metrics are not independent, so that less is taken off.
_MEAN_SCALE = np.array([[1.65], [2.5], [2.0]], dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The statistics of a tick.

    y: float32[K, S], logarithms of the statistics, at least 0; scale: float32[S], the standard deviation of a residual;
    fast: float32[S], the residual beside its recent mean; floor: float32[S], what is no deviation at all.
    """

    y: Floats
    scale: Floats
    fast: Floats
    floor: Floats


class Statistics:
    """Running means and mean absolute deviations of residuals, and the statistics made of them.

    size: float32[S], the mean absolute value; run: float32[S], equal samples in a row so far; last: float64[S].
    """

    STATE: ClassVar[tuple[str, ...]] = ("means", "spreads", "size", "run", "last")

    def __init__(self, series: int) -> None:
        self.means = np.zeros((4, series), dtype=np.float32)
        self.spreads = np.zeros((4, series), dtype=np.float32)
        self.size = np.zeros(series, dtype=np.float32)
        self.run = np.zeros(series, dtype=np.float32)
        self.last = np.full(series, np.nan)

    def measure(
        self, moment: Moment, values: NDArray[np.float64], residual: Floats, fresh: Floats, present: Floats
    ) -> Measured:
        """Return the statistics of a tick, and move the running means.

        values, residual: [S], of the tick, 0 where missing; fresh: 1/(samples so far + 1); present: 0 where missing, else 1.
        """
        size = np.minimum(np.abs(values), _HUGE).astype(np.float32)
        self.size += np.maximum(fresh, _RESOLUTION) * present * (size - self.size)
        floor = _RESOLUTION * (size + self.size) + np.float32(_NOTHING)
        scales = _SIGMA * self.spreads + floor
        fast = residual - self.means[_FAST_MEAN]
        ratio = residual / scales[_SLOW_SPREAD]
        self._follow(moment, ratio, fast, limit=20 * scales[_DAY_SPREAD], fresh=fresh, present=present)
        usual = scales[_DAY_SPREAD]
        recent = _SIGMA * self.spreads[_SHORT_SPREAD : _LONG_SPREAD + 1]
        lively = np.log((recent + np.float32(0.05) * usual + floor) / (np.float32(1.05) * usual + floor))
        y = np.empty((STATISTICS, len(residual)), dtype=np.float32)
        y[0], y[1] = ratio, fast / usual
        np.multiply(self.means[_SHORT_MEAN:], _MEAN_SCALE, out=y[2:_SIDED])
        np.negative(y[:_SIDED], out=y[_SIDED : 2 * _SIDED])
        y[_LIVELY], y[_STUCK] = lively[0], -lively[1]
        y[_FROZEN] = self._count_equal(values, present) / np.float32(_FROZEN_SAMPLES)
        np.maximum(y, 0, out=y)
        np.log1p(y[:_LIVELY], out=y[:_LIVELY])
        np.log1p(y[_FROZEN], out=y[_FROZEN])
        return Measured(y=y, scale=scales[_SLOW_SPREAD], fast=fast, floor=floor)

    def _count_equal(self, values: NDArray[np.float64], present: Floats) -> Floats:
        run = np.where(values == self.last, self.run + 1, np.float32(0))
        self.run = np.where(present > 0, run, self.run)
        self.last = np.where(present > 0, values, self.last)
        return self.run

    def _follow(
        self, moment: Moment, ratio: Floats, fast: Floats, *, limit: Floats, fresh: Floats, present: Floats
    ) -> None:
        """Move the running means, and the short and the long mean deviation, to which no sample adds more than limit."""
        long = 1 / max(1 / _LONG, moment.samples(HOUR_SECONDS))
        rates = np.array([[_FAST], [_SHORT], [long], [long / 3], [_SHORT / 1.5], [long]])
        if moment.steps > 1.5:  # a gap: what was before it counts less
            rates = 1 - (1 - rates) ** moment.steps
        paces = np.maximum(rates.astype(np.float32), fresh) * present
        self.means[_FAST_MEAN] += paces[0] * fast
        self.means[_SHORT_MEAN:] += paces[1:4] * (np.clip(ratio, -_FAR, _FAR) - self.means[_SHORT_MEAN:])
        recent = self.spreads[_SHORT_SPREAD : _LONG_SPREAD + 1]
        recent += paces[4:] * (np.minimum(np.abs(fast), limit) - recent)

    def learn(self, residual: Floats, measured: Measured, rate: Floats, wide: Floats) -> None:
        """Move the usual deviations. rate: float32[S], of the day; wide: how many deviations count, float32[S]."""
        for row, off in ((_DAY_SPREAD, measured.fast), (_SLOW_SPREAD, residual)):
            spread = self.spreads[row]
            spread += rate * (np.minimum(np.abs(off), wide * (_SIGMA * spread + measured.floor)) - spread)

    def rebase(self, where: NDArray[np.bool_]) -> Floats:
        """Take the recent residual as the new zero. Returns what it was."""
        moved: Floats = np.where(where, self.means[_FAST_MEAN], np.float32(0))
        self.means[:, where] = 0
        return moved
