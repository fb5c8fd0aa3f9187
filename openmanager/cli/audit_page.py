"""The auditor's report as one page: nothing loaded from anywhere, legible on paper, everything from the log escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

from openmanager.audit import PRUNED
from openmanager.cli import page
from openmanager.cli.page import Html, code, facts, lines, quiet
from openmanager.cli.render import show_utc
from openmanager.version import VERSION

if TYPE_CHECKING:
    from openmanager.cli.audit_report import Report

PACKAGE = "openmanager.api."
# How a column is set: numbers to the right, times and words in one line, ids broken anywhere.
_CLASSES = {
    **dict.fromkeys(("number", "count", "done", "failed"), "n"),
    **dict.fromkeys(("time", "first", "last", "created", "end", "last_seen", "from", "until"), "t"),
    **dict.fromkeys(("role", "state", "code", "result", "hold"), "w"),
    **dict.fromkeys(("object", "subject", "id"), "i"),
}
_HEADS = {"end": "Ends", "code": "Answer", "count": "Times", "creator": "Made by"}


_table = partial(page.table, classes=_CLASSES, heads=_HEADS)


def page_of(report: Report) -> str:
    """Return the page."""
    names = {each.subject: each.name for each in report.access}
    sections = [
        ("Verification", _verification(report)),
        ("Summary", _summary(report)),
        ("Access review", _access(report, names)),
        ("Changes", _changes(report, names)),
        ("Refused calls", _refusals(report, names)),
        ("Retention and holds", _holds(report)),
        ("Deletions by retention", _deletions(report)),
        ("Erasures of personal data", _erasures(report, names)),
        ("Intents without an outcome", _orphans(report, names)),
        ("Privileged reads and other events", _reads(report, names)),
        ("Signing keys", _events(report.keys, "Keys that were exchanged", "no key was exchanged")),
        ("Incidents of the log", _events(report.incidents, "What happened to the log itself", "none")),
    ]
    title = f"Audit report, {report.start} to {report.end}"
    return page.document(title, _header(report, names), sections)


def _header(report: Report, names: Mapping[str, str]) -> str:
    named = {
        "Period": f"{report.start} to {report.end}",
        "Entries": f"{report.entry_count:,} in the period",
        "Made": report.made,
        "By": _named(report.author, names),
        "With": f"OpenManager {VERSION}",
    }
    return f'<header><h1>Audit report</h1>{facts(named)}<p class="quiet">All times are UTC.</p></header>'


# ── sections ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _verification(report: Report) -> str:
    found = report.verdict
    if not found.is_sound and not found.checkpoint_count:
        kind, words = "unsound", "Nothing vouches for this log: there is no checkpoint to hold it against."
    elif not found.is_sound:
        kind, words = "unsound", "The log is NOT as it was written."
    elif found.signed_count:
        kind, words = "sound", "The log is as it was written."
    else:
        kind, words = "sound", "The log fits its checkpoints. Their signatures were not checked: no key was given."
    problems = "".join(f"<li>{escape(each.where)}: {escape(each.what)}</li>" for each in found.problems)
    notices = "".join(f"<li>{escape(each)}</li>" for each in found.notices)
    named = {
        "Log": code(found.log_id),
        "Entries": f"{found.entry_count:,}, numbers {found.first_number:,}–{found.last_number:,}",
        "Checkpoints": f"{found.checkpoint_count:,}, of which {found.signed_count:,} with a signature that was checked",
        "Taken from": report.checkpoints_from,
        "Covered up to": f"number {found.covered_number:,}",
        "Not covered": f"{found.uncovered_count:,} after the last checkpoint, of which nothing is said",
        "Root": code(found.root),
    }
    more = f"<ul>{problems}</ul>" if problems else ""
    noted = f'<ul class="quiet">{notices}</ul>' if notices else ""
    return f'<div class="verdict {kind}"><strong>{escape(words)}</strong>{more}</div>{facts(named)}{noted}'


def _summary(report: Report) -> str:
    count = {name: f"{value:,}" for name, value in report.summary.items()}
    named = {
        "Changes": f"{count['changes']} by {count['actors_who_changed']}, of which {count['failed_changes']} failed",
        "Refused calls": count["refused_calls"],
        "May come in": f"{count['people']} people, {count['keys']} keys",
        "Holds": count["holds"],
        "Deletions": f"{count['deletions']}, together {count['deleted_entries']} entries of the log",
        "Erasures": count["erasures"],
        "Without an outcome": count["orphaned_intents"],
        "Incidents": count["incidents"],
    }
    return facts(named)


def _access(report: Report, names: Mapping[str, str]) -> str:
    shown = [
        {"name": _named(each.subject, names), "key": _named(each.subject, names), "state": each.state,
         "role": each.role or "none", "scope": each.scope, "created": each.created,
         "creator": _named(each.creator, names), "end": each.end, "last_seen": each.last_seen}
        for each in report.access
    ]  # fmt: skip
    people = [row for row, each in zip(shown, report.access, strict=True) if each.is_person]
    keys = [row for row, each in zip(shown, report.access, strict=True) if not each.is_person]
    of_people = ("name", "state", "role", "scope", "created", "last_seen")
    of_keys = ("key", "state", "role", "scope", "creator", "end", "last_seen")
    return _table("People, a row for each role", of_people, people, "no users") + _table(
        "Keys of programs, a row for each role", of_keys, keys, "no keys"
    )


def _changes(report: Report, names: Mapping[str, str]) -> str:
    if not report.change_count:
        return quiet("nothing was changed")
    some = report.newest_changes
    left = report.change_count - len(some)
    words = f"The newest {len(some):,}; {left:,} older ones are counted above" if left else "One by one"
    actors = [(_named(name, names), each) for name, each in report.changes_by_actor.items()]
    actions = [(_action(name), each) for name, each in report.changes_by_action.items()]
    return (
        _counts("By whom", "actor", actors)
        + _counts("By what", "action", actions)
        + _table(words, ("number", "time", "actor", "action", "object", "result"), _readable(some, names))
    )


def _counts(caption: str, what: str, found: Iterable[tuple[Html, Counter[str]]]) -> str:
    ranked = sorted(found, key=lambda item: (-item[1].total(), item[0]))
    rows = [{what: name, "done": counts["done"], "failed": counts["failed"]} for name, counts in ranked]
    return _table(caption, (what, "done", "failed"), rows)


def _refusals(report: Report, names: Mapping[str, str]) -> str:
    rows = [
        {"actor": _named(each.actor, names), "action": _action(each.action), "code": each.code, "count": each.count,
         "first": _second(each.first), "last": _second(each.last)}
        for each in sorted(report.refusals.values(), key=lambda each: -each.count)
    ]  # fmt: skip
    columns = ("actor", "action", "code", "count", "first", "last")
    return _table("Who was not let in, or may not do what they asked for", columns, rows, "nobody was refused")


def _holds(report: Report) -> str:
    kept = f"for {report.retention_days:,} days" if report.retention_days else "for ever"
    since = f", by policy audit/default {report.policy_version} of {report.policy_time}" if report.policy_time else ""
    rows = [
        {
            "hold": hold.get("id", ""),
            "filter": hold.get("filter", "every entry"),
            "from": _second(hold.get("range", {}).get("start_time", "the beginning")),
            "until": _second(hold.get("range", {}).get("end_time", "no end")),
            "reason": hold.get("reason", ""),
        }
        for hold in report.holds
    ]
    table = _table("What is kept for longer", ("hold", "filter", "from", "until", "reason"), rows, "no holds")
    return f"<p>Entries are kept {escape(kept + since)}.</p>{table}"


def _deletions(report: Report) -> str:
    rows = [{**row, "deleted": _deleted(row), "evidence": _evidence(row)} for row in report.deletions]
    columns = ("number", "time", "deleted", "evidence")
    return _table("What the log says of each deletion, before it was done", columns, rows, "nothing was deleted")


def _deleted(row: Mapping[str, Any]) -> Html:
    details = row["details"]
    if row["action"] != PRUNED:
        return lines([escape(row["object"]), *(_detail(*each) for each in sorted(details.items()))])
    first, last, count = (_grouped(details.get(name, "")) for name in ("first_number", "last_number", "count"))
    oldest, newest = (_moment(details.get(f"{name}_unix_nanos", "")) for name in ("oldest", "newest"))
    rule = f"older than {details.get('retention_days', '')} days"
    by = f"by policy {details.get('policy', '')} {details.get('policy_version', '')}"
    return lines(
        map(
            escape, (f"{count} entries of the log, numbers {first}–{last}", f"of {oldest} to {newest}", f"{rule}, {by}")
        )
    )


def _evidence(row: Mapping[str, Any]) -> Html:
    root = row["details"].get("root", "")
    return Html(f"root of what was deleted {code(root)}") if root else Html(f"entry {row['number']:,}")


def _erasures(report: Report, names: Mapping[str, str]) -> str:
    rows = [{**row, "subject": _named(row["object"], names)} for row in report.erasures]
    return _table(
        "Whose personal data was made unreadable", ("number", "time", "subject"), rows, "nobody's data was erased"
    )


def _orphans(report: Report, names: Mapping[str, str]) -> str:
    words = "Whoever was about to do this ended: whether it was done has to be looked for"
    columns = ("number", "time", "actor", "action", "object")
    return _table(words, columns, _readable(report.orphans, names), "every intent has its outcome")


def _reads(report: Report, names: Mapping[str, str]) -> str:
    rows = [
        {"actor": _named(actor, names), "action": _action(action), "count": count}
        for (actor, action), count in report.reads.most_common()
    ]
    return _table("What was read that not everybody may read", ("actor", "action", "count"), rows, "none")


def _events(rows: Sequence[Mapping[str, Any]], caption: str, nothing: str) -> str:
    shown = [{**row, "details": lines(_detail(*each) for each in sorted(row["details"].items()))} for row in rows]
    return _table(caption, ("number", "time", "action", "object", "details"), shown, nothing)


# ── values ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _readable(rows: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            **row,
            "actor": _named(row["actor"], names),
            "action": _action(row["action"]),
            "object": _named(row["object"], names),
            "result": "done" if row["code"] == "OK" else row["code"],
        }
        for row in rows
    ]


def _named(subject: str, names: Mapping[str, str]) -> Html:
    """Return a subject with the name it is known by today."""
    if subject == "local":
        return Html("local administrator")
    name = names.get(subject)
    return Html(f'{escape(name)}<br><span class="id">{escape(subject)}</span>' if name else escape(subject))


def _action(action: str) -> Html:
    """Return an action; of a method its service and its name."""
    if not action.startswith(PACKAGE):
        return Html(escape(action))
    service, _, method = action.partition("/")
    return Html(f"{escape(service.rpartition('.')[2])}/<wbr>{escape(method)}")


def _detail(name: str, value: str) -> str:
    if name.endswith("_unix_nanos"):
        return f"{escape(name.removesuffix('_unix_nanos').replace('_', ' '))}: {escape(_moment(value))}"
    return f'{escape(name.replace("_", " "))}: <span class="i">{escape(value)}</span>'


def _grouped(text: str) -> str:
    return f"{int(text):,}" if text.isascii() and text.isdigit() else text


def _moment(nanos: str) -> str:
    if not nanos.isascii() or not nanos.isdigit() or len(nanos) > 19:
        return nanos
    return show_utc(datetime.fromtimestamp(int(nanos) // 10**9, UTC))


def _second(text: str) -> str:
    """Return an RFC 3339 time as all others are shown; what is none as it is."""
    try:
        return show_utc(datetime.fromisoformat(text))
    except ValueError:
        return text
