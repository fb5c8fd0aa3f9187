"""Two shards share one VictoriaMetrics and one Valkey, and what comes and goes by other doors than frames is theirs together."""

from __future__ import annotations

import asyncio
import time
import urllib.parse
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from conftest import free_ports, wait_until
from console.served import PROTOBUF, serving
from openmanager_timeseries.engines.port import MARKER
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as otlp
from sharded import ShardedMesh, sharded_mesh
from timeseries.engines.stores import Server, ask, victoria_server

from chaos import valkeys
from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.errors import InvalidArgumentError, UnavailableError
from openmanager.frame import Frame, encode_write_request, length_delimited
from openmanager.metric import make_key
from openmanager.rollup import COLUMNS, Grid, encode_grid
from openmanager.runtime.peer import Peer
from openmanager.shard import shard_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
GATEWAY = "/openmanager.api.gateway.v1.GatewayService"
HISTORY = "/openmanager.api.timeseries.v1"
EXPORT = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
SECOND = 10**9
HOUR = 3600 * SECOND
NOW = time.time_ns() // SECOND * SECOND
SERVERS = tuple(f"host-{number:02d}" for number in range(6))
OF = [[each for each in SERVERS if shard_of(each, 2) == shard] for shard in (0, 1)]
# VictoriaMetrics keeps 27 attributes of a series.
TOO_MANY = make_key("wide", {f"a{number:02d}": "x" for number in range(28)})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stores(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Server, valkeys.Valkey]]:
    victoria = victoria_server(tmp_path_factory.mktemp("victoria"), "-dedup.minScrapeInterval=1ms")
    if victoria is None:
        pytest.skip("victoria-metrics is missing: it is a Debian package")
    victoria.start()
    valkey = valkeys.Valkey(folder=tmp_path_factory.mktemp("valkey") / "one", port=free_ports(1), settings=())
    try:
        await valkey.start()
        yield victoria, valkey
    finally:
        valkey.kill()
        victoria.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(
    tmp_path_factory: pytest.TempPathFactory, stores: tuple[Server, valkeys.Valkey]
) -> AsyncIterator[ShardedMesh]:
    victoria, valkey = stores
    more = {
        ("timeseries", "victoriametrics_write_url"): victoria.url,
        ("cache", "redis_url"): f"redis://:{valkeys.PASSWORD}@127.0.0.1:{valkey.port}",
    }
    async with sharded_mesh(tmp_path_factory.mktemp("mesh"), 2, more=more) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def peer(mesh: ShardedMesh) -> AsyncIterator[Peer]:
    async with Peer("gateway", mesh.gateway) as made:
        yield made


async def call(peer: Peer, method: str, request: Any, reply: type[Any]) -> Any:
    return await peer.unary(f"{HISTORY}.{method}", request, reply, seconds=20)


async def patiently(ask: Any) -> Any:
    """Return what is answered once the shards are there."""
    end = time.monotonic() + 30
    while True:
        try:
            return await ask()
        except UnavailableError:
            assert time.monotonic() < end
            await asyncio.sleep(0.1)


async def write(peer: Peer, metric: str, moment: int = NOW) -> None:
    frame = Frame(times=np.array([moment]), servers=SERVERS, metrics=(metric,), values=np.ones((1, len(SERVERS), 1)))
    request = encode_write_request(frame)
    await patiently(lambda: peer.unary(f"{GATEWAY}/WriteFrame", request, gateway_pb2.WriteFrameResponse, seconds=5))


async def samples(peer: Peer, metric: str, **fields: Any) -> dict[str, int]:
    """Return how many samples each server has of a metric."""
    request = pb.QueryRangeRequest(**fields)
    request.selector.metrics.append(metric)
    request.start_time.FromNanoseconds(NOW - 400 * 24 * HOUR)
    path = f"{HISTORY}.TimeseriesService/QueryRange"

    async def whole() -> list[pb.QueryRangeResponse]:
        found = [pb.QueryRangeResponse.FromString(data) async for data in peer.server_stream(path, request, seconds=5)]
        if "did not answer" in found[0].header.provenance.reason:
            raise UnavailableError(found[0].header.provenance.reason)
        return found

    _, *parts = await patiently(whole)
    return {each.series.server: int(np.isfinite(each.series.values).sum()) for each in parts}


# ── OpenTelemetry ──────────────────────────────────────────────────────────────────────────────────────────────────


def export(metric: str) -> otlp.ExportMetricsServiceRequest:
    """Return an export of one point of each server, those of shard 1 first, and one of nobody."""
    found = otlp.ExportMetricsServiceRequest()
    for server in (*OF[1], *OF[0], ""):
        each = found.resource_metrics.add()
        if server:
            each.resource.attributes.add(key="host.id").value.string_value = server
        point = each.scope_metrics.add().metrics.add(name=metric, unit="1").gauge.data_points.add()
        point.time_unix_nano, point.as_double = NOW, 2.5
    return found


async def by_grpc(mesh: ShardedMesh, request: otlp.ExportMetricsServiceRequest) -> otlp.ExportMetricsServiceResponse:
    async with Peer("gateway", mesh.gateway) as peer:
        return await peer.unary(EXPORT, request, otlp.ExportMetricsServiceResponse, seconds=5)


async def by_http(mesh: ShardedMesh, request: otlp.ExportMetricsServiceRequest) -> otlp.ExportMetricsServiceResponse:
    async with serving(mesh.gateway) as console:
        status, body, headers = await console.ask(
            "POST", "/v1/metrics", data=request.SerializeToString(), headers=PROTOBUF
        )
    if status == 503:  # with which exporters come again
        assert "Retry-After" in headers
        raise UnavailableError("503")
    assert status == 200
    return otlp.ExportMetricsServiceResponse.FromString(body)


@pytest.mark.parametrize("door", [by_grpc, by_http])
async def test_an_export_with_points_of_a_shard_that_is_away_is_repeated_and_stored_once(
    mesh: ShardedMesh, peer: Peer, door: Any
):
    metric = f"queue.{door.__name__}"
    await mesh.stop("timeseries", 1)
    with pytest.raises(UnavailableError):
        await door(mesh, export(metric))
    # What there is a shard for is stored, whatever comes before it in the export.
    assert await samples(peer, metric, selector={"servers": OF[0]}) == dict.fromkeys(OF[0], 1)
    await mesh.start("timeseries", 1)
    told = await patiently(lambda: door(mesh, export(metric)))
    assert told.partial_success.rejected_data_points == 1
    assert "a resource has none of host.id" in told.partial_success.error_message
    assert await samples(peer, metric) == dict.fromkeys(SERVERS, 1)


# ── rollups ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_buckets_of_both_shards_are_imported_and_found(mesh: ShardedMesh, peer: Peer):
    start = NOW // HOUR * HOUR - 300 * 24 * HOUR
    shape = (3, len(SERVERS), 1)
    columns = {name: np.full(shape, 5.0) for name in COLUMNS}
    columns["count"] = np.ones(shape)
    columns["count"][1, 2] = 0
    grid = Grid(times=start + HOUR * np.arange(3, dtype=np.int64), servers=SERVERS, metrics=("old",), columns=columns)
    requests = [length_delimited(1, encode_grid("1h", grid))]

    async def sent() -> AsyncIterator[bytes]:
        for each in requests:
            yield each

    async def send() -> list[pb.ImportRollupsResponse]:
        path = f"{HISTORY}.ImportService/ImportRollups"
        return [pb.ImportRollupsResponse.FromString(data) async for data in peer.bidi_stream(path, sent(), seconds=20)]

    (told,) = await patiently(send)
    # Of a stream that was begun again, for one shard was not there yet, the other has its part already.
    assert told.accepted_bucket_count + told.rejected_bucket_count == 3 * len(SERVERS) - 1
    assert told.accepted_bucket_count > 0
    found = await samples(peer, "old", aggregation=pb.AGGREGATION_MAX, step={"seconds": 3600})
    assert found == {server: 3 - (server == SERVERS[2]) for server in SERVERS}


# ── dead letters ───────────────────────────────────────────────────────────────────────────────────────────────────


async def letters(peer: Peer) -> list[pb.DeadLetter]:
    """Return all letters, by pages of one."""
    request, found = pb.ListDeadLettersRequest(page_size=1), list[pb.DeadLetter]()
    while True:
        page = await patiently(lambda: call(peer, "LogService/ListDeadLetters", request, pb.ListDeadLettersResponse))
        assert len(page.dead_letters) <= 1
        found += page.dead_letters
        request.page_token = page.next_page_token
        if not page.next_page_token:
            assert page.total_count == len(found)
            return found


async def test_letters_of_both_shards_are_listed_tried_again_and_deleted(mesh: ShardedMesh, peer: Peer):
    await write(peer, TOO_MANY)

    async def are_there() -> bool:
        return len(await letters(peer)) == 2

    await wait_until(are_there, 60)
    found = await letters(peer)
    wide = [each.id for each in found]
    assert sorted(wide) == ["0-1", "1-1"]
    assert [each.create_time.ToNanoseconds() for each in found] == sorted(
        each.create_time.ToNanoseconds() for each in found
    )
    for each in found:
        assert {shard_of(server, 2) for server in each.servers} == {int(each.id[0])}
    again = pb.RetryDeadLettersRequest(ids=wide)
    told = await call(peer, "LogService/RetryDeadLetters", again, pb.RetryDeadLettersResponse)
    assert (told.taken_count, told.refused_count) == (0, 2)
    assert {each.id: each.retry_count for each in await letters(peer)} == dict.fromkeys(wide, 1)
    for wrong in ("17", "2-1", "0-", "-1", "0-x", "٣-1"):
        request = pb.DeleteDeadLettersRequest(ids=[wrong])
        with pytest.raises(InvalidArgumentError) as caught:
            await call(peer, "LogService/DeleteDeadLetters", request, pb.DeleteDeadLettersResponse)
        assert caught.value.field == "ids"

    gone = pb.DeleteDeadLettersRequest(ids=wide)
    told = await call(peer, "LogService/DeleteDeadLetters", gone, pb.DeleteDeadLettersResponse)
    assert (told.deleted_count, told.sample_count) == (2, len(SERVERS))
    assert await letters(peer) == []

    # Without one shard nobody says that these are all.
    await mesh.stop("timeseries", 1)
    with pytest.raises(UnavailableError):
        await call(peer, "LogService/ListDeadLetters", pb.ListDeadLettersRequest(), pb.ListDeadLettersResponse)
    await mesh.start("timeseries", 1)


# ── stores that are shared ─────────────────────────────────────────────────────────────────────────────────────────


def held(victoria: Server, metric: str) -> set[str]:
    """Return the servers of which a VictoriaMetrics has a metric."""
    lines = exported(victoria, f'{{__name__="server_metrics_{metric}"}}').splitlines()
    return {line.partition('"server_id":"')[2].partition('"')[0] for line in lines}


def exported(victoria: Server, match: str) -> str:
    ask(f"{victoria.url}/internal/force_flush")
    query = urllib.parse.urlencode({"match[]": match, "start": "0"})
    return ask(f"{victoria.url}/api/v1/export?{query}").decode()


def delete(victoria: Server, *matches: str) -> None:
    query = urllib.parse.urlencode([("match[]", each) for each in matches])
    ask(f"{victoria.url}/api/v1/admin/tsdb/delete_series?{query}")


async def test_a_shard_whose_part_of_the_engine_was_emptied_fills_that_and_no_other(
    stores: tuple[Server, valkeys.Valkey], mesh: ShardedMesh, peer: Peer
):
    victoria, _ = stores
    await write(peer, "shared")

    async def has(servers: set[str]) -> bool:
        return await asyncio.to_thread(held, victoria, "shared") == servers

    await wait_until(lambda: has(set(SERVERS)), 60)
    markers = [f'{{__name__="{MARKER}_{shard}_of_2_value"}}' for shard in (0, 1)]

    async def are_marked() -> bool:
        found = [await asyncio.to_thread(exported, victoria, each) for each in markers]
        return all(found)

    await wait_until(are_marked, 30)
    await asyncio.to_thread(delete, victoria, '{__name__="server_metrics_shared"}', markers[1])
    await wait_until(lambda: has(set(OF[1])), 90)
    assert await samples(peer, "shared") == dict.fromkeys(SERVERS, 1)


async def test_each_shard_has_keys_of_its_own_in_the_one_redis(
    stores: tuple[Server, valkeys.Valkey], mesh: ShardedMesh, peer: Peer
):
    _, valkey = stores
    await write(peer, "cpu_usage")

    async def apart() -> bool:
        found = [await valkey.ask("KEYS", f"om:{shard}of2:server:*") for shard in (0, 1)]
        return [{key.rpartition(":")[2] for key in keys} for keys in found] == [set(some) for some in OF]

    await wait_until(apart, 30)
    assert all(key.startswith(("om:0of2:", "om:1of2:")) for key in await valkey.ask("KEYS", "*"))
