"""Configuration of the time-series service."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from openmanager.config import Secret, Size, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeseriesConfig:
    """The section `timeseries`."""

    data_dir: Path = setting(Path("data/timeseries"), "Folder of the log and the blocks.")
    engine: Literal["", "blocks", "influxdb", "victoriametrics"] = setting(
        "", "Where raw history is kept beside our blocks and read first; empty: by the URL that is set, else `blocks`."
    )
    influxdb_url: str = setting("", "Where InfluxDB 2.x is: http://host:8086.", env="INFLUXDB_URL")
    influxdb_token: Secret = setting(
        Secret(""), "Token that may write, read and make the bucket.", env="INFLUXDB_TOKEN"
    )
    influxdb_org: str = setting("openmanager", "Organisation of the bucket.", env="INFLUXDB_ORG")
    influxdb_bucket: str = setting("metrics", "Bucket; made when it does not exist.", env="INFLUXDB_BUCKET")
    victoriametrics_write_url: str = setting(
        "",
        "Where VictoriaMetrics takes writes; of a cluster the URL up to the tenant.",
        env="VICTORIAMETRICS_WRITE_URL",
    )
    victoriametrics_read_url: str = setting(
        "", "Where VictoriaMetrics is asked; empty: where it takes writes.", env="VICTORIAMETRICS_READ_URL"
    )
    engine_write_timeout: timedelta = setting(timedelta(seconds=2), "How long one write to an engine may take.")
    engine_query_timeout: timedelta = setting(timedelta(seconds=3), "How long one query of an engine may take.")
    segment_size: Size = setting(Size(64 << 20), "The log begins a new segment after so many bytes.")
    log_retention: timedelta = setting(timedelta(hours=24), "Frames stay in the log at least this long.")
    log_max_size: Size = setting(Size(8 << 30), "The log never holds more; consumers that need more are cut loose.")
    log_max_share: float = setting(0.2, "The same, as a share of the volume; the smaller one counts.")
    ballast_size: Size = setting(Size(64 << 20), "Space kept back to be able to delete when the disk is full.")
    disk_reserve: Size = setting(Size(32 << 20), "Writes are refused while the volume has less free space than this.")
    head_size: Size = setting(Size(256 << 20), "Memory for recent samples; older ones are sealed into blocks.")
    read_cache_size: Size = setting(Size(128 << 20), "Memory for what is read of blocks and tiers again and again.")
    seal_interval: timedelta = setting(timedelta(hours=1), "Recent samples are sealed into a block at most this late.")
    raw_retention: timedelta = setting(timedelta(days=14), "Raw samples older than this are refused and deleted.")
    tiers: str = setting(
        "5m:90d,1h:1825d", "Rollup tiers as width:retention, the finest first, each a multiple of the one before."
    )
    sketch_metrics: str = setting(
        "cpu_usage,memory_usage,response_time",
        "Metrics, names or globs, whose percentiles outlive raw samples, in sketches; empty: none.",
    )
    disk_budget: Size = setting(Size(0), "Disk that blocks and tiers may take; 0: what the volume has.")
    future_limit: timedelta = setting(timedelta(minutes=10), "Samples further in the future than this are refused.")
    max_series: int = setting(1_000_000, "Series of one shard; samples of further ones are refused.")
    max_new_series: int = setting(
        10_000, "New series that OTLP exporters may bring in a minute; samples of further ones are refused."
    )
    max_queries: int = setting(64, "Range queries of a caller under way at once; more: TOO_MANY_QUERIES.")
    max_query_series: int = setting(10_000, "Series that one query may choose.")
    max_buckets: int = setting(11_000, "Buckets a series that one query may ask for.")
