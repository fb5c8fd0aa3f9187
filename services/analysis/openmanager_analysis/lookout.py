"""Looks at every series of every server at once, tick by tick, and says which servers are unusual and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from openmanager_analysis.anomaly import MAX_BLAMES, Blame, Finding
from openmanager_analysis.detection import THRESHOLD, Detector, Scores, state
from openmanager_analysis.family import Families
from openmanager_analysis.peer import LEAST_PEERS, Peers
from openmanager_analysis.risk import Risk

NANOS_PER_MILLI = 1_000_000
ALARM = 9.2
"""Nats of a server's evidence at the threshold."""

# An event goes on while there is so much of the evidence that it began with at the least.
GOING_ON = 0.6
# Hours until an answer is half sure.
SETTLE_HOURS = np.float32(2.0)
# A metric is to blame when its family has so much of the evidence of the one that has most.
SHARE = 0.4
# What so many of the servers have beyond the usual surprise is taken off the others' too.
MOST_SERVERS, USUAL = 0.75, np.float32(2.0)
Floats = NDArray[np.float32]


class Lookout:
    """Finds servers that are unlike their peers and unlike themselves. More series may be watched at any time.

    The detector knows what each metric is expected to be; peers and families decide whether a server is unusual.
    """

    def __init__(self) -> None:
        self._series: list[tuple[str, str]] = []
        self._roster = _Roster()
        self._detector: Detector | None = None
        self._peers: Peers | None = None
        self._families: Families | None = None
        self._risk = Risk(ALARM)

    def watch(self, series: Sequence[tuple[str, str]], is_counter: Sequence[bool]) -> None:
        """Watch these, (server, metric) each; those that were watched before have to come first, in the same order."""
        if len(series) == len(self._series):
            return
        roster = self._roster
        roster.add(series[len(self._series) :])
        self._series = list(series)
        counters = np.array(is_counter, np.bool_)
        places = roster.family, roster.name, roster.server
        if self._detector is None or self._peers is None or self._families is None:
            self._detector, self._peers = Detector(len(series), counters=counters), Peers(roster.metric)
            self._families = Families(*places)
        else:
            self._detector, self._peers = self._detector.grown(counters), self._peers.grown(roster.metric)
            self._families = self._families.grown(*places)

    def look(self, time_millis: int, values: NDArray[np.float64]) -> list[Finding]:
        """Return the servers that are unusual at a time. One that is not after the last is of a clock that was put back.

        `values` is float64[≤ K], NaN for nothing; series beyond it have nothing.
        """
        if self._detector is None or self._peers is None or self._families is None:
            return []
        if len(values) < len(self._series):
            values = np.concatenate([values, np.full(len(self._series) - len(values), np.nan)])
        self._detector.step_back(time_millis)
        scores = self._detector.observe(time_millis, values)
        rate = self._families.rate()
        family = self._roster.family
        z = self._peers.observe(scores.moment, scores.value, (scores.low + scores.high) / 2, rate[family])
        surprise = self._families.observe(scores.moment, z, np.isfinite(scores.value), rate)
        confidence = self._families.hours / (self._families.hours + SETTLE_HOURS)
        evidence = beyond_the_fleet(surprise, self._roster.name) * confidence
        most = np.zeros(len(self._roster.servers), np.float32)
        np.maximum.at(most, self._roster.server, evidence)
        self._risk.observe(scores.moment.interval, most)
        return [
            self._finding(place, time_millis, scores, evidence, np.abs(z))
            for place in np.flatnonzero(most >= GOING_ON * ALARM).tolist()
        ]

    def risks(self) -> list[tuple[str, NDArray[np.float64]]]:
        """Return how likely each server alarms within each of HORIZON_SECONDS, the likeliest first, as of the last look."""
        chances = self._risk.chances
        servers = self._roster.servers
        return [(servers[place], chances[place]) for place in np.argsort(-chances.sum(axis=1), kind="stable").tolist()]

    def _finding(self, server: int, time_millis: int, scores: Scores, evidence: Floats, z: Floats) -> Finding:
        families = np.flatnonzero(self._roster.server == server)
        order = families[np.argsort(-evidence[families], kind="stable")]
        most = float(evidence[order[0]])
        blamed = order[evidence[order] >= SHARE * most][:MAX_BLAMES]
        return Finding(
            server=self._roster.servers[server],
            time_nanos=time_millis * NANOS_PER_MILLI,
            score=_score(most),
            confidence=float(scores.confidence[np.isin(self._roster.family, families)].max()),
            alarming=most >= ALARM,
            blames=tuple(
                self._blame(self._member(family, z), time_millis, scores, _score(float(evidence[family])))
                for family in blamed.tolist()
            ),
        )

    def _member(self, family: int, z: Floats) -> int:
        """Return the member of a family that is most unusual now."""
        members = np.flatnonzero(self._roster.family == family)
        return int(members[np.argmax(z[members])])

    def _blame(self, place: int, time_millis: int, scores: Scores, score: float) -> Blame:
        return Blame(
            metric=self._series[place][1],
            value=float(scores.value[place]),
            low=float(scores.low[place]),
            high=float(scores.high[place]),
            score=score,
            time_nanos=time_millis * NANOS_PER_MILLI,
        )

    # ── stored ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all that was learnt; none for nothing. `from_arrays` makes one of them that finds the same."""
        if self._detector is None or self._peers is None or self._families is None:
            return {}
        return self._detector.arrays() | state.gather((("peers", self._peers), ("families", self._families)))

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], series: Sequence[tuple[str, str]], is_counter: Sequence[bool]
    ) -> Self:
        """Undo `arrays`, of these series; ValueError for what it did not return."""
        lookout = cls()
        if not arrays:
            return lookout
        lookout.watch(series, is_counter)
        detector = Detector.from_arrays(arrays)
        if lookout._peers is None or lookout._families is None or len(detector) != len(series):
            raise ValueError("the state of the detector is of other series")
        parts: tuple[tuple[str, Peers | Families], ...] = (("peers", lookout._peers), ("families", lookout._families))
        for name, part in parts:
            state.restore(part, name, part.STATE, arrays)
        lookout._detector = detector
        return lookout


class _Roster:
    """Numbers for what series have in common: of each series its metric and family, of each family its name and server."""

    def __init__(self) -> None:
        self.servers: list[str] = []
        self.metric, self.family = np.empty(0, np.int64), np.empty(0, np.int64)
        self.name, self.server = np.empty(0, np.int64), np.empty(0, np.int64)
        self._metrics: dict[str, int] = {}
        self._names: dict[str, int] = {}
        self._places: dict[str, int] = {}
        self._families: dict[tuple[int, int], int] = {}

    def add(self, series: Sequence[tuple[str, str]]) -> None:
        """Give numbers to more series, (server, metric) each."""
        metrics, families = [], []
        for server, metric in series:
            metrics.append(self._metrics.setdefault(metric, len(self._metrics)))
            name = self._names.setdefault(metric.partition("{")[0], len(self._names))
            place = self._places.setdefault(server, len(self._places))
            families.append(self._families.setdefault((place, name), len(self._families)))
        self.servers = list(self._places)
        self.metric = np.append(self.metric, np.array(metrics, np.int64))
        self.family = np.append(self.family, np.array(families, np.int64))
        self.server, self.name = np.array(list(self._families), np.int64).T


def beyond_the_fleet(surprise: Floats, name: NDArray[np.int64]) -> Floats:
    """Return the surprise of families, float32[F], less what most families of their name have beyond the usual 2 nats.

    So that what happens to most servers at once is nobody's fault.
    """
    order = np.lexsort((surprise, name))
    counts = np.bincount(name)
    place = np.cumsum(counts) - counts + (MOST_SERVERS * (counts - 1)).astype(np.int64)
    shared = np.where(counts >= LEAST_PEERS, np.maximum(surprise[order][place] - USUAL, 0), np.float32(0))
    return np.maximum(surprise - shared[name], 0).astype(np.float32)


def _score(evidence: float) -> float:
    """Return evidence in nats as a score in [0, 1], THRESHOLD at ALARM."""
    return evidence / (evidence + ALARM * (1 - THRESHOLD) / THRESHOLD)
