"""How far in its own past's tail a statistic is: a calibrated -log p, whatever the distribution."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Tail:
    """The upper tails of K statistics of S series, each learnt from its own past.

    Beyond its 1 - share quantile q a statistic y is taken to be exponential with mean excess b, so that
    -log p = log(1/share) + (y - q)/b. For y a logarithm this is Hill's estimator of a Pareto tail (Hill, "A simple general
    approach to inference about the tail of a distribution", 1975). q follows by stochastic approximation (Robbins and Monro,
    1951; the density at q of such a tail is share/b, which gives the step), b by the mean of the excesses with a prior.
    Both begin with a prior's weight, and forget: an observation never weighs less than 1/memory.
    """

    STATE = ("quantile", "excess")

    def __init__(
        self, size: tuple[int, int], *, share: float, start: float, excess: float, prior: float, excess_prior: float
    ) -> None:
        self.quantile = np.full(size, start, dtype=np.float32)
        self.excess = np.full(size, excess, dtype=np.float32)
        self._share = np.float32(share)
        self._base = np.float32(-np.log(share))
        self._prior, self._excess_prior = np.float32(prior), np.float32(excess_prior)
        self._least = np.float32(excess / 4)

    def surprise(self, y: Floats) -> Floats:
        """Return -log p of y: float32[K, S], at least 0."""
        over = (y - self.quantile) / self.excess
        return np.maximum(over + self._base, 0)

    def learn(self, y: Floats, count: Floats, rate: Floats, memory: float) -> None:
        """Take y in. count: observations so far, float32[S]; rate: how much to learn, in [0, 1], 0 where y is no number."""
        seen = np.minimum(count, memory)
        gap = y - self.quantile
        over = gap > 0
        step = rate / (seen + self._prior)
        excess_step = rate / (seen * self._share + self._excess_prior)
        self.quantile += step * self.excess * (over / self._share - 1)
        np.maximum(self.quantile, 0, out=self.quantile)
        self.excess += excess_step * over * (gap - self.excess)
        np.maximum(self.excess, self._least, out=self.excess)
