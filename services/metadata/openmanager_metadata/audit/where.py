"""Filters over entries: as SQL for lists, and as a tree that the database itself applies before it deletes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from openmanager import filter as entry_filter
from openmanager.audit import Kind
from openmanager.errors import invalid
from openmanager_metadata.sql import condition

_EQUAL = frozenset({"=", "!="})
TEXTS = ("actor", "via", "action", "object", "reason", "request_id", "trace_id")
FIELDS = {
    **dict.fromkeys(TEXTS, entry_filter.TEXT),
    "kind": _EQUAL,
    "code": _EQUAL,
    "create_time": entry_filter.NUMBER,
    "number": entry_filter.NUMBER,
}
_COLUMNS = {"create_time": "time_unix_nanos"}
# google.rpc.Code, by its numbers.
CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
MAX_NUMBER = 2**63 - 1


def checked(text: str, name: str = "filter") -> entry_filter.Node | None:
    """Return the tree of a filter over entries; InvalidArgumentError naming the field `name` for none."""
    node = entry_filter.parse(text, name)
    entry_filter.check_fields(node, FIELDS, name)
    tree(node, name)
    return node


def nanos(moment: datetime) -> int:
    """Return the nanoseconds since the epoch of an aware time."""
    return (moment - _EPOCH) // _MICROSECOND * 1000


def tree(node: entry_filter.Node | None, name: str = "filter") -> dict[str, Any] | None:
    """Return a filter as `audit_matches` reads it; values are numbers or texts, all written as texts."""
    match node:
        case None:
            return None
        case entry_filter.And(parts=parts):
            return {"and": [tree(part, name) for part in parts]}
        case entry_filter.Or(parts=parts):
            return {"or": [tree(part, name) for part in parts]}
        case entry_filter.Not(part=part):
            return {"not": tree(part, name)}
        case entry_filter.Comparison():
            column = _COLUMNS.get(node.field, node.field)
            return {"column": column, "operator": node.operator, "value": str(_value(node, name))}


def sql(node: entry_filter.Node | None, arguments: list[Any]) -> str:
    """Return a filter as SQL; its values are added to `arguments`, names are our own."""

    def comparison(node: entry_filter.Comparison) -> str:
        arguments.append(_value(node, "filter"))
        column, value = _COLUMNS.get(node.field, node.field), f"${len(arguments)}"
        if node.operator == ":":
            return f"position({value} in {column}) > 0"
        return f"{column} {'<>' if node.operator == '!=' else node.operator} {value}"

    return condition(node, comparison)


def _value(node: entry_filter.Comparison, name: str) -> str | int:
    match node.field:
        case "create_time":
            return nanos(entry_filter.parse_time(node.value, name))
        case "kind":
            if node.value not in Kind.__members__:
                raise invalid(name, f"has a kind that is none of {', '.join(Kind.__members__)}")
            return int(Kind[node.value])
        case "code":
            if node.value in CODES:
                return CODES.index(node.value)
            return _number(node.value, len(CODES) - 1, name)
        case "number":
            return _number(node.value, MAX_NUMBER, name)
        case _:
            return node.value


def _number(text: str, most: int, name: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19 or int(text) > most:
        raise invalid(name, f"has {text[:40]!r} where a number up to {most} is expected")
    return int(text)
