"""Filters in a subset of AIP-160: comparisons by `=`, `!=`, `:`, `<`, `<=`, `>`, `>=`, AND, OR, NOT, parentheses.

A filter is parsed into a small tree; who applies it decides what the fields are. `:` means “contains” for text. There
is no regular expression and no function, so that a filter cannot be made expensive.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from openmanager.errors import InvalidArgumentError, invalid

MAX_LENGTH = 4096
MAX_TERMS = 100
MAX_DEPTH = 20

_TOKEN = re.compile(
    r"""\s*(?:(?P<punct>[()]|!=|<=|>=|[=:<>])|(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<word>[^\s()=:<>!"']+)|(?P<bad>\S))"""
)
_OPERATORS = ("=", "!=", ":", "<", "<=", ">", ">=")


@dataclass(frozen=True, slots=True)
class Comparison:
    """`field operator value`."""

    field: str
    operator: str
    value: str


@dataclass(frozen=True, slots=True)
class And:
    """Every part must hold."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """One of the parts must hold."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part must not hold."""

    part: Node


Node = Comparison | And | Or | Not


@lru_cache(maxsize=1024)
def parse(text: str, name: str = "filter") -> Node | None:
    """Return the tree of a filter, None for an empty one; InvalidArgumentError naming the field `name`."""
    if not text.strip():
        return None
    if len(text) > MAX_LENGTH:
        raise invalid(name, f"is longer than {MAX_LENGTH} characters")
    if "\0" in text:
        raise invalid(name, "has a control character")
    return _Parser(text, name).parse()


class _Parser:
    """Recursive descent over the tokens of one filter."""

    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self._terms = 0
        self._tokens: list[tuple[str, str]] = []
        for match in _TOKEN.finditer(text):
            kind = str(match.lastgroup)
            if kind == "bad":
                raise self._error(f"has an unexpected {match.group(kind)!r}")
            self._tokens.append((kind, match.group(kind)))
        self._index = 0

    def parse(self) -> Node:
        node = self._or(0)
        if self._index < len(self._tokens):
            raise self._error(f"has an unexpected {self._tokens[self._index][1]!r}")
        return node

    def _error(self, why: str) -> InvalidArgumentError:
        return invalid(self._name, why)

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._index] if self._index < len(self._tokens) else ("end", "end")

    def _take(self) -> tuple[str, str]:
        token = self._peek()
        self._index += 1
        return token

    def _keyword(self, word: str) -> bool:
        if self._peek() == ("word", word):
            self._index += 1
            return True
        return False

    def _or(self, depth: int) -> Node:
        parts = [self._and(depth)]
        while self._keyword("OR"):
            parts.append(self._and(depth))
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _and(self, depth: int) -> Node:
        parts = [self._unary(depth)]
        while self._keyword("AND"):
            parts.append(self._unary(depth))
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _unary(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self._error(f"is nested more than {MAX_DEPTH} deep")
        if self._keyword("NOT"):
            return Not(self._unary(depth + 1))
        if self._peek() == ("punct", "("):
            self._take()
            node = self._or(depth + 1)
            if self._take() != ("punct", ")"):
                raise self._error("has a parenthesis that is not closed")
            return node
        return self._comparison()

    def _comparison(self) -> Comparison:
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise self._error(f"has more than {MAX_TERMS} comparisons")
        kind, field = self._take()
        if kind != "word":
            raise self._error(f"has {field!r} where a field is expected")
        kind, sign = self._take()
        if kind != "punct" or sign not in _OPERATORS:
            raise self._error(f"has {sign!r} where a comparison is expected: field = value")
        kind, value = self._take()
        if kind == "text":
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        elif kind != "word":
            raise self._error(f"has {value!r} where a value is expected")
        return Comparison(field, sign, value)


def check_fields(node: Node | None, fields: Mapping[str, frozenset[str]], name: str = "filter") -> None:
    """Raise InvalidArgumentError unless every comparison uses a known field with an operator it allows.

    `fields` maps a field to its operators; `labels.*` stands for any label. A field whose name ends in `_time` is
    compared with RFC 3339 times.
    """
    match node:
        case Comparison(field=field, operator=sign):
            allowed = fields.get("labels.*" if field.startswith("labels.") and len(field) > len("labels.") else field)
            if allowed is None:
                raise invalid(name, f"has the unknown field {field[:40]!r}; known are {', '.join(sorted(fields))}")
            if sign not in allowed:
                raise invalid(name, f"cannot compare {field[:40]!r} by {sign!r}")
            if field.endswith("_time"):
                parse_time(node.value, name)
        case And(parts=parts) | Or(parts=parts):
            for part in parts:
                check_fields(part, fields, name)
        case Not(part=part):
            check_fields(part, fields, name)


TEXT = frozenset({"=", "!=", ":"})
NUMBER = frozenset({"=", "!=", "<", "<=", ">", ">="})

_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def parse_time(text: str, name: str = "filter") -> datetime:
    """Return the aware UTC time of an RFC 3339 text (UTC when it names no offset)."""
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as err:
        raise invalid(name, "has a time that is not RFC 3339") from err


def matches(node: Node | None, lookup: Callable[[str], str | float | datetime | None]) -> bool:
    """Say whether a filter holds, `lookup` giving the value of a field; None compares as an empty text."""
    match node:
        case None:
            return True
        case And(parts=parts):
            return all(matches(part, lookup) for part in parts)
        case Or(parts=parts):
            return any(matches(part, lookup) for part in parts)
        case Not(part=part):
            return not matches(part, lookup)
        case Comparison(field=field, operator=sign, value=wanted):
            return _compare(lookup(field), sign, wanted)


def _compare(have: str | float | datetime | None, sign: str, wanted: str) -> bool:
    if isinstance(have, datetime):
        return _ORDER[sign](have, parse_time(wanted))
    if isinstance(have, float):
        try:
            return _ORDER[sign](have, float(wanted))
        except ValueError:
            return sign == "!="
    text = have or ""
    if sign == ":":
        return wanted in text
    return (text == wanted) is (sign == "=")
