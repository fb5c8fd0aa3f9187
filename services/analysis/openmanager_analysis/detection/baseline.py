"""What a series is expected to be now: a level, a daily curve and an hour-of-week curve, each only as far as it helps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from openmanager_analysis.detection.clock import DAY_SECONDS, HOUR_SECONDS, HOURS, SLOT_SECONDS, SLOTS, Moment

Floats = NDArray[np.float32]

_SHARP = 12.0  # how decidedly the best of the three expectations is followed
_HANDICAP = np.array([[1.0], [1.04], [1.08]], dtype=np.float32)  # a curve has to earn its place
_DAILY_RATE, _WEEKLY_RATE = 0.15, 0.3  # the least weight of one more day, of one more week
MOST_LEVEL_SAMPLES = 8640.0
"""Over how many samples a level moves at the most."""

_HUGE = 1e20  # of float32; what is beyond is as far


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Values beside what was expected.

    residual: float32[S]; by_rule: float32[3, S], from the level alone, with the daily curve, with both curves; expected:
    float64[S].
    """

    residual: Floats
    by_rule: Floats
    expected: NDArray[np.float64]


class Baseline:
    """A level that moves within about a day, 96 slots of the day, 168 hours of the week.

    Three expectations are kept side by side, and weighed by the inverse power of their mean absolute errors, so that a series
    without a daily pattern does not pay for the noise of a daily curve. All updates are clipped at a multiple of the error
    (Huber's psi), wider while little is known.
    """

    STATE: ClassVar[tuple[str, ...]] = (
        "count",
        "level",
        "daily",
        "weekly",
        "error",
        "daily_visits",
        "weekly_visits",
        "ticks",
    )

    def __init__(self, series: int) -> None:
        self.count = np.zeros(series, dtype=np.float32)
        self.level = np.zeros(series, dtype=np.float64)
        self.daily = np.zeros((SLOTS, series), dtype=np.float32)
        self.weekly = np.zeros((HOURS, series), dtype=np.float32)
        self.error = np.zeros((3, series), dtype=np.float32)
        self.daily_visits = np.zeros(SLOTS)
        self.weekly_visits = np.zeros(HOURS)
        self.ticks = np.zeros(1, dtype=np.int64)

    def read(self, moment: Moment, values: NDArray[np.float64], seen: NDArray[np.bool_]) -> Reading:
        """Return the values beside what is expected; residual 0 where not seen."""
        fresh = seen & (self.count == 0)
        if fresh.any():
            self.level[fresh] = values[fresh]
        curve = self.daily[moment.slot]
        if moment.next_weight:
            weight = np.float32(moment.next_weight)
            curve = (1 - weight) * curve + weight * self.daily[moment.next_slot]
        away = np.clip(np.where(seen, values - self.level, 0), -_HUGE, _HUGE)
        by_rule = np.empty(self.error.shape, dtype=np.float32)
        by_rule[0] = away
        np.subtract(by_rule[0], curve, out=by_rule[1])
        np.subtract(by_rule[1], self.weekly[moment.hour], out=by_rule[2])
        weights = self._weights()
        residual = np.einsum("ks,ks->s", weights, by_rule)
        expected = self.level + (away - residual)
        return Reading(residual=np.where(seen, residual, np.float32(0)), by_rule=by_rule, expected=expected)

    def _weights(self) -> Floats:
        errors = self.error * _HANDICAP + np.float32(1e-30)
        weights: Floats = (errors.min(axis=0) / errors) ** np.float32(_SHARP)
        weights /= weights.sum(axis=0)
        return weights

    def learn(self, moment: Moment, reading: Reading, rate: Floats, floor: Floats) -> None:
        """Move towards what was seen. rate: 0…1 for each series, 0 where nothing was seen."""
        fresh = np.float32(1) / (self.count + 1)
        day = min(moment.day, MOST_LEVEL_SAMPLES)
        slow = np.maximum(np.float32(1 / day), fresh) * rate
        limit = (3 + 200 * fresh) * np.maximum(self.error, 0.1 * self.error[0]) + floor
        clipped = np.clip(reading.by_rule, -limit, limit)
        limit *= 1.5
        self.error += slow * (np.minimum(np.abs(reading.by_rule), limit) - self.error)
        self.level += slow * np.clip(reading.residual, -limit[0], limit[0])
        self._learn_curves(moment, clipped, rate)
        self.ticks += 1

    def _learn_curves(self, moment: Moment, clipped: Floats, rate: Floats) -> None:
        per_slot = max(SLOT_SECONDS / moment.interval, 1.0)
        self.daily_visits[moment.slot] += 1
        weight = max(1 / self.daily_visits[moment.slot], _DAILY_RATE / per_slot)
        self.daily[moment.slot] += np.float32(weight) * rate * clipped[1]
        if self.ticks[0] > moment.samples(7 * DAY_SECONDS):  # before, it would only repeat what the daily curve learns
            self.weekly_visits[moment.hour] += 1
            weight = max(1 / self.weekly_visits[moment.hour], _WEEKLY_RATE / max(HOUR_SECONDS / moment.interval, 1.0))
            self.weekly[moment.hour] += np.float32(weight) * rate * clipped[2]

    def rebase(self, where: NDArray[np.bool_], by: Floats) -> None:
        """Adopt a new level: what the series has moved by."""
        self.level += np.where(where, by, 0)
