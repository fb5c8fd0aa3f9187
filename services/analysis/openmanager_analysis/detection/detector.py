"""Online detection: one causal pass over S series, a tick at a time, vectorised over the series."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from openmanager_analysis.detection import state
from openmanager_analysis.detection.baseline import MOST_LEVEL_SAMPLES, Baseline, Reading
from openmanager_analysis.detection.clock import Clock, Moment
from openmanager_analysis.detection.decision import Decision
from openmanager_analysis.detection.statistic import STATISTICS, Measured, Statistics
from openmanager_analysis.detection.tail import Tail

Floats = NDArray[np.float32]

_MOST_SURPRISE = 60.0  # nats
_STATE = ("counters", "raw", "raw_millis")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What a tick was like.

    score: float64[S] in [0, 1], an alarm from THRESHOLD; repeats of an alarm in the same event stay just below it.
    alarm: bool[S]. low, high: float64[S], between which the values were expected. confidence: float64[S] in [0, 1], how much
    of the past the answer rests on. evidence: float32[S], in nats, before repeats are held back. moment: the tick's place in time.
    value: float64[S], what was judged: of a counter its growth a second. Of a missing value the score is 0.
    """

    score: NDArray[np.float64]
    alarm: NDArray[np.bool_]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    confidence: NDArray[np.float64]
    evidence: Floats
    moment: Moment
    value: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The constants of the method, frozen before they were judged."""

    share: float = 0.06  # of a statistic's past that counts as its tail
    start: float = 1.1  # the first guess of where the tail begins, of log(1 + z)
    excess: float = 0.15  # and of its mean excess
    prior: float = 40.0  # observations that the first guess of the quantile is worth
    excess_prior: float = 20.0  # and that of the excess, in observations in the tail
    most_excess: float = 3.0  # what one observation may teach, in mean excesses
    memory: float = 6000.0  # observations
    others: float = 0.1  # what the statistics beside the strongest add
    short: float = 0.4  # weight of a sample in the running mean of evidence
    now: float = 0.4  # share of this sample's evidence beside the running mean
    often: float = 0.5  # of log(1 + alarms in memory): how much more is asked of a series that alarms often
    length: float = 0.5  # of log(samples): how much more is asked of a long past
    alarm: float = 5.7  # evidence at the threshold, in nats
    settle: float = 150.0  # samples until an answer is half sure
    event_rate: float = 0.1  # how much of normal learning goes on during an event


class Detector:
    """A detector for S series that tick together; a missing value is NaN.

    counters: bool[S], series that only grow and begin again at a restart: their differences a second are judged.
    """

    def __init__(self, series: int, *, counters: NDArray[np.bool_] | None = None, tuning: Tuning | None = None) -> None:
        if series < 1:
            raise ValueError("a detector needs a series")
        self._tuning = t = tuning or Tuning()
        self._series = series
        self._counters = np.zeros(series, dtype=np.bool_) if counters is None else np.asarray(counters, dtype=np.bool_)
        if self._counters.shape != (series,):
            raise ValueError(f"counters has shape {self._counters.shape}, not ({series},)")
        self._raw = np.full(series, np.nan)
        self._raw_millis = np.zeros(series, dtype=np.int64)
        self._clock = Clock()
        self._baseline = Baseline(series)
        self._statistics = Statistics(series)
        self._tail = Tail(
            (STATISTICS, series),
            share=t.share,
            start=t.start,
            excess=t.excess,
            prior=t.prior,
            excess_prior=t.excess_prior,
            most=t.most_excess,
            memory=t.memory,
        )
        self._decision = Decision(
            series, alarm=t.alarm, short=t.short, now=t.now, length=t.length, often=t.often, memory=t.memory
        )

    def __len__(self) -> int:
        return self._series

    def observe(self, time_unix_millis: int, values: NDArray[np.float64]) -> Scores:
        """Judge the next values, float64[S], and learn from them. Raises ValueError for another shape or a stamp gone back."""
        values = np.asarray(values, dtype=np.float64)
        if values.shape != (self._series,):
            raise ValueError(f"values has shape {values.shape}, not ({self._series},)")
        moment = self._clock.tick(time_unix_millis)
        if self._counters.any():
            values = self._rates(time_unix_millis, values)
        seen = np.isfinite(values)
        reading = self._baseline.read(moment, values, seen)
        fresh = np.float32(1) / (self._baseline.count + 1)
        present = seen.astype(np.float32)
        measured = self._statistics.measure(moment, np.where(seen, values, 0), reading.residual, fresh, present)
        confidence = self._confidence(time_unix_millis)
        verdict = self._decision.decide(moment, self._weigh(measured.y), confidence, self._baseline.count, present)
        self._learn(moment, reading, measured, present, fresh)
        if verdict.adopted.any():
            self._baseline.rebase(verdict.adopted, self._statistics.rebase(verdict.adopted))
        width = 3.0 * measured.scale
        return Scores(
            score=verdict.score,
            alarm=verdict.alarm,
            low=reading.expected - width,
            high=reading.expected + width,
            confidence=confidence.astype(np.float64),
            evidence=verdict.evidence,
            moment=moment,
            value=values,
        )

    def step_back(self, time_unix_millis: int) -> None:
        """Go on at a stamp that is not after the last, as if one interval had passed: a clock was ahead, and was put back."""
        if time_unix_millis <= self._clock.last_millis[0]:
            self._raw_millis -= self._clock.step_back(time_unix_millis)

    def _rates(self, time_unix_millis: int, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn counters into differences a second; after a reset there is none."""
        seconds = np.maximum(time_unix_millis - self._raw_millis, 1) / 1000
        grown = values - self._raw
        known = np.isfinite(values)
        self._raw = np.where(known, values, self._raw)
        self._raw_millis = np.where(known, time_unix_millis, self._raw_millis)
        return np.where(self._counters, np.where(grown >= 0, grown / seconds, np.nan), values)

    def _weigh(self, y: Floats) -> Floats:
        """Return the evidence of a tick in nats: the strongest statistic's, and a little of the others'."""
        surprise = np.minimum(self._tail.surprise(y), _MOST_SURPRISE)
        top = surprise.max(axis=0)
        weighed: Floats = top + np.float32(self._tuning.others) * (surprise.sum(axis=0) - top)
        return weighed

    def _confidence(self, time_unix_millis: int) -> Floats:
        hours = (time_unix_millis - int(self._clock.first_millis[0])) / 3_600_000
        count = self._baseline.count
        return count / (count + np.float32(self._tuning.settle)) * np.float32(hours / (hours + 1))

    def _learn(self, moment: Moment, reading: Reading, measured: Measured, present: Floats, fresh: Floats) -> None:
        t = self._tuning
        rate = np.where(self._decision.ongoing, np.float32(t.event_rate), np.float32(1)) * present
        self._tail.learn(measured.y, self._baseline.count, present)
        day = min(moment.day, MOST_LEVEL_SAMPLES)
        self._statistics.learn(
            reading.residual, measured, np.maximum(np.float32(1 / day), fresh) * rate, 3 + 200 * fresh
        )
        self._baseline.learn(moment, reading, rate, measured.floor)
        self._baseline.count += present

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all that was learnt; `from_arrays` makes a detector of it that answers bit by bit the same."""
        own = {f"detector.{field}": getattr(self, f"_{field}") for field in _STATE}
        return own | state.gather(self.parts())

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], *, tuning: Tuning | None = None) -> Self:
        """Return the detector of `arrays`, whose own they become. Raises ValueError for what it did not return."""
        counters = arrays.get("detector.counters")
        if counters is None or counters.ndim != 1 or counters.dtype != np.bool_:
            raise ValueError("the state of the detector is damaged")
        detector = cls(len(counters), counters=counters, tuning=tuning)
        for name, part in detector.parts():
            state.restore(part, name, part.STATE, arrays)
        state.restore(detector, "detector", _STATE, arrays, prefix="_")
        return detector

    def grown(self, counters: NDArray[np.bool_]) -> Self:
        """Return a detector of more series, bool[S + …], which knows of the first what this one does."""
        more = type(self)(len(counters), counters=counters, tuning=self._tuning)
        for (_, known), (_, fresh) in zip(self.parts(), more.parts(), strict=True):
            state.carry(known, fresh, known.STATE)
        state.carry(self, more, ("_raw", "_raw_millis"))
        return more

    def parts(self) -> tuple[tuple[str, Clock | Baseline | Statistics | Tail | Decision], ...]:
        """Return what holds the arrays that are learnt, by name."""
        return (
            ("clock", self._clock),
            ("baseline", self._baseline),
            ("statistics", self._statistics),
            ("tail", self._tail),
            ("decision", self._decision),
        )
