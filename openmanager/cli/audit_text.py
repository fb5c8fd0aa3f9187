"""The audit log in words: how it is, lists of entries, one entry."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from openmanager.cli import render
from openmanager.cli.audit_verdict import show_entries

if TYPE_CHECKING:
    from rich.table import Table

    from openmanager.client import AuditEntry, AuditStatus
    from openmanager.client.audit import ProvenEntry

CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip


def print_status(found: AuditStatus) -> None:
    """Say how the log is."""
    from rich.text import Text

    out = render.console()
    rows = render.table("", "")
    rows.show_header = False
    rows.columns[1].no_wrap, rows.columns[1].overflow = False, "fold"
    rows.add_row(
        "entries", f"{found.size:,}" + (f", kept from {found.first_number:,}" if found.first_number > 1 else "")
    )
    rows.add_row("root", found.root.hex())
    checkpoint = found.checkpoint
    if checkpoint is not None:
        how = f"signed with {checkpoint.key_id.hex()[:16]}…" if checkpoint.key_id else "not signed"
        age = render.show_age(datetime.fromtimestamp(checkpoint.time_unix_nanos / 1e9, UTC))
        rows.add_row("checkpoint", f"of {show_entries(checkpoint.size)}, {age} ago, {how}")
    rows.add_row("not covered yet", show_entries(found.uncovered_count))
    if found.copied_size:
        rows.add_row("second place", f"has up to {show_entries(found.copied_size)}")
    out.print(rows)
    if found.orphaned_intent_count:
        some = ", ".join(f"{each}" for each in found.orphaned_intents[:10])
        what = render.show_count(found.orphaned_intent_count, "intent")
        out.print(
            Text(f"! {what} without an outcome, whether it was done is not known: {some}", style="yellow"),
            soft_wrap=True,
        )
    for warning in found.warnings:
        out.print(Text(f"! {warning}", style="yellow"), soft_wrap=True)


_LONG_ID = re.compile(r"\b([0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")


def range_filter(text: str, start: datetime | None, end: datetime | None) -> str:
    """Return a filter that also chooses a half-open range of time."""
    parts = [f"({text})"] if text else []
    parts += [f'create_time >= "{start.astimezone(UTC).isoformat()}"'] if start else []
    parts += [f'create_time < "{end.astimezone(UTC).isoformat()}"'] if end else []
    return " AND ".join(parts)


def entries_table(entries: list[AuditEntry], *, personal: bool) -> Table:
    """Return entries as a table."""
    columns = ["number", "time", "who", "what", "object", "how", *(["personal"] if personal else [])]
    made = render.table(*columns, right=("number",))
    for column in made.columns[2:5]:
        column.no_wrap, column.overflow = False, "fold"
    for entry in entries:
        cells = [
            f"{entry.number}",
            entry.create_time.astimezone().strftime("%m-%d %H:%M:%S") if entry.create_time else render.NOTHING,
            short(entry.actor),
            show_action(entry.action),
            short(entry.object) or render.NOTHING,
            show_ending(entry),
        ]
        if personal:
            cells.append(show_personal(entry))
        made.add_row(*cells)
    return made


def short(text: str) -> str:
    """Return a text with the beginnings of the long ids in it; `audit show` and --json have them whole."""
    return _LONG_ID.sub(r"\1…", text)


def show_action(action: str) -> str:
    """Return an action, of a method its name alone."""
    return action.rpartition("/")[2]


def show_ending(entry: AuditEntry) -> str:
    """Return how something ended."""
    if entry.kind.name == "INTENT":
        return "intent, no outcome" if entry.orphaned else "intent"
    code = CODES[entry.code] if entry.code < len(CODES) else str(entry.code)
    times = f" ×{entry.occurrence_count:,}" if entry.occurrence_count > 1 else ""
    return f"{code}{times}"


def show_personal(entry: AuditEntry) -> str:
    """Return the personal data of an entry."""
    if entry.erased:
        return "erased"
    return ", ".join(f"{name}={value}" for name, value in sorted(entry.personal.items())) or render.NOTHING


def print_entry(found: ProvenEntry) -> None:
    """Say all of an entry, and whether its proof holds."""
    from rich.text import Text

    entry, out = found.entry, render.console()
    rows = render.table("", "")
    rows.show_header = False
    rows.columns[1].no_wrap, rows.columns[1].overflow = False, "fold"
    fields = {
        "number": f"{entry.number}",
        "time": render.show_moment(entry.create_time),
        "kind": entry.kind.name.lower(),
        "who": entry.actor,
        "by way of": entry.via,
        "what": entry.action,
        "object": entry.object,
        "how": show_ending(entry),
        "reason": entry.reason,
        "intent": f"{entry.intent_number}" if entry.intent_number else "",
        "request": entry.request_id,
        "request hash": entry.request_hash.hex(),
        "after hash": entry.after_hash.hex(),
        "trace": entry.trace_id,
        "policy": entry.policy_version,
        "subject": entry.subject,
        "personal": show_personal(entry) if entry.subject else "",
        **entry.details,
    }
    for name, value in fields.items():
        if value:
            rows.add_row(name, value)
    out.print(rows)
    if found.checkpoint is None:
        out.print(Text("! no checkpoint covers it yet", style="yellow"))
    elif found.is_proven:
        out.print(Text(f"✓ proven by the checkpoint of {show_entries(found.checkpoint.size)}", style="green"))
    else:
        out.print(
            Text(f"✗ the checkpoint of {show_entries(found.checkpoint.size)} does not cover it", style="bold red")
        )
