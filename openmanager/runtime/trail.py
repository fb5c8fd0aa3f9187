"""What of a call goes into the audit: an intent before a change, its outcome after it, refusals, and noted reads.

A change that cannot be written down is not made. What servers of the mesh do by themselves is not written down, but what
made them do it; and a call that is passed on is written down where it is done.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message
from opentelemetry import trace

from openmanager import policy
from openmanager.access import Caller, Permission
from openmanager.audit import Record
from openmanager.errors import OpenManagerError, UnavailableError
from openmanager.runtime.attempts import Attempts
from openmanager.runtime.audit import Auditor, Intent
from openmanager.runtime.clock import SystemClock

UNKNOWN = "unknown"
# Of an address in a minute, at a method that needs no credentials.
MAX_KNOCKS = 60
_FIELD = re.compile(r"\{([a-z_.]+)\}")


class Trail:
    """Writes down what happens to one method of a server."""

    def __init__(self, auditor: Auditor | None, action: str, rule: policy.Rule) -> None:
        self._auditor = auditor
        self._action = action
        self._rule = rule
        self._knocks = Attempts(SystemClock(), MAX_KNOCKS)

    def refused(self, actor: str, source: str, err: OpenManagerError) -> None:
        """Count a call that was not let in."""
        if self._auditor is not None:
            self._auditor.denied(Record(actor=actor, action=self._action, source=source), err.code, err.reason)

    async def begin(self, caller: Caller, request: Any, *, noted: bool = False) -> Intent | None:
        """Write down what is about to be done; None for what is not written down. A read that is `noted` already is not.

        UnavailableError when it cannot be: then it must not be done.
        """
        if self._auditor is None or caller.identity.is_of_mesh:
            return None
        if self._rule.noted and not noted:
            # Before the read, so that a copy of the audit log tells of itself; but nobody reads less without it.
            with contextlib.suppress(UnavailableError):
                await self._auditor.event(self._record(caller, self._rule.noted, request))
        if not self._rule.audited:
            return None
        if self._rule.permission is Permission.NOTHING:
            # Whoever knocks is written down, but nobody fills the log by knocking.
            self._knocks.check(caller.source, "")
            self._knocks.failed(caller.source, "")
        shown = isinstance(request, Message) and not self._rule.secret
        data = request.SerializeToString(deterministic=True) if shown else None
        return await self._auditor.intent(self._record(caller, self._rule.audited, request), data)

    def _record(self, caller: Caller, template: str, request: Any) -> Record:
        span = trace.get_current_span().get_span_context()
        return Record(
            actor=caller.identity.subject,
            action=self._action,
            object=object_of(template, request),
            request_id=str(getattr(request, "request_id", "")),
            trace_id=f"{span.trace_id:032x}" if span.is_valid else "",
            policy_version=str(policy.VERSION),
            subject=caller.identity.subject,
            source=caller.source,
        )


def object_of(template: str, request: Any) -> str:
    """Return the object of a call: the template with the fields of the request that it names; of several, all."""

    def value(match: re.Match[str]) -> str:
        found = request
        for name in match[1].split("."):
            found = getattr(found, name, "")
        return ",".join(map(str, found)) if not isinstance(found, str) and isinstance(found, Iterable) else str(found)

    return _FIELD.sub(value, template)
