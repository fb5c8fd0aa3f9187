"""The cache follows the log."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
from conftest import wait_until
from openmanager_cache.fleet import Fleet
from openmanager_cache.follower import follower

from openmanager.api.status.v1 import status_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.frame import Frame, encode, length_delimited
from openmanager.log_follower import LogFollower
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.peer import Peer

POSITION = 7


def frame(server: str) -> bytes:
    return encode(Frame(times=np.array([10**18]), servers=(server,), metrics=("m",), values=np.ones((1, 1, 1))))


class Log(grpc.GenericRpcHandler):
    """The log of a server that has sent two frames; the first time it is asked for a copy it dies on the way.

    The copy holds the first frame; the second comes when it is let out.
    """

    def __init__(self) -> None:
        self.copies = 0
        self.watched = False
        self.let_out = asyncio.Event()

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if call.method.startswith("/grpc.health."):
            return None
        method = call.method.rpartition("/")[2]
        if method in {"ConfirmPosition", "GetLedger"}:
            return grpc.unary_unary_rpc_method_handler(self.confirm if method == "ConfirmPosition" else self.ledger)
        return grpc.unary_stream_rpc_method_handler(self.copy if method == "QueryLatest" else self.watch)

    async def copy(self, _request: bytes, context: Any) -> AsyncIterator[bytes]:
        self.copies += 1
        yield pb.QueryLatestResponse(position=POSITION).SerializeToString()
        if self.copies == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE)
        yield length_delimited(2, frame("a")) + pb.QueryLatestResponse(position=POSITION).SerializeToString()

    async def watch(self, request: bytes, _context: Any) -> AsyncIterator[bytes]:
        assert pb.WatchFramesRequest.FromString(request).from_position == POSITION + 1
        yield pb.WatchFramesResponse(position=POSITION).SerializeToString()
        self.watched = True
        await self.let_out.wait()
        second = pb.WatchFramesResponse(position=POSITION + 1)
        second.receive_time.FromNanoseconds(10**18)
        yield second.SerializeToString() + length_delimited(2, frame("b"))
        await asyncio.Event().wait()

    async def ledger(self, _request: bytes, _context: Any) -> bytes:
        return pb.GetLedgerResponse(ledger=status_pb2.Ledger(head_position=POSITION + 1)).SerializeToString()

    async def confirm(self, _request: bytes, _context: Any) -> bytes:
        return b""


@contextlib.asynccontextmanager
async def followed(log: Log, fleet: Fleet) -> AsyncIterator[LogFollower]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((log,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with Peer("timeseries", f"127.0.0.1:{port}") as peer:
        found = follower(peer=peer, fleet=fleet, clock=SystemClock(), jitter=random.Random(1), on_change=lambda _: None)
        task = asyncio.create_task(found.run())
        try:
            yield found
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await server.stop(0)


async def test_a_copy_that_was_cut_short_is_made_again_before_the_log_is_followed():
    log, fleet = Log(), Fleet(SystemClock())
    log.let_out.set()
    async with followed(log, fleet) as following:

        async def is_following() -> bool:
            return following.view.following

        await wait_until(is_following)
        assert (log.copies, "a" in fleet.hot) == (2, True)


async def test_the_log_is_followed_when_all_has_come_that_there_was_at_the_beginning():
    log, fleet = Log(), Fleet(SystemClock())
    async with followed(log, fleet) as following:

        async def is_watching() -> bool:
            return log.watched and following.view.heard > 0

        async def is_following() -> bool:
            return following.view.following

        await wait_until(is_watching)
        assert not following.view.following
        log.let_out.set()
        await wait_until(is_following)
        assert "b" in fleet.hot
