"""What an auditor asks: who may do what, who did what, who was refused, what was deleted, and whether this is all true."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmanager.audit import CLOCK_SET_BACK, KEY_REPLACED, KEY_ROTATED, LOG_RESTORED, PRUNED, SUBJECT_ERASED, Kind
from openmanager.cli.audit_access import Access, access_review
from openmanager.cli.audit_text import CODES, range_filter
from openmanager.cli.audit_verdict import verdict_document, verify_files
from openmanager.cli.render import show_utc
from openmanager.version import VERSION

if TYPE_CHECKING:
    from openmanager.audit_file import Verdict
    from openmanager.cli.progress import Bar
    from openmanager.client import AuditEntry, Client

# Of changes, only the newest are told one by one; all are counted.
MAX_CHANGES = 1000
REFUSED = (7, 16)
RETENTION = "retention."
KEYS = (KEY_ROTATED, KEY_REPLACED)
INCIDENTS = (CLOCK_SET_BACK, LOG_RESTORED)


@dataclass(slots=True, kw_only=True)
class Refusals:
    """Refused calls of one actor, action and code."""

    actor: str
    action: str
    code: str
    count: int = 0
    first: str = ""
    last: str = ""


@dataclass(slots=True, kw_only=True)
class Report:
    """Everything that the report says. Times are texts in UTC."""

    start: str
    end: str
    made: str
    author: str
    verdict: Verdict
    checkpoints_from: str
    entry_count: int = 0
    access: list[Access] = field(default_factory=list)
    changes_by_actor: dict[str, Counter[str]] = field(default_factory=dict)
    changes_by_action: dict[str, Counter[str]] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)
    change_count: int = 0
    refusals: dict[tuple[str, str, int], Refusals] = field(default_factory=dict)
    reads: Counter[tuple[str, str]] = field(default_factory=Counter)
    retention_days: int | None = None
    policy_version: str = ""
    policy_time: str = ""
    holds: list[dict[str, Any]] = field(default_factory=list)
    deletions: list[dict[str, Any]] = field(default_factory=list)
    erasures: list[dict[str, Any]] = field(default_factory=list)
    keys: list[dict[str, Any]] = field(default_factory=list)
    orphans: list[dict[str, Any]] = field(default_factory=list)
    incidents: list[dict[str, Any]] = field(default_factory=list)

    def take(self, entry: AuditEntry) -> None:
        """Count an entry in where it belongs."""
        self.entry_count += 1
        row = _row(entry)
        if entry.kind == Kind.INTENT:
            if entry.orphaned:
                self.orphans.append(row)
        elif entry.kind == Kind.OUTCOME:
            self._change(entry, row)
        elif entry.code in REFUSED:
            self._refusal(entry)
        elif entry.action == PRUNED or entry.action.startswith(RETENTION):
            self.deletions.append(row)
        elif entry.action == SUBJECT_ERASED:
            self.erasures.append(row)
        elif entry.action in KEYS:
            self.keys.append(row)
        elif entry.action in INCIDENTS:
            self.incidents.append(row)
        else:
            self.reads[entry.actor, entry.action] += entry.occurrence_count

    def _change(self, entry: AuditEntry, row: dict[str, Any]) -> None:
        ending = "done" if entry.code == 0 else "failed"
        self.changes_by_actor.setdefault(entry.actor, Counter())[ending] += 1
        self.changes_by_action.setdefault(entry.action, Counter())[ending] += 1
        self.change_count += 1
        self.changes.append(row)
        if len(self.changes) >= 2 * MAX_CHANGES:
            del self.changes[:-MAX_CHANGES]

    def _refusal(self, entry: AuditEntry) -> None:
        key = (entry.actor, entry.action, entry.code)
        known = self.refusals.setdefault(
            key, Refusals(actor=entry.actor, action=entry.action, code=show_code(entry.code))
        )
        known.count += entry.occurrence_count
        known.first = known.first or entry.details.get("first_time", show_utc(entry.create_time))
        known.last = entry.details.get("last_time", show_utc(entry.create_time))

    @property
    def newest_changes(self) -> list[dict[str, Any]]:
        """The changes that are told one by one, in order."""
        return self.changes[-MAX_CHANGES:]

    @property
    def summary(self) -> dict[str, int]:
        """How much there was of everything."""
        pruned = (row["details"].get("count", "") for row in self.deletions if row["action"] == PRUNED)
        return {
            "changes": self.change_count,
            "failed_changes": sum(each["failed"] for each in self.changes_by_actor.values()),
            "actors_who_changed": len(self.changes_by_actor),
            "refused_calls": sum(each.count for each in self.refusals.values()),
            "people": len({each.subject for each in self.access if each.is_person}),
            "keys": len({each.subject for each in self.access if not each.is_person}),
            "holds": len(self.holds),
            "deletions": len(self.deletions),
            "deleted_entries": sum(int(count) for count in pruned if count.isdigit()),
            "erasures": len(self.erasures),
            "orphaned_intents": len(self.orphans),
            "incidents": len(self.incidents),
        }

    def document(self) -> dict[str, Any]:
        """Return the report as programs read it."""
        return {
            "made": self.made,
            "author": self.author,
            "openmanager_version": VERSION,
            "start": self.start,
            "end": self.end,
            "entry_count": self.entry_count,
            "summary": self.summary,
            "verification": {"checkpoints": self.checkpoints_from, **verdict_document(self.verdict)},
            "access": [asdict(each) for each in self.access],
            "changes_by_actor": self.changes_by_actor,
            "changes_by_action": self.changes_by_action,
            "change_count": self.change_count,
            "changes": self.newest_changes,
            "refused_calls": [asdict(each) for each in self.refusals.values()],
            "privileged_reads": [
                {"actor": actor, "action": action, "count": count} for (actor, action), count in self.reads.items()
            ],
            "retention_days": self.retention_days,
            "policy_version": self.policy_version,
            "policy_time": self.policy_time,
            "holds": self.holds,
            "deletions": self.deletions,
            "erasures": self.erasures,
            "keys": self.keys,
            "orphaned_intents": self.orphans,
            "incidents": self.incidents,
        }


async def collect(
    client: Client,
    start: datetime | None,
    end: datetime,
    bar: Bar,
    *,
    checkpoints: Path | None = None,
    keys: tuple[Path, ...] = (),
) -> Report:
    """Return the report on a half-open range of time. The whole log is verified, whatever the range."""
    report = Report(
        start=show_utc(start) if start else "the beginning",
        end=show_utc(end),
        made=show_utc(datetime.now(UTC)),
        author=(await client.sessions.identity()).subject,
        verdict=await _verdict(client, checkpoints, keys, bar),
        checkpoints_from=str(checkpoints) if checkpoints else "those kept beside the log: a copy elsewhere proves more",
    )
    report.access = await access_review(client)
    await _policy(client, report)
    async for entry in client.audit.list(range_filter("", start, end), order_by="number"):
        report.take(entry)
        if not report.entry_count % 1000:
            bar.show(0, None, f"{report.entry_count:,} entries", title="reading")
    return report


async def _verdict(client: Client, checkpoints: Path | None, keys: tuple[Path, ...], bar: Bar) -> Verdict:
    from openmanager.cli.audit_export import export, write_checkpoints

    with tempfile.TemporaryDirectory(prefix="openmanager-audit-") as folder:
        log, lines = Path(folder) / "audit.log", Path(folder) / "checkpoints.jsonl"
        if checkpoints is None:
            # Before the log: so that it has all that they cover.
            await write_checkpoints(client, lines)
        await export(client, log, append=False, bar=bar)
        return await asyncio.to_thread(verify_files, log, checkpoints or lines, keys)


async def _policy(client: Client, report: Report) -> None:
    from openmanager.client.audit import policy_document

    policy = await client.audit.policy()
    report.retention_days, report.policy_version = policy.retention_days, policy.etag
    report.policy_time = show_utc(policy.update_time)
    report.holds = list(policy_document(policy)["holds"])


def _row(entry: AuditEntry) -> dict[str, Any]:
    return {
        "number": entry.number,
        "time": show_utc(entry.create_time),
        "actor": entry.actor,
        "action": entry.action,
        "object": entry.object,
        "code": show_code(entry.code),
        "reason": entry.reason,
        "request_id": entry.request_id,
        "details": dict(entry.details),
    }


def show_code(code: int) -> str:
    """Return the name of a code."""
    return CODES[code] if code < len(CODES) else str(code)


def as_json(report: Report) -> str:
    """Return the report for programs."""
    return json.dumps(report.document(), indent=2, ensure_ascii=False)
