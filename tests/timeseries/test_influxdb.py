"""InfluxDB as an engine: what is its own, shown by a real server; and what no server does at will, by a stand-in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta

import numpy as np
import pytest
from aiohttp import web
from engines.conftest import NO_INFLUX
from engines.stores import Influx, ask, influx_server, set_up
from openmanager_timeseries.aggregate import aggregate, bucket_starts
from openmanager_timeseries.engines import flux, influxdb
from openmanager_timeseries.engines.flux import Answer, AnswerError
from openmanager_timeseries.engines.influxdb import InfluxEngine
from openmanager_timeseries.engines.port import Coded, Refused, RefusedCredentialsError, Wanted
from openmanager_timeseries.line_protocol import tag_value
from openmanager_timeseries.samples import Ragged

from openmanager.config import Secret
from openmanager.errors import FailedPreconditionError, Reason, UnavailableError
from openmanager.frame import Frame, ServerInfo
from openmanager.metric import make_key

SECOND = 10**9
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
START = (time.time_ns() // HOUR - 3) * HOUR
RETENTION = timedelta(days=14)


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.nanos = time.time_ns()

    def now_nanos(self) -> int:
        return self.nanos

    def monotonic(self) -> float:
        return time.monotonic()


def info_of(server: str) -> ServerInfo:
    return ServerInfo(id=server, environment="production", role="web")


def frame(times, servers, metrics, values) -> Frame:
    shape = (len(times), len(servers), len(metrics))
    table = np.array(values, np.float64).reshape(shape)
    return Frame(times=np.array(times, np.int64), servers=tuple(servers), metrics=tuple(metrics), values=table)


def samples(coded: Coded) -> dict[tuple[str, str], dict[int, float]]:
    """Return what was answered, by series and time."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for server, metric, at, value in zip(
        coded.server_codes, coded.metric_codes, coded.times.tolist(), coded.values.tolist(), strict=True
    ):
        found.setdefault((coded.servers[server], coded.metrics[metric]), {})[at] = value
    return found


def wanted(servers, metrics, start=START, end=START + HOUR) -> Wanted:
    return Wanted(servers=servers, metrics=metrics, start=start, end=end)


def opened(url: str, token: str = "token", org: str = "org", bucket: str = "bucket", clock=None) -> InfluxEngine:
    return InfluxEngine(
        url=url,
        token=token if isinstance(token, Secret) else Secret(token),
        org=org,
        bucket=bucket,
        retention=RETENTION,
        write_timeout=timedelta(seconds=10),
        query_timeout=timedelta(seconds=20),
        clock=clock,
    )


@pytest.fixture
def generator():
    return np.random.default_rng(7)


# A real server.


@pytest.fixture(scope="module")
def influx(tmp_path_factory) -> Iterator[Influx]:
    if os.environ.get("INFLUXDB_URL"):
        store = Influx(None, os.environ["INFLUXDB_URL"], os.environ["INFLUXDB_TOKEN"], os.environ["INFLUXDB_ORG"])
    else:
        server = influx_server(tmp_path_factory.mktemp("influx"))
        if server is None:
            pytest.skip(NO_INFLUX)
        server.start()
        store = set_up(server)
    yield store
    store.delete_buckets()
    if store.server is not None:
        store.server.stop()


@pytest.fixture
def bucket(influx, request) -> str:
    """The name of a bucket that is not there yet."""
    name = f"test-{os.getpid()}-{request.node.name}"
    influx.buckets.append(name)
    return name


@pytest.fixture
async def engine(influx, bucket) -> AsyncIterator[InfluxEngine]:
    made = opened(influx.url, influx.token, influx.org, bucket)
    await made.check()
    yield made
    await made.close()


def write_by_hand(influx: Influx, bucket: str, lines: str) -> None:
    query = urllib.parse.urlencode({"org": influx.org, "bucket": bucket, "precision": "ms"})
    headers = {"Authorization": f"Token {influx.token}"}
    url = f"{influx.url}/api/v2/write?{query}"
    with urllib.request.urlopen(urllib.request.Request(url, lines.encode(), headers), timeout=10) as answer:
        assert answer.status == 204


def rules(influx: Influx, bucket: str) -> list[int]:
    query = urllib.parse.urlencode({"org": influx.org, "name": bucket})
    found = json.loads(ask(f"{influx.url}/api/v2/buckets?{query}", token=influx.token))["buckets"]
    return [rule["everySeconds"] for one in found for rule in one["retentionRules"]]


async def test_a_missing_bucket_is_made_with_our_retention(influx, bucket):
    engine = opened(influx.url, influx.token, influx.org, bucket)
    with pytest.raises(UnavailableError):
        await engine.write([frame([START], ["a"], ["m"], [1])], info_of)
    with pytest.raises(UnavailableError):
        await engine.read(wanted(["a"], ["m"]))
    state = await engine.check()
    assert (state.version[:2], state.warnings) == ("2.", ())
    assert rules(influx, bucket) == [RETENTION.total_seconds()]
    assert await engine.write([frame([START], ["a"], ["m"], [1])], info_of) == []
    await engine.close()


async def test_a_shorter_retention_is_said_and_left_alone(influx, bucket):
    org = json.loads(ask(f"{influx.url}/api/v2/orgs?org={influx.org}", token=influx.token))["orgs"][0]["id"]
    kept = [{"type": "expire", "everySeconds": 86_400}]
    body = {"orgID": org, "name": bucket, "retentionRules": kept}
    ask(f"{influx.url}/api/v2/buckets", body, "POST", token=influx.token)
    engine = opened(influx.url, influx.token, influx.org, bucket)
    warnings = (await engine.check()).warnings
    assert warnings == ("influxdb's bucket keeps samples for 1 day, 0:00:00, and 14 days, 0:00:00 are wanted",)
    assert rules(influx, bucket) == [86_400]
    await engine.close()


async def test_an_unknown_organisation_is_the_operators_to_make(influx, bucket):
    engine = opened(influx.url, influx.token, "nobody", bucket)
    for doing in (engine.check(), engine.write([frame([START], ["a"], ["m"], [1])], info_of), engine.mark("x")):
        with pytest.raises(UnavailableError) as failure:
            await doing
        assert failure.value.reason == Reason.STORE_UNAVAILABLE
        assert failure.value.message == "influxdb does not answer"
    await engine.close()


async def test_an_old_marker_is_written_again_before_retention_takes_it(influx, bucket):
    clock = Hands()
    engine = opened(influx.url, influx.token, influx.org, bucket, clock)
    await engine.check()
    await engine.mark("one")
    first = await engine._marker()
    await engine.check()
    assert await engine._marker() == first
    clock.nanos += 7 * HOUR
    assert (await engine.check()).epoch == "one"
    assert (await engine._marker()).time == clock.nanos // 10**6 * 10**6
    clock.nanos -= 7 * HOUR
    await engine.mark("two")
    assert (await engine.check()).epoch == "two"
    await engine.close()


async def test_samples_older_than_the_bucket_keeps_are_refused_and_the_others_kept(engine):
    times = [START - 20 * DAY, START - 19 * DAY, START, START + MINUTE]
    sent = frame(times, ["a", "b"], ["m", "n", "o{p=q}"], np.arange(24))
    refused = await engine.write([sent], info_of)
    assert refused == [Refused(reason="older than the bucket keeps", sample_count=12, servers=("a", "b"))]
    found = samples(await engine.read(wanted(sent.servers, sent.metrics, 0, START + HOUR)))
    assert found["b", "o{p=q}"] == {START: 17.0, START + MINUTE: 23.0}
    assert sum(map(len, found.values())) == 12


async def test_a_point_of_another_type_is_refused_alone(influx, bucket, engine):
    write_by_hand(influx, bucket, f"server_metrics,server_id=other m=1i {START // 10**6}\n")
    values = np.ones((500, 10, 2))
    values[:, :, 0] = np.nan
    values[123, 4, 0] = values[456, 7, 0] = 5.0
    sent = frame(START + np.arange(500) * SECOND, [f"s{n}" for n in range(10)], ["m", "n"], values)
    refused = await engine.write([sent], info_of)
    reason = "the bucket holds the metric with another type"
    assert refused == [Refused(reason=reason, sample_count=4, servers=("s4", "s7"))]
    found = await engine.read(wanted(sent.servers, sent.metrics))
    assert len(found.times) == 4998


async def test_what_others_wrote_into_our_measurement_is_no_sample_of_ours(influx, bucket, engine):
    at = START // 10**6
    lines = [f'server_metrics,server_id=a text="x,\\"y\\n" {at}', f"server_metrics,server_id=a count=7i {at}"]
    write_by_hand(influx, bucket, "\n".join([*lines, f"server_metrics,role=x m=1 {at}", f"else,server_id=a m=1 {at}"]))
    await engine.write([frame([START], ["a"], ["m"], [2])], info_of)
    found = await engine.read(wanted(["a"], ["m", "text", "count"]))
    assert samples(found) == {("a", "m"): {START: 2.0}, ("a", "count"): {START: 7.0}}


@pytest.mark.parametrize("step", [7 * SECOND, 13 * MINUTE, DAY, 7 * DAY, 1_234_567 * 10**6])
async def test_pushed_down_buckets_are_ours(engine, generator, step):
    times = np.sort(generator.choice(np.arange(START - 13 * DAY, START, SECOND), 2000, replace=False))
    values = np.round(generator.normal(0, 50, 2000), 2)
    await engine.write([frame(times, ["a"], ["m"], values)], info_of)
    start, end = times[0] // step * step, -(-START // step) * step
    starts = bucket_starts(start, end, step)
    ragged = Ragged(np.array([0, 2000]), times, values)
    for name in sorted(engine.capabilities.aggregations):
        found = await engine.read_buckets(wanted(["a"], ["m"], start, end), step, name)
        row = np.zeros(1, np.int64)
        expected = aggregate(ragged, name, starts=starts, step=step, groups=row, delta=np.zeros(1, np.bool_))[0]
        full = ~np.isnan(expected)
        assert np.array_equal(starts[full], found.times)
        if name == "SUM":
            assert np.allclose(expected[full], found.values, rtol=1e-12, atol=1e-10)
        else:
            assert np.array_equal(expected[full], found.values)


async def test_a_sum_that_overflows_is_infinite(engine):
    await engine.write([frame([START, START + SECOND], ["a"], ["m"], [1.5e308, 1.5e308])], info_of)
    for step in (MINUTE, HOUR):  # computed by us, then by InfluxDB
        found = await engine.read_buckets(wanted(["a"], ["m"], START, START + step), step, "SUM")
        assert found.values.tolist() == [np.inf]


async def test_the_sample_of_todays_role_counts(engine):
    times = [START, START + 20 * MINUTE, START + 40 * MINUTE]
    await engine.write([frame(times, ["a"], ["m"], [1, 2, 3])], lambda _: ServerInfo(id="a", role="web"))
    await engine.write([frame([*times, START + 50 * MINUTE], ["a"], ["m"], [1, 9, 3, 4])], info_of)
    asked = wanted(["a"], ["m"])
    assert samples(await engine.read(asked))["a", "m"] == dict(
        zip([*times, START + 50 * MINUTE], [1, 9, 3, 4], strict=True)
    )
    expected = {"COUNT": 4, "SUM": 17, "MAX": 9, "MIN": 1, "FIRST": 1, "LAST": 4}
    for name, value in expected.items():
        assert samples(await engine.read_buckets(asked, HOUR, name)) == {("a", "m"): {START: value}}


async def test_many_metrics_and_servers_are_asked_for_in_several_queries(engine, monkeypatch, generator):
    monkeypatch.setattr(flux, "NAMES_BYTES", 100)
    monkeypatch.setattr(flux, "STREAMS_PER_QUERY", 2)
    servers, metrics = [f"s{n}" for n in range(19)], [f"metric.of/kind:{n}-x" for n in range(50)]
    asked = wanted(servers[1:], metrics[1:])
    assert len(list(flux.programs("b", asked, ""))) > 10
    await engine.write([frame([START], servers, metrics, generator.random(950))], info_of)
    assert len((await engine.read(asked)).times) == 18 * 49


async def test_answers_longer_than_one_piece(engine, monkeypatch, generator):
    times = START + np.arange(300) * SECOND
    sent = frame(times, ["a", "b", "c"], ["m", "n{x=y}", "o"], generator.random(2700))
    await engine.write([sent], info_of)
    asked = wanted(sent.servers, sent.metrics)
    whole = samples(await engine.read(asked))
    monkeypatch.setattr(influxdb, "PARSE_BYTES", 1000)
    assert whole == samples(await engine.read(asked))
    assert whole["b", "n{x=y}"] == dict(zip(times.tolist(), sent.values[:, 1, 1].tolist(), strict=True))


async def test_an_answer_that_is_too_large_is_refused(engine, monkeypatch, generator):
    await engine.write([frame(START + np.arange(300) * SECOND, ["a"], ["m"], generator.random(300))], info_of)
    monkeypatch.setattr(influxdb, "MAX_ANSWER_BYTES", 5000)
    with pytest.raises(FailedPreconditionError) as failure:
        await engine.read(wanted(["a"], ["m"]))
    assert failure.value.reason == Reason.ENGINE_CANNOT


async def test_both_ends_of_a_deletion_are_exact(engine):
    times = START + np.arange(5) * SECOND
    await engine.write([frame(times, ["a", "b"], ["m"], np.arange(10))], info_of)
    await engine.delete(wanted(["a"], ["m"], START + SECOND, START + 3 * SECOND))
    found = samples(await engine.read(wanted(["a", "b"], ["m"])))
    assert sorted(found["a", "m"]) == [START, START + 3 * SECOND, START + 4 * SECOND]
    assert len(found["b", "m"]) == 5


HOSTILE = make_key("m", {'a "b" ${c}': 'd\\,e= "f" ${g} AND (h)', "é/.:-": "it's"})


@pytest.mark.parametrize(
    ("metrics", "deleted"),
    [
        (["m", "n", "m{a=b}", "m{a=b,c=d}", "x{c=e}", HOSTILE], True),
        (["m{a=b}", "m{a=b,c=d}"], True),
        (["m{a=b,c=d}"], True),
        (["x{c=e}", "unknown"], True),
        ([HOSTILE], True),
        (["unknown"], True),
        (["m{a=b}"], False),  # a=b,c=d has that too
        (["m", "n"], False),  # nothing says that a series has no attributes
        (["m", "m{a=b}", "m{a=b,c=d}", "x{c=e}", HOSTILE], False),  # n has the attributes of m
    ],
)
async def test_only_whole_sets_of_attributes_can_be_deleted(engine, metrics, deleted):
    every = ["m", "n", "m{a=b}", "m{a=b,c=d}", "x{c=e}", HOSTILE]
    await engine.write([frame([START], ["a", "b"], every, np.arange(12))], info_of)
    await engine.write([frame([START], ["a"], every, np.arange(6))], lambda server: ServerInfo(id=server, role="old"))
    if deleted:
        await engine.delete(wanted(["a"], metrics))
    else:
        with pytest.raises(FailedPreconditionError) as failure:
            await engine.delete(wanted(["a", "b"], metrics))
        assert failure.value.reason == Reason.ENGINE_CANNOT
    left = samples(await engine.read(wanted(["a", "b"], every)))
    assert sorted(left) == sorted({(s, m) for s in "ab" for m in every} - {("a", m) for m in metrics if deleted})


async def test_what_was_acknowledged_survives_kill_9(influx, engine):
    if influx.server is None:
        pytest.skip("influxdb is not ours to kill")
    times = START + np.arange(200) * SECOND
    await engine.write([frame(times, ["a"], ["m"], np.arange(200))], info_of)
    influx.server.stop(signal.SIGKILL)
    with pytest.raises(UnavailableError):
        await engine.read(wanted(["a"], ["m"]))
    await asyncio.to_thread(influx.server.start)
    assert len((await engine.read(wanted(["a"], ["m"]))).times) == 200


# A stand-in: what a real server does not do at will.


class StandIn:
    """Takes lines as InfluxDB does, except for what `refuse` says of them; remembers the good ones, and the requests."""

    def __init__(self, refuse: Callable[[list[str]], web.Response | None]) -> None:
        self.refuse = refuse
        self.stored: list[str] = []
        self.requests = 0

    async def __call__(self, request: web.Request) -> web.Response:
        lines = (await request.read()).decode().splitlines()
        self.requests += 1
        refusal = self.refuse(lines)
        if refusal is not None:
            return refusal
        self.stored += lines
        return web.Response(status=204)


@contextlib.asynccontextmanager
async def serving(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[InfluxEngine]:
    """Give an engine whose server answers everything by the handler."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return await handler(request)

    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    engine = opened(f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        yield engine
    finally:
        await engine.close()
        await runner.cleanup()


def ticks(count: int) -> Frame:
    return frame(START + np.arange(count) * SECOND, ["a"], ["m"], np.arange(count))


def stamp(tick: int) -> str:
    return f" {(START + tick * SECOND) // 10**6}"


async def test_one_bad_line_of_5000_is_found_and_nothing_else_lost():
    def refuse(lines):
        if any(line.endswith(stamp(3210)) for line in lines):
            return web.json_response({"message": "unable to parse 'secret': missing fields"}, status=400)
        return None

    server = StandIn(refuse)
    async with serving(server) as engine:
        refused = await engine.write([ticks(5000)], info_of)
    assert refused == [Refused(reason="no line protocol to influxdb", sample_count=1, servers=("a",))]
    assert [line.rsplit(" ", 1)[1] for line in server.stored] == [
        stamp(tick)[1:] for tick in range(5000) if tick != 3210
    ]
    assert server.requests < 30


async def test_a_batch_that_is_refused_whole_costs_one_request():
    message = "partial write: points beyond retention policy dropped={}"
    server = StandIn(lambda lines: web.json_response({"message": message.format(len(lines))}, status=422))
    async with serving(server) as engine:
        refused = await engine.write([ticks(5000)], info_of)
    assert refused == [Refused(reason="older than the bucket keeps", sample_count=5000, servers=("a",))]
    assert server.requests == 1


async def test_looking_for_bad_lines_has_an_end():
    server = StandIn(lambda _: web.Response(status=400))
    async with serving(server) as engine:
        refused = await engine.write([ticks(5000)], info_of)
    assert refused == [Refused(reason="refused by influxdb", sample_count=5000, servers=("a",))]
    assert server.requests <= influxdb.PROBES + 20


async def test_a_batch_that_is_too_large_goes_in_parts():
    server = StandIn(lambda lines: web.Response(status=413) if len(lines) > 100 else None)
    async with serving(server) as engine:
        assert await engine.write([ticks(1000)], info_of) == []
    assert len(server.stored) == 1000


async def test_a_line_of_bad_names_says_from_which_server_and_how_many():
    server = StandIn(lambda _: web.Response(status=400))
    key = make_key("m", {"a": "b,server_id=x c", "d": "e"})
    async with serving(server) as engine:
        sent = frame([START], ["one", "two"], [key, key.replace("m{", "n{")], np.arange(4))
        refused = await engine.write([sent], info_of)
    assert refused == [Refused(reason="refused by influxdb", sample_count=4, servers=("one", "two"))]


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"Retry-After": "7"}, 7),
        (503, {"Retry-After": "100000"}, 30),
        (503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, 1),
        (500, {}, 1),
        (200, {}, 1),  # a proxy's page
        (201, {}, 1),
    ],
)
async def test_a_write_that_is_not_known_to_be_stored_is_tried_again_later(status, headers, seconds):
    server = StandIn(lambda _: web.Response(status=status, headers=headers, text="secret"))
    async with serving(server) as engine:
        with pytest.raises(UnavailableError) as failure:
            await engine.write([ticks(10)], info_of)
    assert failure.value.retry_after == timedelta(seconds=seconds)
    assert failure.value.message == "influxdb does not answer"
    assert server.requests == 1


async def test_a_refused_token_is_not_tried_in_a_hurry_and_that_of_a_new_file_at_once(tmp_path):
    tokens, file = [], tmp_path / "token"

    async def handle(request: web.Request) -> web.Response:
        tokens.append(request.headers["Authorization"])
        return web.Response(status=204 if tokens[-1] == "Token second" else 401, text="secret")

    file.write_text("first")
    async with serving(handle) as standing:
        engine = opened(standing._url, Secret("first", file))
        for _ in range(5):
            with pytest.raises(RefusedCredentialsError, match="influxdb refuses the credentials"):
                await engine.write([ticks(10)], info_of)
        assert tokens == ["Token first"]
        file.write_text("second\n")
        assert await engine.write([ticks(10)], info_of) == []
        await engine.close()
    assert tokens == ["Token first", "Token second"]


async def test_the_size_on_disk_is_that_of_our_bucket():
    answers = {
        "/health": web.json_response({"version": "v2.7.12"}),
        "/api/v2/buckets": web.json_response({"buckets": [{"id": "b1", "retentionRules": []}]}),
        "/api/v2/query": web.Response(body=b"\r\n"),
        "/metrics": web.Response(
            text='storage_shard_disk_size{bucket="b1",id="1"} 968\n'
            'storage_shard_disk_size{bucket="b1",id="2"} 1.5e+06\nstorage_shard_disk_size{bucket="b2",id="3"} 7\n'
        ),
    }

    async def answer(request: web.Request) -> web.Response:
        return answers[request.path]

    async with serving(answer) as engine:
        state = await engine.check()
    assert (state.size_bytes, state.version, state.epoch, state.warnings) == (1_500_968, "2.7.12", "", ())


HEAD = b"#datatype,string,long,dateTime:RFC3339,double,string,string\r\n,result,table,_time,_value,_field,server_id\r\n"
ROW = b",0,0,2026-01-01T00:00:00Z,1.5,m,a\r\n"
# As a real server says it when it fails after a part of its answer.
ERROR = b"\r\n\r\n#datatype,string,string\r\n,error,reference\r\n,runtime error: cannot divide by zero,\r\n"


@pytest.mark.parametrize(
    "body",
    [
        HEAD + ROW,  # cut at a line's end
        HEAD + ROW + ROW[:20],
        HEAD,
        HEAD + ROW + ERROR,
        ERROR[4:],
        HEAD + b",0,0,yesterday,1.5,m,a\r\n\r\n",
        HEAD + b",0,0,2026-01-01T00:00:00Z,1.5,m\r\n\r\n",
        b"<html>\r\n\r\n",
        b"\xff\xfe\r\n\xff\r\n\xff\r\n\r\n",
    ],
)
async def test_a_bad_answer_of_a_query_is_none(body):
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body)

    async with serving(answer) as engine:
        with pytest.raises(UnavailableError):
            await engine.read(wanted(["a"], ["m"], 0, 2 * 10**18))


async def test_an_answer_that_breaks_off_is_none():
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(HEAD + ROW + b"\r\n")
        request.transport.close()
        return response

    async with serving(answer) as engine:
        with pytest.raises(UnavailableError):
            await engine.read(wanted(["a"], ["m"], 0, 2 * 10**18))


async def test_an_answer_that_never_ends_meets_the_deadline():
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b"\r\n")
                await asyncio.sleep(0.01)
        return response

    async with serving(answer) as engine:
        engine._query_seconds = 0.2
        with pytest.raises(TimeoutError):
            await engine.read(wanted(["a"], ["m"], 0, 2 * 10**18))


# The reading of answers, without a server.


def test_an_answer_reads_the_same_wherever_it_is_cut():
    other = HEAD.replace(b"server_id", b'"x,""y",server_id').replace(b"double,", b"long,string,")
    rows = [ROW.replace(b"1.5", str(n).encode()).replace(b"00:00Z", b"%02d:00Z" % n) for n in range(5)]
    named = [row.replace(b",m,a", b',m,"1,2",a') for row in rows]
    text = HEAD + b"".join(rows) + b"\r\n" + other + b"".join(named) + b"\r\n\r\n" + HEAD + b"".join(rows) + b"\r\n\r\n"
    ends = [at + 2 for at in range(len(text)) if text.startswith(b"\r\n", at)]
    series = ["m", make_key("m", {'x,"y': "1,2"})]
    asked = wanted(["a"], series, 0, 2 * 10**18)
    for end in ends:
        answer = Answer()
        parts = answer.take(text[:end]) + answer.take(text[end:])
        answer.finish()
        coded, _ = flux.coded(asked, parts)
        assert [len(found) for found in samples(coded).values()] == [5, 5]


def test_answers_of_nothing():
    for text in (b"", b"\r\n", b"\r\n\r\n"):
        answer = Answer()
        assert answer.take(text) == []
        answer.finish()


def test_columns_without_numbers_are_left_out():
    answer = Answer()
    assert answer.take(HEAD.replace(b"double", b"string") + ROW + b"\r\n") == []
    assert answer.take(HEAD.replace(b"_field", b"else") + ROW + b"\r\n") == []


def test_a_cut_answer_is_told():
    answer = Answer()
    answer.take(HEAD + ROW)
    with pytest.raises(AnswerError):
        answer.finish()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", '"plain"'),
        ('a"b', '"a\\"b"'),
        ("a\\b", '"a\\\\b"'),
        ("${r}", '"\\${r}"'),
        ('\\"', '"\\\\\\""'),
        ("$x {y}", '"$x {y}"'),
    ],
)
def test_no_part_of_a_text_is_code(text, expected):
    assert expected == flux.literal(text)


async def test_a_literal_is_what_it_was_to_a_real_server(engine):
    keys = [make_key("m", {"k": text}) for text in ('"', "\\", "${1+1}", '") or true or ("', "$", "{}", "a\\")]
    assert len({tag_value(key) for key in keys}) == len(keys)
    await engine.write([frame([START], ["a"], keys, np.arange(len(keys)))], info_of)
    for number, key in enumerate(keys):
        assert samples(await engine.read(wanted(["a"], [key]))) == {("a", key): {START: float(number)}}


@pytest.mark.parametrize("nanos", [0, 1, START, 10**18 + 123_456_789, 7_258_118_400 * 10**9])
def test_times_keep_their_nanoseconds(nanos):
    text = flux.instant(nanos)
    assert np.datetime64(text[:-1], "ns").astype(np.int64) == nanos
