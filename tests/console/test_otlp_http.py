"""OTLP by HTTP: what exporters send, in both forms, and what they must not."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from client.mesh import LocalMesh
from google.protobuf.json_format import MessageToJson
from google.rpc import status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from openmanager_console import otlp
from openmanager_console.wire import MAX_BODY_BYTES, Budget
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from console.served import PROTOBUF, Console, serving
from openmanager.client import Client
from openmanager.errors import InvalidArgumentError, ResourceExhaustedError

JSON = {"Content-Type": "application/json"}
PATH = "/v1/metrics"


@pytest.fixture
async def client(local: LocalMesh) -> AsyncIterator[Client]:
    async with Client(local.gateway) as made:
        yield made


def export(
    *values: float, host: str = "host-1", name: str = "queue.length", time: int | None = None
) -> ExportMetricsServiceRequest:
    found = ExportMetricsServiceRequest()
    each = found.resource_metrics.add()
    if host:
        attribute = each.resource.attributes.add(key="host.id")
        attribute.value.string_value = host
    metric = each.scope_metrics.add().metrics.add(name=name, unit="1")
    now = int(datetime.now(UTC).timestamp() * 1e9)
    for at, value in enumerate(values):
        metric.gauge.data_points.add(time_unix_nano=time if time is not None else now - at * 10**9, as_double=value)
    return found


async def stored(client: Client, server: str, metric: str) -> list[float]:
    """Return the samples of the last minute."""
    found = await client.query_range([metric], servers=[server], start=datetime.now(UTC) - timedelta(minutes=1))
    return [value for each in found.raw for value in each.values.tolist()]


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
async def test_the_exporter_of_the_sdk_delivers(console: Console, client: Client, compression):
    exporter = OTLPMetricExporter(endpoint=console.url + PATH, compression=compression, timeout=5)
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
    provider = MeterProvider([reader], resource=Resource({"host.id": "sdk-host", "service.name": "shop"}))
    provider.get_meter("test").create_counter("orders").add(3, {"kind": "book"})
    delivered = await asyncio.to_thread(provider.force_flush)
    await asyncio.to_thread(provider.shutdown)
    assert delivered
    found = [each async for each in client.list_series(servers=["sdk-host"])]
    assert [(each.metric.partition("{")[0], each.info.unit) for each in found] == [("orders", "")]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("kind", ["protobuf", "json"])
async def test_both_forms_are_taken_packed_or_not(console: Console, client: Client, kind, pack):
    request = export(1.5, 2.5)
    body = request.SerializeToString() if kind == "protobuf" else MessageToJson(request).encode()
    headers = {**(PROTOBUF if kind == "protobuf" else JSON), **({} if pack is bytes else {"Content-Encoding": "gzip"})}
    status, reply, told = await console.ask("POST", PATH, data=pack(body), headers=headers)
    assert (status, reply) == (200, b"" if kind == "protobuf" else {})
    assert told["Content-Type"] == headers["Content-Type"]
    assert sorted(await stored(client, "host-1", "queue.length")) == [1.5, 2.5]


async def test_json_as_sdks_write_it_is_read(console: Console, client: Client):
    """Integers as texts or numbers, enums as numbers, ids in hexadecimal, and fields that we do not know."""
    now = str(int(datetime.now(UTC).timestamp() * 1e9))
    exemplar = {
        "asDouble": 1,
        "timeUnixNano": now,
        "spanId": "eee19b7ec3c1b174",
        "traceId": "5b8efff798038103d269b633813fc60c",
    }
    point = {"timeUnixNano": now, "asInt": "7", "exemplars": [exemplar], "novelty": {"deep": [1]}}
    metric = {"name": "jobs", "sum": {"dataPoints": [point], "aggregationTemporality": 2, "isMonotonic": True}}
    body = {
        "resourceMetrics": [
            {
                "resource": {"attributes": [{"key": "host.id", "value": {"stringValue": "js"}}]},
                "scopeMetrics": [{"scope": {"name": "x"}, "metrics": [metric]}],
            }
        ]
    }
    headers = {"Content-Type": "application/json; charset=utf-8"}
    status, reply, _ = await console.ask("POST", PATH, data=json.dumps(body), headers=headers)
    assert (status, reply) == (200, {})
    assert await stored(client, "js", "jobs") == [7.0]


@pytest.mark.parametrize("kind", ["protobuf", "json"])
async def test_what_is_not_taken_is_told_as_partial_success(console: Console, kind):
    request = export(1.0, host="")
    body = request.SerializeToString() if kind == "protobuf" else MessageToJson(request).encode()
    status, reply, _ = await console.ask("POST", PATH, data=body, headers=PROTOBUF if kind == "protobuf" else JSON)
    assert status == 200
    if kind == "protobuf":
        partial = ExportMetricsServiceResponse.FromString(reply).partial_success
        assert (partial.rejected_data_points, partial.error_message[:10]) == (1, "a resource")
    else:
        assert reply["partialSuccess"]["rejectedDataPoints"] == "1"


def bomb() -> bytes:
    return gzip.compress(bytes(64 * 1024 * 1024))


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (415, b"x", {"Content-Type": "text/plain"}),
        (415, b"x", {"Content-Type": "application/x-www-form-urlencoded"}),
        (400, b"\xff\xff\xff", PROTOBUF),
        (400, b"{", JSON),
        (400, b"[1]", JSON),
        (400, b"null", JSON),
        (400, b'{"resourceMetrics": [{"resource": 7}]}', JSON),
        (400, b"[" * 100_000, JSON),
        (400, b'{"resourceMetrics":' * 3000, JSON),
        (400, b'{"a":' + b"9" * 5000 + b"}", JSON),
        (400, b"\xff\xfe", JSON),
        (400, b"no gzip", {**PROTOBUF, "Content-Encoding": "gzip"}),
        (400, gzip.compress(b"x" * 1000, mtime=0)[:-12], {**PROTOBUF, "Content-Encoding": "gzip"}),
        (400, b"x", {**PROTOBUF, "Content-Encoding": "br"}),
        (413, bytes(MAX_BODY_BYTES + 1), PROTOBUF),
        (413, bomb(), {**PROTOBUF, "Content-Encoding": "gzip"}),
    ],
)
async def test_what_is_no_export_is_refused_with_a_status_in_its_form(console: Console, status, body, headers):
    found, reply, told = await console.ask(
        "POST", PATH, data=io.BytesIO(body), headers=headers, skip_auto_headers=["Content-Type"]
    )
    assert found == status
    if told["Content-Type"].startswith("application/json"):
        message = reply["message"]
    else:
        message = status_pb2.Status.FromString(reply).message
    assert message
    assert "Traceback" not in message
    assert (await console.ask("GET", "/healthz"))[0] == 200


async def test_a_body_that_grows_beyond_its_limit_is_refused_as_it_comes(console: Console):
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(80):
            yield bytes(65536)

    found, _, _ = await console.ask("POST", PATH, data=endless(), headers=PROTOBUF)
    assert found == 413


async def test_a_gateway_that_is_away_is_to_be_tried_again(lonely: Console):
    status, reply, told = await lonely.ask("POST", PATH, data=export(1.0).SerializeToString(), headers=PROTOBUF)
    assert (status, int(told["Retry-After"]) >= 1) == (503, True)
    assert status_pb2.Status.FromString(reply).message == "the gateway cannot be reached"


async def test_a_key_that_nobody_has_is_refused_as_by_grpc(console: Console):
    # metadata, who would know keys, is away in this mesh; a credential in a wrong form is refused at once.
    headers = {**PROTOBUF, "Authorization": "Basic YTpi"}
    status, reply, _ = await console.ask("POST", PATH, data=export(1.0).SerializeToString(), headers=headers)
    assert (status, status_pb2.Status.FromString(reply).code) == (401, 16)


def test_bodies_share_their_memory_and_give_it_back():
    budget = Budget(100)
    with budget.account() as one, budget.account() as other:
        one.take(60)
        with pytest.raises(ResourceExhaustedError):
            other.take(50)
        other.take(40)
    with budget.account() as third:
        third.take(100)


async def test_more_than_memory_allows_is_to_be_tried_again(local: LocalMesh, monkeypatch):
    monkeypatch.setattr("openmanager_console.service.BODY_BUDGET", 1000)
    async with serving(local.gateway) as made:
        status, _, _ = await made.ask("POST", PATH, data=bytes(2000), headers=PROTOBUF)
        assert status == 429
        status, _, _ = await made.ask("POST", PATH, data=export(1.0).SerializeToString(), headers=PROTOBUF)
        assert status == 200


@settings(max_examples=60)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["resourceMetrics", "resource", "scopeMetrics", "metrics", "gauge", "dataPoints", "asInt", "x"]
                ),
                inner,
                max_size=3,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_an_export_or_refused(found):
    with contextlib.suppress(InvalidArgumentError):
        ExportMetricsServiceRequest.FromString(otlp.from_json(json.dumps(found).encode()))
