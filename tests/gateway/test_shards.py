"""History in several shards answers as one does."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from conftest import wait_until
from sharded import ShardedMesh, sharded_mesh

from openmanager.api.analysis.v1 import alert_pb2, analysis_pb2
from openmanager.api.cache.v1 import cache_pb2
from openmanager.api.frame.v1 import frame_pb2
from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.server.v1 import server_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.errors import OpenManagerError, Reason, UnavailableError
from openmanager.frame import Frame, MetricInfo, ServerInfo, decode_trusted, encode_write_request
from openmanager.runtime.peer import Peer
from openmanager.shard import shard_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
API = "/openmanager.api"
HISTORY = f"{API}.timeseries.v1.TimeseriesService"
GATEWAY = f"{API}.gateway.v1.GatewayService"
SECOND = 10**9
STEP = 10 * SECOND
TICKS = 90
END = time.time_ns() // (60 * SECOND) * 60 * SECOND
SERVERS = tuple(f"host-{number:02d}" for number in range(12))
METRICS = ("cpu_usage", "memory_usage", "net_bytes_total", "temp{sensor=a}", "temp{sensor=b}")
Reply = Any
T = TypeVar("T")


def frames() -> list[Frame]:
    """Return what both meshes are given: two roles, three environments, gaps, a counter, and frames of few servers."""
    random = np.random.default_rng(7)
    values = np.round(random.uniform(0, 90, (TICKS, len(SERVERS), len(METRICS))), 2)
    values[:, :, 2] = np.cumsum(np.floor(values[:, :, 2]), axis=0)
    values[random.random(values.shape) < 0.05] = np.nan
    values[:, 5:, 4] = np.nan  # a metric that some servers alone have
    infos = tuple(
        ServerInfo(
            id=server,
            hostname=f"{server}.example.net",
            environment=("production", "staging", 'the "third"')[at % 3],
            role=("web", "database")[at % 2],
            labels={"rack": f"r{at}"},
        )
        for at, server in enumerate(SERVERS)
    )
    counter = MetricInfo(name="net_bytes_total", kind=frame_pb2.METRIC_KIND_COUNTER, unit="By")
    times = END - STEP * np.arange(TICKS, 0, -1, dtype=np.int64)
    made = []
    for first in range(0, TICKS, 30):
        part = slice(first, first + 30)
        told = infos if first == 0 else ()
        made.append(
            Frame(
                times=times[part],
                servers=SERVERS,
                metrics=METRICS,
                values=values[part],
                server_infos=told,
                metric_infos=(counter,) if told else (),
            )
        )
    late = Frame(times=times[-1:], servers=SERVERS[3:4], metrics=("extra",), values=np.ones((1, 1, 1)))
    return [*made, late]


@dataclass(frozen=True)
class Pair:
    """The same frames in one shard and in two, with two gateways."""

    one: Peer
    two: Peer
    mesh: ShardedMesh

    async def both(self, path: str, request: Reply, reply: type[Any]) -> list[Reply]:
        return [await told(peer, path, request, reply) for peer in (self.one, self.two)]


class AwayError(UnavailableError):
    """A part was away."""


def check_whole(about: Any) -> None:
    if about.partial:
        raise AwayError(about.reason)


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Return an answer: on a busy machine services are taken for hung now and then, and so they are not asked for a second."""
    end = time.monotonic() + 30
    while True:
        try:
            return await ask()
        except UnavailableError as err:
            if time.monotonic() > end or err.reason == Reason.STORE_UNAVAILABLE:
                raise
            await asyncio.sleep(0.2)


async def told(peer: Peer, path: str, request: Reply, reply: type[Any]) -> Reply:
    """Return a whole reply without what is of the moment, or the code and reason of an error."""

    async def ask() -> Reply:
        found: Any = await peer.unary(path, request, reply, seconds=20)
        if "provenance" in reply.DESCRIPTOR.fields_by_name:
            check_whole(found.provenance)
            found.ClearField("provenance")
        return found

    try:
        return await patiently(ask)
    except OpenManagerError as err:
        return type(err).__name__, err.reason, err.field


async def streamed(peer: Peer, path: str, request: Reply, reply: type[Any]) -> list[Reply]:
    async def ask() -> list[Reply]:
        return [reply.FromString(data) async for data in peer.server_stream(path, request, seconds=20)]

    return await patiently(ask)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    folder = tmp_path_factory.mktemp("shards")
    async with contextlib.AsyncExitStack() as stack:
        meshes = [
            await stack.enter_async_context(sharded_mesh(folder / "one", 1)),
            await stack.enter_async_context(sharded_mesh(folder / "two", 2, 2)),
        ]
        one, two = [await stack.enter_async_context(Peer("gateway", mesh.gateway)) for mesh in meshes]
        for peer in (one, two):
            status = f"{GATEWAY}/GetStorageStatus", gateway_pb2.GetStorageStatusRequest()
            await patiently(
                lambda peer=peer, status=status: peer.unary(*status, gateway_pb2.GetStorageStatusResponse, seconds=5)  # type: ignore[misc]
            )
            requests = [encode_write_request(frame) for frame in frames()]

            async def sent(requests: list[bytes] = requests) -> AsyncIterator[bytes]:
                for request in requests:
                    yield request

            acks = [
                gateway_pb2.WriteFramesResponse.FromString(data).ack
                async for data in peer.bidi_stream(f"{GATEWAY}/WriteFrames", sent(), seconds=20)
            ]
            assert [ack.accepted_sample_count for ack in acks] == [frame.sample_count for frame in frames()]
            for _ in range(4):  # by one gateway and the other
                await wait_until(lambda peer=peer: knows_all(peer))  # type: ignore[misc]
        yield Pair(one, two, meshes[1])


async def knows_all(peer: Peer) -> bool:
    with contextlib.suppress(OpenManagerError):
        request = gateway_pb2.GetServerRequest(id=SERVERS[3])
        server = (await peer.unary(f"{GATEWAY}/GetServer", request, gateway_pb2.GetServerResponse, seconds=1)).server
        fleet = gateway_pb2.GetFleetSummaryRequest()
        found = await peer.unary(f"{GATEWAY}/GetFleetSummary", fleet, gateway_pb2.GetFleetSummaryResponse, seconds=1)
        return found.summary.total_count == len(SERVERS) and "extra" in server.metrics
    return False


async def test_the_servers_are_of_both_shards():
    assert {shard_of(server, 2) for server in SERVERS} == {0, 1}


# ── history ────────────────────────────────────────────────────────────────────────────────────────────────────────

AGGREGATIONS = [value for value in pb.Aggregation.values() if value]
SELECTORS = {
    "all": frame_pb2.Selector(),
    "a filter": frame_pb2.Selector(
        server_filter='role = "web" OR environment = "staging"', metrics=["cpu_usage", "temp"]
    ),
    "two servers": frame_pb2.Selector(servers=list(SERVERS[1:3])),
    "one server": frame_pb2.Selector(servers=[SERVERS[4]]),
    "nobody": frame_pb2.Selector(servers=["nobody"]),
}


def asked(selector: str, **fields: Any) -> pb.QueryRangeRequest:
    request = pb.QueryRangeRequest(selector=SELECTORS[selector], **fields)
    request.start_time.FromNanoseconds(END - 800 * SECOND)
    request.end_time.FromNanoseconds(END)
    return request


async def answer(peer: Peer, request: pb.QueryRangeRequest) -> tuple[list[Any], list[Any], list[int]]:
    """Return the names, the values and the times of an answer, parts of a series joined."""

    async def ask() -> list[Any]:
        found = await streamed(peer, f"{HISTORY}/QueryRange", request, pb.QueryRangeResponse)
        check_whole(found[0].header.provenance)
        return found

    header, *parts = await patiently(ask)
    series = [each for part in parts for each in (part.batch.series if part.HasField("batch") else [part.series])]
    names = [(each.server, each.metric, each.group) for each in series]
    assert header.header.series_count == len(names)
    values = [np.asarray([*each.values, *each.time_unix_nanos], np.float64) for each in series]
    return names, values, list(header.header.time_unix_nanos)


@pytest.mark.parametrize("selector", ["all", "a filter", "two servers"])
@pytest.mark.parametrize("group", [pb.GROUP_BY_SERVER, pb.GROUP_BY_ROLE, pb.GROUP_BY_ENVIRONMENT, pb.GROUP_BY_ALL])
async def test_every_aggregation_of_every_group_is_the_same(pair: Pair, selector: str, group: pb.GroupBy.ValueType):
    for aggregation in AGGREGATIONS:
        request = asked(selector, aggregation=aggregation, group_by=group, series_per_message=3)
        request.step.FromSeconds(60)
        (names, values, times), (more, others, starts) = [await answer(peer, request) for peer in (pair.one, pair.two)]
        assert (more, starts) == (names, times)
        for name, some, same in zip(names, values, others, strict=True):
            np.testing.assert_allclose(same, some, rtol=1e-12, err_msg=f"{pb.Aggregation.Name(aggregation)} {name}")


@pytest.mark.parametrize("many", [0, 2])
@pytest.mark.parametrize("selector", SELECTORS)
async def test_raw_samples_are_the_same_and_in_the_same_order(pair: Pair, selector: str, many: int):
    request = asked(selector, series_per_message=many)
    (names, values, _), (more, others, _) = [await answer(peer, request) for peer in (pair.one, pair.two)]
    assert more == names
    assert all(np.array_equal(some, same) for some, same in zip(values, others, strict=True))


@pytest.mark.parametrize("selector", SELECTORS)
async def test_the_newest_samples_are_the_same(pair: Pair, selector: str):
    found = []
    for peer in (pair.one, pair.two):
        request = pb.QueryLatestRequest(selector=SELECTORS[selector])
        parts = await streamed(peer, f"{HISTORY}/QueryLatest", request, pb.QueryLatestResponse)
        assert not parts[0].provenance.partial
        assert parts[0].WhichOneof("part") == "provenance"
        found.append(samples([decode_trusted(part.frame) for part in parts[1:]]))
    assert found[0] == found[1]


def samples(some: list[Frame]) -> dict[tuple[str, str, int], float]:
    """Return every sample of some frames."""
    return {
        (server, metric, int(moment)): float(frame.values[t, s, m])
        for frame in some
        for t, moment in enumerate(frame.times)
        for s, server in enumerate(frame.servers)
        for m, metric in enumerate(frame.metrics)
        if not np.isnan(frame.values[t, s, m])
    }


@pytest.mark.parametrize("size", [7, 1000])
async def test_pages_of_series_are_the_same(pair: Pair, size: int):
    lists = []
    for peer in (pair.one, pair.two):
        request = pb.ListSeriesRequest(
            page_size=size, selector=frame_pb2.Selector(metrics=["cpu_usage", "extra", "temp*"])
        )
        pages = []
        while True:
            page = await told(peer, f"{HISTORY}/ListSeries", request, pb.ListSeriesResponse)
            request.page_token = page.next_page_token
            page.ClearField("next_page_token")
            pages.append(page)
            if not request.page_token:
                break
        lists.append(pages)
    assert lists[1] == lists[0]


async def test_an_export_has_the_same_rows(pair: Pair):
    tables = []
    for peer in (pair.one, pair.two):
        request = pb.ExportSeriesRequest()
        request.start_time.FromNanoseconds(END - 700 * SECOND)
        request.end_time.FromNanoseconds(END)
        header, *chunks = await streamed(peer, f"{HISTORY}/ExportSeries", request, pb.ExportSeriesResponse)
        rows = pa.concat_tables(
            [pq.read_table(io.BytesIO(each.chunk.parquet)).cast(SCHEMA) for each in chunks]
        ).sort_by([(name, "ascending") for name in ("metric", "server", "time")])
        assert chunks[-1].chunk.done_series_count == header.header.series_count
        tables.append((rows, header.header.series_count))
        # Where the last chunk ended nothing is left.
        request.resume_token = chunks[-1].chunk.resume_token
        assert len(await streamed(peer, f"{HISTORY}/ExportSeries", request, pb.ExportSeriesResponse)) == 1
    assert tables[0][0].equals(tables[1][0])
    assert tables[0][1] == tables[1][1]


SCHEMA = pa.schema(
    [("metric", pa.string()), ("server", pa.string()), ("time", pa.timestamp("ms", "UTC")), ("value", pa.float64())]
)


async def test_the_books_add_up_to_the_same(pair: Pair):
    one, two = await pair.both(f"{API}.timeseries.v1.LogService/GetLedger", pb.GetLedgerRequest(), pb.GetLedgerResponse)
    assert two.ledger.accepted_sample_count == one.ledger.accepted_sample_count
    assert [each.name for each in two.ledger.consumers] == [each.name for each in one.ledger.consumers]


async def test_what_would_be_deleted_is_the_same(pair: Pair):
    request = pb.DeleteSeriesRequest(selector=frame_pb2.Selector(metrics=["cpu_usage"]), validate_only=True)
    one, two = await pair.both(f"{HISTORY}/DeleteSeries", request, pb.DeleteSeriesResponse)
    assert (one.series_count, one) == (len(SERVERS), two)


# ── hot state ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("service", ["gateway.v1.GatewayService", "cache.v1.CacheService"])
async def test_hot_state_is_the_same(pair: Pair, service: str):
    path, types = f"{API}.{service}", {"gateway": gateway_pb2, "cache": cache_pb2}[service.partition(".")[0]]
    for server in (*SERVERS, "nobody", ""):
        request = types.GetServerRequest(id=server, view=server_pb2.VIEW_FULL)
        one, two = [still(each) for each in await pair.both(f"{path}/GetServer", request, types.GetServerResponse)]
        assert two == one
    for order in ("", "cpu_usage desc", "environment", "role desc"):
        request = types.ListServersRequest(order_by=order, filter='role = "web"', page_size=4)
        one, two = [still(each) for each in await pair.both(f"{path}/ListServers", request, types.ListServersResponse)]
        assert two == one
    one, two = await pair.both(f"{path}/GetFleetSummary", types.GetFleetSummaryRequest(), types.GetFleetSummaryResponse)
    assert two.summary.total_count == len(SERVERS)
    for name in ("mean_cpu_usage", "mean_memory_usage", "mean_disk_usage"):
        assert getattr(two.summary, name) == pytest.approx(getattr(one.summary, name))
    assert [each.name for each in two.summary.roles] == [each.name for each in one.summary.roles]


def still(reply: Reply) -> Reply:
    """Return a reply without when states were entered."""
    for server in getattr(reply, "servers", [reply.server] if hasattr(reply, "server") else []):
        server.ClearField("state_since_time")
    return reply


# ── analysis ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_questions_to_the_analysis_are_answered_the_same(pair: Pair):
    chosen = frame_pb2.Selector(metrics=["cpu_usage", "memory_usage"])
    detect = analysis_pb2.DetectAnomaliesRequest(selector=chosen)
    detect.start_time.FromNanoseconds(END - TICKS * STEP)
    detect.end_time.FromNanoseconds(END)
    for service, method, request in (
        ("AnomalyService", "DetectAnomalies", detect),
        ("AnomalyService", "ListAnomalies", analysis_pb2.ListAnomaliesRequest()),
        ("AnalysisService", "AnalyzeTrend", analysis_pb2.AnalyzeTrendRequest(selector=chosen)),
        ("AnalysisService", "ForecastCapacity", analysis_pb2.ForecastCapacityRequest(selector=chosen)),
        ("AnalysisService", "ForecastCapacity", analysis_pb2.ForecastCapacityRequest()),
        ("RuleService", "ListRules", alert_pb2.ListRulesRequest()),
        ("SilenceService", "ListSilences", alert_pb2.ListSilencesRequest()),
        ("AlertService", "ListAlerts", alert_pb2.ListAlertsRequest()),
        ("AlertService", "GetAlert", alert_pb2.GetAlertRequest(id="nobody")),
        ("RuleService", "GetRule", alert_pb2.GetRuleRequest(id="nobody")),
    ):
        module = alert_pb2 if hasattr(alert_pb2, f"{method}Response") else analysis_pb2
        # Whichever shard is asked.
        for _ in range(2):
            one, two = await pair.both(
                f"{API}.analysis.v1.{service}/{method}", request, getattr(module, f"{method}Response")
            )
            for each in (one, two):
                if hasattr(each, "risks"):
                    each.ClearField("risks")
            assert two == one, method


# ── the log ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def followed(peer: Peer, request: pb.WatchFramesRequest, count: int) -> tuple[dict[Any, float], str]:
    """Return the samples that a watch tells until it has told of so many, and its last token."""
    request.progress_interval.FromMilliseconds(200)
    found: dict[Any, float] = {}
    token = ""
    stream = peer.server_stream(f"{HISTORY}/WatchFrames", request, seconds=20)
    async for data in stream:
        part = pb.WatchFramesResponse.FromString(data)
        token = part.resume_token or token
        if part.HasField("frame"):
            found |= samples([decode_trusted(part.frame)])
        if len(found) >= count and part.resume_token == token:
            break
    await stream.aclose()  # type: ignore[attr-defined]
    return found, token


async def test_the_logs_are_watched_as_one_and_resumed_by_a_token(pair: Pair):
    everything = samples(frames())
    found, token = await patiently(lambda: followed(pair.two, pb.WatchFramesRequest(from_position=1), len(everything)))
    assert found == everything
    later = Frame(times=np.array([END]), servers=SERVERS, metrics=("later",), values=np.ones((1, len(SERVERS), 1)))
    request = encode_write_request(later)
    for peer in (pair.one, pair.two):
        await told(peer, f"{GATEWAY}/WriteFrame", request, gateway_pb2.WriteFrameResponse)
    rest, _ = await patiently(lambda: followed(pair.two, pb.WatchFramesRequest(resume_token=token), len(SERVERS)))
    assert rest == samples([later])


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (pb.WatchFramesRequest(from_position=17), "INVALID_FIELD"),
        (pb.WatchFramesRequest(resume_token="1/2/3"), "HISTORY_COMPACTED"),
        (pb.WatchFramesRequest(resume_token="no number/2"), "HISTORY_COMPACTED"),
        (pb.WatchFramesRequest(resume_token="9999999/9999999"), "POSITION_OUT_OF_RANGE"),
    ],
)
async def test_a_place_that_no_watch_can_go_on_from_is_refused(
    pair: Pair, request_: pb.WatchFramesRequest, reason: str
):
    with pytest.raises(OpenManagerError) as caught:
        await streamed(pair.two, f"{HISTORY}/WatchFrames", request_, pb.WatchFramesResponse)
    assert caught.value.reason == reason


async def test_a_watcher_of_servers_sees_those_of_all_shards(pair: Pair):
    request = cache_pb2.WatchServersRequest(view=server_pb2.VIEW_FULL)
    seen: set[str] = set()
    stream = pair.two.server_stream(f"{API}.cache.v1.CacheService/WatchServers", request, seconds=10)
    async for data in stream:
        seen |= {server.id for server in cache_pb2.WatchServersResponse.FromString(data).servers}
        if len(seen) == len(SERVERS):
            break
    await stream.aclose()  # type: ignore[attr-defined]
    assert seen == set(SERVERS)
