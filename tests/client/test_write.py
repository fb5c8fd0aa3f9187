"""Writing through the client."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from client.mesh import STEP, frame_of, local_mesh, servers_known
from openmanager.client import Client, Frame, ServerInfo
from openmanager.errors import DeadlineExceededError, InvalidArgumentError, OutOfRangeError


def now() -> int:
    return time.time_ns() // STEP * STEP


async def one_by_one(frames):
    for frame in frames:
        yield frame


async def test_written_samples_are_acknowledged_with_their_position(client: Client):
    first = await client.write_frame(frame_of(3, 5))
    second = await client.write_frame(frame_of(3, 5))
    assert first.accepted_sample_count == 3 * 5 * 4
    assert (first.position, second.position) == (1, 2)
    assert first.rejections == ()


async def test_arrays_are_written_as_they_are(client: Client):
    ack = await client.write(
        times=[now()],
        servers=["db-01"],
        metrics=["cpu_usage", "queries"],
        values=[[[12.5, np.nan]]],
        server_infos=[ServerInfo(id="db-01", role="database")],
    )
    assert ack.accepted_sample_count == 1
    await servers_known(client, 1)
    server = await client.get_server("db-01")
    assert (server.role, server.cpu_usage) == ("database", 12.5)


async def test_values_of_another_shape_are_refused_by_name(client: Client):
    with pytest.raises(InvalidArgumentError, match=r"\(1, 2\)") as caught:
        await client.write(times=[now()], servers=["a"], metrics=["m", "n"], values=[[1.0, 2.0]])
    assert caught.value.field == "values"


async def test_what_is_wrong_with_single_samples_is_told(client: Client):
    ack = await client.write(times=[now()], servers=["a"], metrics=["m", "n"], values=[[[np.inf, 2.0]]])
    assert ack.accepted_sample_count == 1
    assert [(each.server, each.metric, each.reason) for each in ack.rejections] == [("a", "m", "VALUE_NOT_FINITE")]


async def test_frames_are_acknowledged_in_order_with_a_bounded_number_under_way(client: Client):
    under_way, most = 0, 0

    async def frames():
        nonlocal under_way, most
        for tick in range(40):
            under_way += 1
            most = max(most, under_way)
            yield frame_of(2, 1, end=now() - tick * STEP)

    positions = []
    async for ack in client.write_frames(frames(), in_flight=4):
        under_way -= 1
        positions.append(ack.position)
    assert positions == list(range(1, 41))
    assert most <= 5  # four under way and the one that waits for room


async def test_a_refused_frame_ends_the_stream_after_the_ones_before_it(client: Client):
    bad = Frame(times=np.array([17]), servers=("a",), metrics=("m",), values=np.ones((1, 1, 1)))
    acks = client.write_frames(one_by_one([frame_of(1, 1), frame_of(1, 2), bad]))
    assert [(await anext(acks)).position, (await anext(acks)).position] == [1, 2]
    with pytest.raises(OutOfRangeError) as caught:
        await anext(acks)
    assert caught.value.field == "frame.time_unix_nanos"


async def test_an_error_of_the_producer_comes_after_the_acknowledgements_of_its_frames(client: Client):
    async def frames():
        yield frame_of(1, 1)
        raise LookupError("no more")

    acks = client.write_frames(frames())
    assert (await anext(acks)).position == 1
    with pytest.raises(LookupError, match="no more"):
        await anext(acks)


async def test_a_producer_may_be_silent_longer_than_a_frame_may_take(client: Client):
    pause = asyncio.Event()

    async def frames():
        yield frame_of(1, 1)
        await pause.wait()
        yield frame_of(1, 2)

    asyncio.get_running_loop().call_later(0.5, pause.set)
    assert [ack.position async for ack in client.write_frames(frames(), seconds=0.3)] == [1, 2]


async def test_a_producer_may_be_silent_longer_than_a_stream_is_kept(tmp_path: Path):
    pause = asyncio.Event()

    async def frames():
        yield frame_of(1, 1)
        asyncio.get_running_loop().call_later(0.8, pause.set)
        await pause.wait()
        yield frame_of(1, 2)

    async with local_mesh(tmp_path, {("server", "idle_timeout"): "200ms"}) as mesh, Client(mesh.gateway) as client:
        assert [ack.position async for ack in client.write_frames(frames())] == [1, 2]


async def test_a_frame_that_is_not_acknowledged_in_time_ends_the_stream(road):
    async with Client(road.address) as client:
        await client.write_frame(frame_of(1, 1))
        road.open.clear()
        with pytest.raises(DeadlineExceededError):
            await anext(client.write_frames(one_by_one([frame_of(1, 2)]), seconds=0.3))
