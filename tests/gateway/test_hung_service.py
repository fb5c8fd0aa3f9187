"""A service behind the gateway that hangs: nobody waits for it longer than it takes to find out."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import grpc
import pytest
from conftest import wait_until
from openmanager_gateway import status as probing
from openmanager_gateway.router import Upstream, forwarder

from openmanager.api.status.v1 import status_pb2
from openmanager.errors import Reason, UnavailableError
from openmanager.runtime.breaker import Breaker
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.module import service_descriptor
from openmanager.runtime.peer import Peer

STATUS = service_descriptor("openmanager.api.status.v1.StatusService").methods_by_name["GetStatus"]


class Service(grpc.GenericRpcHandler):
    """Answers every call with nothing, unless it hangs; knows nothing of health."""

    def __init__(self) -> None:
        self.hangs = False
        self.calls = 0

    def service(self, called: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if called.method.startswith("/grpc.health."):
            return None
        self.calls += 1

        async def answer(_request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
            while self.hangs:
                await asyncio.sleep(0.02)
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


class Call:
    """The context of a call without a deadline and without metadata."""

    def time_remaining(self) -> None:
        return None

    def invocation_metadata(self) -> tuple[()]:
        return ()


@contextlib.asynccontextmanager
async def probed(service: Service) -> AsyncIterator[Upstream]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    clock = SystemClock()
    async with Peer("timeseries", f"127.0.0.1:{port}") as peer:
        breaker = Breaker("timeseries", "calls", clock, random.Random(1), slow_seconds=float("inf"))
        task = asyncio.create_task(probing.probe(Upstream(peer, breaker, clock)))
        try:
            yield Upstream(peer, breaker, clock)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await server.stop(0)


async def test_a_service_that_hangs_refuses_calls_at_once_and_takes_them_again_when_it_answers(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(probing, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(probing, "PROBE_INTERVAL_SECONDS", 0.1)
    service = Service()
    async with probed(service) as upstream:
        forward = forwarder(STATUS, upstream)
        assert await forward(b"", Call()) == b""
        service.hangs = True

        async def is_refused() -> bool:
            return upstream.breaker.is_open

        waiting = asyncio.create_task(forward(b"", Call()))
        await wait_until(is_refused, 3)
        assert upstream.breaker.state == status_pb2.STORAGE_STATE_HUNG
        with pytest.raises(UnavailableError, match="timeseries does not answer") as refused:
            await forward(b"", Call())
        assert refused.value.reason == Reason.SERVICE_UNAVAILABLE
        assert refused.value.retry_after is not None
        service.hangs = False

        async def is_answered() -> bool:
            return not upstream.breaker.is_open

        await wait_until(is_answered, 3)
        assert await waiting == b""
        assert await forward(b"", Call()) == b""


async def test_a_service_that_answers_or_that_nobody_calls_is_not_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probing, "PROBE_INTERVAL_SECONDS", 0.2)
    service = Service()
    async with probed(service) as upstream:
        for _ in range(5):
            assert await forwarder(STATUS, upstream)(b"", Call()) == b""
        upstream.breaker.check()  # a call that nobody answers

        async def is_asked() -> bool:
            return service.calls == 6

        await wait_until(is_asked, 3)


async def test_a_service_that_cannot_be_reached_is_left_to_its_channel(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probing, "PROBE_INTERVAL_SECONDS", 0.01)
    clock = SystemClock()
    async with Peer("timeseries", "127.0.0.1:1") as peer:
        breaker = Breaker("timeseries", "calls", clock, random.Random(1), slow_seconds=float("inf"))
        upstream = Upstream(peer, breaker, clock)
        task = asyncio.create_task(probing.probe(upstream))
        for _ in range(10):
            with pytest.raises(UnavailableError, match="cannot be reached"):
                await forwarder(STATUS, upstream)(b"", Call())
        assert not breaker.is_open
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
