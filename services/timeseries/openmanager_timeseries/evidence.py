"""Evidence of what retention deletes: how much, of which times, by which policy; kept until the audit log has it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from openmanager.audit import Record
from openmanager.errors import OpenManagerError
from openmanager.runtime.audit import Auditor
from openmanager.runtime.clock import show_time

ACTION = "retention.deletion"
TELL_SECONDS = 5.0
# Of deletions that nobody has taken; older ones are added up then.
MAX_WAITING = 100
RETENTION, BUDGET, REQUEST = "policy", "disk budget", "request"

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Deletion:
    """What went from a tier: its rows, their times in nanoseconds, why, and the version of the policy."""

    tier: str
    why: str
    policy: str
    rows: int = 0
    bytes: int = 0
    files: int = 0
    first: int = 1 << 62
    last: int = -(1 << 62)
    begin: int = 0
    end: int = 0

    def details(self) -> Mapping[str, str]:
        """Return it as the audit log keeps it."""
        return {
            "why": self.why,
            "policy_version": self.policy or "default",
            "rows": str(self.rows),
            "bytes": str(self.bytes),
            "files": str(self.files),
            "first_time": show_time(self.first),
            "last_time": show_time(self.last),
            "began": show_time(self.begin),
            "ended": show_time(self.end),
        }


class Evidence:
    """The deletions that the audit log has not taken yet; those that follow on each other are one."""

    def __init__(self) -> None:
        self._waiting: list[Deletion] = []
        # The one that is being told: what is added meanwhile is another.
        self._telling: Deletion | None = None

    def add(self, deletion: Deletion) -> None:
        """Take note of a deletion; where the last one of the same kind waits it is added to it."""
        for known in reversed(self._waiting):
            if (known.tier, known.why, known.policy) == (deletion.tier, deletion.why, deletion.policy):
                _add(known, deletion)
                return
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append(deletion)
        else:
            _add(self._waiting[-1], deletion)

    def begin(self) -> Deletion | None:
        """Return what has waited longest, to be told; None when nothing waits. `end` says how that went."""
        self._telling = self._waiting.pop(0) if self._waiting else None
        return self._telling

    def end(self, *, told: bool) -> None:
        """Forget what the audit log has, or let it wait again."""
        if not told and self._telling is not None:
            self._waiting.insert(0, self._telling)
        self._telling = None

    def document(self) -> list[dict[str, Any]]:
        """Return all that waits, for `load`."""
        telling = [self._telling] if self._telling is not None else []
        return [asdict(each) for each in (*telling, *self._waiting)]

    def load(self, stored: Any) -> None:
        """Undo `document`; TypeError when it is none."""
        self._waiting = [Deletion(**each) for each in stored]


def _add(known: Deletion, more: Deletion) -> None:
    known.rows, known.bytes, known.files = known.rows + more.rows, known.bytes + more.bytes, known.files + more.files
    known.first, known.last = min(known.first, more.first), max(known.last, more.last)
    known.begin, known.end = min(known.begin, more.begin), max(known.end, more.end)


async def tell(evidence: Evidence, save: Callable[[], Awaitable[None]], auditor: Auditor) -> None:
    """Tell the audit log of deletions for ever; see `tell_waiting`."""
    while True:
        await asyncio.sleep(TELL_SECONDS)
        try:
            await tell_waiting(evidence, save, auditor)
        except Exception:
            log.exception("evidence of deletions could not be told, and is tried again")


async def tell_waiting(evidence: Evidence, save: Callable[[], Awaitable[None]], auditor: Auditor) -> None:
    """Tell the audit log of all deletions that wait; what it does not take waits on, across restarts too: `save` keeps it.

    One that was told just before a crash is told again: twice is better than never.
    """
    while (deletion := evidence.begin()) is not None:
        record = Record(
            actor="services/timeseries",
            action=ACTION,
            object=f"tiers/{deletion.tier}",
            details=deletion.details(),
        )
        told = False
        try:
            await auditor.event(record)
            told = True
        except OpenManagerError:
            return
        finally:
            evidence.end(told=told)
        await save()
