"""What tables here have in common in SQL: filters as conditions, and times as the database keeps them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from openmanager import filter as filters

T = TypeVar("T", datetime, datetime | None)


def condition(
    node: filters.Node | None, comparison: Callable[[filters.Comparison], str], *, negated: str = "NOT ({})"
) -> str:
    """Return a filter as a condition, `comparison` giving that of one comparison.

    `negated` says how the opposite of a condition is written: where columns may be NULL, NOT is not enough.
    """

    def walk(node: filters.Node | None) -> str:
        match node:
            case None:
                return "true"
            case filters.And(parts=parts):
                return "(" + " AND ".join(map(walk, parts)) + ")"
            case filters.Or(parts=parts):
                return "(" + " OR ".join(map(walk, parts)) + ")"
            case filters.Not(part=part):
                return negated.format(walk(part))
            case filters.Comparison():
                return comparison(node)

    return walk(node)


def aware(time: T) -> T:
    """Return a time of the database, which keeps UTC without saying so, as what it is."""
    return time.replace(tzinfo=UTC) if time is not None else time


def plain(time: T) -> T:
    """Return an aware time as the database keeps it."""
    return time.astimezone(UTC).replace(tzinfo=None) if time is not None else time
