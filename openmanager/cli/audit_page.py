"""The auditor's report as one page: nothing loaded from anywhere, legible on paper, everything from the log escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openmanager.cli.audit_report import Report

_STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:#1b1f24;background:#fff;max-width:68rem;
margin:0 auto;padding:2.5rem 1.5rem}
h1{font-size:1.7rem;margin:0 0 .25rem}
h2{font-size:1.15rem;margin:2.4rem 0 .6rem;padding-bottom:.3rem;border-bottom:2px solid #1b1f24}
p{margin:.4rem 0}
.quiet{color:#5b6570}
.verdict{padding:.9rem 1.1rem;border-left:6px solid;margin:1rem 0;background:#f4f6f8}
.sound{border-color:#1a7f4b}.unsound{border-color:#c1272d;background:#fdf1f1}
.verdict strong{font-size:1.05rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.2rem;margin:.6rem 0}
dt{color:#5b6570}dd{margin:0;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%;font-size:13.5px;margin:.4rem 0}
th{text-align:left;border-bottom:1px solid #1b1f24;padding:.3rem .7rem .3rem 0;white-space:nowrap}
td{border-bottom:1px solid #e1e5ea;padding:.3rem .7rem .3rem 0;vertical-align:top;overflow-wrap:anywhere}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.t{white-space:nowrap;font-variant-numeric:tabular-nums}
ol.toc{columns:2;margin:1rem 0;padding-left:1.3rem}
a{color:#0b57a4}
@media print{body{padding:0;max-width:none;font-size:10.5pt}h2{break-after:avoid}tr{break-inside:avoid}thead{display:table-header-group}
ol.toc{display:none}a{color:inherit;text-decoration:none}@page{margin:16mm}}
"""
_NUMBERS = {"number", "count", "done", "failed"}
_TIMES = {"time", "first", "last"}


def page(report: Report) -> str:
    """Return the page."""
    sections = [
        ("Verification", _verification(report)),
        ("Access review", _access(report)),
        ("Changes by actor", _counts("actor", report.changes_by_actor)),
        ("Changes by kind", _counts("action", report.changes_by_action)),
        ("Changes", _changes(report)),
        ("Refused calls", _refusals(report)),
        ("Privileged reads and other events", _reads(report)),
        ("Retention and holds", _holds(report)),
        ("Deletions by retention", _rows(report.deletions, "nothing was deleted", "object", "details")),
        ("Erasures", _rows(report.erasures, "nobody's data was erased", "actor", "object")),
        ("Key rotations", _rows(report.keys, "no key was exchanged", "action", "object", "details")),
        ("Intents without an outcome", _orphans(report)),
        ("Incidents of the log", _rows(report.incidents, "none", "action", "details")),
    ]
    toc = "".join(f'<li><a href="#s{at}">{escape(title)}</a></li>' for at, (title, _) in enumerate(sections, 1))
    body = "".join(
        f'<section><h2 id="s{at}">{at}. {escape(title)}</h2>{text}</section>'
        for at, (title, text) in enumerate(sections, 1)
    )
    span = f"From {escape(report.start)} to {escape(report.end)}, {report.entry_count:,} entries."
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Audit report {escape(report.made)}</title><style>{_STYLE}</style></head><body>"
        f'<h1>Audit report</h1><p class="quiet">{span} Made {escape(report.made)}. Times are UTC.</p>'
        f'<ol class="toc">{toc}</ol>{body}</body></html>\n'
    )


def _verification(report: Report) -> str:
    found = report.verdict
    kind = "sound" if found.is_sound else "unsound"
    words = "The log is as it was written." if found.is_sound else "The log is NOT as it was written."
    problems = "".join(f"<li>{escape(each.where)}: {escape(each.what)}</li>" for each in found.problems)
    notices = "".join(f"<li>{escape(each)}</li>" for each in found.notices)
    facts = {
        "Log": found.log_id,
        "Entries": f"{found.entry_count:,}, numbers {found.first_number:,}–{found.last_number:,}",
        "Checkpoints": f"{found.checkpoint_count:,}, of which {found.signed_count:,} with a signature that was checked",
        "Taken from": report.checkpoints_from,
        "Covered up to": f"number {found.covered_number:,}",
        "Not covered": f"{found.uncovered_count:,} entries after the last checkpoint, of which nothing is said",
        "Root": found.root,
    }
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    more = f"<ul>{problems}</ul>" if problems else ""
    noted = f'<ul class="quiet">{notices}</ul>' if notices else ""
    return f'<div class="verdict {kind}"><strong>{words}</strong>{more}</div><dl>{listed}</dl>{noted}'


def _access(report: Report) -> str:
    if not report.access:
        return _nothing("no users yet")
    rows = [
        {
            "subject": each.subject,
            "name": each.name,
            "roles": ", ".join(each.roles),
            "scope": each.scope,
            "last seen": each.last_seen,
        }
        for each in report.access
    ]
    return _table(("subject", "name", "roles", "scope", "last seen"), rows)


def _counts(what: str, found: Mapping[str, Counter[str]]) -> str:
    ranked = sorted(found.items(), key=lambda item: (-item[1].total(), item[0]))
    rows = [{what: name, "done": counts["done"], "failed": counts["failed"]} for name, counts in ranked]
    return _table((what, "done", "failed"), rows) if rows else _nothing("nothing was changed")


def _changes(report: Report) -> str:
    from openmanager.cli.audit_report import MAX_CHANGES

    some = report.changes[-MAX_CHANGES:]
    left = report.change_count - len(some)
    more = _nothing(f"the newest {len(some):,}; {left:,} older ones are counted above") if left else ""
    return more + _rows(some, "nothing was changed", "actor", "action", "object", "code", "request_id")


def _refusals(report: Report) -> str:
    rows = [
        {"actor": each.actor, "action": each.action, "code": each.code, "count": each.count, "first": each.first,
         "last": each.last}
        for each in sorted(report.refusals.values(), key=lambda each: -each.count)
    ]  # fmt: skip
    return (
        _table(("actor", "action", "code", "count", "first", "last"), rows) if rows else _nothing("nobody was refused")
    )


def _reads(report: Report) -> str:
    rows = [{"actor": actor, "action": action, "count": count} for (actor, action), count in report.reads.most_common()]
    return _table(("actor", "action", "count"), rows) if rows else _nothing("none")


def _holds(report: Report) -> str:
    kept = f"{report.retention_days:,} days" if report.retention_days else "for ever"
    rows = [
        {
            "id": hold.get("id", ""),
            "filter": hold.get("filter", ""),
            "from": hold.get("range", {}).get("start_time", ""),
            "until": hold.get("range", {}).get("end_time", ""),
            "reason": hold.get("reason", ""),
        }
        for hold in report.holds
    ]
    table = _table(("id", "filter", "from", "until", "reason"), rows) if rows else _nothing("no holds")
    return f"<p>Entries are kept {escape(kept)}.</p>{table}"


def _orphans(report: Report) -> str:
    words = "each was about to be done when whoever did it ended: whether it was done has to be looked for"
    more = f'<p class="quiet">{words}</p>' if report.orphans else ""
    return more + _rows(report.orphans, "every intent has its outcome", "actor", "action", "object", "request_id")


def _rows(rows: Sequence[Mapping[str, Any]], nothing: str, *columns: str) -> str:
    return _table(("number", "time", *columns), rows) if rows else _nothing(nothing)


def _nothing(words: str) -> str:
    return f'<p class="quiet">{escape(words)}</p>'


def _table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    head = "".join(f"<th{_class(name)}>{escape(name.replace('_', ' '))}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td{_class(name)}>{_cell(row.get(name, ''))}</td>" for name in columns) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _class(name: str) -> str:
    return ' class="n"' if name in _NUMBERS else ' class="t"' if name in _TIMES else ""


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return "<br>".join(f"{escape(str(name))}: {escape(str(each))}" for name, each in sorted(value.items()))
    return escape(f"{value:,}" if isinstance(value, int) else str(value))
