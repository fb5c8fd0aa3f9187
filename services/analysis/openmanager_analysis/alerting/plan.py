"""Which values of a frame which rules look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from openmanager import filter as filters
from openmanager.access import fields_of
from openmanager.frame import ServerInfo
from openmanager.metric import select
from openmanager_analysis.alerting.alert import Subject
from openmanager_analysis.alerting.rule import Rule, Threshold
from openmanager_analysis.alerting.slots import Floats, Ints, Judged

MAX_LAYOUTS = 20_000
SlotOf = Callable[[Rule, Subject], int]
# Of each distinct choice of servers that rules make: the rows of a frame.
Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """P pairs of a value and a rule: the places of values in a tick float64[S·M], their slots, and their bounds.

    What has to be below its bound is judged with the other `sign`.
    """

    places: Ints
    slots: Ints
    sign: Floats
    bound: Floats
    clear: Floats

    def judge(self, tick: Floats) -> Judged:
        """Return how what has a value is."""
        values = tick[self.places]
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
    """Plans by the layout of frames. Threshold rules look at values; `slot_of` returns −1 where there is no more room."""

    def __init__(self, rules: Sequence[Rule], infos: Mapping[str, ServerInfo], slot_of: SlotOf) -> None:
        self._rules = [rule for rule in rules if isinstance(rule.condition, Threshold)]
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
        pairs: list[tuple[int, int, float, float, float]] = []
        for rule, chosen in zip(self._rules, columns, strict=True):
            condition = rule.condition
            if not chosen or not isinstance(condition, Threshold):
                continue
            sign = 1.0 if condition.is_above else -1.0
            bounds = sign, sign * condition.bound, sign * condition.clear
            for row in rows_of[_choice(rule)]:
                for column in chosen:
                    slot = self._slot_of(rule, (rule.id, servers[row], metrics[column]))
                    if slot >= 0:
                        pairs.append((row * len(metrics) + column, slot, *bounds))
        places, slots, *others = zip(*pairs, strict=True) if pairs else ((),) * 5
        signs, limits, clears = (np.array(each, np.float64) for each in others)
        return Plan(
            places=np.array(places, np.int64),
            slots=np.array(slots, np.int64),
            sign=signs,
            bound=limits,
            clear=clears,
        )


def _choice(rule: Rule) -> tuple[tuple[str, ...], str]:
    return rule.selection.servers, rule.selection.server_filter
