"""Judges what arrives by the rules: samples tick by tick, anomalies, expectations, and how stores are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmanager.frame import Frame
from openmanager.metric import select
from openmanager_analysis.alerting.alert import (
    MAX_ALIVE,
    NANOS,
    RESERVED,
    Alert,
    Register,
    State,
    Subject,
    Written,
    begun,
    described,
)
from openmanager_analysis.alerting.listening import Listening
from openmanager_analysis.alerting.plan import Planner, chooses
from openmanager_analysis.alerting.rule import Absent, Exhausting, Rule, Threshold, Trouble, Unusual
from openmanager_analysis.alerting.silence import Silence
from openmanager_analysis.alerting.slots import AHEAD_NANOS, IDLE, Judged, Moved, Slots, rows
from openmanager_analysis.alerting.suppression import Suppression
from openmanager_analysis.anomaly import Anomaly, Severity
from openmanager_analysis.collector import Names
from openmanager_analysis.explanation import explain
from openmanager_analysis.history import DAY_NANOS

MAX_SLOTS = 500_000
# How often those that are missing are looked for.
LOOK_NANOS = 10**9
# Without data an alert goes on so long.
GONE_NANOS = 7 * DAY_NANOS
RULE_CHANGED, RULE_DELETED, NO_DATA = "RULE_CHANGED", "RULE_DELETED", "NO_DATA"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was found of a subject at once: whether a condition holds, whether it is well, its value, and in words."""

    subject: Subject
    over: bool
    well: bool
    value: float
    detail: str
    heard: int


class Alerting:
    """All rules and silences, and the alerts they have; it waits for nobody and stores nothing.

    `on_over` hears of each alert that is over. Times are in nanoseconds since 1970: those of samples decide how long
    something lasts, those of the log, `heard`, whether anything is known.
    """

    def __init__(self, names: Names, outlook_nanos: int, on_over: Callable[[Alert], None]) -> None:
        self.names = names
        self.register = Register()
        self.rules: dict[str, Rule] = {}
        self.silences: dict[str, Silence] = {}
        self.position = 0
        # How often there was no room for an alert since there was some, and for a pair of a series and a rule.
        self.left_out_count = self.unwatched_count = 0
        # Expectations come so seldom: until three are missing they are what is known.
        self._outlook_nanos = outlook_nanos
        self._on_over = on_over
        self._suppression = Suppression()
        self._looked: tuple[Any, ...] = ()
        self._slots = Slots()
        self._places: dict[Subject, int] = {}
        self._subjects: list[Subject] = []
        self._planner = Planner((), names.infos, self._slot)
        self._info_changes = names.info_changes
        self._anomalies_nanos = 0
        self._heard: dict[str, int] = {}
        self._open, self._over = Written(), Written()
        self._listening = Listening()
        self._looked_for = 0  # when those that are missing were looked for

    # ── what arrives ───────────────────────────────────────────────────────────────────────────────────────────────

    def take(self, frame: Frame, heard: int, position: int) -> None:
        """Judge the frame of a position of the log, which came at `heard`."""
        if position <= self.position:
            return
        self.position = position
        self._listening.hear(heard)
        self.names.learn(frame)
        if self._info_changes != self.names.info_changes:
            self._info_changes = self.names.info_changes
            self._planner.forget()
        if any(isinstance(rule.condition, Unusual) for rule in self.rules.values()):
            sent = ~np.isnan(frame.values).all(axis=(0, 2))
            self._heard.update((frame.servers[place], heard) for place in np.flatnonzero(sent).tolist())
        plan = self._planner.plan(frame.servers, frame.metrics)
        for row, time in enumerate(frame.times.tolist()):
            if time > heard + AHEAD_NANOS:
                continue
            if len(plan.slots):
                growth = partial(self._slots.growth, time=time, heard=heard)
                judged = plan.judge(frame.values[row].ravel(), growth)
                # What is as old as this says nothing of now.
                judged = judged.only(heard - time <= self._slots.stale[judged.slots])
                self._move(self._slots.observe(judged, time, heard), time, {})
            if len(plan.beat_slots):
                is_there = ~np.isnan(frame.values[row])
                sent = np.concatenate([is_there.ravel(), is_there.any(axis=1)])[plan.beat_places]
                slots = plan.beat_slots[sent]
                self._slots.beat[slots[heard - time <= self._slots.stale[slots]]] = self._listening.nanos
        self._look_for_missing(heard)

    def wait(self, passed: int, now: int) -> None:
        """Note that nanoseconds passed until now in which the log was read to its end."""
        self._listening.wait(passed)
        self._look_for_missing(now)

    def _look_for_missing(self, time: int) -> None:
        listened = self._listening.nanos
        if listened - self._looked_for < LOOK_NANOS:
            return
        self._looked_for = listened
        slots = self._slots
        waited = np.flatnonzero((slots.absent[: slots.count] > 0) & (slots.beat[: slots.count] > 0))
        silent = listened - slots.beat[waited]
        for slot in waited[silent > GONE_NANOS].tolist():
            self._end(slot, time, NO_DATA)
            slots.state[slot], slots.beat[slot] = IDLE, 0
        over = (silent > slots.absent[waited]) & (silent <= GONE_NANOS)
        turned = (over != (slots.state[waited] != IDLE)) & (silent <= GONE_NANOS)
        if turned.any():
            judged = Judged(waited, over, ~over, silent / NANOS).only(turned)
            # It turns now, whatever a clock said before.
            slots.seen[judged.slots] = np.minimum(slots.seen[judged.slots], time - 1)
            self._move(slots.observe(judged, time, time), time, {})

    def see_anomalies(self, anomalies: Iterable[Anomaly], time: int) -> None:
        """Judge the anomalies that go on at a time, that of the span that was looked at last."""
        if time <= self._anomalies_nanos:
            return  # the log is read again: what is known here is newer
        self._anomalies_nanos = time
        going_on = [each for each in anomalies if not each.end_nanos]
        for rule in self._of(Unusual):
            condition: Any = rule.condition
            looks = {}
            for each in going_on:
                if each.severity < condition.severity or each.score < condition.score:
                    continue
                if self._is_about(rule, each.server, [blame.metric for blame in each.blames]):
                    subject = (rule.id, each.server, "")
                    heard = self._heard.get(each.server, time)
                    looks[subject] = Look(
                        subject=subject, over=True, well=False, value=each.score, detail=explain(each), heard=heard
                    )
            for alert in self._alerts_of(rule):
                if alert.subject not in looks:
                    # Of a server that sends nothing nobody knows that it is well.
                    heard = self._heard.get(alert.server, 0)
                    if time - heard <= rule.stale_nanos:
                        looks[alert.subject] = Look(
                            subject=alert.subject, over=False, well=True, value=alert.value, detail="", heard=heard
                        )
            self._see(rule, list(looks.values()), time)

    def step_back(self, time: int) -> None:
        """Judge the anomalies of a time though later ones were judged: a clock was ahead, and was put back."""
        self._anomalies_nanos = min(self._anomalies_nanos, time - 1)

    def see(self, rule: Rule, looks: Sequence[Look], time: int) -> None:
        """Judge what was found of some subjects of a rule at a time."""
        if self.rules.get(rule.id) == rule:  # else it was changed meanwhile
            self._see(rule, looks, time)

    def _see(self, rule: Rule, looks: Sequence[Look], time: int) -> None:
        # One that is well and has no alert needs no place.
        known = [(self._slot(rule, look.subject), look) for look in looks if look.over or look.subject in self._places]
        known = [(slot, look) for slot, look in known if slot >= 0]
        if not known:
            return
        slots = np.array([slot for slot, _ in known], np.int64)
        over, well = (np.array([getattr(look, name) for _, look in known], np.bool_) for name in ("over", "well"))
        values = np.array([look.value for _, look in known], np.float64)
        heard = np.array([look.heard for _, look in known], np.int64)
        details = {slot: look.detail for slot, look in known}
        self._move(self._slots.observe(Judged(slots, over, well, values), time, heard), time, details)

    def pass_time(self, now: int) -> None:
        """Mark those of which nothing has come for long; a pending one is none then, a firing one goes on for seven days."""
        slots = self._slots
        # Of those that are absent it is known that nothing comes.
        active = np.flatnonzero((slots.state[: slots.count] != IDLE) & (slots.absent[: slots.count] == 0))
        silent = now - slots.heard[active]
        late = {self._subjects[slot] for slot in active[silent > slots.patience(active)].tolist()}
        gone = {self._subjects[slot] for slot in active[silent > GONE_NANOS].tolist()}
        for alert in [each for each in self.register.open.values() if each.stale or each.subject in late]:
            slot, stale = self._places[alert.subject], alert.subject in late
            if alert.subject in gone or (stale and alert.state is State.PENDING):
                slots.state[slot] = IDLE
                self._end(slot, now, NO_DATA)
            elif stale != alert.stale:
                self.register.put(replace(self.now(alert), stale=stale))
        if len(self.register.open) < MAX_ALIVE - RESERVED:
            self.left_out_count = 0  # they have room again
        self._make_room(now)
        self.register.trim()

    def _make_room(self, now: int) -> None:
        """Let go of what has sent nothing for a day, where there was no room for others: servers come and go."""
        seen = self._slots.seen[: self._slots.count]
        if self.unwatched_count and ((seen > 0) & (seen < now - DAY_NANOS)).any():
            alerts = self.register.going_on()
            self._begin_anew(alerts)

    # ── rules and silences ─────────────────────────────────────────────────────────────────────────────────────────

    def adopt(self, rules: Iterable[Rule], now: int) -> None:
        """Let these rules apply and no others. Alerts go on as far as their rule is about the same."""
        before, self.rules = self.rules, {rule.id: rule for rule in rules}
        going_on = self.register.going_on()
        kept: list[Alert] = []
        for alert in going_on:
            slot, rule = self._places[alert.subject], self.rules.get(alert.rule)
            if rule is None:
                self._end(slot, now, RULE_DELETED)
            elif rule.paused or rule.identity != before[rule.id].identity or not self._still_about(rule, alert):
                self._end(slot, now, RULE_CHANGED)
            else:
                kept.append(alert)
        self._begin_anew(kept)
        self.register.trim()

    def _begin_anew(self, kept: Sequence[Alert]) -> None:
        """Give places anew: to these alerts, as their slots are, and to what comes."""
        stored = rows(self._slots.document(self._slots_of(kept)), len(kept))
        self._begin_with(zip(kept, stored, strict=True))

    def _slots_of(self, alerts: Iterable[Alert]) -> NDArray[np.int64]:
        return np.array([self._places[each.subject] for each in alerts], np.int64)

    def _begin_with(self, kept: Iterable[tuple[Alert, Mapping[str, Any]]]) -> None:
        """Give places anew: to these alerts, as their slots were, and to what comes."""
        beats = self._beats()
        self._slots, self._places, self._subjects = Slots(), {}, []
        self.unwatched_count = 0
        active = [rule for rule in self.rules.values() if not rule.paused]
        self._planner = Planner(active, self.names.infos, self._slot)
        self._looked = ()
        for alert, stored in kept:
            self._slots.restore(self._slot(self.rules[alert.rule], alert.subject), stored)
        self._wait_for(beats)

    def _beats(self) -> list[tuple[Subject, int]]:
        """Return when each was heard that is waited for."""
        slots = self._slots
        waited = np.flatnonzero((slots.absent[: slots.count] > 0) & (slots.beat[: slots.count] > 0))
        return [
            (self._subjects[slot], beat)
            for slot, beat in zip(waited.tolist(), slots.beat[waited].tolist(), strict=True)
        ]

    def _wait_for(self, beats: Iterable[tuple[Subject, int]]) -> None:
        """Go on to wait for those that rules are still about."""
        for subject, beat in beats:
            rule = self.rules.get(subject[0])
            if rule is None or rule.paused or not isinstance(rule.condition, Absent):
                continue
            if bool(subject[2]) == bool(rule.selection.metrics) and self._is_about(rule, subject[1], [subject[2]]):
                slot = self._slot(rule, subject)
                if slot >= 0:
                    self._slots.beat[slot] = beat

    def adopt_silences(self, silences: Iterable[Silence]) -> None:
        """Let these silences apply and no others."""
        self.silences = {each.id: each for each in silences}
        self._looked = ()

    def suppress(self, now: int) -> None:
        """Mark the alerts that nobody is told of at a time."""
        looked = (self.register.change, tuple(each.id for each in self.silences.values() if each.holds(now)))
        if looked == self._looked:
            return
        alerts = self.register.going_on()
        # Of others only inhibition depends: without it those that did not change are marked as they were.
        if self._looked[1:] == looked[1:] and not self._inhibits:
            alerts = [each for each in alerts if each.change > self._looked[0]]
        marks = self._suppression.marks(alerts, self.rules, self.silences.values(), now)
        for alert in alerts:
            silenced, inhibited = marks[alert.id]
            if (silenced, inhibited) != (alert.silenced_by, alert.inhibited_by):
                self.register.put(replace(self.now(alert), silenced_by=silenced, inhibited_by=inhibited))
        self._looked = (self.register.change, looked[1])

    @property
    def _inhibits(self) -> bool:
        return any(rule.inhibitors for rule in self.rules.values())

    def suppressed(self, ended: Sequence[Alert], now: int) -> list[str]:
        """Return the ids of those that are over and that nobody is to be told of at a time."""
        if not ended:
            return []
        alerts = [*self.register.going_on(), *ended] if self._inhibits else ended
        marks = self._suppression.marks(alerts, self.rules, self.silences.values(), now)
        return [each.id for each in ended if any(marks[each.id])]

    def series_counts(self) -> Mapping[str, int]:
        """Return how many subjects each rule looks at, as far as they have come."""
        return Counter(subject[0] for subject in self._places)

    def _of(self, kind: type[Any]) -> Iterator[Rule]:
        return (rule for rule in self.rules.values() if isinstance(rule.condition, kind) and not rule.paused)

    def exhausting(self) -> list[Rule]:
        """Return the rules that need expectations."""
        return list(self._of(Exhausting))

    def troubles(self) -> list[Rule]:
        """Return the rules that need to know how stores are."""
        return list(self._of(Trouble))

    def _alerts_of(self, rule: Rule) -> list[Alert]:
        return [each for each in self.register.open.values() if each.rule == rule.id]

    def _is_about(self, rule: Rule, server: str, metrics: Sequence[str]) -> bool:
        chosen = rule.selection.metrics
        return chooses(rule, server, self.names.infos.get(server)) and (not chosen or bool(select(metrics, chosen)))

    def _still_about(self, rule: Rule, alert: Alert) -> bool:
        if isinstance(rule.condition, Threshold | Exhausting | Absent):
            if isinstance(rule.condition, Absent) and bool(alert.subject[2]) != bool(rule.selection.metrics):
                return False  # it was about servers, and is about metrics, or the other way round
            return self._is_about(rule, alert.server, [alert.subject[2]])
        return not isinstance(rule.condition, Unusual) or chooses(
            rule, alert.server, self.names.infos.get(alert.server)
        )

    # ── alerts ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def now(self, alert: Alert) -> Alert:
        """Return an alert with the figures of now."""
        slot, rule = self._places.get(alert.subject), self.rules.get(alert.rule)
        if slot is None or rule is None or alert.state is State.RESOLVED:
            return alert
        if isinstance(rule.condition, Absent):
            silent = (self._listening.nanos - int(self._slots.beat[slot])) / NANOS
            return described(replace(alert, value=silent), rule)
        if self._slots.seen[slot] == alert.sample_nanos:
            return alert
        figures = replace(alert, value=float(self._slots.value[slot]), sample_nanos=int(self._slots.seen[slot]))
        # Of the others the words were made from more than figures.
        return described(figures, rule) if isinstance(rule.condition, Threshold) else figures

    def alerts(self) -> Iterator[Alert]:
        """Yield all; those that were pending and never fired are left out once they are over."""
        return (each for each in self.register if each.state is not State.RESOLVED or each.fire_nanos)

    def _slot(self, rule: Rule, subject: Subject) -> int:
        """Return the slot of a subject, −1 where there is no more room."""
        slot = self._places.get(subject)
        if slot is None:
            if len(self._places) >= MAX_SLOTS:
                self.unwatched_count += 1
                return -1
            condition: Any = rule.condition
            absent = condition.hold_nanos if isinstance(condition, Absent) else 0
            hold = 0 if absent else getattr(condition, "hold_nanos", 0)
            clear = getattr(condition, "clear_nanos", 0)
            stale = max(rule.stale_nanos, 3 * self._outlook_nanos if isinstance(condition, Exhausting) else 0)
            slot = self._places[subject] = self._slots.add(hold=hold, clear=clear, stale=stale, absent=absent)
            self._subjects.append(subject)
        return slot

    def _move(self, moved: Moved, time: int, details: Mapping[int, str]) -> None:
        if not moved:
            return
        for slot in moved.dropped.tolist():
            self._end(slot, time, "")
        for slot in moved.resolved.tolist():
            self._end(slot, time, "")
        for slot in moved.pending.tolist():
            self._begin(slot, time, details.get(slot, ""))
        for slot in moved.firing.tolist():
            self._fire(slot, time, details.get(slot, ""))
        self.register.trim()

    def _begin(self, slot: int, time: int, detail: str) -> Alert | None:
        subject = self._subjects[slot]
        rule, info = self.rules[subject[0]], self.names.infos.get(subject[1])
        if len(self.register.open) >= MAX_ALIVE - (0 if rule.severity is Severity.CRITICAL else RESERVED):
            self.left_out_count += 1
            self._slots.state[slot] = IDLE
            return None
        alert = begun(rule, subject, info, time=time, value=float(self._slots.value[slot]), detail=detail)
        self.register.put(alert)
        return alert

    def _fire(self, slot: int, time: int, detail: str) -> None:
        alert = self.register.open.get(self._subjects[slot]) or self._begin(slot, time, detail)
        if alert is not None:
            fired = replace(alert, state=State.FIRING, fire_nanos=time, sample_nanos=time, stale=False)
            fired = replace(fired, value=float(self._slots.value[slot]))
            self.register.put(described(fired, self.rules[alert.rule], detail))

    def _end(self, slot: int, time: int, reason: str) -> None:
        alert = self.register.open.get(self._subjects[slot])
        if alert is None:
            return
        ended = replace(
            self.now(alert), state=State.RESOLVED, end_nanos=max(time, alert.start_nanos), end_reason=reason
        )
        rule = self.rules.get(alert.rule)
        if rule is not None and isinstance(rule.condition, Absent):  # by now it may have sent something
            silent = (rule.condition.hold_nanos + ended.end_nanos - ended.start_nanos) / NANOS
            ended = described(replace(ended, value=silent), rule)
        self.register.put(replace(ended, stale=False))
        if ended.fire_nanos:
            self._on_over(ended)

    # ── stored ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def document(self) -> dict[str, Any]:
        """Return the alerts and where the log was, for `restore`; not the rules and silences."""
        register = self.register
        return {
            "position": self.position,
            "epoch": register.epoch,
            "change": register.change,
            "forgotten": max([register.forgotten, *(each.change for each in register.left)]),
            "anomalies_nanos": self._anomalies_nanos,
            "listened_nanos": self._listening.nanos,
            "beats": self._beats(),
            "open": self._open.of(register.open.values()),
            "slots": self._slots.document(self._slots_of(register.open.values())),
            "over": self._over.of(register.over),
        }

    def restore(self, stored: Mapping[str, Any], rules: Iterable[Rule], silences: Iterable[Silence]) -> None:
        """Undo `document`, with rules and silences; LookupError, TypeError or ValueError when it is none."""
        register = Register(epoch=str(stored["epoch"]), change=int(stored["change"]))
        register.forgotten, register.settled = int(stored["forgotten"]), int(stored["change"])
        register.over.extend(Alert.restored(each) for each in stored["over"])
        self.rules = {rule.id: rule for rule in rules}
        if "open" in stored:
            alive = [Alert.restored(each) for each in stored["open"]]
            alerts = list(zip(alive, rows(stored["slots"], len(alive)), strict=True))
        else:  # as files were until 0.1
            alerts = [(Alert.restored(each["alert"]), each["slot"]) for each in stored["alerts"]]
        self._begin_with(alerts)
        self._listening = Listening(nanos=int(stored.get("listened_nanos", 1)))
        self._looked_for = self._listening.nanos
        self._wait_for((tuple(subject), int(beat)) for subject, beat in stored.get("beats", ()))
        register.open.update((alert.subject, alert) for alert, _ in alerts)
        self.register = register
        self.adopt_silences(silences)
        self.position, self._anomalies_nanos = int(stored["position"]), int(stored["anomalies_nanos"])
