"""One score for an entity of several metrics, a server say, and which of them to blame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmanager_analysis.detection.clock import Moment
from openmanager_analysis.detection.decision import Decision, Verdict
from openmanager_analysis.detection.tail import Tail

Floats = NDArray[np.float32]

_STATISTICS = 2  # the strongest metric, and all of them together
_MEMORY = 6000.0
_PLAIN = np.float32(3.0)  # nats of a metric's evidence that come all the time
_ALARM = 6.5


class Joint:
    """The evidence of the metrics of G entities together, each entity calibrated on its own past.

    members: the indices of each entity's series. Two statistics, logarithms of: the strongest metric's evidence; the sum of
    what all of them have beyond the plain, over the root of their number.
    """

    STATE = ("count",)

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
        self.decision = Decision(
            len(members), alarm=_ALARM, short=0.4, now=0.6, length=0.5, often=0.5, memory=_MEMORY
        )

    def observe(self, moment: Moment, evidence: Floats, confidence: Floats, more: Floats | None = None) -> Verdict:
        """Judge the entities. evidence, confidence: float32[S], of the series; more: float32[G], nats known otherwise."""
        mine = evidence[self._order]
        strongest = np.maximum.reduceat(mine, self._starts)
        together = np.add.reduceat(np.maximum(mine - _PLAIN, 0), self._starts) / self._root
        y = np.log1p(np.stack([strongest, together]))
        surprise = self.tail.surprise(y).mean(axis=0)
        if more is not None:
            surprise = np.maximum(surprise, more)
        present = np.ones_like(self.count)
        sure = np.maximum.reduceat(confidence[self._order], self._starts)
        verdict = self.decision.decide(moment, np.minimum(surprise, 60), sure, self.count, present)
        self.tail.learn(y, self.count, present)
        self.count += 1
        return verdict
