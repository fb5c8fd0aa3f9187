"""The cache follows the log."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
from conftest import wait_until
from openmanager_cache.fleet import Fleet
from openmanager_cache.follower import LogFollower

from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.frame import Frame, encode, length_delimited
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.peer import Peer

POSITION = 7


class Log(grpc.GenericRpcHandler):
    """The log of a server that has sent one frame; the first time it is asked for a copy it dies on the way."""

    def __init__(self) -> None:
        self.copies = 0

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = call.method.rpartition("/")[2]
        if method == "ConfirmPosition":
            return grpc.unary_unary_rpc_method_handler(self.confirm)
        return grpc.unary_stream_rpc_method_handler(self.copy if method == "QueryLatest" else self.watch)

    async def copy(self, _request: bytes, context: Any) -> AsyncIterator[bytes]:
        self.copies += 1
        yield pb.QueryLatestResponse(position=POSITION).SerializeToString()
        if self.copies == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE)
        frame = Frame(times=np.array([10**18]), servers=("a",), metrics=("m",), values=np.ones((1, 1, 1)))
        yield length_delimited(2, encode(frame)) + pb.QueryLatestResponse(position=POSITION).SerializeToString()

    async def watch(self, request: bytes, _context: Any) -> AsyncIterator[bytes]:
        assert pb.WatchFramesRequest.FromString(request).from_position == POSITION + 1
        yield pb.WatchFramesResponse(position=POSITION).SerializeToString()
        await asyncio.Event().wait()

    async def confirm(self, _request: bytes, _context: Any) -> bytes:
        return b""


async def test_a_copy_that_was_cut_short_is_made_again_before_the_log_is_followed():
    server, log, fleet = grpc.aio.server(), Log(), Fleet(SystemClock())
    server.add_generic_rpc_handlers((log,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with Peer("timeseries", f"127.0.0.1:{port}") as peer:
        follower = LogFollower(
            peer=peer, fleet=fleet, clock=SystemClock(), jitter=random.Random(1), on_change=lambda _: None
        )

        async def is_following() -> bool:
            return follower.view.following

        task = asyncio.create_task(follower.run())
        try:
            await wait_until(is_following)
            assert (log.copies, "a" in fleet.hot) == (2, True)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await server.stop(0)
