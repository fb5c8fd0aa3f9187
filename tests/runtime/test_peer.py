"""A peer that is away for a moment is waited for where a call may be made again, and for no longer than was said."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta

import pytest
from conftest import free_ports
from google.protobuf import wrappers_pb2
from test_edge import NAME, RULES, TestService, describe

from openmanager import suite
from openmanager.access import Permission
from openmanager.errors import OpenManagerError, Reason, UnavailableError
from openmanager.policy import POLICY
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.module import ServerConfig, Service, service_descriptor
from openmanager.runtime.peer import Peer, retried, service_config
from openmanager.runtime.server import Server

READING = (Permission.READ, Permission.LEARN, Permission.AUDIT)


class StoreAway(TestService):
    """Counts its calls, and says of its store that it is away."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    async def Call(self, request, context):
        self.calls += 1
        raise UnavailableError("the store is away", reason=Reason.STORE_UNAVAILABLE)


@pytest.fixture
def address() -> str:
    return f"127.0.0.1:{free_ports(1)}"


@asynccontextmanager
async def serving(address: str, service: TestService | None = None) -> AsyncIterator[None]:
    describe()
    made = Server(
        service=Service(rules=RULES, servicers={NAME: service or TestService()}),
        name="test",
        address=address,
        config=ServerConfig(grace=timedelta(seconds=0.2)),
        clock=SystemClock(),
    )
    async with made.running():
        yield


def patient(address: str, seconds: float = 5.0) -> Peer:
    return Peer("test", address, retried=(f"{NAME}/Call", f"{NAME}/Watch"), patience=timedelta(seconds=seconds))


async def call(peer: Peer, value: str = "", seconds: float = 10.0) -> bytes:
    request = wrappers_pb2.StringValue(value=value)
    return (await peer.unary(f"/{NAME}/Call", request, wrappers_pb2.BytesValue, seconds=seconds)).value


async def first(peer: Peer) -> int:
    """Return the size of the first message of a stream."""
    request = wrappers_pb2.StringValue(value="few")
    async with aclosing(peer.server_stream(f"/{NAME}/Watch", request, seconds=10)) as replies:
        return len(await anext(replies))


async def test_calls_are_answered_by_the_successor_of_a_server_that_restarts(address: str):
    async with patient(address) as peer:
        async with serving(address):
            assert await call(peer) == b"ok"
        meanwhile = asyncio.gather(call(peer), call(peer), first(peer))
        while peer._absence.since is None:
            await asyncio.sleep(0.01)
        async with serving(address):
            assert await meanwhile == [b"ok", b"ok", 1048580]


async def test_a_server_that_stays_away_is_waited_for_once(address: str):
    async with patient(address, 0.5) as peer:
        start = time.monotonic()
        found = await asyncio.gather(call(peer), call(peer), first(peer), return_exceptions=True)
        assert [getattr(each, "message", each) for each in found] == ["test cannot be reached"] * 3
        assert 0.4 < time.monotonic() - start < 2.0
        start = time.monotonic()
        with pytest.raises(UnavailableError):
            await call(peer)
        assert time.monotonic() - start < 0.3


async def test_a_deadline_is_not_waited_past(address: str):
    async with patient(address) as peer:
        start = time.monotonic()
        with pytest.raises(OpenManagerError, match="cannot be reached"):
            await call(peer, seconds=1.0)
        assert 0.4 < time.monotonic() - start < 0.9


async def test_a_store_that_is_away_is_not_waited_for(address: str):
    service = StoreAway()
    async with serving(address, service), patient(address) as peer:
        with pytest.raises(UnavailableError, match="the store is away"):
            await call(peer)
        assert service.calls == 1


async def test_what_may_not_be_made_again_fails_at_once(address: str):
    async with Peer("test", address, retried=(f"{NAME}/Watch",), patience=timedelta(seconds=5)) as peer:
        start = time.monotonic()
        with pytest.raises(UnavailableError):
            await call(peer)
        assert time.monotonic() - start < 1.0


def test_the_core_is_not_told_to_watch_health():
    # It may end the whole process (grpcio 1.85), and no test can make it do so at will.
    assert "healthCheckConfig" not in json.loads(service_config(()))


def test_every_read_of_the_contract_is_made_again():
    suite.load_protos()
    reads = [
        (service, method.name)
        for service, rules in POLICY.items()
        if service.startswith("openmanager.")
        for method in service_descriptor(service).methods
        if rules[method.name].permission in READING and not method.server_streaming
    ]
    assert ("openmanager.api.analysis.v1.AnalysisService", "ForecastCapacity") in reads
    assert [each for each in reads if not retried(each[0], [each[1]])] == []
