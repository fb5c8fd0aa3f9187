"""Rows that hold the model of `openmanager plan` against what is measured here: each within a quarter of the other."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from bench import history_fleet, local
from bench.footprint import SETTLE_SECONDS, Mesh, running
from bench.pair import Row
from openmanager.capacity import Workload, used
from openmanager.unit_cost import MEASURED

FLEETS = (20, 200, 1000)
# The analysis stores what it has learnt once a minute.
SECONDS = 60.0
# Of a small part a tick more or less is much: what counts is what it does to the whole.
PARTS = ("gateway", "cache", "analysis", "metadata")
LOW, HIGH = 0.75, 1.25
EXPORT = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
# New series are rationed: 10,000 a minute.
EXPORTERS, EXPORTS, POINTS = 15, 600, 511
# Of timeseries for a sample in a frame of many servers, without what becomes of it afterwards.
WRITE_SECONDS = 50e-9
# What a Redis without data says that it uses.
REDIS_IDLE_BYTES = 1.27e6
READ_CACHE_BYTES = 128 * 2**20
MINUTES = 3.0


def rows() -> Iterator[Row]:
    """Measure, and compare with the model."""
    for servers in FLEETS:
        yield from _fleet(servers)
    yield from _otlp()
    yield from _history()
    size = float(local.block()[0].ours.split()[0])
    yield _row("bytes a sample at rest", MEASURED.row_bytes["raw"].value, size, 1, "B")


def _fleet(servers: int) -> Iterator[Row]:
    load = Workload(servers=servers)
    with running(servers) as mesh:
        time.sleep(SETTLE_SECONDS)
        cores, taken = mesh.spent(SECONDS)
        redis = _size(_status(mesh), "redis")
    shape = f"{servers:,} servers × {load.metrics} every 10 s"
    expected = {name: unit.idle_cores.value + used(name, unit, load)[0] for name, unit in MEASURED.processes.items()}
    for name in PARTS:
        yield _row(f"{shape}: CPU of {name}", expected[name], cores[name], 100, "% of a core")
    yield _row(
        f"{shape}: CPU of these four and of PostgreSQL and Redis",
        sum(expected[name] for name in (*PARTS, "postgresql", "redis")),
        sum(cores[name] for name in (*PARTS, "postgresql", "redis")),
        100,
        "% of a core",
    )
    unit = MEASURED.processes
    yield _row(f"{shape}: memory of the data in Redis", _redis(load), redis, 2.0**-20, "MiB")
    for name in ("gateway", "cache"):
        memory = unit[name].idle_memory.value + used(name, unit[name], load)[1]
        yield _row(f"{shape}: memory of {name}", memory, taken[name].pss, 2.0**-20, "MiB")


def _redis(load: Workload) -> float:
    return REDIS_IDLE_BYTES + load.series * MEASURED.hot_bytes.value


def _history() -> Iterator[Row]:
    """Send ten times what 1,000 servers send, so that sealing, rolling up and merging are in a few minutes of it."""
    found, unit = history_fleet.loaded(MINUTES, 1.0), MEASURED.processes["timeseries"]
    load = Workload(servers=history_fleet.SERVERS)
    shape = f"{load.servers:,} servers × {load.metrics} every second for {MINUTES:g} min"
    expected = unit.idle_cores.value + 10 * used("timeseries", unit, load)[0]
    # Minutes hold a few seals and hardly a merge: half an hour took what the model has (docs/performance.md).
    name = f"{shape}: CPU of timeseries, with blocks and tiers"
    ratio = found.cpu / expected
    shown = [f"{value:.3g} cores" for value in (found.cpu, expected)]
    yield Row(name, shown[0], shown[1], ratio, f"≤ {HIGH:g}", ratio <= HIGH)
    memory = unit.idle_memory.value + used("timeseries", unit, load)[1] - READ_CACHE_BYTES
    yield _row(f"{shape}: most memory of timeseries, nobody reading", memory, found.peak, 2.0**-20, "MiB")


def _otlp() -> Iterator[Row]:
    """Send exports of one server each, as agents do, and see what they cost every part."""
    with running(1) as mesh:
        asyncio.run(_export(mesh.gateway, EXPORTERS))
        before, begin = mesh.used(), time.monotonic()
        count = asyncio.run(_export(mesh.gateway, EXPORTS))
        time.sleep(2.0)
        after, elapsed = mesh.used(), time.monotonic() - begin
    for name in ("gateway", "timeseries", "cache", "analysis"):
        unit = MEASURED.processes[name]
        # Nothing is sealed or stored in these seconds.
        usual = WRITE_SECONDS if name == "timeseries" else unit.cores_per_rate.value
        found = (after[name].cpu - before[name].cpu - elapsed * unit.idle_cores.value) / count
        yield _row(
            f"an export of {POINTS} points: CPU of {name} a point", usual + unit.otlp_per_rate.value, found, 1e9, "ns"
        )
    size = len(_request("exporter-0", time.time_ns())) / POINTS
    yield _row(f"an export of {POINTS} points: bytes a point", MEASURED.otlp_bytes.value, size, 1, "B")


async def _export(gateway: str, count: int) -> int:
    """Export so often, from EXPORTERS servers in turn, four at a time; return how many points were sent."""
    room = asyncio.Semaphore(4)
    async with grpc.aio.insecure_channel(gateway) as channel:
        call = channel.unary_unary(EXPORT)

        async def one(which: int) -> None:
            async with room:
                await call(_request(f"exporter-{which % EXPORTERS}", time.time_ns()), timeout=30)

        await asyncio.gather(*(one(each) for each in range(count)))
    return count * POINTS


def _request(server: str, now: int) -> bytes:
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    for key in ("host.id", "host.name", "service.instance.id"):
        resource.resource.attributes.add(key=key).value.string_value = server
    scope = resource.scope_metrics.add()
    for at in range(POINTS):
        if at % 16 == 0:
            metric = scope.metrics.add(name=f"system.metric.of{at // 16}", unit="1")
        point = metric.gauge.data_points.add(time_unix_nano=now, as_double=12.34 + at)
        point.attributes.add(key="cpu").value.string_value = str(at % 16)
        point.attributes.add(key="state").value.string_value = "user"
    return request.SerializeToString()


def _row(name: str, model: float, found: float, scale: float, unit: str) -> Row:
    ratio = found / model
    shown = [f"{value * scale:.3g} {unit}" for value in (found, model)]
    return Row(name, shown[0], shown[1], ratio, "0.75–1.25", LOW <= ratio <= HIGH)


def _status(mesh: Mesh) -> Mapping[str, Any]:
    command = [sys.executable, "-m", "openmanager.cli", "--gateway", mesh.gateway, "status", "--json"]
    found: Mapping[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=30).stdout)
    return found


def _size(status: Mapping[str, Any], store: str) -> int:
    return next(
        int(each["size_bytes"])
        for service in status["services"]
        for each in service["storages"]
        if each["name"] == store
    )
