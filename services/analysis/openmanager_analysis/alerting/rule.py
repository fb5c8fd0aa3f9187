"""Rules: which series or stores, and what of them is an alert."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openmanager import filter as filters
from openmanager.access import SCOPE_FIELDS
from openmanager.errors import InvalidArgumentError, invalid, missing
from openmanager.frame import check_server_id, check_text
from openmanager.metric import Pattern
from openmanager_analysis.alerting import matcher
from openmanager_analysis.anomaly import Severity
from openmanager_analysis.history import DAY_NANOS, HOUR_NANOS, Selection

SECOND_NANOS = 10**9
MAX_RULES = 500
MAX_LABELS, MAX_LABEL, MAX_ANNOTATIONS, MAX_ANNOTATION = 20, 255, 10, 1_024
MAX_INHIBITORS, MAX_EQUAL, MAX_NAMES, MAX_NAME = 5, 10, 1_000, 100
MAX_HOLD_NANOS = 7 * DAY_NANOS
DEFAULT_STALE_NANOS, LEAST_STALE_NANOS, MOST_STALE_NANOS = 300 * SECOND_NANOS, 10 * SECOND_NANOS, DAY_NANOS
LEAST_ABSENT_NANOS, MOST_ABSENT_NANOS = 30 * SECOND_NANOS, DAY_NANOS
LEAST_WITHIN_NANOS, MOST_WITHIN_NANOS = HOUR_NANOS, 366 * DAY_NANOS
DEFAULT_PROBABILITY, LEAST_PROBABILITY, CLEAR_SHARE = 0.8, 0.05, 0.75

_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,62}")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
PLACEHOLDERS = ("server", "metric", "value", "limit", "name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A metric, or its growth `per_second`, above or below `bound`, for `hold_nanos`; well at `clear`, for `clear_nanos`."""

    bound: float
    is_above: bool
    clear: float
    hold_nanos: int = 0
    clear_nanos: int = 0
    per_second: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusual:
    """An anomaly that is so grave and so unusual at least."""

    severity: Severity = Severity.WARNING
    score: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhausting:
    """A metric that reaches `limit` within a time, with `probability` at least; over below `clear`."""

    limit: float
    within_nanos: int
    probability: float = DEFAULT_PROBABILITY
    clear: float = DEFAULT_PROBABILITY * CLEAR_SHARE


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A store or a service in one of `states`, in any but OK where there is none, for `hold_nanos`."""

    services: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    states: frozenset[str] = frozenset()
    hold_nanos: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """A server, or a metric of it, that has sent nothing for `hold_nanos`."""

    hold_nanos: int


Condition = Threshold | Unusual | Exhausting | Trouble | Absent


@dataclass(frozen=True, slots=True, kw_only=True)
class Inhibitor:
    """Alerts that `source` chooses inhibit where the labels `equal` are equal."""

    source: str
    equal: tuple[str, ...] = ("server",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule; `etag` and `update_nanos` are those of the place where it is stored."""

    id: str
    name: str
    condition: Condition
    selection: Selection = field(default_factory=Selection)
    severity: Severity = Severity.WARNING
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    inhibitors: tuple[Inhibitor, ...] = ()
    stale_nanos: int = DEFAULT_STALE_NANOS
    paused: bool = False
    etag: str = ""
    update_nanos: int = 0

    @property
    def identity(self) -> tuple[Any, ...]:
        """What its alerts are known by: when it changes they are others."""
        kind = type(self.condition), getattr(self.condition, "per_second", False)
        return self.name, self.severity, tuple(sorted(self.labels.items())), *kind


def check_id(text: str, name: str) -> str:
    """Return the id of a rule; InvalidArgumentError, naming the field, when it is none."""
    if not text:
        raise missing(name)
    if not _ID.fullmatch(text):
        raise invalid(name, f"must be {_ID.pattern}")
    return text


def check(rule: Rule) -> Rule:
    """Return a rule; InvalidArgumentError, naming the field, for what none can be."""
    check_id(rule.id, "rule.id")
    check_text("rule.name", rule.name, MAX_NAME)
    _check_selection(rule.selection, needs_metric=isinstance(rule.condition, Threshold | Exhausting))
    if isinstance(rule.condition, Trouble) and rule.selection != Selection():
        raise invalid("rule.selector", "must be empty with a condition on stores")
    _check_condition(rule.condition)
    _check_texts("rule.labels", rule.labels, MAX_LABELS, MAX_LABEL)
    _check_texts("rule.annotations", rule.annotations, MAX_ANNOTATIONS, MAX_ANNOTATION)
    for text in rule.annotations.values():
        for name in _PLACEHOLDER.findall(text):
            if name not in PLACEHOLDERS and not name.startswith("labels."):
                known = ", ".join(f"{{{each}}}" for each in (*PLACEHOLDERS, "labels.<name>"))
                raise invalid("rule.annotations", f"has the unknown placeholder {{{name[:40]}}}; there are {known}")
    for name in rule.labels:
        if name in matcher.BUILT_IN:
            raise invalid("rule.labels", f"has {name!r}, which every alert has already")
    if len(rule.inhibitors) > MAX_INHIBITORS:
        raise invalid("rule.inhibitors", f"has more than {MAX_INHIBITORS} entries")
    for each in rule.inhibitors:
        _check_inhibitor(each)
    _check_range("rule.stale_duration", rule.stale_nanos, LEAST_STALE_NANOS, MOST_STALE_NANOS, "10 s to 1 day")
    return rule


def _check_selection(chosen: Selection, *, needs_metric: bool) -> None:
    if needs_metric and not chosen.metrics:
        raise missing("rule.selector.metrics")
    for name in ("servers", "metrics"):
        if len(getattr(chosen, name)) > MAX_NAMES:
            raise invalid(f"rule.selector.{name}", f"has more than {MAX_NAMES:,} entries")
    for server in chosen.servers:
        check_server_id(server, "rule.selector.servers")
    node = filters.parse(chosen.server_filter, "rule.selector.server_filter")
    filters.check_fields(node, SCOPE_FIELDS, "rule.selector.server_filter")
    for pattern in chosen.metrics:
        try:
            Pattern.parse(pattern)
        except InvalidArgumentError as err:
            raise invalid("rule.selector.metrics", err.message.partition(" ")[2]) from err


def _check_condition(condition: Condition) -> None:
    match condition:
        case Threshold():
            _check_threshold(condition)
        case Unusual(score=score):
            if not 0 <= score <= 1:
                raise invalid("rule.anomaly.min_score", "must be 0–1")
        case Exhausting():
            _check_exhausting(condition)
        case Trouble():
            _check_names("rule.store.services", condition.services)
            _check_names("rule.store.stores", condition.stores)
            _check_range("rule.store.for_duration", condition.hold_nanos, 0, MAX_HOLD_NANOS, "0 to 7 days")
        case Absent(hold_nanos=nanos):
            name = "rule.absence.for_duration"
            _check_range(name, nanos, LEAST_ABSENT_NANOS, MOST_ABSENT_NANOS, "30 s to 1 day")


def _check_threshold(condition: Threshold) -> None:
    bound, clear = condition.bound, condition.clear
    _check_finite(f"rule.threshold.{'above' if condition.is_above else 'below'}", bound)
    _check_finite("rule.threshold.clear", clear)
    if (clear > bound) if condition.is_above else (clear < bound):
        side = "at most `above`" if condition.is_above else "at least `below`"
        raise invalid("rule.threshold.clear", f"must be {side}: it is where the metric is well again")
    _check_range("rule.threshold.for_duration", condition.hold_nanos, 0, MAX_HOLD_NANOS, "0 to 7 days")
    _check_range("rule.threshold.clear_duration", condition.clear_nanos, 0, MAX_HOLD_NANOS, "0 to 7 days")


def _check_exhausting(condition: Exhausting) -> None:
    _check_finite("rule.exhaustion.limit", condition.limit)
    name, nanos = "rule.exhaustion.within_duration", condition.within_nanos
    _check_range(name, nanos, LEAST_WITHIN_NANOS, MOST_WITHIN_NANOS, "1 hour to 366 days")
    if not LEAST_PROBABILITY <= condition.probability <= 1:
        raise invalid("rule.exhaustion.min_probability", f"must be {LEAST_PROBABILITY}–1")
    if not 0 <= condition.clear <= condition.probability:
        raise invalid("rule.exhaustion.clear_probability", "must be 0 to min_probability")


def _check_names(name: str, texts: Sequence[str]) -> None:
    if len(texts) > MAX_EQUAL:
        raise invalid(name, f"has more than {MAX_EQUAL} entries")
    for each in texts:
        if not each:
            raise invalid(name, "holds an empty name")
        check_text(name, each, MAX_NAME)


def _check_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise invalid(name, "must be finite")


def _check_range(name: str, nanos: int, least: int, most: int, words: str) -> None:
    if not least <= nanos <= most:
        raise invalid(name, f"must be {words}")


def _check_texts(name: str, texts: Mapping[str, str], most: int, length: int) -> None:
    if len(texts) > most:
        raise invalid(name, f"has more than {most} entries")
    for key, text in texts.items():
        if not _LABEL.fullmatch(key):
            raise invalid(name, f"has the name {key[:40]!r}, which is not {_LABEL.pattern}")
        check_text(name, text, length)


def _check_inhibitor(inhibitor: Inhibitor) -> None:
    name = "rule.inhibitors.source_matcher"
    if matcher.parse(inhibitor.source, name) is None:
        raise missing(name)
    if len(inhibitor.equal) > MAX_EQUAL:
        raise invalid("rule.inhibitors.equal", f"has more than {MAX_EQUAL} entries")
    for label in inhibitor.equal:
        if not _LABEL.fullmatch(label):
            raise invalid("rule.inhibitors.equal", f"has {label[:40]!r}, which is no name of a label")


# Those that an alert has from what it is about; the others it has from its rule.
OPEN_LABELS = frozenset({"server", "metric", "environment", "role", "location", "service", "store"})


def own_labels(rule: Rule) -> dict[str, str]:
    """Return the labels that all alerts of a rule have."""
    return {**rule.labels, "alertname": rule.name, "rule": rule.id, "severity": rule.severity.name.lower()}


def check_acyclic(rule: Rule, rules: Iterable[Rule]) -> None:
    """Raise InvalidArgumentError for a rule whose alerts would, over others, inhibit what inhibits them.

    Two rules that inhibit each other would hide both. What a matcher says of servers may be anything here.
    """
    known = {each.id: each for each in rules} | {rule.id: rule}
    seen: set[str] = set()
    waiting = [rule.id]
    while waiting:
        for source in _sources(known[waiting.pop()], known.values()):
            if source == rule.id:
                raise invalid("rule.inhibitors", "would be a cycle: the rule would inhibit what inhibits it")
            if source not in seen:
                seen.add(source)
                waiting.append(source)


def _sources(rule: Rule, rules: Iterable[Rule]) -> Iterable[str]:
    nodes = [matcher.parse(each.source, "rule.inhibitors.source_matcher") for each in rule.inhibitors]
    return (
        each.id
        for each in (rules if nodes else ())
        if any(matcher.may_match(node, own_labels(each), OPEN_LABELS) for node in nodes)
    )
