"""Every limit of the contract: what is just within it is not refused for it, what is one more is, by its reason."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from conftest import Mesh
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from openmanager_gateway import router
from openmanager_timeseries.quota import QuerySlots
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2

from contract.answer import answer, ask
from contract.rpc import METHODS, Method
from fuzz.local import Context, LocalPeer
from fuzz.mesh import open_mesh
from openmanager.api.analysis.v1 import alert_pb2
from openmanager.api.cache.v1 import cache_pb2
from openmanager.api.metadata.v1 import interaction_pb2, metadata_pb2
from openmanager.api.simulator.v1 import simulator_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.errors import DeadlineExceededError, ResourceExhaustedError
from openmanager.frame import Frame, encode_write_request
from openmanager.runtime.breaker import Breaker
from openmanager.runtime.clock import SystemClock

pytestmark = pytest.mark.asyncio(loop_scope="module")
NOWHERE = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}


@dataclass(frozen=True)
class Limit:
    """How a request is made of a size, the largest that may be, and what is answered to one more."""

    method: str
    request: Any
    largest: int
    field: str
    code: str = "INVALID_ARGUMENT"
    reason: str = "INVALID_FIELD"
    # Whether what is within the limit is asked for too: some of it would take long.
    tried: bool = True


def entry(**fields: Any) -> Message:
    return cache_pb2.SetEntryRequest(**{"namespace": "limits", "key": "k", "value": b"x", **fields})


def ttl(millis: int) -> Message:
    request = entry()
    request.ttl.FromMilliseconds(millis)
    return request


def update(**fields: Any) -> Message:
    """Of a server that does not exist: what is within the limits is not found."""
    request = metadata_pb2.UpdateServerRequest(server=metadata_pb2.Server(id="limits-nobody", **fields))
    request.update_mask.paths.extend(fields)
    return request


def mask(count: int) -> Message:
    request = update(hostname="x")
    request.update_mask.paths.extend(["hostname"] * (count - 1))
    return request


def document(size: int) -> Message:
    """Of a fault that was changed in between: what is within the limits is aborted."""
    request = metadata_pb2.UpdatePolicyRequest(policy=metadata_pb2.Policy(kind="fault", id="limits", etag="v9"))
    known = {"id": "x", "pattern": "x", "start_nanos": "0", "end_nanos": "1", "seed": "1", "severity": 1, "more": ""}
    request.policy.document.update(known | {"servers": ["a"]})
    request.policy.document["more"] = "x" * (size - len(json.dumps(MessageToDict(request.policy.document))))
    return request


def interaction(**fields: Any) -> Message:
    return interaction_pb2.CreateInteractionRequest(interaction={"session_id": "limits", "query": "q", **fields})


def asked(**fields: Any) -> Message:
    return interaction_pb2.ListInteractionsRequest(**{"filter": "session_id = limits", **fields})


def span(seconds: int) -> Message:
    request = interaction_pb2.GetInteractionStatisticsRequest(step={"seconds": 1}, filter="session_id = limits")
    request.start_time.FromSeconds(1_700_000_000)
    request.end_time.FromSeconds(1_700_000_000 + seconds)
    return request


def frame(*, server: str = "limits", metric: str = "x") -> bytes:
    """Without samples: names are checked and nothing is kept."""
    return encode_write_request(
        Frame(times=np.array([10**18]), servers=(server,), metrics=(metric,), values=np.full((1, 1, 1), np.nan))
    )


def attributes(count: int) -> bytes:
    return frame(metric=f"x{{{','.join(f'a{at:02}=b' for at in range(count))}}}")


def selector(count: int) -> Message:
    request = timeseries_pb2.QueryLatestRequest()
    request.selector.servers.extend(["nobody"] * count)
    return request


def buckets(count: int) -> Message:
    request = timeseries_pb2.QueryRangeRequest()
    request.selector.servers.append("nobody")
    request.start_time.FromSeconds(1_700_000_000)
    request.end_time.FromSeconds(1_700_000_000 + 60 * (count - 1))
    request.step.FromSeconds(60)
    return request


def faults(days: int) -> Message:
    request = simulator_pb2.ListFaultsRequest()
    request.start_time.FromSeconds(1_700_000_000)
    request.end_time.FromSeconds(1_700_000_000 + days * 86_400)
    return request


def rule(**fields: Any) -> Message:
    """Of a rule that does not exist: what is within the limits is not found."""
    request = alert_pb2.UpdateRuleRequest(rule={"id": "limits-nobody", **fields})
    request.update_mask.paths.extend(fields)
    return request


def named(name: str, count: int, length: int = 1) -> Message:
    return rule(**{name: {f"l{at}": "x" * length for at in range(count)}})


def selected(name: str, count: int) -> Message:
    return rule(selector={"metrics": ["cpu"], name: ["cpu"] * count})


def silence(*, seconds: int = 60, **fields: Any) -> Message:
    """Of a silence that does not exist, in the future."""
    fields = {"start_time": {"seconds": 7_000_000_000}, "end_time": {"seconds": 7_000_000_000 + seconds}, **fields}
    wanted = {"matcher": "rule = nobody", "comment": "c", **fields}
    return alert_pb2.CreateSilenceRequest(silence=wanted, request_id="limits")


def alert_mask(count: int) -> Message:
    request = alert_pb2.UpdateSilenceRequest(silence={"id": "nobody", "comment": "c"})
    request.update_mask.paths.extend(["comment"] * count)
    return request


LARGE = {"code": "RESOURCE_EXHAUSTED", "reason": "MESSAGE_TOO_LARGE"}
LIMITS = {
    "value of an entry": Limit("SetEntry", lambda n: entry(value=bytes(n)), 1 << 20, "value", **LARGE),
    "key of an entry": Limit("SetEntry", lambda n: entry(key="k" * n), 512, "key"),
    "namespace": Limit("SetEntry", lambda n: entry(namespace="n" * n), 63, "namespace"),
    "life of an entry": Limit("SetEntry", ttl, 30 * 86_400_000, "ttl"),
    "ids of a batch": Limit(
        "BatchGetServers", lambda n: metadata_pb2.BatchGetServersRequest(ids=["nobody"] * n), 1000, "ids"
    ),
    "labels": Limit("UpdateServer", lambda n: update(labels={f"l{at}": "" for at in range(n)}), 64, "server.labels"),
    "name of a label": Limit("UpdateServer", lambda n: update(labels={"l" * n: ""}), 1024, "server.labels"),
    "value of a label": Limit("UpdateServer", lambda n: update(labels={"l": "x" * n}), 1024, "server.labels"),
    "host name": Limit("UpdateServer", lambda n: update(hostname="h" * n), 255, "server.hostname"),
    "environment": Limit("UpdateServer", lambda n: update(environment="e" * n), 50, "server.environment"),
    "role": Limit("UpdateServer", lambda n: update(role="r" * n), 50, "server.role"),
    "location": Limit("UpdateServer", lambda n: update(location="l" * n), 100, "server.location"),
    "paths of a mask": Limit("UpdateServer", mask, 100, "update_mask"),
    "query": Limit("CreateInteraction", lambda n: interaction(query="x" * n), 256 << 10, "interaction.query"),
    "response": Limit("CreateInteraction", lambda n: interaction(response="x" * n), 256 << 10, "interaction.response"),
    "session": Limit("CreateInteraction", lambda n: interaction(session_id="x" * n), 255, "interaction.session_id"),
    "subject": Limit("CreateInteraction", lambda n: interaction(subject="x" * n), 255, "interaction.subject"),
    "model": Limit("CreateInteraction", lambda n: interaction(model="x" * n), 100, "interaction.model"),
    "servers asked about": Limit(
        "CreateInteraction", lambda n: interaction(servers=["a"] * n), 100, "interaction.servers"
    ),
    "metrics asked about": Limit(
        "CreateInteraction", lambda n: interaction(metrics=["a"] * n), 100, "interaction.metrics"
    ),
    "search": Limit("ListInteractions", lambda n: asked(search="x" * n), 1000, "search"),
    "similar text": Limit(
        "FindSimilarInteractions",
        lambda n: interaction_pb2.FindSimilarInteractionsRequest(text="x" * n),
        16_384,
        "text",
    ),
    "buckets of statistics": Limit(
        "GetInteractionStatistics", span, 11_000, "", code="RESOURCE_EXHAUSTED", reason="TOO_MANY_BUCKETS"
    ),
    "id of a server": Limit(
        "metadata:ServerService.GetServer", lambda n: metadata_pb2.GetServerRequest(id="s" * n), 255, "id"
    ),
    "document": Limit("UpdatePolicy", document, 64 * 1024, "policy.document", **LARGE),
    "id of a request": Limit(
        "InjectFault", lambda n: simulator_pb2.InjectFaultRequest(request_id="r" * n), 64, "request_id"
    ),
    "server in a frame": Limit(
        "timeseries:TimeseriesService.WriteFrame", lambda n: frame(server="s" * n), 255, "frame.servers"
    ),
    "metric key": Limit(
        "timeseries:TimeseriesService.WriteFrame",
        lambda n: frame(metric=f"x{{a={'b' * (n - 5)}}}"),
        512,
        "frame.metrics",
    ),
    "name of a metric": Limit(
        "timeseries:TimeseriesService.WriteFrame", lambda n: frame(metric="x" * n), 255, "frame.metrics"
    ),
    "attributes": Limit("timeseries:TimeseriesService.WriteFrame", attributes, 30, "frame.metrics"),
    "entries of a selector": Limit("QueryLatest", selector, 10_000, "selector.servers"),
    "buckets": Limit("QueryRange", buckets, 11_000, "", code="RESOURCE_EXHAUSTED", reason="TOO_MANY_BUCKETS"),
    "dead letters": Limit(
        "DeleteDeadLetters", lambda n: timeseries_pb2.DeleteDeadLettersRequest(ids=["0"] * n), 1000, "ids"
    ),
    "ticks": Limit(
        "AdvanceSimulation",
        lambda n: simulator_pb2.AdvanceSimulationRequest(tick_count=n),
        100_000,
        "tick_count",
        tried=False,
    ),
    "simulated servers": Limit(
        "StartSimulation",
        lambda n: simulator_pb2.StartSimulationRequest(server_count=n),
        100_000,
        "server_count",
        code="RESOURCE_EXHAUSTED",
        reason="OVERLOADED",
        tried=False,
    ),
    "name of a rule": Limit("UpdateRule", lambda n: rule(name="n" * n), 100, "rule.name"),
    "etag of a rule": Limit("UpdateRule", lambda n: rule(name="n", etag="e" * n), 64, "rule.etag", tried=False),
    "servers of a rule": Limit("UpdateRule", lambda n: selected("servers", n), 1000, "rule.selector.servers"),
    "metrics of a rule": Limit("UpdateRule", lambda n: selected("metrics", n), 1000, "rule.selector.metrics"),
    "time of a condition": Limit(
        "UpdateRule",
        lambda n: rule(threshold={"above": 1, "for_duration": {"seconds": n}}),
        7 * 86_400,
        "rule.threshold.for_duration",
    ),
    "time of absence": Limit(
        "UpdateRule", lambda n: rule(absence={"for_duration": {"seconds": n}}), 86_400, "rule.absence.for_duration"
    ),
    "time of exhaustion": Limit(
        "UpdateRule",
        lambda n: rule(exhaustion={"limit": 1, "within_duration": {"seconds": n}}),
        366 * 86_400,
        "rule.exhaustion.within_duration",
    ),
    "time until stale": Limit(
        "UpdateRule", lambda n: rule(stale_duration={"seconds": n}), 86_400, "rule.stale_duration"
    ),
    "labels of a rule": Limit("UpdateRule", lambda n: named("labels", n), 20, "rule.labels"),
    "name of a label of a rule": Limit("UpdateRule", lambda n: rule(labels={"l" * n: ""}), 63, "rule.labels"),
    "value of a label of a rule": Limit("UpdateRule", lambda n: named("labels", 1, n), 255, "rule.labels"),
    "annotations": Limit("UpdateRule", lambda n: named("annotations", n), 10, "rule.annotations"),
    "annotation": Limit("UpdateRule", lambda n: named("annotations", 1, n), 1024, "rule.annotations"),
    "inhibitors": Limit(
        "UpdateRule",
        lambda n: rule(inhibitors=[{"source_matcher": "rule = nobody"}] * n),
        5,
        "rule.inhibitors",
    ),
    "equal labels": Limit(
        "UpdateRule",
        lambda n: rule(inhibitors=[{"source_matcher": "rule = nobody", "equal": ["server"] * n}]),
        10,
        "rule.inhibitors.equal",
    ),
    "paths of a rule's mask": Limit(
        "UpdateRule",
        lambda n: alert_pb2.UpdateRuleRequest(rule={"id": "limits-nobody"}, update_mask={"paths": ["paused"] * n}),
        100,
        "update_mask",
    ),
    "paths of a silence's mask": Limit("UpdateSilence", alert_mask, 100, "update_mask"),
    "time of a silence": Limit(
        "CreateSilence", lambda n: silence(seconds=n), 366 * 86_400, "silence.end_time", tried=False
    ),
    "comment of a silence": Limit(
        "CreateSilence", lambda n: silence(comment="c" * n), 1000, "silence.comment", tried=False
    ),
    "days of faults": Limit("ListFaults", faults, 400, "start_time"),
}


def method_named(name: str) -> Method:
    """Return a method by its name, or by server, service and name where several have it."""
    return next(each for each in METHODS if name in {str(each), each.descriptor.name} and each.server != "gateway")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def channels(mesh: Mesh) -> AsyncIterator[dict[str, grpc.aio.Channel]]:
    servers = {each.server for each in METHODS}
    found = {server: grpc.aio.insecure_channel(mesh.address(server)) for server in servers}
    yield found
    for each in found.values():
        await each.close()


@pytest.mark.parametrize("what", LIMITS)
@pytest.mark.parametrize("routed", [False, True], ids=["direct", "through the gateway"])
async def test_a_limit_holds_where_it_says(channels: dict[str, grpc.aio.Channel], what: str, routed):
    limit = LIMITS[what]
    method = method_named(limit.method)
    channel = channels["gateway" if routed else method.server]
    above = await ask(channel, method, limit.request(limit.largest + 1))
    assert (above.code, above.reason, above.field, above.fault) == (limit.code, limit.reason, limit.field, "")
    if not limit.tried:
        return
    within = await ask(channel, method, limit.request(limit.largest))
    assert within.fault == ""
    assert (within.reason, within.field, within.text) != (above.reason, above.field, above.text)


def export(count: int) -> metrics_service_pb2.ExportMetricsServiceRequest:
    """An OTLP export of so many series of one host."""
    request = metrics_service_pb2.ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    resource.resource.attributes.add(key="host.id").value.string_value = "limits"
    metrics = resource.scope_metrics.add().metrics
    for at in range(count):
        metrics.add(name=f"made.up.{at}").gauge.data_points.add(as_int=1)
    return request


async def test_exporters_bring_so_many_new_series_in_a_minute_and_the_others_go_on(tmp_path: Path):
    limits = {("timeseries", "max_new_series"): 5}
    async with open_mesh(tmp_path, NOWHERE, limits) as methods:
        write = next(each for each in methods if str(each) == "gateway:MetricsService.Export")
        refused = []
        for count in (4, 8, 4):
            data = await write.call(export(count).SerializeToString(), 5.0)
            reply = metrics_service_pb2.ExportMetricsServiceResponse.FromString(data).partial_success
            refused.append((reply.rejected_data_points, reply.error_message))
        assert refused == [(0, ""), (3, "SERIES_RATE: 3 samples"), (0, "")]
        direct = next(each for each in methods if str(each) == "gateway:GatewayService.WriteFrame")
        frame_of_many = Frame(
            times=np.array([time.time_ns() // 10**6 * 10**6]),
            servers=("limits",),
            metrics=tuple(f"x{at}" for at in range(20)),
            values=np.ones((1, 1, 20)),
        )
        data = await direct.call(encode_write_request(frame_of_many), 5.0)
        assert timeseries_pb2.WriteFrameResponse.FromString(data).ack.accepted_sample_count == 20


async def test_a_query_beyond_what_a_caller_may_have_under_way_is_told_when_to_come_again(tmp_path: Path):
    async with open_mesh(tmp_path, NOWHERE, {("timeseries", "max_queries"): 0}) as methods:
        query = next(each for each in methods if str(each) == "gateway:TimeseriesService.QueryRange")
        call = query.call(buckets(10).SerializeToString(), 5.0)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call.read()
    found = failure.value
    got = answer(found.code(), found.details() or "", found.trailing_metadata())
    assert (got.code, got.reason, got.fault) == ("RESOURCE_EXHAUSTED", "TOO_MANY_QUERIES", "")


async def test_slots_are_given_back_however_a_query_ends():
    slots = QuerySlots(2)
    with slots.one(), slots.one(), pytest.raises(ResourceExhaustedError) as failure, slots.one():
        pass
    assert failure.value.retry_after == timedelta(seconds=1)
    for _ in range(3):
        with contextlib.suppress(ValueError), slots.one():
            raise ValueError


async def test_the_gateway_asks_nobody_when_too_little_time_is_left():
    asked = []

    class Asked(LocalPeer):
        async def unary_bytes(self, path: str, *_: Any, **__: Any) -> bytes:
            asked.append(path)
            return b""

    method = method_named("GetEntry")
    clock = SystemClock()
    breaker = Breaker("cache", "calls", clock, random.Random())
    forward = router.forwarder(method.descriptor, router.Upstream(Asked("cache", {}), breaker, clock))
    handler = grpc.unary_unary_rpc_method_handler(forward, None, bytes)
    with pytest.raises(DeadlineExceededError):
        await forward(b"", Context(handler, router.LEAST_SECONDS * 0.9, ()))
    assert asked == []
    await forward(b"", Context(handler, 1.0, ()))
    assert asked == [method.path]
