"""How likely each server begins to alarm within hours, from how near its evidence is to an alarm and how fast it rises."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HORIZON_SECONDS = (900, 3_600, 21_600)
_FAST_SECONDS = 600.0
_MOST_RISE = 5.0  # nats above the mean of the last ten minutes
# By horizon: constant, and weights of the square of the evidence as a share of an alarm's, and of how far it has risen.
# Fitted by maximum likelihood on four simulated fleets.
_CALIBRATION = np.array([[-7.871, 7.333, 1.234], [-5.326, 6.295, 0.427], [-2.762, 3.264, 0.111]])


class Risk:
    """Of S servers. What it keeps is a mean of ten minutes, which is not worth storing: it begins anew after a restart.

    `chances` float64[S, 3] are the probabilities that each alarms within each of HORIZON_SECONDS, rising along it; they are
    replaced as a whole, so that they may be read while the next are made.
    """

    def __init__(self, alarm: float) -> None:
        """Take the nats of evidence at which a server alarms."""
        self.chances = np.empty((0, len(HORIZON_SECONDS)))
        self._alarm = alarm
        self._mean = np.empty(0)

    def observe(self, seconds: float, evidence: NDArray[np.float32]) -> None:
        """Take the evidence about every server in nats, float32[≥ S], `seconds` after the last."""
        self._mean = np.concatenate([self._mean, evidence[len(self._mean) :]])
        self._mean += (1 - np.exp(-seconds / _FAST_SECONDS)) * (evidence - self._mean)
        near = np.minimum(evidence / self._alarm, 1) ** 2
        rise = np.clip(evidence - self._mean, -_MOST_RISE, _MOST_RISE)
        odds = _CALIBRATION[:, 0] + near[:, None] * _CALIBRATION[:, 1] + rise[:, None] * _CALIBRATION[:, 2]
        self.chances = np.maximum.accumulate(1 / (1 + np.exp(-odds)), axis=1)
