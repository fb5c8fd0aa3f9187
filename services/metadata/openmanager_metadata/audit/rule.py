"""The policy of the audit log: how long entries are kept, and which holds keep some of them for longer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from openmanager import filter as entry_filter
from openmanager.errors import invalid
from openmanager_metadata.audit import where

KIND, ID = "audit", "default"
MAX_DAYS, MAX_HOLDS, MAX_REASON = 36_500, 100, 1000
MAX_NANOS = 2**63 - 1
_ID = re.compile(r"[a-z0-9][a-z0-9._:-]{0,254}")
_HOLD = {"id", "filter", "range", "reason"}
_RANGE = {"start_time", "end_time"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Entries that are kept: those of a half-open range of time that a filter chooses."""

    id: str
    filter: str = ""
    start_unix_nanos: int = 0
    end_unix_nanos: int = MAX_NANOS
    reason: str = ""

    @property
    def node(self) -> entry_filter.Node | None:
        """The filter as a tree; None for every entry of the range."""
        return where.checked(self.filter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How long entries are kept, None for ever; and what is kept whatever that says."""

    retention: timedelta | None = None
    holds: tuple[Hold, ...] = ()


def rule(document: Mapping[str, Any], name: str = "policy.document") -> Rule:
    """Return the rule of a document {retention_days, holds: [{id, filter, range: {start_time, end_time}, reason}]}.

    InvalidArgumentError, naming the field below `name`, for anything else.
    """
    for key in document:
        if key not in {"retention_days", "holds"}:
            raise invalid(f"{name}.{key[:40]}", "must be retention_days or holds")
    days, retention = document.get("retention_days"), None
    if days is not None:
        if (
            isinstance(days, bool)
            or not isinstance(days, int | float)
            or days != days // 1
            or not 1 <= days <= MAX_DAYS
        ):
            raise invalid(f"{name}.retention_days", f"must be a whole number from 1 to {MAX_DAYS}")
        retention = timedelta(days=int(days))
    found = document.get("holds", [])
    if not isinstance(found, list) or len(found) > MAX_HOLDS:
        raise invalid(f"{name}.holds", f"must be a list of at most {MAX_HOLDS} holds")
    holds = tuple(_hold(each, f"{name}.holds") for each in found)
    if len({hold.id for hold in holds}) != len(holds):
        raise invalid(f"{name}.holds", "has an id twice")
    return Rule(retention=retention, holds=holds)


def _hold(document: Any, name: str) -> Hold:
    if not isinstance(document, Mapping) or not set(document) <= _HOLD:
        raise invalid(name, f"must have objects of {', '.join(sorted(_HOLD))}")
    for key in ("id", "filter", "reason"):
        if not isinstance(document.get(key, ""), str):
            raise invalid(f"{name}.{key}", "must be a text")
    if not _ID.fullmatch(document.get("id", "")):
        raise invalid(f"{name}.id", f"must be of {_ID.pattern}")
    if len(document.get("reason", "")) > MAX_REASON:
        raise invalid(f"{name}.reason", f"is longer than {MAX_REASON} characters")
    text = document.get("filter", "")
    where.checked(text, f"{name}.filter")
    start, end = _range(document.get("range", {}), f"{name}.range")
    if not text.strip() and not document.get("range"):
        raise invalid(name, "must have a filter or a range")
    return Hold(
        id=document["id"], filter=text, start_unix_nanos=start, end_unix_nanos=end, reason=document.get("reason", "")
    )


def _range(document: Any, name: str) -> tuple[int, int]:
    if not isinstance(document, Mapping) or not set(document) <= _RANGE:
        raise invalid(name, f"must be an object of {' and '.join(sorted(_RANGE))}")
    ends = {"start_time": 0, "end_time": MAX_NANOS}
    for key, text in document.items():
        if not isinstance(text, str):
            raise invalid(f"{name}.{key}", "must be an RFC 3339 time")
        ends[key] = min(MAX_NANOS, where.nanos(entry_filter.parse_time(text, f"{name}.{key}")))
    if ends["start_time"] >= ends["end_time"]:
        raise invalid(f"{name}.end_time", "must be after start_time")
    return ends["start_time"], ends["end_time"]
