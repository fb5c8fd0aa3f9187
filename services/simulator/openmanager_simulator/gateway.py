"""The gateway as the place that frames are written to: the simulator is a client like any other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.frame import Frame, encode_write_request
from openmanager.runtime.peer import Peer

WRITE_FRAME = "/openmanager.api.gateway.v1.GatewayService/WriteFrame"
IMPORT_FRAMES = "/openmanager.api.timeseries.v1.ImportService/ImportFrames"
WRITE_SECONDS = 5.0


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
        async for data in self._peer.bidi_stream(IMPORT_FRAMES, requests()):
            accepted += timeseries_pb2.ImportFramesResponse.FromString(data).ack.accepted_sample_count
        return accepted
