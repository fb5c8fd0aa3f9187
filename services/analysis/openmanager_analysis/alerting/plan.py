"""Which values of a frame which rules look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from openmanager import filter as filters
from openmanager.access import fields_of
from openmanager.frame import ServerInfo
from openmanager.metric import select
from openmanager_analysis.alerting.alert import Subject
from openmanager_analysis.alerting.rule import Absent, Rule, Threshold
from openmanager_analysis.alerting.slots import Floats, Ints, Judged

MAX_LAYOUTS = 20_000
SlotOf = Callable[[Rule, Subject], int]
# Of each distinct choice of servers that rules make: the rows of a frame.
Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """P pairs of a value and a rule: the places of values in a tick float64[S·M], their slots, and their bounds.

    What has to be below its bound is judged with the other `sign`. `grown` are the pairs whose growth is judged. Of rules
    about absence there are B more: `beat_places` in what is there of a tick bool[S·M + S], the values and then the servers.
    """

    places: Ints
    slots: Ints
    sign: Floats
    bound: Floats
    clear: Floats
    grown: Ints
    beat_places: Ints
    beat_slots: Ints

    def judge(self, tick: Floats, growth: Callable[[Ints, Floats], Floats]) -> Judged:
        """Return how what has a value is; `growth` says by how much those of some slots grew in a second."""
        values = tick[self.places]
        if len(self.grown):
            values[self.grown] = growth(self.slots[self.grown], values[self.grown])
        signed = values * self.sign
        return Judged(self.slots, signed > self.bound, signed <= self.clear, values).only(~np.isnan(values))


def chooses(rule: Rule, server: str, info: ServerInfo | None) -> bool:
    """Say whether a rule is about a server."""
    chosen = rule.selection
    if chosen.servers and server not in chosen.servers:
        return False
    return _fits(chosen.server_filter, server, info)


def _fits(text: str, server: str, info: ServerInfo | None) -> bool:
    node = filters.parse(text, "rule.selector.server_filter")
    return node is None or filters.matches(node, fields_of(info or ServerInfo(id=server)))


@dataclass(slots=True)
class _Fleet:
    """The servers of frames: which rows rules choose, as of what was known `asked` questions ago, and plans by metrics."""

    rows: Rows
    asked: int
    plans: dict[tuple[str, ...], Plan] = field(default_factory=dict)


class Planner:
    """Plans by the layout of frames. Rules on thresholds look at values, those on absence at whether there are some.

    `slot_of` returns −1 where there is no more room.
    """

    def __init__(self, rules: Sequence[Rule], infos: Mapping[str, ServerInfo], slot_of: SlotOf) -> None:
        self._rules = [rule for rule in rules if isinstance(rule.condition, Threshold | Absent)]
        self._infos = infos
        self._slot_of = slot_of
        self._choices = list(dict.fromkeys(_choice(rule) for rule in self._rules))
        self._fleets: dict[tuple[str, ...], _Fleet] = {}
        self._columns: dict[tuple[str, ...], list[list[int]]] = {}
        self._asked = self._count = 0

    def forget(self) -> None:
        """Ask anew which servers rules choose: something else is known of some."""
        self._asked += 1

    def plan(self, servers: tuple[str, ...], metrics: tuple[str, ...]) -> Plan:
        """Return the plan of frames of these servers and metrics."""
        fleet = self._fleets.get(servers)
        if fleet is None or fleet.asked != self._asked:
            rows = tuple(self._chosen(*choice, servers) for choice in self._choices)
            # Most of what is learnt of a server changes no choice.
            if fleet is None or fleet.rows != rows:
                fleet = self._fleets[servers] = _Fleet(rows, self._asked)
            fleet.asked = self._asked
        found = fleet.plans.get(metrics)
        if found is None:
            if self._count >= MAX_LAYOUTS:
                self._fleets = {servers: _Fleet(fleet.rows, self._asked)}
                self._columns.clear()
                self._count, fleet = 0, self._fleets[servers]
            self._count += 1
            found = fleet.plans[metrics] = self._make(servers, metrics, fleet.rows)
        return found

    def _chosen(self, named: tuple[str, ...], text: str, servers: tuple[str, ...]) -> tuple[int, ...]:
        wanted = frozenset(named)
        return tuple(
            row
            for row, server in enumerate(servers)
            if (not wanted or server in wanted) and _fits(text, server, self._infos.get(server))
        )

    def _make(self, servers: tuple[str, ...], metrics: tuple[str, ...], rows: Rows) -> Plan:
        columns = self._columns.get(metrics)
        if columns is None:
            columns = self._columns[metrics] = [select(metrics, rule.selection.metrics) for rule in self._rules]
        rows_of = dict(zip(self._choices, rows, strict=True))
        pairs: list[tuple[int, int, float, float, float, bool]] = []
        beats: list[tuple[int, int]] = []
        for rule, chosen in zip(self._rules, columns, strict=True):
            condition = rule.condition
            found = self._pairs(rule, servers, metrics, rows_of[_choice(rule)], chosen)
            if isinstance(condition, Threshold):
                sign = 1.0 if condition.is_above else -1.0
                bounds = sign, sign * condition.bound, sign * condition.clear, condition.per_second
                pairs.extend((place, slot, *bounds) for place, slot in found)
            else:
                beats.extend(found)
        places, slots, *others, grown = zip(*pairs, strict=True) if pairs else ((),) * 6
        signs, limits, clears = (np.array(each, np.float64) for each in others)
        beat_places, beat_slots = np.array(beats, np.int64).reshape(-1, 2).T
        return Plan(
            places=np.array(places, np.int64),
            slots=np.array(slots, np.int64),
            sign=signs,
            bound=limits,
            clear=clears,
            grown=np.flatnonzero(grown),
            beat_places=beat_places,
            beat_slots=beat_slots,
        )

    def _pairs(
        self, rule: Rule, servers: Sequence[str], metrics: Sequence[str], rows: Sequence[int], columns: Sequence[int]
    ) -> Iterator[tuple[int, int]]:
        """Yield the place and the slot of each series that a rule chooses; of each server where it is about those."""
        if not rule.selection.metrics:
            places = [(len(servers) * len(metrics) + row, servers[row], "") for row in rows]
        else:
            places = [(row * len(metrics) + at, servers[row], metrics[at]) for row in rows for at in columns]
        for place, server, metric in places:
            slot = self._slot_of(rule, (rule.id, server, metric))
            if slot >= 0:
                yield place, slot


def _choice(rule: Rule) -> tuple[tuple[str, ...], str]:
    return rule.selection.servers, rule.selection.server_filter
