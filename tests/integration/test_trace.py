"""One trace from a client over every hop to log, Redis and PostgreSQL; and no cost from a collector that hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import free_ports, start_mesh, wait_until
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.frame import Frame, ServerInfo, encode_write_request
from openmanager.runtime.peer import Peer

WRITE = "/openmanager.api.gateway.v1.GatewayService/WriteFrame"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACE_PARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


class Collector(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """A collector that keeps what it gets, or hangs."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str, str]] = []  # trace id, service, name
        self.metrics: set[str] = set()
        # The newest value of each: service, name, attributes.
        self.points: dict[tuple[str, str, frozenset[tuple[str, str]]], float] = {}
        self.hangs = False

    async def Export(self, request, context):
        if self.hangs:
            await asyncio.sleep(60)
        if isinstance(request, metrics_service_pb2.ExportMetricsServiceRequest):
            for resource in request.resource_metrics:
                service = names_of(resource.resource.attributes)["service.name"]
                for metric in (each for scope in resource.scope_metrics for each in scope.metrics):
                    self.metrics.add(metric.name)
                    for point in (*metric.gauge.data_points, *metric.sum.data_points):
                        place = service, metric.name, frozenset(names_of(point.attributes).items())
                        self.points[place] = point.as_double or point.as_int
            return metrics_service_pb2.ExportMetricsServiceResponse()
        for resource in request.resource_spans:
            names = names_of(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [(span.trace_id.hex(), names["service.name"], span.name) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def of(self, name: str, **attributes: str) -> dict[str, float]:
        """Return the newest values of a metric by service, those with some attributes added up."""
        wanted, found = {(key.replace("_", "."), value) for key, value in attributes.items()}, {}
        for (service, metric, about), value in self.points.items():
            if metric == name and wanted <= about:
                found[service] = found.get(service, 0) + value
        return found


def names_of(attributes) -> dict[str, str]:
    return {each.key: each.value.string_value for each in attributes}


@asynccontextmanager
async def collecting() -> AsyncIterator[tuple[Collector, str]]:
    collector = Collector()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        await server.stop(0)


def frame(server: str) -> bytes:
    now = time.time_ns() // 10**6 * 10**6
    return encode_write_request(
        Frame(
            times=np.array([now]),
            servers=(server,),
            metrics=("cpu_usage",),
            values=np.array([[[12.5]]]),
            server_infos=(ServerInfo(id=server, role="web"),),
        )
    )


async def is_measured(collector: Collector) -> bool:
    """Say whether the books of the log and the breakers have come, and say that all is well."""
    service = "openmanager-timeseries"
    for name in ("head", "registrar", "cache"):
        about = {"openmanager_consumer_name": name}
        delivered = collector.of("openmanager.consumer.samples", openmanager_sample_fate="delivered", **about)
        every = collector.of("openmanager.consumer.samples", **about)
        if (delivered, every) != ({service: 1}, {service: 1}):
            return False
        if collector.of("openmanager.consumer.position", **about) != {service: 1}:
            return False
    ok = collector.of("openmanager.consumer.status", openmanager_consumer_name="head", openmanager_state="ok")
    if ok != {service: 1} or "openmanager.consumer.lag" not in collector.metrics:
        return False
    closed = {"openmanager-cache": 0, "openmanager-gateway": 0, "openmanager-metadata": 0}
    return collector.of("openmanager.breaker.open") == closed


@pytest.mark.timeout(90)
async def test_a_write_is_one_trace_from_client_to_log_redis_and_postgresql(tmp_path: Path):
    async with collecting() as (collector, endpoint):
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
        }
        base = free_ports()
        mesh = await asyncio.to_thread(
            lambda: start_mesh(tmp_path / "data", base, "--no-simulation", environment=environment)
        )
        try:
            async with Peer("gateway", mesh.gateway) as peer:
                reply = await peer.unary_bytes(
                    WRITE, frame("traced-1"), seconds=5, metadata=(("traceparent", TRACE_PARENT),)
                )
            assert gateway_pb2.WriteFrameResponse.FromString(reply).ack.accepted_sample_count == 1
            wanted = {
                ("openmanager-gateway", "openmanager.api.gateway.v1.GatewayService/WriteFrame"),
                ("openmanager-timeseries", "openmanager.api.timeseries.v1.TimeseriesService/WriteFrame"),
                ("openmanager-timeseries", "openmanager.log append"),
                ("openmanager-cache", "redis SET"),
                ("openmanager-metadata", "openmanager.api.metadata.v1.ServerService/RegisterServers"),
            }

            def seen() -> set[tuple[str, str]]:
                return {(service, name) for trace, service, name in collector.spans if trace == TRACE_ID}

            async def complete() -> bool:
                postgresql = any(
                    service == "openmanager-metadata" and name.startswith("postgresql") for service, name in seen()
                )
                return wanted <= seen() and postgresql and "rpc.server.call.duration" in collector.metrics

            await wait_until(complete, 20)
            await wait_until(lambda: is_measured(collector), 20)
            collector.hangs = True
            start = time.perf_counter()
            async with Peer("gateway", mesh.gateway) as peer:
                for _ in range(20):
                    await peer.unary_bytes(WRITE, frame("traced-1"), seconds=5)
            assert time.perf_counter() - start < 2
        finally:
            seconds = await asyncio.to_thread(mesh.stop)
        assert seconds < 12


@pytest.mark.parametrize("header", ["garbage", "00-" + "f" * 4_000, "00-0-0-00", "ff-" + TRACE_PARENT[3:]])
async def test_a_malformed_trace_header_is_ignored(gateway: Peer, header: str):
    await gateway.unary_bytes(WRITE, frame("traced-2"), seconds=5, metadata=(("traceparent", header),))
