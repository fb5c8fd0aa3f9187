"""Alerts: what a rule has found, from the moment its condition holds until it is over."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import orjson

from openmanager.frame import ServerInfo
from openmanager_analysis.alerting.rule import MAX_ANNOTATION, Absent, Exhausting, Rule, Threshold, Trouble, own_labels
from openmanager_analysis.anomaly import Severity
from openmanager_analysis.explanation import figure, span
from openmanager_analysis.told import Chronicle

# Of those that are alive, some are for critical ones only: a rule that is about everything must not hide what is grave.
MAX_ALIVE, RESERVED, MAX_KEPT = 10_000, 1_000, 1_000
# So many more that are over are known to watches, though no list has them: all that are alive may be over at once.
MAX_LEFT = MAX_ALIVE
MESSAGE_BYTES = 3 << 20
NANOS = 10**9
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
# What it is about: a rule, and a server and a metric, or a service and a store.
Subject = tuple[str, str, str]


class State(IntEnum):
    """How an alert is."""

    PENDING = 1
    FIRING = 2
    RESOLVED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An alert; times in nanoseconds since 1970, 0 for what has not been.

    `labels` are those it began with, `summary` what its condition says in a sentence.
    """

    id: str
    fingerprint: str
    subject: Subject
    state: State
    severity: Severity
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    value: float
    start_nanos: int
    fire_nanos: int = 0
    end_nanos: int = 0
    sample_nanos: int = 0
    stale: bool = False
    silenced_by: tuple[str, ...] = ()
    inhibited_by: tuple[str, ...] = ()
    end_reason: str = ""
    change: int = 0

    @property
    def rule(self) -> str:
        """The id of its rule."""
        return self.subject[0]

    @property
    def server(self) -> str:
        """The server; empty for a store."""
        return self.labels.get("server", "")

    @property
    def suppressed(self) -> bool:
        """Whether nobody is to be told of it now."""
        return bool(self.silenced_by or self.inhibited_by)

    def document(self) -> dict[str, Any]:
        """Return it as it is stored, for `restored`."""
        return {name: getattr(self, name) for name in Alert.__slots__}

    @classmethod
    def restored(cls, stored: Mapping[str, Any]) -> Alert:
        """Undo `document`; LookupError, TypeError or ValueError when it is none."""
        lists = {name: tuple(stored[name]) for name in ("subject", "silenced_by", "inhibited_by")}
        enums = {"state": State(stored["state"]), "severity": Severity(stored["severity"])}
        return cls(**{**stored, **lists, **enums})


class Written:
    """Alerts as JSON; what was written before is not made again as long as it is the same."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Alert, orjson.Fragment]] = {}

    def of(self, alerts: Iterable[Alert]) -> list[orjson.Fragment]:
        """Return the documents of alerts; the others are forgotten."""
        before, self._known = self._known, {}
        found = []
        for each in alerts:
            known = before.get(each.id)
            if known is None or known[0] is not each:
                known = each, orjson.Fragment(orjson.dumps(each.document()))
            self._known[each.id] = known
            found.append(known[1])
        return found


@dataclass(slots=True)
class Register(Chronicle[Alert]):
    """All alerts that are known, by subject. What is not stored yet, after the change `settled`, is not told.

    `left` are those that no list has any more, and who watches may have yet to be told of.
    """

    kept: int = MAX_KEPT
    settled: int = 0
    left: deque[Alert] = field(default_factory=deque)

    def put(self, alert: Alert) -> None:
        """Note a change of an alert."""
        self.change += 1
        told = replace(alert, change=self.change)
        if alert.state is State.RESOLVED:
            self.open.pop(alert.subject, None)
            self.over.append(told)
        else:
            self.open[alert.subject] = told

    def trim(self) -> None:
        """List those no more that never fired first, and then those that were over first; let go of them later."""
        excess = len(self.over) - self.kept
        if excess <= 0:
            return
        order = sorted(range(len(self.over)), key=lambda place: (self.over[place].fire_nanos != 0, place))
        gone = frozenset(order[:excess])
        self.left.extend(self.over[place] for place in sorted(gone))
        while len(self.left) > MAX_LEFT:
            self.forgotten = max(self.forgotten, self.left.popleft().change)
        self.over = deque(each for place, each in enumerate(self.over) if place not in gone)

    def changed_since(self, change: int) -> list[Alert]:
        """Return those that began, changed or ended after a change, in the order of their changes, as `Chronicle` does."""
        found = Chronicle.changed_since(self, change)
        more = [each for each in self.left if each.change > change]
        return sorted([*found, *more], key=lambda each: each.change) if more else found

    @property
    def stored(self) -> Settled:
        """What watches are shown."""
        return Settled(self)


@dataclass(frozen=True, slots=True)
class Settled:
    """A register as far as it is stored: what is told must not be forgotten."""

    register: Register

    @property
    def change(self) -> int:
        """The newest change that is stored."""
        return self.register.settled

    def changed_since(self, change: int) -> list[Alert]:
        """Return those that changed after a change, in the order of their changes."""
        return [each for each in self.register.changed_since(change) if each.change <= self.register.settled]

    def going_on(self) -> list[Alert]:
        """Return those that are not over."""
        return [each for each in self.register.going_on() if each.change <= self.register.settled]

    def resume(self, token: str) -> int | None:
        """Return the change that a token names, None for an empty one; OutOfRangeError when it is too old."""
        return self.register.resume(token)

    def token_of(self, change: int) -> str:
        """Return the token of a change."""
        return self.register.token_of(change)


def labels_of(rule: Rule, subject: Subject, info: ServerInfo | None) -> dict[str, str]:
    """Return the labels of an alert; what is empty is left out."""
    _, first, second = subject
    if isinstance(rule.condition, Trouble):
        found = {"service": first, "store": second}
    else:
        found = {"server": first, "metric": second}
        if info is not None:
            found |= {"environment": info.environment, "role": info.role, "location": info.location}
    return {name: text for name, text in sorted({**found, **own_labels(rule)}.items()) if text}


def fingerprint(labels: Mapping[str, str]) -> str:
    """Return 16 hexadecimal digits that are the same for the same labels."""
    text = "".join(f"{name}\0{value}\0" for name, value in sorted(labels.items()))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def begun(rule: Rule, subject: Subject, info: ServerInfo | None, *, time: int, value: float, detail: str = "") -> Alert:
    """Return an alert that begins to be pending; `detail` says what was found where figures do not."""
    labels = labels_of(rule, subject, info)
    mark = fingerprint(labels)
    return described(
        Alert(
            id=f"{mark}-{time // 10**6:x}",
            fingerprint=mark,
            subject=subject,
            state=State.PENDING,
            severity=rule.severity,
            labels=labels,
            annotations={},
            value=value,
            start_nanos=time,
            sample_nanos=time,
        ),
        rule,
        detail,
    )


def described(alert: Alert, rule: Rule, detail: str = "") -> Alert:
    """Return an alert with its annotations made anew from its figures."""
    condition = rule.condition
    limit = condition.bound if isinstance(condition, Threshold) else getattr(condition, "limit", float("nan"))
    values = {
        "server": alert.server,
        "metric": alert.labels.get("metric", ""),
        "name": rule.name,
        "value": figure(alert.value),
        "limit": figure(limit) if limit == limit else "",  # noqa: PLR0124  (NaN)
    }

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        return alert.labels.get(name.removeprefix("labels."), "") if name.startswith("labels.") else values[name]

    # A label in place of each placeholder would make 26 KB of one text.
    texts = {name: _PLACEHOLDER.sub(fill, text)[:MAX_ANNOTATION] for name, text in rule.annotations.items()}
    texts.setdefault("summary", _summary(alert, rule, detail))
    return replace(alert, annotations=texts)


def _summary(alert: Alert, rule: Rule, detail: str) -> str:
    about = alert.labels.get("metric", "")
    match rule.condition:
        case Threshold(bound=bound, is_above=is_above, per_second=per_second):
            lasting = span(max(0, alert.sample_nanos - alert.start_nanos) / NANOS)
            beyond = "above" if is_above else "below"
            verb, unit = ("grows by", "/s") if per_second else ("is", "")
            bounds = f"{figure(alert.value)}{unit}, {beyond} {figure(bound)}{unit}"
            return f"{alert.server}: {about} {verb} {bounds} for {lasting}"
        case Absent():
            return f"{alert.server}{about and f': {about}'} has sent nothing for {span(alert.value)}"
        case Exhausting(limit=limit):
            return f"{alert.server}: {detail or f'{about} will reach {figure(limit)}'}"
        case Trouble():
            what = f"{alert.labels.get('store', '')} of " if "store" in alert.labels else ""
            return f"{what}{alert.labels.get('service', '')} {detail or 'is not well'}"
        case _:
            return f"{alert.server}: {detail or 'unlike what is usual'}"


def fitting(found: Sequence[Alert]) -> Sequence[Alert]:
    """Return as many of the first as go into one message: at least one, and less than 4 MiB."""
    size = 0
    for place, each in enumerate(found):
        texts = (*each.labels.items(), *each.annotations.items())
        size += 512 + sum(16 + 4 * (len(name) + len(text)) for name, text in texts)
        size += 32 * (len(each.silenced_by) + len(each.inhibited_by))
        if place and size > MESSAGE_BYTES:
            return found[:place]
    return found
