"""What was injected: in memory at once, and durable in the metadata service as soon as it can be reached."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf import json_format

from openmanager.api.metadata.v1 import metadata_pb2 as pb
from openmanager.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError, OpenManagerError, Reason
from openmanager.runtime.peer import Peer
from openmanager_simulator.fault import Fault

POLICY_SERVICE = "/openmanager.api.metadata.v1.PolicyService"
KIND = "fault"
CALL_SECONDS = 2.0
RETRY_SECONDS = 2.0

log = logging.getLogger(__name__)


class RecordBook:
    """The faults that were injected, by id; `to_document` and `from_document` give their stored form."""

    def __init__(
        self,
        *,
        peer: Peer,
        to_document: Callable[[Fault], Mapping[str, Any]],
        from_document: Callable[[Mapping[str, Any]], Fault],
        on_change: Callable[[list[Fault]], None],
    ) -> None:
        self._peer = peer
        self._to_document = to_document
        self._from_document = from_document
        self._on_change = on_change
        self._faults: dict[str, Fault] = {}
        self._requests: dict[str, tuple[bytes, str]] = {}
        self._unsaved: dict[str, Fault] = {}
        self._wake = asyncio.Event()

    def all(self) -> list[Fault]:
        """Return every fault."""
        return list(self._faults.values())

    def get(self, fault_id: str) -> Fault:
        """Return one fault; NotFoundError when there is none."""
        if fault_id not in self._faults:
            raise NotFoundError("there is no such fault", resource=f"fault/{fault_id}")
        return self._faults[fault_id]

    def repeated(self, request_id: str, body: bytes) -> Fault | None:
        """Return what an earlier call with the same id and body recorded; AlreadyExistsError for another body."""
        if not request_id or request_id not in self._requests:
            return None
        known, fault_id = self._requests[request_id]
        if known != body:
            raise AlreadyExistsError("request_id was used with another body", reason=Reason.REQUEST_ID_REUSED)
        return self._faults[fault_id]

    def put(self, fault: Fault, request_id: str = "", body: bytes = b"") -> None:
        """Record a fault, new or changed."""
        self._faults[fault.id] = self._unsaved[fault.id] = fault
        if request_id:
            self._requests[request_id] = (body, fault.id)
        self._on_change(self.all())
        self._wake.set()

    def check_going_on(self, fault: Fault, now: int) -> None:
        """Raise FailedPreconditionError when a fault is over."""
        if fault.end_nanos <= now:
            raise FailedPreconditionError("the fault is over", reason=Reason.FAULT_ENDED)

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
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._wake.clear()
            await self._wake.wait()

    async def _load(self) -> None:
        request = pb.ListPoliciesRequest(kind=KIND, page_size=1000)
        while True:
            reply = await self._peer.unary(
                f"{POLICY_SERVICE}/ListPolicies", request, pb.ListPoliciesResponse, seconds=CALL_SECONDS
            )
            for policy in reply.policies:
                try:
                    fault = self._from_document(json_format.MessageToDict(policy.document))
                except (KeyError, TypeError, ValueError):
                    log.warning("the fault record %s cannot be read and is passed over", policy.id)
                    continue
                self._faults.setdefault(fault.id, fault)
            if not reply.next_page_token:
                break
            request.page_token = reply.next_page_token
        if self._faults:
            self._on_change(self.all())

    async def _save(self, fault: Fault) -> None:
        policy = pb.Policy(kind=KIND, id=fault.id)
        json_format.ParseDict(dict(self._to_document(fault)), policy.document)
        request = pb.UpdatePolicyRequest(policy=policy)
        await self._peer.unary(f"{POLICY_SERVICE}/UpdatePolicy", request, pb.UpdatePolicyResponse, seconds=CALL_SECONDS)
        if self._unsaved.get(fault.id) is fault:
            del self._unsaved[fault.id]
