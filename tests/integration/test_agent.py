"""A real host reports itself with OpenTelemetry's own SDK, exporter and host metrics."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import Mesh, free_ports, start_mesh, wait_until

from openmanager.agent import AgentEvent, run_agent
from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.errors import OpenManagerError
from openmanager.runtime.peer import Peer

GET_SERVER = "/openmanager.api.gateway.v1.GatewayService/GetServer"


async def server(address: str, name: str):
    async with Peer("gateway", address) as peer:
        request = gateway_pb2.GetServerRequest(id=name)
        return (await peer.unary(GET_SERVER, request, gateway_pb2.GetServerResponse, seconds=5)).server


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_the_agent_reports_this_machine(mesh: Mesh):
    stop = asyncio.Event()
    agent = asyncio.create_task(
        run_agent(
            mesh.gateway,
            interval=timedelta(seconds=1),
            server_id="this-host",
            attributes={"openmanager.role": "test"},
            on_event=lambda _: None,
            stop=stop,
        )
    )

    async def reported() -> bool:
        try:
            found = await server(mesh.gateway, "this-host")
        except OpenManagerError:
            return False
        return found.HasField("cpu_usage") and found.HasField("memory_usage") and found.HasField("disk_usage")

    await wait_until(reported, 20)
    stop.set()
    await agent
    found = await server(mesh.gateway, "this-host")
    assert (found.role, found.metric_count > 50) == ("test", True)
    assert 0 <= found.cpu_usage <= 100
    assert 0 < found.memory_usage < 100
    assert 0 < found.disk_usage <= 100
    assert any(key.startswith("system.cpu.time{") for key in found.metrics)


@pytest.mark.timeout(90)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_reports_wait_while_the_mesh_is_away_and_the_agent_ends_in_time(tmp_path: Path):
    base = free_ports()
    events: list[AgentEvent] = []
    stop = asyncio.Event()
    agent = asyncio.create_task(
        run_agent(
            f"127.0.0.1:{base}",
            interval=timedelta(milliseconds=500),
            server_id="patient-host",
            attributes={},
            on_event=events.append,
            stop=stop,
        )
    )

    async def has_waited() -> bool:
        return bool(events) and events[-1].waiting >= 2

    await wait_until(has_waited, 30)
    mesh = await asyncio.to_thread(start_mesh, tmp_path / "data", base, "--no-simulation")

    async def has_delivered() -> bool:
        return events[-1].kind == "exported" and events[-1].waiting == 0

    await wait_until(has_delivered, 30)
    await asyncio.to_thread(mesh.stop)
    start = asyncio.get_running_loop().time()
    stop.set()
    await agent
    assert asyncio.get_running_loop().time() - start < 4
