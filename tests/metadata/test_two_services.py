"""Two metadata services on one PostgreSQL: what is written through one and the other at once, and who came in through which."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from client.mesh import SECTIONS, serving
from conftest import wait_until
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.field_mask_pb2 import FieldMask
from metadata.auditing import pem
from openmanager_metadata.module import module as metadata

from chaos.replicated import alone
from openmanager.api.metadata.v1 import audit_pb2, identity_pb2
from openmanager.api.metadata.v1 import metadata_pb2 as pb
from openmanager.audit_file import verify
from openmanager.config import load
from openmanager.errors import (
    AbortedError,
    AlreadyExistsError,
    FailedPreconditionError,
    OpenManagerError,
    UnauthenticatedError,
    UnavailableError,
)
from openmanager.runtime.peer import Peer

pytestmark = pytest.mark.asyncio(loop_scope="module")
API = "/openmanager.api.metadata.v1"
PASSWORD = "correct horse battery"
# A service copies everybody so seldom here that what it knows it was told, or has looked for.
SELDOM = "1h"
CHECKPOINT_ENTRIES = 100
KEY = Ed25519PrivateKey.generate()


@dataclass(frozen=True)
class Pair:
    """A way to each of the two, and where each copies its checkpoints to."""

    peers: tuple[Peer, Peer]
    copies: tuple[Path, Path]

    async def call(self, at: int, method: str, request: Any) -> Any:
        """Call a method of the one or the other, with a request whose reply is named like it."""
        module = next(each for each in (pb, identity_pb2, audit_pb2) if hasattr(each, type(request).__name__))
        reply = getattr(module, type(request).__name__.replace("Request", "Response"))
        return await self.peers[at % 2].unary(f"{API}.{method}", request, reply, seconds=20)

    async def at_once(self, method: str, requests: list[Any]) -> list[Any]:
        """Call it with each request, at the one and the other in turn; return what came, errors too."""
        calls = [self.call(at, method, each) for at, each in enumerate(requests)]
        return await asyncio.gather(*calls, return_exceptions=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    copies = tuple(tmp_path_factory.mktemp("checkpoints") / each for each in "ab")
    async with alone() as server, contextlib.AsyncExitStack() as stack:
        # Both find an empty database, and make its tables.
        served = await asyncio.gather(*(_served(stack, server.url("openmanager"), each) for each in copies))
        pair = Pair(tuple([await stack.enter_async_context(Peer("metadata", each)) for each in served]), copies)
        for at in (0, 1):
            await wait_until(lambda at=at: _writes(pair, at), 20)
        yield pair


async def _writes(pair: Pair, at: int) -> bool:
    with contextlib.suppress(UnavailableError, AlreadyExistsError):
        await pair.call(at, "ServerService/CreateServer", pb.CreateServerRequest(server=pb.Server(id=f"first-{at}")))
        return True
    return False


async def _served(stack: contextlib.AsyncExitStack, url: str, copy: Path) -> str:
    flags = {
        "database_url": url,
        "audit_key": pem(KEY),
        "identity_key": "i" * 40,
        "audit_checkpoints": str(copy),
        "audit_checkpoint_entries": CHECKPOINT_ENTRIES,
        "snapshot_interval": SELDOM,
        # A machine that is busy is not a database that is away.
        **dict.fromkeys(("statement_timeout", "acquire_timeout", "connect_timeout"), "5s"),
    }
    configuration = load(SECTIONS, flags={("metadata", key): value for key, value in flags.items()}, environ={})
    return await stack.enter_async_context(serving(metadata, configuration, "metadata"))


def sorts(found: list[Any]) -> dict[str, int]:
    """Count what came, by the kind of the error, and what was done as empty."""
    names = [type(each).__name__ if isinstance(each, Exception) else "" for each in found]
    return {name: names.count(name) for name in set(names)}


async def test_of_two_who_create_a_server_one_does(both: Pair):
    requests = [pb.CreateServerRequest(server=pb.Server(id=f"twice-{k // 2}")) for k in range(40)]
    found = await both.at_once("ServerService/CreateServer", requests)
    assert sorts(found) == {"": 20, AlreadyExistsError.__name__: 20}


async def test_of_those_who_change_what_they_have_read_one_does(both: Pair):
    policy = pb.Policy(kind="rule", id="shared", etag="v0")
    policy.document.update({"name": "first", "threshold": {"metric": "cpu_usage"}})
    found = await both.at_once("PolicyService/UpdatePolicy", [pb.UpdatePolicyRequest(policy=policy)] * 10)
    assert sorts(found) == {"": 1, AbortedError.__name__: 9}
    policy.etag = next(each for each in found if not isinstance(each, Exception)).policy.etag
    found = await both.at_once("PolicyService/UpdatePolicy", [pb.UpdatePolicyRequest(policy=policy)] * 10)
    assert sorts(found) == {"": 1, AbortedError.__name__: 9}
    of = pb.GetPolicyRequest(kind="rule", id="shared")
    seen = [(await both.call(at, "PolicyService/GetPolicy", of)).policy.etag for at in (0, 1)]
    assert seen[0] == seen[1] != policy.etag


async def signed_in(both: Pair, at: int, name: str, role: str) -> tuple[identity_pb2.User, identity_pb2.Tokens]:
    """Have a user made through one service and take the invitation through the other."""
    user = identity_pb2.User(name=name, grants=[identity_pb2.Grant(role=role)])
    made = await both.call(at, "UserService/CreateUser", identity_pb2.CreateUserRequest(user=user))
    taken = identity_pb2.AcceptInvitationRequest(invitation=made.invitation, password=PASSWORD)
    reply = await both.call(at + 1, "UserService/AcceptInvitation", taken)
    return made.user, reply.tokens


async def whose(both: Pair, at: int, credential: str) -> str:
    request = identity_pb2.AuthenticateRequest(credential=credential)
    return (await both.call(at, "SessionService/Authenticate", request)).identity.subject


async def test_who_came_in_through_one_is_known_to_the_other_at_once(both: Pair):
    user, tokens = await signed_in(both, 0, "alice", "viewer")
    assert [await whose(both, at, tokens.access_token) for at in (0, 1)] == [f"users/{user.id}"] * 2
    again = identity_pb2.CreateSessionRequest(name="alice", password=PASSWORD)
    session = (await both.call(0, "SessionService/CreateSession", again)).tokens
    assert await whose(both, 1, session.access_token) == f"users/{user.id}"
    refreshed = identity_pb2.RefreshSessionRequest(refresh_token=session.refresh_token)
    session = (await both.call(1, "SessionService/RefreshSession", refreshed)).tokens
    assert await whose(both, 0, session.access_token) == f"users/{user.id}"


async def test_a_key_is_known_to_the_other_at_once_and_with_its_new_secret(both: Pair):
    key = identity_pb2.Key(description="a program", grants=[identity_pb2.Grant(role="service")])
    made = await both.call(0, "KeyService/CreateKey", identity_pb2.CreateKeyRequest(key=key))
    assert await whose(both, 1, made.secret) == f"keys/{made.key.id}"
    turned = await both.call(0, "KeyService/RotateKey", identity_pb2.RotateKeyRequest(id=made.key.id))
    assert await whose(both, 1, turned.secret) == f"keys/{made.key.id}"
    with pytest.raises(UnauthenticatedError):
        await whose(both, 1, made.secret.replace(made.key.id, "a" * 16))


async def test_two_administrators_do_not_end_each_other(both: Pair):
    users = [(await signed_in(both, at, f"admin-{at}", "admin"))[0] for at in (0, 1)]
    mask = FieldMask(paths=["disabled"])
    requests = [
        identity_pb2.UpdateUserRequest(user=identity_pb2.User(id=each.id, disabled=True), update_mask=mask)
        for each in users
    ]
    assert sorts(await both.at_once("UserService/UpdateUser", requests)) == {"": 1, FailedPreconditionError.__name__: 1}


async def test_the_audit_log_of_both_is_one_that_verifies(both: Pair, tmp_path: Path):
    record = audit_pb2.AuditRecord(actor="users/1", via="gateway", action="retention.deletion", object="servers/web-1")
    found = await both.at_once("AuditService/RecordIntent", [audit_pb2.RecordIntentRequest(record=record)] * 400)
    assert not [each for each in found if isinstance(each, OpenManagerError)]
    numbers = [each.number for each in found]
    assert len(set(numbers)) == 400
    # The one tells the outcome of what the other was told of; told twice it is written once.
    for shift in (1, 0):
        outcomes = [audit_pb2.RecordOutcomeRequest(intent_number=number) for number in numbers[:20]]
        calls = [both.call(k + shift, "AuditService/RecordOutcome", each) for k, each in enumerate(outcomes)]
        told = {each.number for each in await asyncio.gather(*calls)}
    assert len(told) == 20
    log = tmp_path / "log"
    with log.open("wb") as out:
        async for data in both.peers[0].server_stream(
            f"{API}.AuditService/ExportAuditLog", audit_pb2.ExportAuditLogRequest(), seconds=20
        ):
            out.write(audit_pb2.ExportAuditLogResponse.FromString(data).data)
    for copy in both.copies:
        await wait_until(partial(vouched_for, log, copy))
        assert verify(log, copy, [KEY.public_key()]).problems == []


async def vouched_for(log: Path, copy: Path) -> bool:
    """Say whether a second place has checkpoints for most of the log."""
    return (
        await asyncio.to_thread(copy.exists)
        and verify(log, copy, [KEY.public_key()]).uncovered_count < 2 * CHECKPOINT_ENTRIES
    )
