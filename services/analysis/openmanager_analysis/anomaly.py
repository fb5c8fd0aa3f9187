"""Anomalies: runs of times at which a server is unlike what is usual for it, and which of them belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from openmanager.metric import parse_key
from openmanager_analysis.told import Chronicle

MINUTE = 60 * 10**9
# A run is over when nothing was unusual for so long, and grave when it lasts.
QUIET_NANOS = 5 * MINUTE
LONG_NANOS = 15 * MINUTE
# What begins within so long of another, in the same environment and in a metric of the same name, belongs to it.
NEAR_NANOS = 10 * MINUTE
SOME_METRICS, MANY_METRICS, MANY_SERVERS = 3, 6, 3
MAX_BLAMES = 10
MAX_KEPT = 10_000
# Of a message; its own, and of each blame beside the key, which the explanation may say again.
MESSAGE_BYTES, ANOMALY_BYTES, BLAME_BYTES = 3 << 20, 1024, 128


class Severity(IntEnum):
    """How grave an anomaly is."""

    INFO = 1
    WARNING = 2
    CRITICAL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """A metric that an anomaly shows in, at its most unusual: what was expected is from `low` to `high`."""

    metric: str
    value: float
    low: float
    high: float
    score: float
    time_nanos: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """That a server is unusual at a time. `score` and `confidence` are in [0, 1], `blames` the most unusual first.

    Where it is not `alarming` it only goes on.
    """

    server: str
    time_nanos: int
    score: float
    confidence: float
    alarming: bool
    blames: tuple[Blame, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Anomaly:
    """A run of findings of one server; `end_nanos` is 0 while it goes on. `change` counts what is told of it."""

    id: str
    server: str
    environment: str
    start_nanos: int
    last_nanos: int
    end_nanos: int
    score: float
    confidence: float
    blames: tuple[Blame, ...]
    incident_id: str
    incident_size: int = 1
    change: int = 0

    @property
    def severity(self) -> Severity:
        """How grave it is: by how many metrics it shows in, how long it lasts, and on how many servers."""
        is_long = self.last_nanos - self.start_nanos >= LONG_NANOS
        if self.incident_size >= MANY_SERVERS or (is_long and len(self.blames) >= MANY_METRICS):
            return Severity.CRITICAL
        return Severity.WARNING if is_long or len(self.blames) >= SOME_METRICS else Severity.INFO


def names_of(blames: Sequence[Blame]) -> frozenset[str]:
    """Return the names of the metrics to blame, without their attributes."""
    return frozenset(parse_key(blame.metric)[0] for blame in blames)


def worst(known: Sequence[Blame], more: Sequence[Blame]) -> tuple[Blame, ...]:
    """Return the most unusual moment of each metric, the most unusual metric first."""
    best: dict[str, Blame] = {}
    for blame in (*known, *more):
        if blame.metric not in best or blame.score > best[blame.metric].score:
            best[blame.metric] = blame
    return tuple(sorted(best.values(), key=lambda blame: (-blame.score, blame.metric))[:MAX_BLAMES])


def fitting(found: Sequence[Anomaly]) -> Sequence[Anomaly]:
    """Return as many of the first as go into one message: at least one, and less than 4 MiB."""
    size = 0
    for place, each in enumerate(found):
        size += ANOMALY_BYTES + sum(BLAME_BYTES + 2 * len(blame.metric.encode()) for blame in each.blames)
        if place and size > MESSAGE_BYTES:
            return found[:place]
    return found


def gravest(found: Sequence[Anomaly], most: int) -> list[Anomaly]:
    """Return so many of them at most, the gravest, as far as they go into one message, in order of time."""
    chosen = fitting(sorted(found, key=lambda each: (-each.severity, -each.score))[:most])
    return sorted(chosen, key=lambda each: (each.start_nanos, each.server))


@dataclass(slots=True)
class Register(Chronicle[Anomaly]):
    """All anomalies that are known, by server.

    Times are those of the samples, in nanoseconds since 1970; they need not be those of a clock.
    """

    kept: int = MAX_KEPT
    # Ends every id, so that those of several registers differ.
    mark: str = ""
    _count: int = 0

    def see(self, finding: Finding, environment: str = "") -> None:
        """Note a finding on a server of some environment: a run begins or goes on."""
        known = self.open.get(finding.server)
        if known is None:
            if finding.alarming:
                self._begin(finding, environment)
            return
        more = replace(
            known,
            last_nanos=max(known.last_nanos, finding.time_nanos),
            score=max(known.score, finding.score),
            confidence=max(known.confidence, finding.confidence),
            blames=worst(known.blames, finding.blames),
        )
        told = (more.severity, more.blames[:1], len(more.blames)) != (
            known.severity,
            known.blames[:1],
            len(known.blames),
        )
        self._put(more, is_told=told)

    def step_back(self, now_nanos: int) -> None:
        """Go on from a time before the last one: what goes on was seen then at the latest."""
        for server, each in self.open.items():
            last = min(each.last_nanos, now_nanos)
            self.open[server] = replace(each, last_nanos=last, start_nanos=min(each.start_nanos, last))

    def pass_time(self, now_nanos: int) -> None:
        """End the runs that have been quiet."""
        for server, each in [*self.open.items()]:
            if now_nanos - each.last_nanos < QUIET_NANOS:
                continue
            del self.open[server]
            self.change += 1
            self.over.append(replace(each, end_nanos=each.last_nanos, change=self.change))
        self.trim()

    def _begin(self, finding: Finding, environment: str) -> None:
        self._count += 1
        anomaly_id = f"{finding.time_nanos // 10**9:x}-{self._count}{self.mark}"
        cause = self._cause(finding, environment)
        size = 1
        if cause is not None:
            size = 1 + sum(1 for each in self.open.values() if each.incident_id == cause.incident_id)
            for each in [*self.open.values()]:
                if each.incident_id == cause.incident_id:
                    self._put(replace(each, incident_size=size), is_told=each.incident_size < MANY_SERVERS <= size)
        self._put(
            Anomaly(
                id=anomaly_id,
                server=finding.server,
                environment=environment,
                start_nanos=finding.time_nanos,
                last_nanos=finding.time_nanos,
                end_nanos=0,
                score=finding.score,
                confidence=finding.confidence,
                blames=finding.blames[:MAX_BLAMES],
                incident_id=cause.incident_id if cause is not None else anomaly_id,
                incident_size=size,
            ),
            is_told=True,
        )

    def _cause(self, finding: Finding, environment: str) -> Anomaly | None:
        """Return the first of those that go on and that a new one belongs to."""
        names = names_of(finding.blames)
        near = [
            each
            for each in self.open.values()
            if finding.time_nanos - each.start_nanos <= NEAR_NANOS
            and each.environment == environment
            and names & names_of(each.blames)
        ]
        return min(near, key=lambda each: (each.start_nanos, each.id), default=None)

    def _put(self, anomaly: Anomaly, *, is_told: bool) -> None:
        self.change += is_told
        self.open[anomaly.server] = replace(anomaly, change=self.change) if is_told else anomaly

    # ── stored ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def document(self) -> dict[str, Any]:
        """Return all of it, for `restored`."""
        return {"count": self._count, "anomalies": [_document(each) for each in self]}

    @classmethod
    def restored(cls, stored: Mapping[str, Any], kept: int = MAX_KEPT, mark: str = "") -> Register:
        """Undo `document`, in a new life; KeyError or TypeError when it is none."""
        found = cls(kept=kept, mark=mark)
        found._count = int(stored["count"])
        for each in stored["anomalies"]:
            found.change += 1
            blames = tuple(Blame(**blame) for blame in each.pop("blames"))
            anomaly = Anomaly(**each, blames=blames, change=found.change)
            if anomaly.end_nanos:
                found.over.append(anomaly)
            else:
                found.open[anomaly.server] = anomaly
        return found


def _document(anomaly: Anomaly) -> dict[str, Any]:
    fields = ("id", "server", "environment", "start_nanos", "last_nanos", "end_nanos", "score", "confidence")
    blames = [{name: getattr(blame, name) for name in Blame.__slots__} for blame in anomaly.blames]
    return {
        **{name: getattr(anomaly, name) for name in (*fields, "incident_id", "incident_size")},
        "blames": blames,
    }
