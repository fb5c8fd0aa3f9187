"""From evidence to a score and alarms: one alarm an event, whatever it is that was judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from openmanager_analysis.detection.clock import DAY_SECONDS, Moment

Floats = NDArray[np.float32]

THRESHOLD = 0.5
"""The score from which a row is an alarm, for every kind of series."""

_HOLD, _LEAST_HOLD, _HOLD_DAYS = 120.0, 30.0, 3.0  # samples without a repeat, as long as they are days
_ADOPT = 200.0  # samples in alarm after which what goes on is normal
_PLAIN_PAST, _PLAIN_INTERVAL = 2000.0, 300.0  # samples and seconds for which nothing is added to what is asked
_MOST = 15.0  # nats: what one sample may add to the running mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a tick is called.

    score: float64[N] in [0, 1]; alarm: bool[N], a new one; adopted: bool[N], an event that has just become normal;
    evidence: float32[N] in nats, before repeats are held back.
    """

    score: NDArray[np.float64]
    alarm: NDArray[np.bool_]
    adopted: NDArray[np.bool_]
    evidence: Floats


class Decision:
    """What becomes of the evidence about N things.

    A score is e/(e + alarm) of the evidence e in nats. While an event goes on, its repeats stay just below the threshold.
    recent: float32[N], the running mean of evidence; held: ticks until an alarm is free again; event: ticks in alarm;
    alarms: their number, the old ones forgotten.
    """

    STATE: ClassVar[tuple[str, ...]] = ("recent", "held", "event", "alarms")

    def __init__(
        self, size: int, *, alarm: float, short: float, now: float, length: float, often: float, memory: float
    ) -> None:
        self.recent = np.zeros(size, dtype=np.float32)
        self.held = np.zeros(size, dtype=np.float32)
        self.event = np.zeros(size, dtype=np.float32)
        self.alarms = np.zeros(size, dtype=np.float32)
        self._alarm, self._short = alarm, np.float32(short)
        self._now, self._before, self._length = np.float32(now), np.float32(1 - now), np.float32(length)
        self._often, self._memory = np.float32(often), np.float32(memory)

    @property
    def ongoing(self) -> NDArray[np.bool_]:
        """Which are in an event that is too young to be normal."""
        return (self.event > 0) & (self.event <= _ADOPT)

    def decide(self, moment: Moment, surprise: Floats, confidence: Floats, count: Floats, present: Floats) -> Verdict:
        """Judge a tick. surprise: float32[N] in nats; confidence: in [0, 1]; count: samples so far; present: 0 or 1.

        The longer the past, the more of it is needed to be beyond it: `length` of the logarithm of the count is
        taken off, and `often` of that of the alarms; and the closer the samples, the more, so that a day of them has few alarms.
        """
        self.recent += self._short * present * (np.minimum(surprise, _MOST) - self.recent)
        faster = max(_PLAIN_INTERVAL / moment.interval, 1.0)
        past = np.log(np.maximum(count * np.float32(faster / _PLAIN_PAST), np.float32(0.1)))
        asked = self._length * past + self._often * np.log1p(self.alarms)
        evidence = np.maximum(self._now * surprise + self._before * self.recent - asked, 0) * confidence * present
        score = evidence.astype(np.float64)
        score /= score + self._alarm
        hot = score >= THRESHOLD
        alarm, adopted = self._hold(moment, hot)
        self.alarms += alarm - self.alarms / self._memory
        score = np.where(hot & ~alarm, THRESHOLD * (0.99 + 0.02 * (score - THRESHOLD)), score)
        return Verdict(score=score, alarm=alarm, adopted=adopted, evidence=evidence)

    def _hold(self, moment: Moment, hot: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        hold = min(_HOLD, max(_LEAST_HOLD, moment.samples(_HOLD_DAYS * DAY_SECONDS)))
        alarm = hot & (self.held <= 0)
        again = np.where(hot, np.maximum(self.held - 1, hold / 4), self.held - 1)
        self.held = np.where(alarm, np.float32(hold), again).astype(np.float32)
        self.event = np.where(self.held > 0, self.event + (hot | (self.event == 0)), 0).astype(np.float32)
        return alarm, hot & (self.event == _ADOPT)
