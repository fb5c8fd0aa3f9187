"""One score for an entity of several metrics, a server say, and which of them to blame."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

from openmanager.errors import invalid
from openmanager_analysis.detection.clock import Moment
from openmanager_analysis.detection.decision import Decision, Verdict
from openmanager_analysis.detection.detector import Scores
from openmanager_analysis.detection.relation import LEAST_HISTORY, Relation, fit_tail, tail_surprise
from openmanager_analysis.detection.tail import Tail

Floats = NDArray[np.float32]

_STATISTICS = 2  # the strongest metric, and all of them together
_MEMORY = 6000.0
_PLAIN = np.float32(3.0)  # nats of a metric's evidence that come all the time
_ALARM, _KNOWN_ALARM = 5.0, 8.0  # nats at the threshold
_FEW = 3  # metrics: most faults show in a few, and the noise of all the others would hide them
_OWN = 0.25  # weight of a metric's evidence from its own past, where its relation to the others is known
_PACE = 0.3  # weight of a row in the running mean
_MOST_ROW = 40.0  # nats


class Joint:
    """The evidence of the metrics of G entities together, each entity calibrated on its own past.

    members: the indices of each entity's series. Two statistics, logarithms of: the strongest metric's evidence; the sum of
    what all of them have beyond the plain, over the root of their number.
    """

    def __init__(self, members: list[NDArray[np.int64]]) -> None:
        if not members or any(len(indices) == 0 for indices in members):
            raise ValueError("every entity needs a series")
        self._order = np.concatenate(members)
        sizes = np.array([len(indices) for indices in members])
        self._starts = np.cumsum(sizes) - sizes
        self._root = np.sqrt(sizes).astype(np.float32)
        self.count = np.zeros(len(members), dtype=np.float32)
        self.tail = Tail(
            (_STATISTICS, len(members)),
            share=0.06,
            start=1.6,
            excess=0.25,
            prior=40.0,
            excess_prior=20.0,
            most=3.0,
            memory=_MEMORY,
        )
        self.decision = Decision(len(members), alarm=_ALARM, short=0.4, now=0.6, length=0.5, often=0.5, memory=_MEMORY)

    def observe(
        self,
        moment: Moment,
        evidence: Floats,
        confidence: Floats,
        present: NDArray[np.bool_] | None = None,
    ) -> Verdict:
        """Judge the entities.

        evidence, confidence: float32[S], of the series; present: bool[S], which series have a value, by default all: an
        entity that has none learns nothing.
        """
        mine = evidence[self._order]
        strongest = np.maximum.reduceat(mine, self._starts)
        together = np.add.reduceat(np.maximum(mine - _PLAIN, 0), self._starts) / self._root
        y = np.log1p(np.stack([strongest, together]))
        surprise = self.tail.surprise(y).max(axis=0)
        here = np.ones_like(self.count) if present is None else self._present(present)
        sure = np.maximum.reduceat(confidence[self._order], self._starts)
        verdict = self.decision.decide(moment, np.minimum(surprise, 60), sure, self.count, here)
        self.tail.learn(y, self.count, here)
        self.count += here
        return verdict

    def _present(self, present: NDArray[np.bool_]) -> Floats:
        return np.logical_or.reduceat(present[self._order], self._starts).astype(np.float32)


class Known:
    """An entity of M metrics that had a training period: what its metrics are to each other counts most.

    A row's statistic is the logarithm of a running mean: of the mean of the three strongest metrics' -log p given
    the others, and a quarter of that of their own evidence. Its tail is that of the training period.
    """

    def __init__(self, relation: Relation, quantile: float, excess: float) -> None:
        self._relation, self._quantile, self._excess = relation, quantile, excess
        self._recent = 0.0
        self._count = np.zeros(1, dtype=np.float32)
        self._decision = Decision(1, alarm=_KNOWN_ALARM, short=1.0, now=1.0, length=0.0, often=0.0, memory=_MEMORY)

    @classmethod
    def learn(cls, history: NDArray[np.float64]) -> Self:
        """Learn from float64[H, M]. Raises InvalidArgumentError for too few rows."""
        if len(history) < LEAST_HISTORY:
            raise invalid("history", f"a training period has at least {LEAST_HISTORY} rows, not {len(history)}")
        relation = Relation(history)
        recent, mean = np.empty(len(history)), 0.0
        for row, strongest in enumerate(_strongest(relation.surprise(history)).tolist()):
            mean += _PACE * (min(strongest, _MOST_ROW) - mean)
            recent[row] = mean * (1 + _OWN)
        quantile, excess = fit_tail(np.log1p(recent)[:, None])
        return cls(relation, float(quantile[0]), float(excess[0]))

    def observe(self, scores: Scores, values: NDArray[np.float64]) -> tuple[Verdict, Floats]:
        """Judge a row, values float64[M]. Returns the verdict and how much each metric is to blame, float32[M]."""
        surprise = self._relation.surprise(values[None, :])[0]
        row = _strongest(surprise[None, :])[0] + _OWN * _strongest(scores.evidence[None, :])[0]
        self._recent += _PACE * (min(float(row), _MOST_ROW) - self._recent)
        nats = tail_surprise(np.log1p(np.array([self._recent])), np.array([self._quantile]), np.array([self._excess]))
        sure = np.ones(1, dtype=np.float32)
        verdict = self._decision.decide(scores.moment, nats.astype(np.float32), sure, self._count, sure)
        return verdict, (surprise + _OWN * scores.evidence).astype(np.float32)


def _strongest(surprise: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the mean of the three strongest of each row, float64[T]."""
    few = min(_FEW, surprise.shape[1])
    strongest: NDArray[np.float64] = np.partition(surprise, -few, axis=1)[:, -few:].mean(axis=1, dtype=np.float64)
    return strongest
