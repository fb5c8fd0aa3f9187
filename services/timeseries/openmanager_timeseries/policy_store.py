"""Where the retention policy is stored: with the metadata service, in PostgreSQL; a copy is kept here."""

from __future__ import annotations

import asyncio
import logging

from google.protobuf import json_format, struct_pb2

from openmanager.api.metadata.v1 import metadata_pb2
from openmanager.errors import NotFoundError, OpenManagerError, store_unavailable
from openmanager.runtime.peer import Peer
from openmanager_timeseries.history import History
from openmanager_timeseries.retention import Policy, document, policy_of

SERVICE = "openmanager.api.metadata.v1.PolicyService"
KIND, IDENT = "retention", "default"
SECONDS = 2.0
FOLLOW_SECONDS = 60.0

log = logging.getLogger(__name__)


class MetadataPolicies:
    """The policy as the metadata service has it."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def get(self) -> Policy:
        """Return the policy, an empty one when none was ever stored; an OpenManagerError when nobody can say."""
        request = metadata_pb2.GetPolicyRequest(kind=KIND, id=IDENT)
        try:
            reply = await self._peer.unary(
                f"/{SERVICE}/GetPolicy", request, metadata_pb2.GetPolicyResponse, seconds=SECONDS
            )
        except NotFoundError:
            return Policy()
        return _policy(reply.policy)

    async def put(self, policy: Policy) -> Policy:
        """Store a policy and return it as stored; AbortedError when its etag is not the stored one."""
        stored = struct_pb2.Struct()
        json_format.ParseDict({k: v for k, v in document(policy).items() if k in {"rules", "holds"}}, stored)
        request = metadata_pb2.UpdatePolicyRequest(
            policy=metadata_pb2.Policy(kind=KIND, id=IDENT, document=stored, etag=policy.etag)
        )
        reply = await self._peer.unary(
            f"/{SERVICE}/UpdatePolicy", request, metadata_pb2.UpdatePolicyResponse, seconds=SECONDS
        )
        return _policy(reply.policy)


def _policy(message: metadata_pb2.Policy) -> Policy:
    try:
        stored = json_format.MessageToDict(message.document)
        return policy_of({**stored, "etag": message.etag, "update_nanos": message.update_time.ToNanoseconds()})
    except (LookupError, TypeError, ValueError) as err:
        raise store_unavailable("the retention policy") from err


async def follow(policies: MetadataPolicies, history: History) -> None:
    """Let the stored policy apply here, also after somebody else has changed it; for ever."""
    while True:
        try:
            policy = await policies.get()
        except OpenManagerError as err:
            log.debug("the retention policy cannot be read and the last one goes on: %s", err)
        else:
            await apply(history, policy)
        await asyncio.sleep(FOLLOW_SECONDS)


async def apply(history: History, policy: Policy) -> None:
    """Let a policy apply, and keep a copy of it."""
    if policy == history.retention.policy:
        return
    history.retention.adopt(policy)
    await asyncio.to_thread(history.retention.save, history.retention.snapshot())
