"""Which values of a frame which rules look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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
Layout = tuple[tuple[str, ...], tuple[str, ...]]


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
    node = filters.parse(chosen.server_filter, "rule.selector.server_filter")
    return node is None or filters.matches(node, fields_of(info or ServerInfo(id=server)))


class Planner:
    """Plans by the layout of frames. Threshold rules look at values; `slot_of` returns −1 where there is no more room."""

    def __init__(self, rules: Sequence[Rule], infos: Mapping[str, ServerInfo], slot_of: SlotOf) -> None:
        self._rules = [rule for rule in rules if isinstance(rule.condition, Threshold)]
        self._infos = infos
        self._slot_of = slot_of
        self._plans: dict[Layout, Plan] = {}
        self._columns: dict[tuple[str, ...], list[list[int]]] = {}

    def forget(self) -> None:
        """Make all plans anew: something else is known of servers."""
        self._plans.clear()

    def plan(self, servers: tuple[str, ...], metrics: tuple[str, ...]) -> Plan:
        """Return the plan of frames of these servers and metrics."""
        found = self._plans.get((servers, metrics))
        if found is None:
            if len(self._plans) >= MAX_LAYOUTS:
                self._plans.clear()
                self._columns.clear()
            found = self._plans[servers, metrics] = self._make(servers, metrics)
        return found

    def _make(self, servers: tuple[str, ...], metrics: tuple[str, ...]) -> Plan:
        columns = self._columns.get(metrics)
        if columns is None:
            columns = self._columns[metrics] = [select(metrics, rule.selection.metrics) for rule in self._rules]
        pairs: list[tuple[int, int, float, float, float]] = []
        for rule, chosen in zip(self._rules, columns, strict=True):
            condition = rule.condition
            if not chosen or not isinstance(condition, Threshold):
                continue
            sign = 1.0 if condition.is_above else -1.0
            for row, server in enumerate(servers):
                if not chooses(rule, server, self._infos.get(server)):
                    continue
                for column in chosen:
                    slot = self._slot_of(rule, (rule.id, server, metrics[column]))
                    if slot >= 0:
                        place = row * len(metrics) + column
                        pairs.append((place, slot, sign, sign * condition.bound, sign * condition.clear))
        places, slots, *bounds = zip(*pairs, strict=True) if pairs else ((),) * 5
        signs, limits, clears = (np.array(each, np.float64) for each in bounds)
        return Plan(
            places=np.array(places, np.int64),
            slots=np.array(slots, np.int64),
            sign=signs,
            bound=limits,
            clear=clears,
        )
