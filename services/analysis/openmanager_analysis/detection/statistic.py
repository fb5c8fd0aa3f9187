"""What may be odd about a sample: how far off it is, at several scales, how it jumped, and how lively the series is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmanager_analysis.detection.clock import HOUR_SECONDS, Moment

Floats = NDArray[np.float32]

NAMES = (
    "high", "above_recent", "jump", "high_for_a_while", "high_for_long", "drift_up",
    "low", "below_recent", "lively", "low_for_a_while", "low_for_long", "drift_down", "stuck",
)  # fmt: skip
STATISTICS = len(NAMES)
_JUMP, _LIVELY, _STUCK = NAMES.index("jump"), NAMES.index("lively"), NAMES.index("stuck")

_FAST, _SHORT, _LONG = 1 / 8, 1 / 6, 1 / 36  # weights of a sample in running means
_SIGMA = np.float32(1.25)  # mean absolute deviation to standard deviation, for a normal
_FAR = 30.0  # standard deviations: what one sample may add to a mean
_FAST_MEAN, _SHORT_MEAN, _LONG_MEAN, _DRIFT_MEAN = range(4)
_DAY_SPREAD, _SHORT_SPREAD, _LONG_SPREAD, _SLOW_SPREAD, _JUMP_SPREAD = range(5)
# A mean of n independent deviations is 1/sqrt(n) of one; those of metrics are not independent, so that less is taken off.
_MEAN_SCALE = np.array([[1.65], [2.5], [2.0]], dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """y: float32[K, S], logarithms of the statistics, at least 0; scale: float32[S], the standard deviation of a residual;
    fast, jump: float32[S], the parts that the spreads learn from; floor: float32[S], what is no deviation at all."""

    y: Floats
    scale: Floats
    fast: Floats
    jump: Floats
    floor: Floats


class Statistics:
    """Running means and mean absolute deviations of residuals, and the statistics made of them."""

    STATE = ("means", "spreads", "before")

    def __init__(self, series: int) -> None:
        self.means = np.zeros((4, series), dtype=np.float32)
        self.spreads = np.zeros((5, series), dtype=np.float32)
        self.before = np.zeros(series, dtype=np.float32)

    def measure(
        self, moment: Moment, residual: Floats, expected: NDArray[np.float64], fresh: Floats, seen: Floats
    ) -> Measured:
        """Return the statistics of a tick, and move the running means. fresh: 1/(samples so far + 1); seen: 0 or 1."""
        floor = (1e-6 * np.minimum(np.abs(expected), 1e30) + 1e-9).astype(np.float32)
        scales = _SIGMA * self.spreads + floor
        fast, jump = residual - self.means[_FAST_MEAN], residual - self.before
        ratio = residual / scales[_SLOW_SPREAD]
        lively = self._follow(moment, residual, ratio, fast, scales, fresh, seen)
        y = np.empty((STATISTICS, len(residual)), dtype=np.float32)
        y[0], y[1], y[2] = ratio, fast / scales[_DAY_SPREAD], jump / scales[_JUMP_SPREAD]
        np.multiply(self.means[_SHORT_MEAN:], _MEAN_SCALE, out=y[3:6])
        np.negative(y[:6], out=y[6:12])
        y[_JUMP] = np.abs(y[_JUMP])
        np.maximum(y[:12], 0, out=y[:12])
        np.log1p(y[:12], out=y[:12])
        y[_LIVELY] = np.maximum(lively[0], 0)
        y[_STUCK] = np.maximum(-lively[1], 0)
        return Measured(y=y, scale=scales[_SLOW_SPREAD], fast=fast, jump=jump, floor=floor)

    def _follow(
        self, moment: Moment, residual: Floats, ratio: Floats, fast: Floats, scales: Floats, fresh: Floats, seen: Floats
    ) -> Floats:
        """Move the running means; return the logarithm of the short and the long mean deviation over the usual one."""
        long = 1 / max(1 / _LONG, moment.samples(HOUR_SECONDS))
        rates = np.array([[_FAST], [_SHORT], [long], [_LONG / 3]], dtype=np.float32)
        if moment.steps > 1.5:  # a gap: what was before it counts less
            rates = (1 - (1 - rates) ** np.float32(moment.steps)).astype(np.float32)
        rates = np.maximum(rates, fresh) * seen
        self.means[_FAST_MEAN] += rates[0] * (residual - self.means[_FAST_MEAN])
        self.means[1:] += rates[1:] * (np.clip(ratio, -_FAR, _FAR) - self.means[1:])
        usual, floor = scales[_DAY_SPREAD], scales[_DAY_SPREAD] - _SIGMA * self.spreads[_DAY_SPREAD]
        recent = self.spreads[_SHORT_SPREAD : _LONG_SPREAD + 1]
        pace = np.maximum(np.array([[_SHORT / 1.5], [long]], dtype=np.float32), fresh) * seen
        recent += pace * (np.minimum(np.abs(fast), 20 * usual) - recent)
        lively: Floats = np.log((_SIGMA * recent + 0.05 * usual + floor) / (1.05 * usual + floor))
        return lively

    def learn(self, residual: Floats, measured: Measured, rate: Floats, wide: Floats, seen: NDArray[np.bool_]) -> None:
        """Move the usual deviations. rate: float32[S], of the day; wide: how many deviations count, float32[S]."""
        for row, size in ((_DAY_SPREAD, measured.fast), (_SLOW_SPREAD, residual), (_JUMP_SPREAD, measured.jump)):
            spread = self.spreads[row]
            limit = wide * (_SIGMA * spread + measured.floor)
            spread += rate * (np.minimum(np.abs(size), limit) - spread)
        self.before = np.where(seen, residual, self.before)

    def rebase(self, where: NDArray[np.bool_]) -> Floats:
        """Take the recent residual as the new zero. Returns what it was."""
        moved: Floats = np.where(where, self.means[_FAST_MEAN], np.float32(0))
        self.means[:, where] = 0
        self.before = self.before - moved
        return moved
