"""A real host reports itself with OpenTelemetry's own SDK, exporter and host metrics."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent import futures
from datetime import timedelta
from pathlib import Path

import grpc
import psutil
import pytest
from conftest import Mesh, free_ports, start_mesh, wait_until
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc

from openmanager.agent import AgentEvent, run_agent
from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.errors import OpenManagerError
from openmanager.runtime.peer import Peer

GET_SERVER = "/openmanager.api.gateway.v1.GatewayService/GetServer"


async def server(address: str, name: str):
    async with Peer("gateway", address) as peer:
        request = gateway_pb2.GetServerRequest(id=name)
        return (await peer.unary(GET_SERVER, request, gateway_pb2.GetServerResponse, seconds=5)).server


@contextlib.asynccontextmanager
async def reporting(endpoint: str, millis: int) -> AsyncIterator[list[AgentEvent]]:
    """Report this machine as `this-host` meanwhile; gives what the agent has told so far."""
    events: list[AgentEvent] = []
    stop = asyncio.Event()
    agent = asyncio.create_task(
        run_agent(
            endpoint,
            interval=timedelta(milliseconds=millis),
            server_id="this-host",
            attributes={"openmanager.role": "test"},
            on_event=events.append,
            stop=stop,
        )
    )
    try:
        yield events
    finally:
        stop.set()
        await agent


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_the_agent_reports_this_machine(mesh: Mesh):
    async def reported() -> bool:
        try:
            found = await server(mesh.gateway, "this-host")
        except OpenManagerError:
            return False
        return found.HasField("cpu_usage") and found.HasField("memory_usage") and found.HasField("disk_usage")

    async with reporting(mesh.gateway, 1000):
        await wait_until(reported, 20)
    found = await server(mesh.gateway, "this-host")
    assert (found.role, found.metric_count > 50) == ("test", True)
    assert 0 <= found.cpu_usage <= 100
    assert 0 < found.memory_usage < 100
    assert 0 < found.disk_usage <= 100
    assert any(key.startswith("system.cpu.time{") for key in found.metrics)
    # The shares of a core's time are those of a real interval: they make up the whole,
    shares = [v for k, v in zip(found.metrics, found.values, strict=True) if k.startswith("system.cpu.utilization{")]
    # but for what the machine's host took of it.
    assert sum(shares) == pytest.approx(psutil.cpu_count(), rel=0.25)


class Collector(metrics_service_pb2_grpc.MetricsServiceServicer):
    """A receiver that refuses the first report, however often it is sent."""

    def __init__(self) -> None:
        self.refused = b""
        self.taken = 0

    def Export(self, request, context):
        whole = request.SerializeToString(deterministic=True)
        self.refused = self.refused or whole
        if whole == self.refused:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such metric")
        self.taken += 1
        return metrics_service_pb2.ExportMetricsServiceResponse()


async def test_a_report_that_is_refused_is_dropped_with_the_reason_and_holds_up_no_other():
    server, collector = grpc.server(futures.ThreadPoolExecutor(2)), Collector()
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    async def has_delivered() -> bool:
        return collector.taken >= 2

    async with reporting(f"127.0.0.1:{port}", 200) as events:
        await wait_until(has_delivered, 20)
    server.stop(0)
    assert [event.kind for event in events[:3]] == ["refused", "exported", "exported"]
    assert events[0].reason == "no such metric"


@pytest.mark.timeout(90)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_reports_wait_while_the_mesh_is_away_and_the_agent_ends_in_time(tmp_path: Path):
    base = free_ports()
    async with reporting(f"127.0.0.1:{base}", 500) as events:

        async def has_waited() -> bool:
            return bool(events) and events[-1].waiting >= 2

        await wait_until(has_waited, 30)
        mesh = await asyncio.to_thread(start_mesh, tmp_path / "data", base, "--no-simulation")

        async def has_delivered() -> bool:
            return events[-1].kind == "exported" and events[-1].waiting == 0

        await wait_until(has_delivered, 30)
        await asyncio.to_thread(mesh.stop)
        start = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - start < 4
