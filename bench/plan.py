"""Rows that hold the model of `openmanager plan` against what is measured here: each within a quarter of the other."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

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
MINUTES = 3.0


def rows() -> Iterator[Row]:
    """Measure, and compare with the model."""
    for servers in FLEETS:
        yield from _fleet(servers)
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


# What a Redis without data says that it uses.
REDIS_IDLE_BYTES = 1.27e6


def _history() -> Iterator[Row]:
    """Send ten times what 1,000 servers send, so that sealing, rolling up and merging are in a few minutes of it."""
    found, unit = history_fleet.loaded(MINUTES, 1.0), MEASURED.processes["timeseries"]
    load = Workload(servers=history_fleet.SERVERS)
    shape = f"{load.servers:,} servers × {load.metrics} every second for {MINUTES:g} min"
    expected = unit.idle_cores.value + 10 * used("timeseries", unit, load)[0]
    yield _row(f"{shape}: CPU of timeseries, with blocks and tiers", expected, found.cpu, 100, "% of a core")
    memory = unit.idle_memory.value + used("timeseries", unit, load)[1] - READ_CACHE_BYTES
    yield _row(f"{shape}: most memory of timeseries, nobody reading", memory, found.peak, 2.0**-20, "MiB")


READ_CACHE_BYTES = 128 * 2**20


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
        int(each["size_bytes"]) for service in status["services"] for each in service["storages"] if each["name"] == store
    )
