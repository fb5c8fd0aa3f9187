"""A watch says that it is still there, as often as who listens would have it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from conftest import Mesh

from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.server.v1 import server_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.errors import InvalidArgumentError
from openmanager.runtime.peer import Peer

SERVERS = "/openmanager.api.gateway.v1.GatewayService/WatchServers"
FRAMES = "/openmanager.api.timeseries.v1.TimeseriesService/WatchFrames"


def watching(message: type[Any], seconds: float, **fields: Any) -> Any:
    request = message(**fields)
    request.progress_interval.FromTimedelta(timedelta(seconds=seconds))
    return request


async def test_progress_comes_as_often_as_was_asked_for(mesh: Mesh, gateway: Peer):
    async with asyncio.timeout(5), Peer("timeseries", mesh.address("timeseries")) as timeseries:
        seen = 0
        async for data in timeseries.server_stream(FRAMES, watching(timeseries_pb2.WatchFramesRequest, 0.1)):
            seen += not timeseries_pb2.WatchFramesResponse.FromString(data).HasField("frame")
            if seen == 6:
                break
        kinds = []
        async for data in gateway.server_stream(SERVERS, watching(gateway_pb2.WatchServersRequest, 0.1)):
            kinds.append(gateway_pb2.WatchServersResponse.FromString(data).kind)
            if kinds.count(server_pb2.WATCH_KIND_PROGRESS) == 5:
                break


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.09, 20.1])
async def test_an_interval_that_cannot_be_is_refused_by_its_name(mesh: Mesh, gateway: Peer, seconds: float):
    for path, message in ((SERVERS, gateway_pb2.WatchServersRequest), (FRAMES, timeseries_pb2.WatchFramesRequest)):
        with pytest.raises(InvalidArgumentError) as failure:
            async for _ in gateway.server_stream(path, watching(message, seconds)):
                pass
        assert failure.value.field == "progress_interval"
