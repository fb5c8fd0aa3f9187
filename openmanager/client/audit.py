"""The audit log: entries, their proofs, the file that is verified without a server, erasure."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format

from openmanager.api.metadata.v1 import audit_pb2 as pb
from openmanager.api.metadata.v1 import metadata_pb2
from openmanager.audit import Kind
from openmanager.client import codec, rpc
from openmanager.client.rpc import DEADLINE_SECONDS, Rpc
from openmanager.errors import NotFoundError
from openmanager.merkle import includes, leaf_hash

NO_POLICY = "v0"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """An entry. `code` is a number of `google.rpc.Code`, hashes are SHA-256 or empty.

    `personal` is empty unless it was asked for; `erased` says that it can never be read again.
    """

    number: int
    create_time: datetime | None
    kind: Kind
    actor: str
    via: str
    action: str
    object: str = ""
    code: int = 0
    reason: str = ""
    intent_number: int = 0
    request_id: str = ""
    trace_id: str = ""
    policy_version: str = ""
    occurrence_count: int = 1
    request_hash: bytes = b""
    after_hash: bytes = b""
    details: Mapping[str, str] = field(default_factory=dict)
    subject: str = ""
    personal: Mapping[str, str] = field(default_factory=dict)
    erased: bool = False
    orphaned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditCheckpoint:
    """What the whole log was at a size. `key_id` and `signature` are empty when it is not signed."""

    log_id: bytes
    size: int
    root: bytes
    time_unix_nanos: int
    key_id: bytes
    previous: bytes
    signature: bytes

    def line(self) -> str:
        """Return the line of a file of checkpoints, as `openmanager audit verify` reads it, with its end."""
        document = {
            "log": self.log_id.hex(),
            "size": self.size,
            "root": self.root.hex(),
            "time_unix_nanos": self.time_unix_nanos,
            "key_id": self.key_id.hex(),
            "previous": self.previous.hex(),
            "signature": self.signature.hex(),
        }
        return json.dumps(document) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditStatus:
    """How the log is. `orphaned_intents` are the newest 100 intents without an outcome for more than a minute."""

    log_id: bytes
    size: int
    root: bytes
    first_number: int
    checkpoint: AuditCheckpoint | None
    uncovered_count: int
    copied_size: int
    orphaned_intent_count: int
    orphaned_intents: tuple[int, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenEntry:
    """An entry, its canonical bytes, and the hashes that lead from it to the root of the newest checkpoint."""

    entry: AuditEntry
    canonical: bytes
    checkpoint: AuditCheckpoint | None
    inclusion_hashes: tuple[bytes, ...]

    @property
    def is_proven(self) -> bool:
        """Whether the hashes do lead there; that the checkpoint itself is genuine is for its signature to say."""
        return self.checkpoint is not None and includes(
            leaf=leaf_hash(self.canonical),
            index=self.entry.number - 1,
            size=self.checkpoint.size,
            proof=self.inclusion_hashes,
            root=self.checkpoint.root,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditHold:
    """Entries that are kept whatever the retention says: those of [start_time, end_time) that the filter chooses.

    None is from the beginning, and without end. One of the three is needed.
    """

    id: str
    filter: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPolicy:
    """How many days entries are kept, None for ever, and what is held. `etag` is `v0` while nobody has said anything."""

    retention_days: int | None = None
    holds: tuple[AuditHold, ...] = ()
    etag: str = NO_POLICY
    update_time: datetime | None = None


class Audit:
    """Reads the audit log, erases personal data from it, and says how long it is kept."""

    def __init__(self, calls: Rpc) -> None:
        self._calls = calls

    async def list(
        self,
        filter: str = "",  # noqa: A002  (the contract's word)
        *,
        order_by: str = "",
        personal: bool = False,
        limit: int | None = None,
        seconds: float = DEADLINE_SECONDS,
    ) -> AsyncIterator[AuditEntry]:
        """Yield entries, the newest first unless `order_by` is `number`; with `personal` what is known of people too."""
        view = pb.AUDIT_VIEW_FULL if personal else pb.AUDIT_VIEW_BASIC
        request = pb.ListAuditEntriesRequest(filter=filter, order_by=order_by, view=view)
        pages = self._calls.pages(rpc.LIST_AUDIT_ENTRIES, request, limit=limit, seconds=seconds)
        async with aclosing(rpc.closable(pages)) as found:
            async for page in found:
                for each in page.entries:
                    yield entry(each)

    async def get(self, number: int, *, seconds: float = DEADLINE_SECONDS) -> ProvenEntry:
        """Return one entry with its proof; NotFoundError, OutOfRangeError when retention has deleted it."""
        reply = await self._calls.call(rpc.GET_AUDIT_ENTRY, pb.GetAuditEntryRequest(number=number), seconds=seconds)
        return proven(reply)

    async def export(self, from_number: int = 0) -> AsyncIterator[pb.ExportAuditLogResponse]:
        """Yield the file in parts; from 0 with its head, else from that entry on, to go on with a file."""
        request = pb.ExportAuditLogRequest(from_number=from_number)
        async with aclosing(rpc.closable(self._calls.stream(rpc.EXPORT_AUDIT_LOG, request, seconds=None))) as parts:
            async for part in parts:
                yield part

    async def checkpoints(
        self, *, order_by: str = "", limit: int | None = None, seconds: float = DEADLINE_SECONDS
    ) -> AsyncIterator[AuditCheckpoint]:
        """Yield checkpoints, the oldest first unless `order_by` is `size desc`."""
        request = pb.ListCheckpointsRequest(order_by=order_by)
        pages = self._calls.pages(rpc.LIST_CHECKPOINTS, request, limit=limit, seconds=seconds)
        async with aclosing(rpc.closable(pages)) as found:
            async for page in found:
                for each in page.checkpoints:
                    yield checkpoint(each)

    async def erase(self, subject: str, *, seconds: float = DEADLINE_SECONDS) -> int:
        """Make the personal data of a subject unreadable for ever; return how many keys were deleted."""
        request = pb.EraseSubjectRequest(subject=subject)
        return (await self._calls.call(rpc.ERASE_SUBJECT, request, seconds=seconds)).erased_key_count

    async def policy(self, *, seconds: float = DEADLINE_SECONDS) -> AuditPolicy:
        """Return how long entries are kept, and what is held."""
        request = metadata_pb2.GetPolicyRequest(kind="audit", id="default")
        try:
            return policy((await self._calls.call(rpc.GET_POLICY, request, seconds=seconds)).policy)
        except NotFoundError:
            return AuditPolicy()

    async def update_policy(self, wanted: AuditPolicy, *, seconds: float = DEADLINE_SECONDS) -> AuditPolicy:
        """Replace the policy and return it as it is now; AbortedError when it was changed since it was read."""
        request = metadata_pb2.UpdatePolicyRequest(policy=policy_message(wanted))
        return policy((await self._calls.call(rpc.UPDATE_POLICY, request, seconds=seconds)).policy)

    async def status(self, *, seconds: float = DEADLINE_SECONDS) -> AuditStatus:
        """Return how the log is."""
        return status(await self._calls.call(rpc.GET_AUDIT_STATUS, pb.GetAuditStatusRequest(), seconds=seconds))


def entry(message: pb.AuditEntry) -> AuditEntry:
    """Return the entry of a message."""
    return AuditEntry(
        number=message.number,
        create_time=codec.moment(message, "create_time"),
        kind=Kind(message.kind),
        actor=message.actor,
        via=message.via,
        action=message.action,
        object=message.object,
        code=message.code,
        reason=message.reason,
        intent_number=message.intent_number,
        request_id=message.request_id,
        trace_id=message.trace_id,
        policy_version=message.policy_version,
        occurrence_count=message.occurrence_count,
        request_hash=message.request_hash,
        after_hash=message.after_hash,
        details=dict(message.details),
        subject=message.subject,
        personal=dict(message.personal),
        erased=message.seal_state == pb.SEAL_STATE_ERASED,
        orphaned=message.orphaned,
    )


def checkpoint(message: pb.AuditCheckpoint) -> AuditCheckpoint:
    """Return the checkpoint of a message."""
    return AuditCheckpoint(
        log_id=message.log_id,
        size=message.size,
        root=message.root,
        time_unix_nanos=message.create_time.ToNanoseconds(),
        key_id=message.key_id,
        previous=message.previous,
        signature=message.signature,
    )


def proven(message: pb.GetAuditEntryResponse) -> ProvenEntry:
    """Return an entry and its proof of their message."""
    return ProvenEntry(
        entry=entry(message.entry),
        canonical=message.canonical,
        checkpoint=checkpoint(message.checkpoint) if message.HasField("checkpoint") else None,
        inclusion_hashes=tuple(message.inclusion_hashes),
    )


def status(message: pb.GetAuditStatusResponse) -> AuditStatus:
    """Return how the log is of its message."""
    return AuditStatus(
        log_id=message.log_id,
        size=message.size,
        root=message.root,
        first_number=message.first_number,
        checkpoint=checkpoint(message.checkpoint) if message.HasField("checkpoint") else None,
        uncovered_count=message.uncovered_count,
        copied_size=message.copied_size,
        orphaned_intent_count=message.orphaned_intent_count,
        orphaned_intents=tuple(message.orphaned_intents),
        warnings=tuple(message.warnings),
    )


def policy(message: metadata_pb2.Policy) -> AuditPolicy:
    """Return the policy of its message."""
    document = json_format.MessageToDict(message.document)
    days = document.get("retention_days")
    return AuditPolicy(
        retention_days=None if days is None else int(days),
        holds=tuple(map(_hold, document.get("holds", []))),
        etag=message.etag,
        update_time=codec.moment(message, "update_time"),
    )


def policy_message(wanted: AuditPolicy) -> metadata_pb2.Policy:
    """Return the message of a policy."""
    message = metadata_pb2.Policy(kind="audit", id="default", etag=wanted.etag)
    json_format.ParseDict(policy_document(wanted), message.document)
    return message


def policy_document(wanted: AuditPolicy) -> dict[str, Any]:
    """Return the document of a policy, as it is stored."""
    document: dict[str, Any] = {"holds": [_hold_document(each) for each in wanted.holds]}
    if wanted.retention_days is not None:
        document["retention_days"] = wanted.retention_days
    return document


def _hold(document: Mapping[str, Any]) -> AuditHold:
    ends = {name: datetime.fromisoformat(text) for name, text in document.get("range", {}).items()}
    texts = {name: str(document.get(name, "")) for name in ("id", "filter", "reason")}
    return AuditHold(**texts, start_time=ends.get("start_time"), end_time=ends.get("end_time"))


def _hold_document(hold: AuditHold) -> dict[str, Any]:
    ends = {"start_time": hold.start_time, "end_time": hold.end_time}
    span = {name: each.astimezone(UTC).isoformat() for name, each in ends.items() if each is not None}
    texts = {name: text for name, text in (("filter", hold.filter), ("reason", hold.reason)) if text}
    return {"id": hold.id, **texts, **({"range": span} if span else {})}
