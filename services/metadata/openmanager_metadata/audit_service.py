"""The edge of the audit log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from openmanager.api.metadata.v1 import audit_pb2 as pb
from openmanager.audit import Outcome, Record
from openmanager.errors import missing
from openmanager_metadata.audit.checkpoint import Checkpoints
from openmanager_metadata.audit.entry import Checkpoint
from openmanager_metadata.audit.log import AuditLog
from openmanager_metadata.audit.reader import AuditReader, Shown, Standing

MAX_ORPHANS = 100


class AuditService:
    """openmanager.api.metadata.v1.AuditService."""

    def __init__(self, audit: AuditLog, reader: AuditReader, checkpoints: Checkpoints) -> None:
        self._audit, self._reader, self._checkpoints = audit, reader, checkpoints

    async def RecordIntent(self, request: pb.RecordIntentRequest, context: Any) -> pb.RecordIntentResponse:  # noqa: ARG002, N802
        """Record that something is about to be done."""
        if not request.HasField("record"):
            raise missing("record")
        return pb.RecordIntentResponse(number=await self._audit.intent(_record(request.record)))

    async def RecordOutcome(self, request: pb.RecordOutcomeRequest, context: Any) -> pb.RecordOutcomeResponse:  # noqa: ARG002, N802
        """Record how it ended."""
        if not request.intent_number:
            raise missing("intent_number")
        return pb.RecordOutcomeResponse(number=await self._audit.outcome(request.intent_number, _outcome(request)))

    async def RecordEvent(self, request: pb.RecordEventRequest, context: Any) -> pb.RecordEventResponse:  # noqa: ARG002, N802
        """Record something of one entry."""
        if not request.HasField("record"):
            raise missing("record")
        record, count = _record(request.record), request.occurrence_count or 1
        return pb.RecordEventResponse(number=await self._audit.event(record, _outcome(request), count))

    async def ListAuditEntries(self, request: pb.ListAuditEntriesRequest, context: Any) -> pb.ListAuditEntriesResponse:  # noqa: ARG002, N802
        """List entries."""
        full = request.view == pb.AUDIT_VIEW_FULL
        found, token = await self._reader.list(
            request.filter, request.order_by, request.page_size, request.page_token, full=full
        )
        return pb.ListAuditEntriesResponse(entries=map(_entry, found), next_page_token=token)

    async def GetAuditEntry(self, request: pb.GetAuditEntryRequest, context: Any) -> pb.GetAuditEntryResponse:  # noqa: ARG002, N802
        """Return one entry with its proof."""
        found = await self._reader.get(request.number)
        reply = pb.GetAuditEntryResponse(
            entry=_entry(found.shown), canonical=found.shown.canonical, inclusion_hashes=found.hashes
        )
        if found.checkpoint is not None:
            reply.checkpoint.CopyFrom(_checkpoint(found.checkpoint))
        return reply

    async def ExportAuditLog(  # noqa: N802
        self,
        request: pb.ExportAuditLogRequest,
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[pb.ExportAuditLogResponse]:
        """Stream the log as a file."""
        async for chunk in self._reader.export(request.from_number):
            yield pb.ExportAuditLogResponse(
                data=chunk.data, next_number=chunk.next_number, log_id=chunk.log_id, last_number=chunk.last_number
            )

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: Any) -> pb.ListCheckpointsResponse:  # noqa: ARG002, N802
        """List checkpoints."""
        found, token = await self._reader.checkpoints(request.order_by, request.page_size, request.page_token)
        return pb.ListCheckpointsResponse(checkpoints=map(_checkpoint, found), next_page_token=token)

    async def EraseSubject(self, request: pb.EraseSubjectRequest, context: Any) -> pb.EraseSubjectResponse:  # noqa: ARG002, N802
        """Make the personal data of a subject unreadable."""
        count, number = await self._audit.erase(request.subject)
        return pb.EraseSubjectResponse(erased_key_count=count, number=number)

    async def GetAuditStatus(self, request: pb.GetAuditStatusRequest, context: Any) -> pb.GetAuditStatusResponse:  # noqa: ARG002, N802
        """Return how the log is."""
        found = await self._reader.standing()
        reply = pb.GetAuditStatusResponse(
            log_id=found.head.log_id,
            size=found.head.size,
            root=found.head.tree.root(),
            first_number=found.first_number,
            uncovered_count=found.head.size - (found.checkpoint.size if found.checkpoint else 0),
            copied_size=self._checkpoints.copied_size,
            orphaned_intent_count=len(found.orphans),
            orphaned_intents=found.orphans[:MAX_ORPHANS],
            warnings=(*self._checkpoints.warnings, *_unscanned(found)),
            public_key=self._checkpoints.public_key,
        )
        if found.checkpoint is not None:
            reply.checkpoint.CopyFrom(_checkpoint(found.checkpoint))
        return reply


def _unscanned(found: Standing) -> tuple[str, ...]:
    if found.scanned >= found.head.size:
        return ()
    return (f"intents were looked through up to number {found.scanned} so far: ask again",)


def _record(message: pb.AuditRecord) -> Record:
    return Record(
        actor=message.actor,
        via=message.via,
        action=message.action,
        object=message.object,
        request_hash=message.request_hash,
        request_id=message.request_id,
        trace_id=message.trace_id,
        policy_version=message.policy_version,
        details=dict(message.details),
        subject=message.subject,
        personal=dict(message.personal),
        source=message.source,
    )


def _outcome(message: pb.RecordOutcomeRequest | pb.RecordEventRequest) -> Outcome:
    after = message.after_hash if isinstance(message, pb.RecordOutcomeRequest) else b""
    return Outcome(code=message.code, reason=message.reason, after_hash=after)


def _entry(shown: Shown) -> pb.AuditEntry:
    entry = shown.entry
    sealed = pb.SEAL_STATE_ERASED if shown.personal is None else pb.SEAL_STATE_READABLE
    message = pb.AuditEntry(
        number=entry.number,
        kind=pb.AuditKind.ValueType(entry.kind),
        actor=entry.actor,
        via=entry.via,
        action=entry.action,
        object=entry.object,
        request_hash=entry.request_hash,
        after_hash=entry.after_hash,
        code=entry.code,
        reason=entry.reason,
        intent_number=entry.intent,
        request_id=entry.request_id,
        trace_id=entry.trace_id,
        policy_version=entry.policy_version,
        occurrence_count=entry.count,
        details=dict(entry.details),
        subject=entry.subject,
        seal_state=sealed if entry.sealed else pb.SEAL_STATE_NONE,
        personal=dict(shown.personal or {}),
        orphaned=shown.orphaned,
    )
    message.create_time.FromNanoseconds(entry.time_unix_nanos)
    return message


def _checkpoint(found: Checkpoint) -> pb.AuditCheckpoint:
    message = pb.AuditCheckpoint(
        size=found.size,
        root=found.root,
        key_id=found.key_id,
        previous=found.previous,
        signature=found.signature,
        log_id=found.log_id,
    )
    message.create_time.FromNanoseconds(found.time_unix_nanos)
    return message
