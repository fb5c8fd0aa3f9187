"""What a page asks for: a server, its history, what is expected of it, what was unlike it, and what was done to it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import numpy as np

from openmanager.api.analysis.v1 import analysis_pb2
from openmanager.api.frame.v1 import frame_pb2
from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.server.v1 import server_pb2
from openmanager.api.simulator.v1 import simulator_pb2
from openmanager.client import Client, MetricInfo, RangeResult, history, rpc
from openmanager.client.analysis import ANALYSIS_SECONDS
from openmanager.errors import NotFoundError, invalid, missing
from openmanager.frame import NANOS_PER_MILLI
from openmanager_console.wire import as_dict

MAX_BUCKETS = 2_000
MAX_FORECAST_POINTS = 200
MAX_ENTRIES = 200
MAX_SERIES = 1_000
# 2200-01-01 in milliseconds, so that nothing overflows on its way.
MAX_MILLIS = 7_258_118_400_000

Query = Mapping[str, str]


async def server(client: Client, server_id: str) -> dict[str, Any]:
    """Return a server with its metrics: key, newest value, unit and kind of each."""
    request = gateway_pb2.GetServerRequest(id=server_id, view=server_pb2.VIEW_FULL)
    reply = await client.rpc.call(rpc.GET_SERVER, request)
    series = [each async for each in client.list_series(servers=[server_id], limit=MAX_SERIES)]
    infos = {each.metric: each.info for each in series}
    about = reply.server
    values = np.asarray(about.values, np.float64).tolist()
    metrics = [
        [key, None if math.isnan(value) else value, *_unit_and_kind(infos.get(key))]
        for key, value in zip(about.metrics, values, strict=True)
    ]
    del about.metrics[:], about.values[:]
    return {"server": as_dict(about), "metrics": metrics, "provenance": as_dict(reply.provenance)}


def _unit_and_kind(info: MetricInfo | None) -> tuple[str, str]:
    if info is None:
        return "", ""
    return info.unit, frame_pb2.MetricKind.Name(info.kind).removeprefix("METRIC_KIND_")  # type: ignore[arg-type]


async def chart(client: Client, query: Query) -> dict[str, Any]:
    """Return buckets of one series, as columns: their means, least and greatest; a counter's growth a second instead."""
    server_id, metric = _text(query, "server"), _text(query, "metric")
    start, end, step = (_integer(query, name, MAX_MILLIS) for name in ("start", "end", "step"))
    if not start < end:
        raise invalid("end", "must be after start")
    if step < 1 or (end - start) / step > MAX_BUCKETS:
        raise invalid("step", f"must be positive, and make at most {MAX_BUCKETS:,} buckets")
    wanted = ("RATE",) if query.get("kind") == "COUNTER" else ("MEAN", "MIN", "MAX")
    found = await asyncio.gather(
        *(
            client.query_range(
                [metric],
                servers=[server_id],
                start=start * NANOS_PER_MILLI,
                end=end * NANOS_PER_MILLI,
                step=timedelta(milliseconds=step),
                aggregation=each,
            )
            for each in wanted
        )
    )
    values = [_only(each, metric) for each in found]
    about = found[0].provenance
    return {
        "times": found[0].times / 1e9,
        **dict(zip(("mean", "low", "high"), values, strict=False)),
        "provenance": {"source": about.source, "tier": about.tier, "degraded": about.degraded, "reason": about.reason},
    }


def _only(found: RangeResult, metric: str) -> Any:
    if not found.series:
        raise NotFoundError("there are no samples of this metric", resource=f"metric/{metric}")
    return found.values[0]


async def forecast(client: Client, query: Query) -> dict[str, Any]:
    """Return what is expected of a series, as columns, and when it reaches its limit."""
    chosen = history.selector([_text(query, "metric")], [_text(query, "server")], "")
    request = analysis_pb2.ForecastCapacityRequest(
        selector=chosen, limit=_number(query, "limit"), max_point_count=MAX_FORECAST_POINTS
    )
    request.horizon.FromTimedelta(timedelta(hours=_integer(query, "hours", 366 * 24)))
    reply = await client.rpc.call(rpc.FORECAST_CAPACITY, request, seconds=ANALYSIS_SECONDS)
    if not reply.forecasts:
        raise NotFoundError("there is no forecast of this metric", resource=f"metric/{query['metric']}")
    found = reply.forecasts[0]
    columns = {
        name: [getattr(point, name) for point in found.points]
        for name in ("median", "low_80", "high_80", "low_95", "high_95")
    }
    times = [point.time.ToNanoseconds() / 1e9 for point in found.points]
    del found.points[:]
    return {"times": times, **columns, "forecast": as_dict(found)}


async def anomalies(client: Client, server_id: str, query: Query) -> dict[str, Any]:
    """Return the anomalies of a server that end after `start`, newest first."""
    request = analysis_pb2.ListAnomaliesRequest(page_size=MAX_ENTRIES, filter=f"server = {_quoted(server_id)}")
    request.start_time.FromMilliseconds(_integer(query, "start", MAX_MILLIS))
    reply = await client.rpc.call(rpc.LIST_ANOMALIES, request)
    return {"anomalies": [as_dict(each) for each in reply.anomalies]}


async def faults(client: Client, server_id: str, query: Query) -> dict[str, Any]:
    """Return the simulated faults of a server that end after `start`, newest first."""
    request = simulator_pb2.ListFaultsRequest(page_size=1000)
    request.start_time.FromMilliseconds(_integer(query, "start", MAX_MILLIS))
    reply = await client.rpc.call(rpc.LIST_FAULTS, request)
    hit = [each for each in reply.faults if server_id in each.servers][:MAX_ENTRIES]
    return {"faults": [as_dict(each) for each in hit]}


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _text(query: Query, name: str) -> str:
    found = query.get(name, "")
    if not found:
        raise missing(name)
    return found


def _integer(query: Query, name: str, most: int) -> int:
    text = _text(query, name)
    if not text.isascii() or not text.isdigit() or len(text) > 15 or int(text) > most:
        raise invalid(name, f"must be a whole number, {most} at most")
    return int(text)


def _number(query: Query, name: str) -> float:
    try:
        found = float(_text(query, name))
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise invalid(name, "must be a number")
    return found
