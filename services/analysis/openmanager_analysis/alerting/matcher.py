"""Choosing alerts by their labels, in the language of filters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from openmanager import filter as filters
from openmanager.errors import invalid
from openmanager_analysis.anomaly import Severity

# The labels that we make; the others are a rule's own and are called `labels.<name>` in a matcher.
BUILT_IN = (
    "alertname", "rule", "severity", "server", "metric", "environment", "role", "location", "service", "store",
)  # fmt: skip
FIELDS = dict.fromkeys((*BUILT_IN, "labels.*"), filters.TEXT)
Labels = Mapping[str, str]


@lru_cache(maxsize=4096)
def parse(text: str, name: str, *more: str) -> filters.Node | None:
    """Return the tree of a matcher, None for an empty one; InvalidArgumentError naming the field `name`.

    It may compare labels, and the fields `more` besides. A severity may be written in any case.
    """
    node = filters.parse(text, name)
    filters.check_fields(node, {**FIELDS, **dict.fromkeys(more, filters.TEXT)}, name)
    return None if node is None else _plain(node, name)


def _plain(node: filters.Node, name: str) -> filters.Node:
    match node:
        case filters.And(parts=parts):
            return filters.And(tuple(_plain(part, name) for part in parts))
        case filters.Or(parts=parts):
            return filters.Or(tuple(_plain(part, name) for part in parts))
        case filters.Not(part=part):
            return filters.Not(_plain(part, name))
        case filters.Comparison(field="severity", operator=sign, value=value):
            if sign != ":" and value.upper() not in Severity.__members__:
                raise invalid(
                    name, f"compares severity with {value[:40]!r}; there are {', '.join(Severity.__members__)}"
                )
            return filters.Comparison("severity", sign, value.lower())
        case _:
            return node


def matches(node: filters.Node | None, labels: Labels) -> bool:
    """Say whether labels are chosen."""
    return filters.matches(node, lambda field: labels.get(field.removeprefix("labels."), ""))


def may_match(node: filters.Node | None, known: Labels, open_labels: frozenset[str]) -> bool:
    """Say whether some labels can be chosen that are `known` but for those of `open_labels`, which may be anything."""
    return True in set(_outcomes(node, known, open_labels))


def _outcomes(node: filters.Node | None, known: Labels, open_labels: frozenset[str]) -> Iterator[bool]:
    """Yield True where a node may hold, and False where it may not."""
    match node:
        case None:
            yield True
        case filters.Not(part=part):
            yield from (not each for each in _outcomes(part, known, open_labels))
        case filters.And(parts=parts) | filters.Or(parts=parts):
            found: list[set[Any]] = [set(_outcomes(part, known, open_labels)) for part in parts]
            joins, other = (all, any) if isinstance(node, filters.And) else (any, all)
            if joins(True in each for each in found):
                yield True
            if other(False in each for each in found):
                yield False
        case filters.Comparison(field=field):
            label = field.removeprefix("labels.")
            if label in open_labels:
                yield from (True, False)
            else:
                yield filters.matches(node, lambda _: known.get(label, ""))
