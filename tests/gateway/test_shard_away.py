"""A shard that is away: the others go on, its own servers' writes wait, and who asks for all is told what is missing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import wait_until
from sharded import ShardedMesh, sharded_mesh

from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.errors import FailedPreconditionError, UnavailableError
from openmanager.frame import Frame, decode_trusted, encode_write_request
from openmanager.runtime.peer import Peer
from openmanager.shard import shard_of

GATEWAY = "/openmanager.api.gateway.v1.GatewayService"
HISTORY = "/openmanager.api.timeseries.v1.TimeseriesService"
SERVERS = tuple(f"host-{number:02d}" for number in range(8))
STAYS, GOES = ([each for each in SERVERS if shard_of(each, 2) == shard] for shard in (0, 1))
NOW = time.time_ns() // 10**9 * 10**9


def frame(servers: list[str] | tuple[str, ...], second: int) -> bytes:
    values = np.full((1, len(servers), 1), float(second))
    moment = np.array([NOW - 600 * 10**9 + second * 10**9])
    return encode_write_request(Frame(times=moment, servers=tuple(servers), metrics=("cpu_usage",), values=values))


async def write(peer: Peer, request: bytes, seconds: float = 5.0) -> Any:
    reply = await peer.unary(f"{GATEWAY}/WriteFrame", request, gateway_pb2.WriteFrameResponse, seconds=seconds)
    return reply.ack


async def written_at_last(peer: Peer, request: bytes) -> Any:
    """Return the acknowledgement when the way to the shard is found again."""
    end = time.monotonic() + 30
    while True:
        try:
            return await write(peer, request)
        except UnavailableError:
            assert time.monotonic() < end
            await asyncio.sleep(0.1)


async def ranged(peer: Peer, servers: list[str]) -> tuple[Any, dict[str, int]]:
    """Return the provenance of the raw samples of some servers, and how many there are of each."""
    request = pb.QueryRangeRequest()
    request.selector.servers.extend(servers)
    request.start_time.FromNanoseconds(NOW - 700 * 10**9)
    replies = [
        pb.QueryRangeResponse.FromString(data)
        async for data in peer.server_stream(f"{HISTORY}/QueryRange", request, seconds=5)
    ]
    return replies[0].header.provenance, {each.series.server: len(each.series.values) for each in replies[1:]}


async def hot(peer: Peer, server: str) -> Any:
    request = gateway_pb2.GetServerRequest(id=server)
    return await peer.unary(f"{GATEWAY}/GetServer", request, gateway_pb2.GetServerResponse, seconds=5)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[ShardedMesh]:
    async with sharded_mesh(tmp_path, 2, 1) as made:
        yield made


async def test_without_one_shard_the_others_answer_and_what_is_missing_is_told(mesh: ShardedMesh):
    async with Peer("gateway", mesh.gateway) as peer:
        assert (await written_at_last(peer, frame(SERVERS, 1))).accepted_sample_count == len(SERVERS)

        async def is_known() -> bool:
            request = gateway_pb2.GetFleetSummaryRequest()
            reply = await peer.unary(
                f"{GATEWAY}/GetFleetSummary", request, gateway_pb2.GetFleetSummaryResponse, seconds=5
            )
            return reply.summary.total_count == len(SERVERS)

        await wait_until(is_known)
        for name in ("timeseries", "cache", "analysis"):
            await mesh.stop(name, 1)

        # Servers of the shard that is there are as they were.
        ack = await written_at_last(peer, frame(STAYS, 2))
        assert ack.accepted_sample_count == len(STAYS)
        assert [(each.shard, each.position) for each in ack.shard_positions] == [(0, 2)]
        about, counts = await ranged(peer, STAYS)
        assert (counts, about.partial, about.degraded) == (dict.fromkeys(STAYS, 2), False, False)
        reply = await hot(peer, STAYS[0])
        assert (reply.provenance.partial, reply.provenance.degraded) == (False, False)

        # Those of the other are told as they were last, with a mark, and nobody says that they do not exist.
        async def is_marked() -> bool:
            return (await hot(peer, GOES[0])).provenance.degraded

        await wait_until(is_marked)
        with pytest.raises(UnavailableError):
            await ranged(peer, GOES)
        about, counts = await ranged(peer, [])
        assert (counts, about.partial) == (dict.fromkeys(STAYS, 2), True)
        assert about.reason == "shard 1 of 2 did not answer"
        with pytest.raises(UnavailableError, match="the samples of shard 0 are acknowledged: write the frame again"):
            await write(peer, frame(SERVERS, 3))
        status = await peer.unary(
            f"{GATEWAY}/GetStorageStatus",
            gateway_pb2.GetStorageStatusRequest(),
            gateway_pb2.GetStorageStatusResponse,
            seconds=5,
        )
        away = {each.service for each in status.services if each.reason == "cannot be reached"}
        assert away >= {"timeseries/1", "cache/1", "analysis/1"}
        assert not away & {"timeseries/0", "cache/0", "analysis/0"}

        # What was not acknowledged is written again, and changes nothing where it was.
        await mesh.start("timeseries", 1)
        ack = await written_at_last(peer, frame(SERVERS, 3))
        assert (ack.accepted_sample_count, ack.position) == (len(SERVERS), 0)
        assert {each.shard for each in ack.shard_positions} == {0, 1}
        about, counts = await ranged(peer, [])
        assert counts == {**dict.fromkeys(STAYS, 3), **dict.fromkeys(GOES, 2)}
        assert not about.partial


async def test_a_shard_refuses_servers_of_another(mesh: ShardedMesh):
    async with Peer("timeseries/0", mesh.addresses["timeseries"][0]) as peer:
        with pytest.raises(FailedPreconditionError) as caught:
            await peer.unary(f"{HISTORY}/WriteFrame", frame(SERVERS, 1), pb.WriteFrameResponse, seconds=5)
    assert caught.value.reason == "WRONG_SHARD"
    assert GOES[0] in caught.value.message


async def test_writes_wait_for_their_shard_and_a_watch_goes_on_over_its_absence(tmp_path: Path):
    async with sharded_mesh(tmp_path, 2, 1, patience="20s") as mesh, Peer("gateway", mesh.gateway) as peer:
        told: list[tuple[str, int]] = []

        async def follow() -> None:
            request = pb.WatchFramesRequest(from_position=1)
            request.progress_interval.FromMilliseconds(100)
            async for data in peer.server_stream(f"{HISTORY}/WatchFrames", request):
                part = pb.WatchFramesResponse.FromString(data)
                if part.HasField("frame"):
                    found = decode_trusted(part.frame)
                    told.extend((server, int(found.values[0, at, 0])) for at, server in enumerate(found.servers))

        watching = asyncio.create_task(follow())
        try:
            await write(peer, frame(SERVERS, 1))
            await wait_until(lambda: _is(lambda: len(told) == len(SERVERS)))
            await mesh.stop("timeseries", 1)
            waiting = asyncio.create_task(write(peer, frame(GOES, 2), seconds=20))
            assert (await write(peer, frame(STAYS, 2))).accepted_sample_count == len(STAYS)
            await wait_until(lambda: _is(lambda: len(told) == len(SERVERS) + len(STAYS)))
            assert not waiting.done()
            await mesh.start("timeseries", 1)
            assert (await waiting).accepted_sample_count == len(GOES)
            await wait_until(lambda: _is(lambda: len(told) >= 2 * len(SERVERS)))
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    assert sorted(told) == sorted((server, second) for server in SERVERS for second in (1, 2))


async def _is(condition: Any) -> bool:
    return bool(condition())
