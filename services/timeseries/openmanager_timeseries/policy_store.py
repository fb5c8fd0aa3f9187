"""Where the retention policy is stored: with the metadata service, in PostgreSQL; a copy is kept here."""

from __future__ import annotations

import asyncio
import logging

from google.protobuf import json_format, struct_pb2

from openmanager.api.metadata.v1 import metadata_pb2
from openmanager.errors import DeadlineExceededError, NotFoundError, OpenManagerError, store_unavailable
from openmanager.runtime.peer import Peer
from openmanager_timeseries.history import History
from openmanager_timeseries.retention import Policy, document, policy_of

SERVICE = "openmanager.api.metadata.v1.PolicyService"
KIND, IDENT = "retention", "default"
SECONDS = 2.0
FOLLOW_SECONDS = 60.0
RETRY_SECONDS = 1.0

log = logging.getLogger(__name__)


class MetadataPolicies:
    """The policy as the metadata service has it."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def get(self) -> Policy | None:
        """Return the policy, None when there is none; an OpenManagerError when nobody can say."""
        request = metadata_pb2.GetPolicyRequest(kind=KIND, id=IDENT)
        try:
            reply = await self._peer.unary(
                f"/{SERVICE}/GetPolicy", request, metadata_pb2.GetPolicyResponse, seconds=SECONDS
            )
        except NotFoundError:
            return None
        return _policy(reply.policy)

    async def put(self, policy: Policy) -> Policy:
        """Store a policy and return it as stored.

        AbortedError when its etag is not the stored one; UnavailableError when it could not be stored.
        """
        stored = struct_pb2.Struct()
        json_format.ParseDict({k: v for k, v in document(policy).items() if k in {"rules", "holds"}}, stored)
        request = metadata_pb2.UpdatePolicyRequest(
            policy=metadata_pb2.Policy(kind=KIND, id=IDENT, document=stored, etag=policy.etag)
        )
        try:
            reply = await self._peer.unary(
                f"/{SERVICE}/UpdatePolicy", request, metadata_pb2.UpdatePolicyResponse, seconds=SECONDS
            )
        except DeadlineExceededError as err:
            raise store_unavailable("the metadata service") from err
        return _policy(reply.policy)


def _policy(message: metadata_pb2.Policy) -> Policy:
    try:
        stored = json_format.MessageToDict(message.document)
        return policy_of({**stored, "etag": message.etag, "update_nanos": message.update_time.ToNanoseconds()})
    except (LookupError, TypeError, ValueError) as err:
        raise store_unavailable("the retention policy") from err


async def follow(policies: MetadataPolicies, history: History, *, alone: bool = True) -> None:
    """Let the stored policy apply here, also after somebody else has changed it, which happens where we are not alone."""
    while True:
        try:
            await look(policies, history)
        except OpenManagerError as err:
            log.debug("the retention policy cannot be read and the last one goes on: %s", err)
        except Exception:  # what goes wrong once must not end this: holds have to be heard of
            log.exception("the retention policy cannot be followed and the last one goes on")
        known = history.retention.certain
        await asyncio.sleep(FOLLOW_SECONDS if known and alone else RETRY_SECONDS)


async def look(policies: MetadataPolicies, history: History) -> None:
    """Let the stored policy apply as it is now; an OpenManagerError when nobody can say."""
    retention = history.retention
    changes = retention.changes
    policy = await policies.get()
    if retention.changes != changes:
        return  # what was read may be older than what was set here meanwhile
    if policy is None and retention.policy != Policy():
        log.warning("the metadata service has no retention policy: our copy goes on, for it may have lost it")
        return
    await apply(history, policy or Policy())


async def apply(history: History, policy: Policy) -> None:
    """Let a policy apply, and keep a copy of it."""
    if policy == history.retention.policy and history.retention.certain:
        return
    history.retention.adopt(policy)
    try:
        await history.retention.save()
    except OSError as err:  # it applies, and is stored in its own place
        log.warning("the copy of the retention policy cannot be written: %s", type(err).__name__)
