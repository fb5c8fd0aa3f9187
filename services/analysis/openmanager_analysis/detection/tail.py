"""How far in its own past's tail a statistic is: a calibrated -log p, whatever the distribution."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_LEAST_QUANTILE = np.float32(0.7)  # of log(1 + z): what is not even one deviation off is no evidence
_SEEN_BEFORE = np.float32(0.6)  # what is left of the evidence of what has been as far before
_RECORD_RATE = np.float32(0.3)  # one sample moves the record by so much of the way: a burst makes one, a blip does not


class Tail:
    """The upper tails of K statistics of S series, each learnt from its own past.

    Beyond its 1 - share quantile q a statistic y is taken to be exponential with mean excess b, so that
    -log p = log(1/share) + (y - q)/b. For y a logarithm this is Hill's estimator of a Pareto tail (Hill, "A simple general
    approach to inference about the tail of a distribution", 1975). q follows by stochastic approximation (Robbins and Monro,
    1951; the density at q of such a tail is share/b, which gives the step), b by the mean of the excesses with a prior, in
    which no excess counts more than `most` mean ones. Both forget: an observation never weighs less than 1/memory.
    What stays below the largest value so far is less of a surprise (`record`, which fades by b in `memory` observations).
    """

    STATE: ClassVar[tuple[str, ...]] = ("quantile", "excess", "record")

    def __init__(
        self,
        size: tuple[int, int],
        *,
        share: float,
        start: float,
        excess: float,
        prior: float,
        excess_prior: float,
        most: float,
        memory: float,
    ) -> None:
        self.quantile = np.full(size, start, dtype=np.float32)
        self.excess = np.full(size, excess, dtype=np.float32)
        self.record = np.zeros(size, dtype=np.float32)
        self._share, self._base = np.float32(share), np.float32(-np.log(share))
        self._prior, self._excess_prior = np.float32(prior), np.float32(excess_prior)
        self._most, self._memory = np.float32(most), np.float32(memory)
        self._least = np.float32(excess * 2 / 3)

    def surprise(self, y: Floats) -> Floats:
        """Return -log p of y: float32[K, S], at least 0."""
        over = y - np.maximum(self.quantile, _LEAST_QUANTILE)
        over /= self.excess
        over += self._base
        new = (y - self.record) / self.excess + 1
        surprise: Floats = np.maximum(over, 0)
        surprise *= _SEEN_BEFORE + (1 - _SEEN_BEFORE) * np.clip(new, 0, 1)
        return surprise

    def learn(self, y: Floats, count: Floats, rate: Floats) -> None:
        """Take y in. count: observations so far, float32[S]; rate: how much to learn, in [0, 1], 0 where y is no number."""
        y = np.minimum(y, self.quantile + self._most * self.excess)
        self.record += rate * np.maximum(_RECORD_RATE * (y - self.record), -self.excess / self._memory)
        seen = np.minimum(count, self._memory)
        gap = y - self.quantile
        over = gap > 0
        self.quantile += rate / (seen + self._prior) * self.excess * (over / self._share - 1)
        np.maximum(self.quantile, 0, out=self.quantile)
        self.excess += rate / (seen * self._share + self._excess_prior) * over * (gap - self.excess)
        np.maximum(self.excess, self._least, out=self.excess)
