"""What one sample, one series, one server and one process take: measured, each with the measurement it comes from.

`python -m bench plan` measures anew and holds the model against what it finds (docs/capacity.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

# How a part grows: split by servers; as copies that share calls and hold everything; or there is one of it.
Scales = Literal["split", "replicate", "single"]

NANOS, MIB = 1e-9, 2.0**20
IDLE = "bench plan, 20 servers, 27 November 2026"
FLEET = "bench plan, 20 to 1,000 servers, 27 November 2026"
LEARNT = "102,200 series watched for a week and stored, 1.46 KB each, 27 November 2026"
OTLP = "bench plan, exports of 511 points, 27 November 2026"
STEADY = "bench --history steady, 1,000 × 511 for 30 min, 26 November 2026"
AT_REST = "bench --history disk, standard series, 26 November 2026"
YEAR = "bench backfill, a year of 20 × 511, 25 November 2026"
LINES = "bench.victoriametrics, lines of the simulator's names, docs/decisions/0012"
INFLUX = "bench --history ingest, 26 November 2026, and docs/decisions/0013"
VICTORIA = "bench --history ingest and disk, 26 November 2026"
CONFIGURED = "the setting's default"


@dataclass(frozen=True, slots=True)
class Cost:
    """A figure, its unit, and where it was measured."""

    value: float
    unit: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What a part takes: each process of it at rest, and more for each sample a second, each series and each server."""

    scales: Scales
    idle_cores: Cost
    idle_memory: Cost
    cores_per_rate: Cost = Cost(0.0, "s/sample", FLEET)
    # More for a sample that comes by OTLP, in an export of one server's 511.
    otlp_per_rate: Cost = Cost(0.0, "s/sample", OTLP)
    cores_per_series: Cost = Cost(0.0, "cores/series", FLEET)
    cores_per_server: Cost = Cost(0.0, "cores/server", FLEET)
    memory_per_series: Cost = Cost(0.0, "B/series", FLEET)
    memory_per_server: Cost = Cost(0.0, "B/server", FLEET)
    idle_disk: Cost = Cost(0.0, "B", FLEET)
    disk_per_series: Cost = Cost(0.0, "B/series", FLEET)
    disk_per_server: Cost = Cost(0.0, "B/server", FLEET)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What an engine beside the blocks takes for a sample: there, here to write its lines, on the wire, on its disk."""

    cores_per_rate: Cost
    encode_per_rate: Cost
    line_bytes: Cost
    row_bytes: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCosts:
    """All of it."""

    processes: Mapping[str, Process]
    engines: Mapping[str, Engine]
    # Of a sample that comes by OTLP, on the wire.
    otlp_bytes: Cost
    # Of a frame, for each server and each metric in it, beside the doubles.
    server_bytes: Cost
    metric_bytes: Cost
    # Of a sample of hot state, on the way to Redis and to the gateways.
    hot_bytes: Cost
    # Of a row at rest, by tier.
    row_bytes: Mapping[str, Cost]


MEASURED = UnitCosts(
    processes=MappingProxyType(
        {
            "gateway": Process(
                scales="replicate",
                idle_cores=Cost(0.0023, "cores", IDLE),
                idle_memory=Cost(41 * MIB, "B", IDLE),
                cores_per_rate=Cost(55 * NANOS, "s/sample", FLEET),
                otlp_per_rate=Cost(22_000 * NANOS, "s/sample", OTLP),
                memory_per_series=Cost(75, "B/series", FLEET),
            ),
            "timeseries": Process(
                scales="split",
                idle_cores=Cost(0.0015, "cores", IDLE),
                # Itself 95 MiB, the head 256, what is being sealed as much again, the read cache 128.
                idle_memory=Cost((95 + 256 + 256 + 128) * MIB, "B", f"{IDLE}, and defaults of settings"),
                cores_per_rate=Cost(1331 * NANOS, "s/sample", STEADY),
                otlp_per_rate=Cost(7000 * NANOS, "s/sample", OTLP),
                memory_per_series=Cost(95, "B/series", FLEET),
            ),
            "cache": Process(
                scales="split",
                idle_cores=Cost(0.0035, "cores", IDLE),
                idle_memory=Cost(48 * MIB, "B", IDLE),
                cores_per_rate=Cost(340 * NANOS, "s/sample", FLEET),
                otlp_per_rate=Cost(4400 * NANOS, "s/sample", OTLP),
                memory_per_series=Cost(105, "B/series", FLEET),
            ),
            "analysis": Process(
                scales="split",
                idle_cores=Cost(0.0022, "cores", IDLE),
                idle_memory=Cost(61 * MIB, "B", IDLE),
                cores_per_rate=Cost(830 * NANOS, "s/sample", FLEET),
                otlp_per_rate=Cost(650 * NANOS, "s/sample", OTLP),
                cores_per_series=Cost(1.3e-7, "cores/series", FLEET),
                memory_per_series=Cost(2000, "B/series", f"{LEARNT}; names and alerts by estimate"),
                disk_per_series=Cost(2 * 1422, "B/series", f"{FLEET}; the file and its next"),
            ),
            "metadata": Process(
                scales="single",
                idle_cores=Cost(0.0029, "cores", IDLE),
                idle_memory=Cost(45 * MIB, "B", IDLE),
                cores_per_server=Cost(8.5e-6, "cores/server", FLEET),
                memory_per_server=Cost(4200, "B/server", FLEET),
            ),
            "redis": Process(
                scales="split",
                idle_cores=Cost(0.0008, "cores", IDLE),
                idle_memory=Cost(5 * MIB, "B", IDLE),
                cores_per_rate=Cost(30 * NANOS, "s/sample", FLEET),
                memory_per_series=Cost(9.8, "B/series", FLEET),
                # The append-only file is rewritten when it has doubled, and not before 64 MiB; the new one is beside it then.
                idle_disk=Cost(64 * MIB, "B", CONFIGURED),
                disk_per_series=Cost(3 * 8.84, "B/series", f"{FLEET}; 3 times the data"),
            ),
            "postgresql": Process(
                scales="single",
                idle_cores=Cost(0.0007, "cores", IDLE),
                idle_memory=Cost((30 + 64) * MIB, "B", f"{IDLE}, and the default of shared_buffers"),
                cores_per_server=Cost(1e-6, "cores/server", FLEET),
                idle_disk=Cost(47 * MIB, "B", IDLE),
                disk_per_server=Cost(284, "B/server", FLEET),
            ),
            "console": Process(
                scales="single",
                idle_cores=Cost(0.0007, "cores", IDLE),
                idle_memory=Cost(51 * MIB, "B", IDLE),
            ),
        }
    ),
    engines=MappingProxyType(
        {
            "victoriametrics": Engine(
                cores_per_rate=Cost(1100 * NANOS, "s/sample", LINES),
                encode_per_rate=Cost(116 * NANOS, "s/sample", LINES),
                line_bytes=Cost(57.9, "B/sample", LINES),
                row_bytes=Cost(1.70, "B/sample", VICTORIA),
            ),
            "influxdb": Engine(
                cores_per_rate=Cost(1730 * NANOS, "s/sample", INFLUX),
                encode_per_rate=Cost(95 * NANOS, "s/sample", INFLUX),
                line_bytes=Cost(57.9, "B/sample", LINES),
                row_bytes=Cost(math.nan, "B/sample", "not measured"),
            ),
        }
    ),
    otlp_bytes=Cost(51.7, "B/sample", OTLP),
    server_bytes=Cost(33, "B/server", FLEET),
    metric_bytes=Cost(42, "B/metric", FLEET),
    hot_bytes=Cost(8.8, "B/sample", FLEET),
    row_bytes=MappingProxyType(
        {
            "raw": Cost(1.30, "B/sample", AT_REST),
            # 2.3 GiB in 264.9 M buckets of 90 days, 1.0 GiB in 89.5 M buckets of a year.
            "5m": Cost(9.3, "B/bucket", YEAR),
            "1h": Cost(12.0, "B/bucket", YEAR),
        }
    ),
)
