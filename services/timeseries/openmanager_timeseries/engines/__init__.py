"""Engines: stores of raw history beside our blocks."""

from __future__ import annotations

from openmanager.errors import ConfigurationError
from openmanager.shard import ALONE, Shard
from openmanager_timeseries.config import TimeseriesConfig
from openmanager_timeseries.engines.port import MARKER, Engine


def chosen(config: TimeseriesConfig) -> str:
    """Return the name of the engine that is configured, `blocks` for none; ConfigurationError when it has no address."""
    urls = {"influxdb": config.influxdb_url, "victoriametrics": config.victoriametrics_write_url}
    name: str = config.engine or next((name for name, url in urls.items() if url), "blocks")
    if name in urls and not urls[name]:
        variable = "INFLUXDB_URL" if name == "influxdb" else "VICTORIAMETRICS_WRITE_URL"
        raise ConfigurationError(f"timeseries.engine is {name}, and {variable} does not say where it is")
    return name


def open_engine(config: TimeseriesConfig, name: str = "", shard: Shard = ALONE) -> Engine | None:
    """Return the engine of a name, by default the configured one; None for `blocks`. It connects when it is used.

    Shards may share a store: their series are different ones, and each has a marker of its own.
    """
    marker = MARKER if shard.count == 1 else f"{MARKER}_{shard.index}_of_{shard.count}"
    match name or chosen(config):
        case "influxdb":
            from openmanager_timeseries.engines.influxdb import InfluxEngine

            return InfluxEngine(
                url=config.influxdb_url,
                token=config.influxdb_token,
                org=config.influxdb_org,
                bucket=config.influxdb_bucket,
                retention=config.raw_retention,
                write_timeout=config.engine_write_timeout,
                query_timeout=config.engine_query_timeout,
                marker=marker,
            )
        case "victoriametrics":
            from openmanager_timeseries.engines.victoriametrics import VictoriaEngine

            return VictoriaEngine(
                write_url=config.victoriametrics_write_url,
                read_url=config.victoriametrics_read_url or config.victoriametrics_write_url,
                write_timeout=config.engine_write_timeout,
                query_timeout=config.engine_query_timeout,
                marker=marker,
            )
    return None
