"""Filters on interactions as SQL: values are parameters, names come from our own list."""

from __future__ import annotations

import math
from typing import Any

from openmanager import filter as filters
from openmanager.errors import invalid
from openmanager_metadata.sql import condition, plain

_TEXTS = ("session_id", "subject", "model", "intent", "trace_id")
_ARRAYS = {"server": "servers", "metric": "metrics"}
FIELDS = {
    **dict.fromkeys((*_TEXTS, *_ARRAYS, "labels.*"), filters.TEXT),
    **dict.fromkeys(("confidence", "rating", "create_time"), filters.NUMBER),
}
_NUMBERS = {"confidence": "confidence", "rating": "user_rating"}
_MAX_INT = 2**31 - 1


def checked(text: str) -> filters.Node | None:
    """Return the tree of a filter on interactions; InvalidArgumentError for one that is none."""
    node = filters.parse(text)
    filters.check_fields(node, FIELDS)
    return node


class Where:
    """Conditions of a statement, and its arguments in the order of their numbers."""

    def __init__(self, filter: str = "") -> None:  # noqa: A002  (the contract's word)
        self.arguments: list[Any] = []
        # What is not known fulfils nothing, and so it fulfils that it does not.
        self._parts = [condition(checked(filter), self._comparison, negated="({}) IS NOT TRUE")]

    def parameter(self, value: Any) -> str:
        """Return how SQL names a value."""
        self.arguments.append(value)
        return f"${len(self.arguments)}"

    def add(self, condition: str) -> None:
        """Add a condition of our own."""
        self._parts.append(condition)

    @property
    def sql(self) -> str:
        """All conditions."""
        return " AND ".join(self._parts)

    def _comparison(self, node: filters.Comparison) -> str:
        if node.field == "create_time":
            sign = "<>" if node.operator == "!=" else node.operator
            return f"created_at {sign} {self.parameter(plain(filters.parse_time(node.value)))}"
        if node.field in _NUMBERS:
            return self._number(node)
        if node.field in _ARRAYS:
            # `:` is AIP-160's “has”: for what is a list the same as `=`.
            has = f"{_ARRAYS[node.field]} @> ARRAY[{self.parameter(node.value)}::text]"
            return f"NOT ({has})" if node.operator == "!=" else has
        return self._text(node)

    def _number(self, node: filters.Comparison) -> str:
        column = _NUMBERS[node.field]
        try:
            number = float(node.value)
        except ValueError as err:
            raise invalid("filter", f"compares {node.field} with what is no number") from err
        if not math.isfinite(number):
            raise invalid("filter", f"compares {node.field} with what is no number")
        kind = "float8"
        if node.field == "rating":
            if not number.is_integer() or abs(number) > _MAX_INT:
                raise invalid("filter", "compares rating with what is no whole number")
            kind = "int4"
        value = self.parameter(int(number) if kind == "int4" else number)
        if node.operator == "!=":
            return f"{column} IS DISTINCT FROM {value}::{kind}"
        return f"{column} {node.operator} {value}::{kind}"

    def _text(self, node: filters.Comparison) -> str:
        column, value = node.field, f"{self.parameter(node.value)}::text"
        # Without coalesce, for the indexes.
        exact = f"{column} = {value}"
        if node.field.startswith("labels."):
            name = f"{self.parameter(node.field.removeprefix('labels.'))}::text"
            column, exact = f"labels->>{name}", f"labels @> jsonb_build_object({name}, {value})"
        if node.operator == "=" and node.value:
            return exact
        sign = {"=": "=", "!=": "<>"}.get(node.operator)
        return f"coalesce({column}, '') {sign} {value}" if sign else f"position({value} in coalesce({column}, '')) > 0"
