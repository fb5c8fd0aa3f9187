"""Coming in: every kind of method, every kind of credential, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from google.protobuf import wrappers_pb2
from test_edge import NAME, TestService, describe

from openmanager import access
from openmanager.access import LOCAL, Grant, Identity, Permission, Role
from openmanager.config import Secret
from openmanager.errors import PermissionDeniedError, UnauthenticatedError
from openmanager.policy import POLICY, Reach, Rule
from openmanager.runtime.address import Proxies
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.gate import Gate, Pass
from openmanager.runtime.mesh_key import HEADER, MeshKey
from openmanager.runtime.module import ServerConfig, Service
from openmanager.runtime.peer import Peer
from openmanager.runtime.server import Server

KEY = MeshKey(Secret("k" * 40), "gateway", SystemClock())
VIEWER = Identity("users/v", (Grant(Role.VIEWER),))
SCOPED = Identity("users/s", (Grant(Role.VIEWER, "role = web"),))


class Telling(TestService):
    """Tells who is calling and what they may reach, or where they are."""

    async def Call(self, request, context):
        caller = access.caller()
        assert caller is not None
        if request.value == "where":
            return wrappers_pb2.BytesValue(value=caller.source.encode())
        return wrappers_pb2.BytesValue(value=f"{caller.identity.subject} {caller.scope}".encode())


class Known:
    """Knows the credentials it is given."""

    def __init__(self, **passes: Pass) -> None:
        self.passes = passes
        self.asked = 0

    def known(self, credential: str) -> Pass | None:
        return self.passes.get(credential)

    async def find(self, credential: str, source: str) -> Pass:
        self.asked += 1
        raise UnauthenticatedError("the credentials are not valid")


@asynccontextmanager
async def serving(
    anonymous: Identity | None = None,
    authenticator: Known | None = None,
    rule: Rule | None = None,
    proxies: Proxies | None = None,
) -> AsyncIterator[str]:
    describe()
    rules = {**POLICY, NAME: dict.fromkeys(("Call", "Watch", "Talk"), rule or Rule(Permission.READ, Reach.SOME))}
    clock = SystemClock()
    server = Server(
        service=Service(rules=rules, servicers={NAME: Telling()}),
        name="test",
        address="127.0.0.1:0",
        config=ServerConfig(),
        clock=clock,
        gate=Gate(
            anonymous=anonymous,
            mesh_key=MeshKey(Secret("k" * 40), "test", clock),
            authenticator=authenticator,
            proxies=proxies,
        ),
    )
    async with server.running():
        yield f"127.0.0.1:{server.port}"


def comes_with(*metadata: tuple[str, str]):
    return lambda: metadata


BAD = {
    "nothing": (),
    "another scheme": (("authorization", "Basic YTpi"),),
    "no scheme": (("authorization", "omk_x"),),
    "an empty one": (("authorization", "Bearer "),),
    "one of nobody": (("authorization", "Bearer omk_of_nobody"),),
    "one too long": (("authorization", "Bearer " + "x" * 5000),),
    "an identity of its own": ((HEADER, "users/root"),),
    "an identity of another mesh": ((HEADER, MeshKey(Secret("x" * 40), "gateway", SystemClock()).token(LOCAL)),),
    "a scope of its own": (("x-openmanager-scope", ""), ("x-openmanager-role", "admin")),
}


async def use(kind: str, address: str, identify) -> bytes:
    """Call a method of a kind; return its first answer."""
    request = wrappers_pb2.StringValue(value="few")
    async with Peer("test", address, identify=identify) as peer:
        if kind == "Call":
            return (await peer.unary(f"/{NAME}/Call", request, wrappers_pb2.BytesValue, seconds=5)).value
        if kind == "Watch":
            async for reply in peer.server_stream(f"/{NAME}/Watch", request, seconds=5):
                return reply

        async def requests() -> AsyncIterator[bytes]:
            yield request.SerializeToString()

        async for reply in peer.bidi_stream(f"/{NAME}/Talk", requests(), seconds=5):
            return reply
        return b""


@pytest.mark.parametrize("kind", ["Call", "Watch", "Talk"])
async def test_nobody_comes_in_without_good_credentials_by_any_kind_of_method(kind: str):
    async with serving(authenticator=Known(good=Pass(VIEWER))) as address:
        for name, metadata in BAD.items():
            with pytest.raises(UnauthenticatedError):
                await use(kind, address, comes_with(*metadata))
                pytest.fail(name)
        assert await use(kind, address, comes_with(("authorization", "Bearer good")))
        assert await use(kind, address, comes_with((HEADER, KEY.token(VIEWER))))


async def test_who_sends_much_is_told_why_it_was_refused():
    async with serving(rule=Rule(Permission.OPERATE, Reach.SOME)) as address:
        async with Peer("test", address, identify=comes_with((HEADER, KEY.token(VIEWER)))) as peer:

            async def requests() -> AsyncIterator[bytes]:
                for _ in range(50):
                    yield bytes(30_000)

            for _ in range(20):  # which of the messages still leave is a matter of luck
                with pytest.raises(PermissionDeniedError):
                    await anext(peer.bidi_stream(f"/{NAME}/Talk", requests(), seconds=5))


@pytest.mark.parametrize("kind", ["Call", "Watch", "Talk"])
async def test_nobody_does_what_their_role_does_not_allow_by_any_kind_of_method(kind: str):
    async with serving(rule=Rule(Permission.OPERATE, Reach.SOME)) as address:
        with pytest.raises(PermissionDeniedError) as failure:
            await use(kind, address, comes_with((HEADER, KEY.token(VIEWER))))
        assert failure.value.message == "this needs the permission operate"


async def test_a_method_knows_who_is_calling_and_what_they_may_reach():
    async with serving() as address:
        assert await use("Call", address, comes_with((HEADER, KEY.token(SCOPED)))) == b"users/s (role = web)"
        assert await use("Call", address, comes_with((HEADER, KEY.token(VIEWER)))) == b"users/v "


async def test_what_concerns_all_servers_is_not_for_who_may_reach_some():
    async with serving(rule=Rule(Permission.READ, Reach.ALL)) as address:
        with pytest.raises(PermissionDeniedError):
            await use("Call", address, comes_with((HEADER, KEY.token(SCOPED))))
    async with serving(rule=Rule(Permission.READ, Reach.NONE)) as address:
        assert await use("Call", address, comes_with((HEADER, KEY.token(SCOPED)))) == b"users/s "


async def test_on_ones_own_machine_nobody_needs_credentials_and_wrong_ones_are_refused_all_the_same():
    async with serving(LOCAL, Known()) as address:
        assert await use("Call", address, comes_with()) == b"local "
        with pytest.raises(UnauthenticatedError):
            await use("Call", address, comes_with(("authorization", "Bearer omk_of_nobody")))
        with pytest.raises(UnauthenticatedError):
            await use("Call", address, comes_with((HEADER, "made up")))


async def test_health_is_open_and_tells_no_more_than_that():
    async with serving() as address, Peer("test", address) as peer:
        assert await peer.unary_bytes("/grpc.health.v1.Health/Check", b"", seconds=5) == b"\x08\x01"
        for path in ("/openmanager.api.status.v1.StatusService/GetStatus",):
            with pytest.raises(UnauthenticatedError):
                await peer.unary_bytes(path, b"", seconds=5)


async def test_a_stream_ends_when_its_caller_may_not_come_in_any_more():
    held = Pass(VIEWER)
    async with serving(authenticator=Known(good=held)) as address:
        async with Peer("test", address, identify=comes_with(("authorization", "Bearer good"))) as peer:
            request = wrappers_pb2.StringValue(value="once")
            replies = peer.server_stream(f"/{NAME}/Watch", request, seconds=20)
            await anext(replies)
            assert len(held.streams) == 1
            held.end(UnauthenticatedError("the credentials are not valid"))
            with pytest.raises(UnauthenticatedError):
                async with asyncio.timeout(5):
                    await anext(replies)
    assert not held.streams


async def test_a_stream_that_begins_as_its_caller_is_kept_out_ends_too():
    held = Pass(VIEWER, error=UnauthenticatedError("the credentials are not valid"))
    assert await told_at_last(held, "once") == 0


async def test_a_stream_whose_caller_is_kept_out_while_it_sends_ends_after_a_message():
    held = Pass(VIEWER)
    asyncio.get_running_loop().call_later(0.2, held.end, UnauthenticatedError("the credentials are not valid"))
    assert await told_at_last(held, "many") > 0


async def told_at_last(held: Pass, kind: str) -> int:
    """Return how many messages of a stream come before it ends because of what its caller came with."""
    count = 0
    async with serving(authenticator=Known(good=held)) as address:
        async with Peer("test", address, identify=comes_with(("authorization", "Bearer good"))) as peer:
            request = wrappers_pb2.StringValue(value=kind)
            with pytest.raises(UnauthenticatedError):
                async with asyncio.timeout(5):
                    async for _ in peer.server_stream(f"/{NAME}/Watch", request, seconds=20):
                        count += 1
    return count


async def test_who_is_asked_about_once_is_known_from_then_on():
    authenticator = Known(good=Pass(VIEWER))
    async with serving(authenticator=authenticator) as address:
        for _ in range(3):
            await use("Call", address, comes_with(("authorization", "bearer good")))
    assert authenticator.asked == 0
