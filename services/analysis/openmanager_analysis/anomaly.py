"""Anomalies: runs of times at which a server is unlike what is usual for it, and which of them belong together."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from openmanager.metric import parse_key
from openmanager.watch import change_of, compacted, token_of

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
class Register:
    """All anomalies that are known: those that go on, and the newest of those that are over.

    Times are those of the samples, in nanoseconds since 1970; they need not be those of a clock.
    """

    kept: int = MAX_KEPT
    # Tells one life of the register from another: changes are counted anew in each.
    epoch: str = field(default_factory=lambda: secrets.token_hex(4))
    change: int = 0
    _open: dict[str, Anomaly] = field(default_factory=dict)  # by server
    _over: deque[Anomaly] = field(default_factory=deque)  # by end
    _forgotten: int = 0  # the newest change of those that were let go
    _count: int = 0

    def __iter__(self) -> Iterator[Anomaly]:
        """Yield all, those that are over first."""
        yield from self._over
        yield from self._open.values()

    def see(self, finding: Finding, environment: str = "") -> None:
        """Note a finding on a server of some environment: a run begins or goes on."""
        known = self._open.get(finding.server)
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

    def pass_time(self, now_nanos: int) -> None:
        """End the runs that have been quiet."""
        for server, each in [*self._open.items()]:
            if now_nanos - each.last_nanos < QUIET_NANOS:
                continue
            del self._open[server]
            self.change += 1
            self._over.append(replace(each, end_nanos=each.last_nanos, change=self.change))
        while len(self._over) > self.kept:
            self._forgotten = max(self._forgotten, self._over.popleft().change)

    def changed_since(self, change: int) -> list[Anomaly]:
        """Return those that began, changed or ended after a change, in the order of their changes.

        OutOfRangeError when one of them was let go.
        """
        if change < self._forgotten:
            raise compacted()
        return sorted((each for each in self if each.change > change), key=_change)

    def going_on(self) -> list[Anomaly]:
        """Return those that are not over, in the order of their changes."""
        return sorted(self._open.values(), key=_change)

    def resume(self, token: str) -> int | None:
        """Return the change that a token of `token_of` names, None for an empty one; OutOfRangeError when it is too old."""
        return change_of(token, self.epoch, oldest=self._forgotten, newest=self.change)

    def token_of(self, change: int) -> str:
        """Return the token that a watch goes on with after a change."""
        return token_of(self.epoch, change)

    def _begin(self, finding: Finding, environment: str) -> None:
        self._count += 1
        anomaly_id = f"{finding.time_nanos // 10**9:x}-{self._count}"
        cause = self._cause(finding, environment)
        size = 1
        if cause is not None:
            size = 1 + sum(1 for each in self._open.values() if each.incident_id == cause.incident_id)
            for each in [*self._open.values()]:
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
            for each in self._open.values()
            if finding.time_nanos - each.start_nanos <= NEAR_NANOS
            and each.environment == environment
            and names & names_of(each.blames)
        ]
        return min(near, key=lambda each: (each.start_nanos, each.id), default=None)

    def _put(self, anomaly: Anomaly, *, is_told: bool) -> None:
        self.change += is_told
        self._open[anomaly.server] = replace(anomaly, change=self.change) if is_told else anomaly

    # ── stored ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def document(self) -> dict[str, Any]:
        """Return all of it, for `restored`."""
        return {"count": self._count, "anomalies": [_document(each) for each in self]}

    @classmethod
    def restored(cls, stored: Mapping[str, Any], kept: int = MAX_KEPT) -> Register:
        """Undo `document`, in a new life; KeyError or TypeError when it is none."""
        found = cls(kept=kept)
        found._count = int(stored["count"])
        for each in stored["anomalies"]:
            found.change += 1
            blames = tuple(Blame(**blame) for blame in each.pop("blames"))
            anomaly = Anomaly(**each, blames=blames, change=found.change)
            if anomaly.end_nanos:
                found._over.append(anomaly)
            else:
                found._open[anomaly.server] = anomaly
        return found


def _change(anomaly: Anomaly) -> int:
    return anomaly.change


def _document(anomaly: Anomaly) -> dict[str, Any]:
    fields = ("id", "server", "environment", "start_nanos", "last_nanos", "end_nanos", "score", "confidence")
    blames = [{name: getattr(blame, name) for name in Blame.__slots__} for blame in anomaly.blames]
    return {
        **{name: getattr(anomaly, name) for name in (*fields, "incident_id", "incident_size")},
        "blames": blames,
    }
