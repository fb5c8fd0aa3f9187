"""Configuration of the time-series service."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from openmanager.config import Size, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeseriesConfig:
    """The section `timeseries`."""

    data_dir: Path = setting(Path("data/timeseries"), "Folder of the log and the blocks.")
    engine: Literal["", "blocks"] = setting("", "Where history is read from; empty: `blocks`.")
    segment_size: Size = setting(Size(16 << 20), "The log begins a new segment after so many bytes.")
    log_retention: timedelta = setting(timedelta(hours=24), "Frames stay in the log at least this long.")
    log_max_size: Size = setting(Size(8 << 30), "The log never holds more; consumers that need more are cut loose.")
    log_max_share: float = setting(0.2, "The same, as a share of the volume; the smaller one counts.")
    ballast_size: Size = setting(Size(64 << 20), "Space kept back to be able to delete when the disk is full.")
    disk_reserve: Size = setting(Size(32 << 20), "Writes are refused while the volume has less free space than this.")
    head_size: Size = setting(Size(256 << 20), "Memory for recent samples; older ones are sealed into blocks.")
    seal_interval: timedelta = setting(timedelta(hours=1), "Recent samples are sealed into a block at most this late.")
    raw_retention: timedelta = setting(timedelta(days=14), "Raw samples older than this are refused and deleted.")
    future_limit: timedelta = setting(timedelta(minutes=10), "Samples further in the future than this are refused.")
    max_series: int = setting(1_000_000, "Series of one shard; samples of further ones are refused.")
    max_query_series: int = setting(10_000, "Series that one query may choose.")
    max_buckets: int = setting(11_000, "Buckets a series that one query may ask for.")
