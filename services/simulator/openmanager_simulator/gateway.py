"""The gateway as the place that frames are written to: the simulator is a client like any other."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import grpc

from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.errors import InternalError, UnavailableError
from openmanager.frame import Frame, encode_write_request
from openmanager.runtime.peer import Peer
from openmanager_simulator.plan import Tier

WRITE_FRAME = "/openmanager.api.gateway.v1.GatewayService/WriteFrame"
IMPORT_FRAMES = "/openmanager.api.timeseries.v1.ImportService/ImportFrames"
IMPORT_ROLLUPS = "/openmanager.api.timeseries.v1.ImportService/ImportRollups"
LIST_TIERS = "/openmanager.api.timeseries.v1.RetentionService/ListTiers"
WRITE_SECONDS = 5.0
LIST_SECONDS = 5.0


class GatewayWriter:
    """Writes frames through the gateway."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def write(self, frame: Frame) -> int:
        """Write one frame."""
        reply = await self._peer.unary(
            WRITE_FRAME, encode_write_request(frame), gateway_pb2.WriteFrameResponse, seconds=WRITE_SECONDS
        )
        return reply.ack.accepted_sample_count

    async def import_frames(self, frames: Iterator[Frame]) -> int:
        """Write frames on one stream."""

        async def requests() -> AsyncIterator[bytes]:
            for frame in frames:
                yield encode_write_request(frame)

        accepted = 0
        async with aclosing(_answers(self._peer, IMPORT_FRAMES, requests())) as answers:
            async for data in answers:
                accepted += timeseries_pb2.ImportFramesResponse.FromString(data).ack.accepted_sample_count
        return accepted


class GatewayHistory:
    """Writes history through the gateway."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def list_tiers(self) -> tuple[int, tuple[Tier, ...]]:
        """Return for how long samples are kept, in nanoseconds, and the rollup tiers, the finest first."""
        request = timeseries_pb2.ListTiersRequest()
        reply = await self._peer.unary(LIST_TIERS, request, timeseries_pb2.ListTiersResponse, seconds=LIST_SECONDS)
        tiers = [
            Tier(name=each.name, width=each.resolution.ToNanoseconds(), retention=each.retention.ToNanoseconds())
            for each in reply.tiers
        ]
        raw_retention = max((tier.retention for tier in tiers if not tier.width), default=0)
        return raw_retention, tuple(tier for tier in tiers if tier.width)

    async def import_rollups(self, requests: AsyncIterator[bytes]) -> AsyncGenerator[int, None]:
        """Send requests of ImportRollups; yield of each how many buckets were taken."""
        async with aclosing(_answers(self._peer, IMPORT_ROLLUPS, requests)) as answers:
            async for data in answers:
                yield timeseries_pb2.ImportRollupsResponse.FromString(data).accepted_bucket_count

    async def import_frames(self, requests: AsyncIterator[bytes]) -> AsyncGenerator[int, None]:
        """Send requests of ImportFrames; yield of each how many samples were taken."""
        async with aclosing(_answers(self._peer, IMPORT_FRAMES, requests)) as answers:
            async for data in answers:
                yield timeseries_pb2.ImportFramesResponse.FromString(data).ack.accepted_sample_count


async def _answers(peer: Peer, path: str, requests: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    stream: Any = peer.bidi_stream(path, requests)
    try:
        async with aclosing(stream):
            async for data in stream:
                yield data
    except InternalError as err:
        cause = err.__cause__
        # gRPC says so itself of a stream that the other side ends while a request is being sent; why is lost.
        if isinstance(cause, grpc.aio.AioRpcError) and not cause.trailing_metadata():
            raise UnavailableError("the import was broken off") from err
        raise
