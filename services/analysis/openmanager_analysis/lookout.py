"""Looks at every series of every server at once, tick by tick, and says which servers are unusual and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from openmanager_analysis.anomaly import MAX_BLAMES, Blame, Finding
from openmanager_analysis.detection import THRESHOLD, Detector, Scores, state
from openmanager_analysis.detection.joint import Joint

NANOS_PER_MILLI = 1_000_000
# Repeats of an alarm are held back to just below the threshold; from here on an event goes on.
GOING_ON = 0.9 * THRESHOLD
# A metric is to blame when it has so much of the evidence of the one that has most.
SHARE = 0.4
_DETECTOR = "detector"


class Lookout:
    """A detector for K series, and one for the servers they belong to. More may be watched at any time."""

    def __init__(self) -> None:
        self._detector: Detector | None = None
        self._joint: Joint | None = None
        self._series: list[tuple[str, str]] = []
        self._members: dict[str, list[int]] = {}

    def watch(self, series: Sequence[tuple[str, str]], is_counter: Sequence[bool]) -> None:
        """Watch these, (server, metric) each; those that were watched before have to come first, in the same order."""
        if len(series) == len(self._series):
            return
        for place in range(len(self._series), len(series)):
            self._members.setdefault(series[place][0], []).append(place)
        self._series = list(series)
        counters = np.array(is_counter, np.bool_)
        members = [np.array(places, np.int64) for places in self._members.values()]
        if self._detector is None or self._joint is None:
            self._detector, self._joint = Detector(len(series), counters=counters), Joint(members)
        else:
            self._detector, self._joint = self._detector.grown(counters), self._joint.grown(members)

    def look(self, time_millis: int, values: NDArray[np.float64]) -> list[Finding]:
        """Return the servers that are unusual at a time, which has to be after the last.

        `values` is float64[≤ K], NaN for nothing; series beyond it have nothing.
        """
        if self._detector is None or self._joint is None:
            return []
        if len(values) < len(self._series):
            values = np.concatenate([values, np.full(len(self._series) - len(values), np.nan)])
        scores = self._detector.observe(time_millis, values)
        verdict = self._joint.observe(
            scores.moment, scores.evidence, scores.confidence.astype(np.float32), present=np.isfinite(values)
        )
        servers = list(self._members)
        return [
            self._finding(
                servers[place],
                time_millis,
                scores,
                score=float(verdict.score[place]),
                alarming=bool(verdict.alarm[place]),
            )
            for place in np.flatnonzero(verdict.score >= GOING_ON).tolist()
        ]

    def _finding(self, server: str, time_millis: int, scores: Scores, *, score: float, alarming: bool) -> Finding:
        places = np.array(self._members[server], np.int64)
        evidence = scores.evidence[places]
        order = np.argsort(-evidence, kind="stable")[:MAX_BLAMES]
        blamed = places[order[evidence[order] >= SHARE * evidence[order[0]]]].tolist()
        return Finding(
            server=server,
            time_nanos=time_millis * NANOS_PER_MILLI,
            score=score,
            confidence=float(scores.confidence[places].max()),
            alarming=alarming,
            blames=tuple(self._blame(place, time_millis, scores) for place in blamed),
        )

    def _blame(self, place: int, time_millis: int, scores: Scores) -> Blame:
        return Blame(
            metric=self._series[place][1],
            value=float(scores.value[place]),
            low=float(scores.low[place]),
            high=float(scores.high[place]),
            score=float(scores.score[place]),
            time_nanos=time_millis * NANOS_PER_MILLI,
        )

    # ── stored ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def to_bytes(self) -> bytes:
        """Return all that was learnt; empty for nothing. `from_bytes` makes one of it that finds the same."""
        if self._detector is None or self._joint is None:
            return b""
        arrays = {f"{name}.{field}": getattr(part, field) for name, part in self._joint.parts() for field in part.STATE}
        return state.pack({_DETECTOR: np.frombuffer(self._detector.to_bytes(), np.uint8), **arrays})

    @classmethod
    def from_bytes(cls, data: bytes, series: Sequence[tuple[str, str]], is_counter: Sequence[bool]) -> Self:
        """Undo `to_bytes`, of these series; ValueError for what it did not write."""
        lookout = cls()
        if not data:
            return lookout
        arrays: dict[str, NDArray[Any]] = state.unpack(data)
        lookout.watch(series, is_counter)
        detector = Detector.from_bytes(arrays.pop(_DETECTOR, np.empty(0, np.uint8)).tobytes())
        if lookout._joint is None or len(detector) != len(series):
            raise ValueError("the state of the detector is of other series")
        for name, part in lookout._joint.parts():
            state.restore(part, name, {field: field for field in part.STATE}, arrays)
        lookout._detector = detector
        return lookout
