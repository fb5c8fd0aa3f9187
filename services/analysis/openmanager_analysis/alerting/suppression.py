"""Which alerts nobody is told of now: silenced ones, and those that others inhibit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from openmanager import filter as filters
from openmanager_analysis.alerting import matcher
from openmanager_analysis.alerting.alert import Alert, State
from openmanager_analysis.alerting.rule import Rule
from openmanager_analysis.alerting.silence import Silence

MAX_NAMED = 10
_MAX_KNOWN = 20_000
Marks = tuple[tuple[str, ...], tuple[str, ...]]


class Suppression:
    """Says who is suppressed. What a matcher says of labels is remembered by those that it compares."""

    def __init__(self) -> None:
        self._tests: dict[str, Callable[[Alert], bool]] = {}

    def marks(
        self, alerts: Iterable[Alert], rules: Mapping[str, Rule], silences: Iterable[Silence], now: int
    ) -> dict[str, Marks]:
        """Return of each alert, by id, the silences that hold for it and the fingerprints of those that inhibit it."""
        alerts = list(alerts)
        holding = [(each.id, self._test(each.matcher)) for each in silences if each.holds(now)]
        inhibited = self._inhibited(alerts, rules)
        return {
            each.id: (tuple(name for name, test in holding if test(each)), inhibited.get(each.id, ()))
            for each in alerts
        }

    def _inhibited(self, alerts: list[Alert], rules: Mapping[str, Rule]) -> dict[str, tuple[str, ...]]:
        by_rule: dict[str, list[Alert]] = {}
        for each in alerts:
            by_rule.setdefault(each.rule, []).append(each)
        firing = [each for each in alerts if each.state is State.FIRING]
        found: dict[str, dict[str, None]] = {}
        for name, targets in by_rule.items():
            for inhibitor in rules[name].inhibitors if name in rules else ():
                test = self._test(inhibitor.source)
                sources: dict[tuple[str, ...], list[str]] = {}
                for each in firing:
                    if test(each):
                        sources.setdefault(_key(each, inhibitor.equal), []).append(each.fingerprint)
                for target in targets if sources else ():
                    marks = sources.get(_key(target, inhibitor.equal), ())
                    found.setdefault(target.id, {}).update(dict.fromkeys(marks[: MAX_NAMED + 1]))
        return {alert: tuple(marks)[:MAX_NAMED] for alert, marks in found.items() if marks}

    def _test(self, text: str) -> Callable[[Alert], bool]:
        test = self._tests.get(text)
        if test is None:
            if len(self._tests) >= _MAX_KNOWN:
                self._tests.clear()
            test = self._tests[text] = tester(text)
        return test


def tester(text: str) -> Callable[[Alert], bool]:
    """Return what says whether a matcher chooses an alert; what it says of the same labels it says at once again."""
    node = matcher.parse(text, "matcher")
    names = tuple(dict.fromkeys(field.removeprefix("labels.") for field in _fields(node)))
    known: dict[tuple[str, ...], bool] = {}

    def test(alert: Alert) -> bool:
        key = _key(alert, names)
        found = known.get(key)
        if found is None:
            if len(known) >= _MAX_KNOWN:
                known.clear()
            found = known[key] = matcher.matches(node, alert.labels)
        return found

    return test


def _fields(node: filters.Node | None) -> Iterable[str]:
    match node:
        case filters.Comparison(field=field):
            yield field
        case filters.And(parts=parts) | filters.Or(parts=parts):
            for part in parts:
                yield from _fields(part)
        case filters.Not(part=part):
            yield from _fields(part)


def _key(alert: Alert, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(alert.labels.get(name, "") for name in names)
