"""The edge of the gateway."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

from openmanager.api.gateway.v1 import gateway_pb2 as pb
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.errors import OpenManagerError, UnavailableError
from openmanager.frame import Frame, encode_write_request
from openmanager.hot_service import HotService
from openmanager.runtime import validate
from openmanager.runtime.clock import Clock
from openmanager.runtime.edge import DEFAULT_DEADLINE_SECONDS, raw
from openmanager.runtime.module import service_descriptor
from openmanager.runtime.peer import RATIONED
from openmanager.shard import shard_of
from openmanager_gateway import otlp
from openmanager_gateway.replica import Replicas
from openmanager_gateway.router import Upstream, forwarder
from openmanager_gateway.shards.calls import Shards
from openmanager_gateway.shards.table import TABLE
from openmanager_gateway.status import StatusBoard

WRITE_FRAME = "/openmanager.api.timeseries.v1.TimeseriesService/WriteFrame"
WRITE_FRAMES = "/openmanager.api.timeseries.v1.TimeseriesService/WriteFrames"


class GatewayService(HotService):
    """openmanager.api.gateway.v1.GatewayService: hot reads, status, and writes passed on as bytes."""

    def __init__(self, *, replicas: Replicas, board: StatusBoard, timeseries: Sequence[Upstream]) -> None:
        super().__init__(replicas.fleet, replicas.describe, replicas.known, replicas.describe_one)
        self._board = board
        service = service_descriptor("openmanager.api.gateway.v1.GatewayService")
        methods = service.methods_by_name
        if len(timeseries) > 1:
            shards, rules = Shards(timeseries), TABLE[service.full_name]
            self.WriteFrame = rules["WriteFrame"](shards, methods["WriteFrame"])
            self.WriteFrames = rules["WriteFrames"](shards, methods["WriteFrames"])
        else:
            self.WriteFrame = forwarder(methods["WriteFrame"], timeseries[0], WRITE_FRAME)
            self.WriteFrames = forwarder(methods["WriteFrames"], timeseries[0], WRITE_FRAMES)

    async def GetStorageStatus(  # noqa: N802
        self,
        request: pb.GetStorageStatusRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> pb.GetStorageStatusResponse:
        """Return the state of every service and store."""
        return await self._board.collect()

    async def WatchStorageStatus(  # noqa: N802
        self,
        request: pb.WatchStorageStatusRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[pb.WatchStorageStatusResponse]:
        """Stream the same."""
        async for board in self._board.watch():
            yield pb.WatchStorageStatusResponse(status=board)


class MetricsService:
    """opentelemetry.proto.collector.metrics.v1.MetricsService: OTLP exports, turned into frames."""

    def __init__(self, timeseries: Sequence[Upstream], clock: Clock) -> None:
        self._timeseries = timeseries
        self._clock = clock
        self._headline = otlp.HeadlineState()

    @raw
    async def Export(self, data: bytes, context: Any) -> Any:  # noqa: ARG002, N802
        """Write the metrics of an export; what cannot be taken is told by partial success."""
        request: Any = validate.decode(otlp.ExportMetricsServiceRequest, data)
        conversion = otlp.convert(request, headline=self._headline, now_nanos=self._clock.now_nanos())
        by_owner: dict[int, list[Frame]] = {}
        for frame in conversion.frames:
            by_owner.setdefault(shard_of(frame.servers[0], len(self._timeseries)), []).append(
                frame
            )  # it has one server
        # Every shard is given its part: of an exporter that gives up the other's would be lost with it.
        found = await asyncio.gather(
            *(self._write_all(self._timeseries[owner], frames) for owner, frames in by_owner.items()),
            return_exceptions=True,
        )
        rejected: Counter[str] = Counter()
        for each in found:
            if isinstance(each, BaseException):
                raise each
            rejected += each
        return otlp.encode_response(conversion, rejected)

    async def _write_all(self, owner: Upstream, frames: Sequence[Frame]) -> Counter[str]:
        """Write frames, one after the other; return how many samples were refused, by reason."""
        rejected: Counter[str] = Counter()
        for frame in frames:
            for rejection in await self._write(owner, encode_write_request(frame)):
                rejected[rejection.reason] += rejection.sample_count
        return rejected

    @staticmethod
    async def _write(owner: Upstream, request: bytes) -> Any:
        owner.breaker.check()
        start = owner.clock.monotonic()
        try:
            data = await owner.peer.unary_bytes(
                WRITE_FRAME, request, seconds=DEFAULT_DEADLINE_SECONDS, metadata=(RATIONED,)
            )
        except OpenManagerError as err:
            # An exporter repeats UNAVAILABLE and gives up on nearly everything else; the samples are still there.
            if err.retry_after is None:
                raise
            raise UnavailableError(err.message, reason=err.reason, retry_after=err.retry_after) from err
        owner.breaker.answered(start)
        return timeseries_pb2.WriteFrameResponse.FromString(data).ack.rejections
