"""What each receiver was told, and what it has yet to be told: so that nothing is lost, and nothing told twice without cause.

A message is about a group of alerts and has all of it, as receivers of Alertmanager expect. It is due when an alert of the
group has begun or is over, or when the group was told long ago and still fires. What was told is noted when the receiver has
taken it: a crash in between tells it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openmanager_analysis.alerting.alert import Alert, State, Written

Group = tuple[tuple[str, str], ...]

MAX_OWED = 10_000
MAX_ALERTS = 500
MAX_KNOWN = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cadence:
    """How long a new group waits for more, how long it waits between messages, and after how long it is told again."""

    wait_nanos: int
    interval_nanos: int
    repeat_nanos: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What is to be told at once of the group that its labels name: alerts, and how many more there are."""

    group: Group
    alerts: tuple[Alert, ...]
    is_firing: bool  # whether one of the group fires, be it among those that are left out
    truncated_count: int = 0
    has_more: bool = False  # something new is left out


@dataclass(slots=True)
class Outbox:
    """The books of one receiver."""

    group_by: tuple[str, ...]
    chooses: Callable[[Alert], bool]
    cadence: Cadence
    dropped_count: int = 0
    _told: set[str] = field(default_factory=set)  # ids of those that it knows to fire
    _offered: set[str] = field(default_factory=set)  # and of those that it may know to fire: a message may have come
    _owed: dict[str, Alert] = field(default_factory=dict)  # those that are over, and it has yet to be told so
    _times: dict[Group, int] = field(default_factory=dict)  # when a group was told last
    _more: set[Group] = field(default_factory=set)  # groups whose last message did not hold all
    _waiting: dict[Group, int] = field(default_factory=dict)  # since when one has something new
    # The group of each alert by id, None for one that is not for this receiver: labels never change.
    _groups: dict[str, Group | None] = field(default_factory=dict)
    _written: Written = field(default_factory=Written)

    def over(self, alert: Alert) -> None:
        """Note that an alert is over. Who may have been told that it fires is told, silence or not."""
        if alert.id not in self._offered and (alert.suppressed or self._group(alert) is None):
            return
        self._owed[alert.id] = alert
        if len(self._owed) > MAX_OWED:
            self._forget(next(iter(self._owed)))
            self.dropped_count += 1

    def suppress(self, alert_id: str) -> None:
        """Note of one that is over that nobody was to be told of it; who may have been told that it fires is told."""
        if alert_id not in self._offered:
            self._owed.pop(alert_id, None)

    def offer(self, message: Message) -> bool:
        """Note that a message is about to be sent; say whether it may tell something new, which is to be stored before."""
        new = {each.id for each in message.alerts if each.state is State.FIRING} - self._offered
        self._offered |= new
        return bool(new)

    def _forget(self, alert_id: str) -> None:
        self._told.discard(alert_id)
        self._offered.discard(alert_id)
        self._owed.pop(alert_id, None)

    @property
    def is_waiting(self) -> bool:
        """Whether a group has something new that is not told yet."""
        return bool(self._waiting or self._more or self._owed)

    def waiting_count(self, alerts: Iterable[Alert]) -> int:
        """Return how many alerts it has yet to be told of."""
        return len(self._owed) + sum(1 for each in alerts if self._is_due(each) and each.id not in self._told)

    def _is_due(self, alert: Alert) -> bool:
        return alert.state is State.FIRING and not alert.suppressed and self._group(alert) is not None

    def due(self, alerts: Iterable[Alert], now: int) -> list[Message]:
        """Return what is to be told at a time, of the alerts that are not over; groups that waited longest first."""
        groups: dict[Group, tuple[list[Alert], list[Alert], list[Alert]]] = {}
        for each in alerts:
            if each.state is State.FIRING and not each.suppressed and (group := self._group(each)) is not None:
                known = each.id in self._told
                groups.setdefault(group, ([], [], []))[2 if known else 0].append(each)
        for each in self._owed.values():
            groups.setdefault(self._labels(each), ([], [], []))[1].append(each)
        self._waiting = {group: min(since, now) for group, since in self._waiting.items() if group in groups}
        self._more &= groups.keys()
        # A clock that was put back must not keep a receiver waiting for what was the present once.
        self._times = {group: min(time, now) for group, time in self._times.items() if group in groups}
        return [
            _message(group, groups[group])
            for group in sorted(groups, key=lambda each: self._waiting.get(each, now))
            if self._is_time(group, groups[group], now)
        ]

    def _is_time(self, group: Group, parts: Sequence[Sequence[Alert]], now: int) -> bool:
        told = self._times.get(group)
        if parts[0] or parts[1]:
            if group in self._more:
                return True
            ready = self._waiting.setdefault(group, now) + self.cadence.wait_nanos
            return now >= max(ready, 0 if told is None else told + self.cadence.interval_nanos)
        return told is None or now - told >= self.cadence.repeat_nanos

    def taken(self, message: Message, now: int) -> None:
        """Note that the receiver has taken a message."""
        for each in message.alerts:
            if each.state is State.FIRING:
                self._told.add(each.id)
            else:
                self._forget(each.id)
        self._times[message.group] = now
        (self._more.add if message.has_more else self._more.discard)(message.group)
        self._waiting.pop(message.group, None)

    def _group(self, alert: Alert) -> Group | None:
        """Return the group of an alert; None when it is not for this receiver."""
        if alert.id not in self._groups:
            if len(self._groups) >= MAX_KNOWN:
                self._groups.clear()
            self._groups[alert.id] = self._labels(alert) if self.chooses(alert) else None
        return self._groups[alert.id]

    def _labels(self, alert: Alert) -> Group:
        return tuple((name, alert.labels.get(name, "")) for name in self.group_by)

    # ── stored ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def document(self) -> dict[str, Any]:
        """Return the books, for `restore`."""
        return {
            "told": [*self._told],
            "offered": [*(self._offered - self._told)],
            "owed": self._written.of(self._owed.values()),
            "times": [[group, time] for group, time in self._times.items()],
            "dropped_count": self.dropped_count,
        }

    def restore(self, stored: Mapping[str, Any], going_on: Iterable[str]) -> None:
        """Undo `document`, with the ids of the alerts that go on; LookupError, TypeError or ValueError when it is none."""
        owed = [Alert.restored(each) for each in stored["owed"]]
        self._owed = {each.id: each for each in owed}
        alive = {*going_on, *self._owed}
        self._told = alive.intersection(stored["told"])
        self._offered = self._told | alive.intersection(stored.get("offered", ()))
        self._times = {tuple((name, value) for name, value in group): time for group, time in stored["times"]}
        self.dropped_count = int(stored["dropped_count"])


def _message(group: Group, parts: Sequence[Sequence[Alert]]) -> Message:
    """Return a message of a group: what is new first, then what is over, then what is known."""
    alerts = [each for part in parts for each in part]
    begun, over, known = map(len, parts)
    return Message(
        group=group,
        alerts=tuple(alerts[:MAX_ALERTS]),
        is_firing=begun + known > 0,
        truncated_count=max(0, len(alerts) - MAX_ALERTS),
        has_more=begun + over > MAX_ALERTS,
    )
