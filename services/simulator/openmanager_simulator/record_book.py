"""What was injected or is replayed: in memory at once, and durable in the metadata service as soon as it is reached."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf import json_format

from openmanager.api.metadata.v1 import metadata_pb2 as pb
from openmanager.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    OpenManagerError,
    Reason,
    ResourceExhaustedError,
)
from openmanager.runtime.peer import Peer
from openmanager_simulator.fault import Fault
from openmanager_simulator.fault_record import from_document, to_document

POLICY_SERVICE = "/openmanager.api.metadata.v1.PolicyService"
KIND = "fault"
CALL_SECONDS = 2.0
RETRY_SECONDS = 2.0

log = logging.getLogger(__name__)


class RecordBook:
    """Faults by id: `replayed` ones from the start, those that are recorded, and those that are put in."""

    def __init__(self, *, peer: Peer, replayed: Sequence[Fault], on_change: Callable[[list[Fault]], None]) -> None:
        self._peer = peer
        self._on_change = on_change
        self._faults = {fault.id: fault for fault in replayed}
        self._requests: dict[str, _Request] = {}
        self._unsaved: dict[str, Fault] = {}
        self._wake = asyncio.Event()

    def all(self) -> list[Fault]:
        """Return every fault."""
        return list(self._faults.values())

    def get(self, fault_id: str) -> Fault | None:
        """Return one fault, None when there is none of this id."""
        return self._faults.get(fault_id)

    def repeated(self, request_id: str, body: bytes) -> Fault | None:
        """Return what an earlier call with the same id and body recorded; AlreadyExistsError for another body."""
        known = self._requests.get(request_id) if request_id else None
        if known is None:
            return None
        if known.digest != _digest(body):
            raise AlreadyExistsError("request_id was used with another body", reason=Reason.REQUEST_ID_REUSED)
        return self._faults[known.fault_id]

    def put(self, fault: Fault, request_id: str = "", body: bytes = b"") -> None:
        """Record a fault, new or changed."""
        self._faults[fault.id] = self._unsaved[fault.id] = fault
        if request_id:
            self._requests[request_id] = _Request(request_id, _digest(body), fault.id)
        self._on_change(self.all())
        self._wake.set()

    async def keep(self) -> None:
        """Load what is stored, then store what changes, for ever."""
        loaded = False
        while True:
            try:
                if not loaded:
                    await self._load()
                    loaded = True
                while self._unsaved:
                    await self._save(next(iter(self._unsaved.values())))
            except OpenManagerError as err:
                log.info("fault records wait: %s", err)
            except Exception:
                log.exception("fault records wait")
            else:
                self._wake.clear()
                await self._wake.wait()
                continue
            await asyncio.sleep(RETRY_SECONDS)

    async def _load(self) -> None:
        request = pb.ListPoliciesRequest(kind=KIND, page_size=1000)
        while True:
            reply = await self._peer.unary(
                f"{POLICY_SERVICE}/ListPolicies", request, pb.ListPoliciesResponse, seconds=CALL_SECONDS
            )
            for policy in reply.policies:
                self._take(policy)
            if not reply.next_page_token:
                break
            request.page_token = reply.next_page_token
        if self._faults:
            self._on_change(self.all())

    def _take(self, policy: pb.Policy) -> None:
        try:
            document = json_format.MessageToDict(policy.document)
            fault = from_document(document)
        except (json_format.Error, ValueError):
            log.warning("the fault record %s cannot be read and is passed over", policy.id)
            return
        replayed = self._faults.get(fault.id)
        if fault.origin == "scenario" and (replayed is None or _plan(replayed) != _plan(fault)):
            return  # of another scenario than today's
        if fault.id not in self._unsaved:
            self._faults[fault.id] = fault
        if document.get("request_id"):
            request = _Request(str(document["request_id"]), str(document.get("request_digest", "")), fault.id)
            self._requests.setdefault(request.id, request)

    async def _save(self, fault: Fault) -> None:
        policy = pb.Policy(kind=KIND, id=fault.id)
        document = to_document(fault)
        for request in self._requests.values():
            if request.fault_id == fault.id:
                document |= {"request_id": request.id, "request_digest": request.digest}
        json_format.ParseDict(document, policy.document)
        update = pb.UpdatePolicyRequest(policy=policy)
        try:
            await self._peer.unary(
                f"{POLICY_SERVICE}/UpdatePolicy", update, pb.UpdatePolicyResponse, seconds=CALL_SECONDS
            )
        except (InvalidArgumentError, ResourceExhaustedError) as err:
            if err.retry_after is not None:
                raise
            # It waits no longer, or none after it would be saved.
            log.warning("the fault record %s is refused and is kept in memory only: %s", fault.id, err)
        if self._unsaved.get(fault.id) is fault:
            del self._unsaved[fault.id]


@dataclass(frozen=True, slots=True)
class _Request:
    id: str
    digest: str
    fault_id: str


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _plan(fault: Fault) -> tuple[object, ...]:
    return fault.pattern, fault.servers, fault.start_nanos, fault.planned_end_nanos, fault.severity, fault.seed
