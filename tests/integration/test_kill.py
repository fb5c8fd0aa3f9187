"""kill −9 of every process at once, under load, again and again: nothing that was acknowledged is lost.

`KILL_ROUNDS=50 make test` runs more rounds than the two of every day.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import Mesh, free_ports, start_mesh

from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.errors import OpenManagerError
from openmanager.frame import Frame, encode_write_request
from openmanager.runtime.peer import Peer

ROUNDS = int(os.environ.get("KILL_ROUNDS", "2"))
WRITERS = 4
METRICS = tuple(f"m{at}" for at in range(50))
WRITE = "/openmanager.api.gateway.v1.GatewayService/WriteFrame"
QUERY = "/openmanager.api.timeseries.v1.TimeseriesService/QueryRange"
MILLI = 1_000_000


def descendants(parent: int) -> set[int]:
    """Return the processes below `parent`."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {parent}
    while more := {child for child, above in parents.items() if above in found} - found:
        found |= more
    return found - {parent}


async def write(address: str, writer: int, acknowledged: dict[int, dict[int, float]], stop: asyncio.Event) -> None:
    """Write frames as fast as they are acknowledged, remembering every one that was."""
    async with Peer("gateway", address) as peer:
        sequence = 0
        while not stop.is_set():
            now = time.time_ns() // MILLI * MILLI
            known = acknowledged.setdefault(writer, {})
            if now in known:
                await asyncio.sleep(0.001)
                continue
            sequence += 1
            value = float(sequence * WRITERS + writer)
            frame = Frame(
                times=np.array([now]),
                servers=(f"writer-{writer}",),
                metrics=METRICS,
                values=np.full((1, 1, len(METRICS)), value),
            )
            try:
                reply = await peer.unary(WRITE, encode_write_request(frame), gateway_pb2.WriteFrameResponse, seconds=2)
            except OpenManagerError:
                await asyncio.sleep(0.05)
                continue
            assert reply.ack.accepted_sample_count == len(METRICS)
            known[now] = value


def kill_everything(mesh: Mesh) -> None:
    """Kill `up` and all its children in one go."""
    for pid in (mesh.process.pid, *descendants(mesh.process.pid)):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    mesh.stop(signal.SIGKILL)


async def lost(mesh: Mesh, acknowledged: dict[int, dict[int, float]]) -> list[tuple[int, int]]:
    """Return the writer and time of every acknowledged sample that is not read back with its value."""
    missing = []
    async with Peer("timeseries", mesh.address("timeseries")) as peer:
        for writer, expected in acknowledged.items():
            request = timeseries_pb2.QueryRangeRequest()
            request.selector.servers.append(f"writer-{writer}")
            request.selector.metrics.append("m7")
            request.start_time.FromNanoseconds(min(expected, default=time.time_ns()) - MILLI)
            found: dict[int, float] = {}
            async for data in peer.server_stream(QUERY, request, seconds=20):
                series = timeseries_pb2.QueryRangeResponse.FromString(data).series
                found.update(zip(series.time_unix_nanos, series.values, strict=True))
            missing += [(writer, at) for at, value in expected.items() if found.get(at) != value]
    return missing


@pytest.mark.timeout(60 + 30 * ROUNDS)
async def test_no_acknowledged_sample_is_lost_when_everything_is_killed(tmp_path: Path):
    generator = random.Random(11)
    acknowledged: dict[int, dict[int, float]] = {}
    base = free_ports()
    for _ in range(ROUNDS):
        mesh = await asyncio.to_thread(start_mesh, tmp_path / "data", base, "--servers", "5", "--interval", "100ms")
        assert await lost(mesh, acknowledged) == []
        stop = asyncio.Event()
        writers = [asyncio.create_task(write(mesh.gateway, each, acknowledged, stop)) for each in range(WRITERS)]
        await asyncio.sleep(generator.uniform(0.3, 2.0))
        await asyncio.to_thread(kill_everything, mesh)
        stop.set()
        await asyncio.gather(*writers)
    mesh = await asyncio.to_thread(start_mesh, tmp_path / "data", base, "--no-simulation")
    assert await lost(mesh, acknowledged) == []
    await asyncio.to_thread(mesh.stop)
    count = sum(map(len, acknowledged.values())) * len(METRICS)
    assert count > 0
    print(f"{ROUNDS} times everything was killed; {count} acknowledged samples, none lost")  # noqa: T201
