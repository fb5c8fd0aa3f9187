"""What only VictoriaMetrics does, and how the adapter deals with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from conftest import wait_until
from openmanager_timeseries.engines import victoriametrics
from openmanager_timeseries.engines.port import MARKER, Wanted
from openmanager_timeseries.engines.victoriametrics import MAX_ATTRIBUTES, VictoriaEngine

from engines.conftest import NO_VICTORIA
from engines.stores import QUERY_TIMEOUT, WRITE_TIMEOUT, Victoria, ask, victoria_server
from engines.test_engine_contract import HOUR, MILLI, MINUTE, SECOND, START, closing, frame, info_of, marked, rows
from openmanager.errors import UnavailableError
from openmanager.metric import make_key

DAY = 24 * HOUR


@dataclass
class ShiftedClock:
    """The machine's clock, some time ahead or behind."""

    ahead: timedelta

    def now_nanos(self) -> int:
        return time.time_ns() + int(self.ahead.total_seconds()) * SECOND

    def monotonic(self) -> float:
        return time.monotonic()


def shifted_engine(store: Victoria, ahead: timedelta) -> VictoriaEngine:
    url, clock = store.server.url, ShiftedClock(ahead)
    return VictoriaEngine(
        write_url=url, read_url=url, write_timeout=WRITE_TIMEOUT, query_timeout=QUERY_TIMEOUT, clock=clock
    )


@contextlib.contextmanager
def own_victoria(data: Path, *options: str) -> Iterator[Victoria]:
    """Start one that a test may break."""
    server = victoria_server(data, *options)
    if server is None:
        pytest.skip(NO_VICTORIA)
    server.start()
    try:
        yield Victoria(server, marker=MARKER)
    finally:
        server.stop()


@contextlib.asynccontextmanager
async def road(store: Victoria, *prefixes: str, closed: str = "/closed") -> AsyncIterator[str]:
    """Serve the store below the paths of a cluster; `closed` is forbidden."""

    async def pass_on(request: web.Request) -> web.Response:
        if request.path.startswith(closed):
            return web.Response(status=403, text="secret text")
        path = request.path_qs
        for prefix in prefixes:
            path = path.removeprefix(prefix)
        assert not prefixes or path != request.path_qs or path == "/metrics"
        headers = {key: value for key, value in request.headers.items() if key != "Host"}
        async with (
            aiohttp.ClientSession() as session,
            session.request(request.method, store.server.url + path, data=await request.read(), headers=headers) as got,
        ):
            return web.Response(status=got.status, body=await got.read())

    application = web.Application(client_max_size=1 << 24)
    application.router.add_route("*", "/{path:.*}", pass_on)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
async def engine(victoria: Victoria) -> AsyncIterator[VictoriaEngine]:
    async with closing(victoria.engine()) as made:
        await made.check()
        yield made


def everything(prefix: str, *metrics: str) -> Wanted:
    return Wanted(servers=[prefix], metrics=metrics, start=START, end=START + HOUR)


# What it would drop or distort in silence is refused instead.


async def test_as_many_attributes_as_the_store_keeps_come_back_and_more_are_refused(victoria, engine, prefix):
    keys = [make_key("m", {f"a{n:02d}": "x" for n in range(count)}) for count in (MAX_ATTRIBUTES, MAX_ATTRIBUTES + 1)]
    sent = frame([START], [prefix, f"{prefix}-silent"], [*keys, "plain"], [[1, 2, 3], [4, np.nan, 5]])
    (refused,) = await engine.write([sent], info_of)
    await victoria.settle()
    assert (1, (prefix,)) == (refused.sample_count, refused.servers)
    assert f"more than {MAX_ATTRIBUTES} attributes" in refused.reason
    found = rows(await engine.read(everything(prefix, *keys, "plain")))
    assert {(prefix, keys[0]): [1.0], (prefix, "plain"): [3.0]} == {key: list(row[1]) for key, row in found.items()}


async def test_samples_of_more_than_two_days_ahead_are_refused(victoria, engine, prefix):
    now = time.time_ns() // SECOND * SECOND
    times = [now + 2 * DAY - HOUR, now + 2 * DAY + HOUR, now + 2 * DAY + 2 * HOUR]
    (refused,) = await engine.write([frame(times, [prefix], ["a", "b"], [[1, 2], [3, 4], [5, np.nan]])], info_of)
    assert (3, (prefix,), "more than two days ahead") == (refused.sample_count, refused.servers, refused.reason)
    await victoria.settle()
    wanted = replace(everything(prefix, "a"), end=now + 3 * DAY)
    assert (await engine.read(wanted)).values.tolist() == [1.0]


async def test_buckets_ahead_of_the_clock_are_there(victoria, engine, prefix):
    now = time.time_ns() // MINUTE * MINUTE
    await engine.write([frame([now - HOUR, now + HOUR], [prefix], ["a"], [1, 2])], info_of)
    await victoria.settle()
    wanted = replace(everything(prefix, "a"), start=now - 2 * HOUR, end=now + 2 * HOUR)
    found = await engine.read_buckets(wanted, MINUTE, "MAX")
    assert ([now - HOUR, now + HOUR], [1.0, 2.0]) == (found.times.tolist(), found.values.tolist())


async def test_what_somebody_else_wrote_is_no_sample(victoria, engine, prefix):
    lines = [
        f"server_metrics,server_id={prefix} a={text} {START // MILLI + n}"
        for n, text in enumerate(("inf", "1", "-inf"))
    ]
    lines.append(f"server_metrics,server_id={prefix},m\\ n=o\\ p,environment=\\ x a=7 {START // MILLI}")
    request = urllib.request.Request(f"{victoria.server.url}/write?precision=ms", "\n".join(lines).encode())
    with await asyncio.to_thread(urllib.request.urlopen, request):
        await victoria.settle()
    found = rows(await engine.read(everything(prefix, "a", "a{m n=o p}")))
    assert {(prefix, "a"): [1.0], (prefix, "a{m n=o p}"): [7.0]} == {key: list(row[1]) for key, row in found.items()}


# Repeated samples.


async def test_without_deduplication_neither_sum_nor_count_is_promised(data, prefix):
    with own_victoria(data) as store:
        async with closing(store.engine()) as engine:
            state = await engine.check()
            assert {"MIN", "MAX", "FIRST", "LAST"} == engine.capabilities.aggregations
            assert any("neither SUM nor COUNT" in warning for warning in state.warnings)
            for value in (5.0, 9.0, 7.0, 7.0):
                await engine.write([frame([START, START + SECOND], [prefix], ["a"], [value, 1])], info_of)
            await store.settle()
            found = await engine.read(everything(prefix, "a"))
            assert found.values.tolist() == [9.0, 1.0]
            found = await engine.read_buckets(everything(prefix, "a"), MINUTE, "MAX")
            assert found.values.tolist() == [9.0]


async def test_with_deduplication_all_are_promised(victoria):
    async with closing(victoria.engine()) as engine:
        assert {"MIN", "MAX", "FIRST", "LAST"} == engine.capabilities.aggregations
        state = await engine.check()
        assert {"MIN", "MAX", "FIRST", "LAST", "SUM", "COUNT"} == engine.capabilities.aggregations
        assert not any("dedup" in warning for warning in state.warnings)


async def test_a_store_that_thins_samples_out_is_warned_of(data):
    with own_victoria(data, "-dedup.minScrapeInterval=10s") as store:
        async with closing(store.engine()) as engine:
            state = await engine.check()
    assert any("one sample of each 10s" in warning for warning in state.warnings)
    assert {"MIN", "MAX", "FIRST", "LAST"} == engine.capabilities.aggregations


# The store's own state.


async def test_a_restarted_store_is_another_process_with_the_same_samples(data, prefix):
    with own_victoria(data) as store:
        async with closing(store.engine()) as engine:
            first = await engine.check()
            await marked(store, engine, "epoch-1")
            await engine.write([frame([START], [prefix], ["a"], [1])], info_of)
            await store.settle()
            await asyncio.to_thread(store.server.stop, signal.SIGTERM)
            with pytest.raises(UnavailableError):
                await engine.read(everything(prefix, "a"))

            async def later() -> bool:
                return time.time() >= float(first.started) + 1  # it says its start in whole seconds

            await wait_until(later)
            await asyncio.to_thread(store.server.start)
            second = await engine.check()
            assert (second.epoch, (await engine.read(everything(prefix, "a"))).values.tolist()) == ("epoch-1", [1.0])
    assert float(second.started) > float(first.started)


async def test_a_store_with_an_empty_disk_is_recognised(data):
    with own_victoria(data) as store:
        async with closing(store.engine()) as engine:
            await marked(store, engine, "epoch-1")
            await asyncio.to_thread(store.server.stop)
            shutil.rmtree(data)
            await asyncio.to_thread(store.server.start)
            assert not (await engine.check()).epoch


async def test_a_marker_appears_without_our_doing(data):
    with own_victoria(data) as store:
        async with closing(store.engine()) as engine:
            await engine.mark("epoch-1")
            assert (await engine.check()).epoch == "epoch-1"


async def test_an_old_marker_is_written_again_before_retention_takes_it(data):
    with own_victoria(data) as store:
        async with closing(store.engine()) as engine, closing(shifted_engine(store, timedelta(hours=7))) as later:
            await marked(store, engine, "epoch with = , and \\")
            await engine.check()
            await store.settle()
            assert _marker_count(store) == 1
            await later.check()
            await store.settle()
            assert _marker_count(store) == 2
            assert (await engine.check()).epoch == "epoch with = , and \\"


async def test_a_marker_counts_although_the_clock_went_back(data):
    with own_victoria(data) as store:
        async with closing(store.engine()) as engine, closing(shifted_engine(store, timedelta(hours=-5))) as behind:
            await marked(store, engine, "epoch-1")
            await marked(store, behind, "epoch-2")
            assert (await engine.check()).epoch == "epoch-2"


def _marker_count(store: Victoria) -> int:
    query = urllib.parse.urlencode({"match[]": "openmanager_marker_value", "start": 0, "end": time.time() + 2 * 86_400})
    lines = ask(f"{store.server.url}/api/v1/export?{query}").splitlines()
    return sum(len(json.loads(line)["timestamps"]) for line in lines)


async def test_what_was_dropped_is_warned_of(data):
    with own_victoria(data) as store:
        async with closing(store.engine()) as engine:
            assert not any("dropped" in warning for warning in (await engine.check()).warnings)
            late = f"other value=1 {time.time_ns() // MILLI + 5 * DAY // MILLI}\n".encode()
            request = urllib.request.Request(f"{store.server.url}/write?precision=ms", late)
            with await asyncio.to_thread(urllib.request.urlopen, request):
                pass

            async def warned() -> bool:
                return any("dropped 1 samples" in warning for warning in (await engine.check()).warnings)

            await wait_until(warned)


# Where it is asked.


async def test_the_paths_of_a_cluster(victoria, prefix):
    async with road(victoria, "/insert/0/influx", "/select/0/prometheus", "/delete/0/prometheus") as url:
        engine = VictoriaEngine(
            write_url=f"{url}/insert/0/influx/",
            read_url=f"{url}/select/0/prometheus",
            write_timeout=WRITE_TIMEOUT,
            query_timeout=QUERY_TIMEOUT,
        )
        async with closing(engine):
            state = await engine.check()
            assert "SUM" in engine.capabilities.aggregations
            assert not state.started
            assert any("vmstorage" in warning for warning in state.warnings)
            await engine.write([frame([START], [prefix], ["a"], [1])], info_of)
            await victoria.settle()
            assert (await engine.read(everything(prefix, "a"))).values.tolist() == [1.0]
            assert (await engine.read_buckets(everything(prefix, "a"), HOUR, "COUNT")).values.tolist() == [1.0]
            await engine.delete(replace(everything(prefix, "a"), start=0, end=2**63 - 1))
            assert (await engine.read(everything(prefix, "a"))).values.tolist() == []


async def test_a_store_whose_own_metrics_are_closed(victoria):
    async with road(victoria, closed="/metrics") as url, closing(victoria.engine(url=url)) as engine:
        state = await engine.check()
    assert (state.version, state.started, state.size_bytes) == ("", "", 0)
    assert any("goes unnoticed" in warning for warning in state.warnings)
    assert "SUM" not in engine.capabilities.aggregations


async def test_an_answer_without_end_is_given_up(victoria, engine, prefix, monkeypatch):
    await engine.write([frame(START + np.arange(5000) * MILLI, [prefix], ["a"], np.arange(5000) / 7)], info_of)
    await victoria.settle()
    monkeypatch.setattr(victoriametrics, "MAX_ANSWER_BYTES", 10_000)
    for ask_for in (engine.read(everything(prefix, "a")), engine.read_buckets(everything(prefix, "a"), MILLI, "MAX")):
        with pytest.raises(UnavailableError):
            await ask_for


async def test_long_answers_are_read_in_pieces(victoria, engine, prefix, monkeypatch):
    monkeypatch.setattr(victoriametrics, "PARSE_BYTES", 4096)
    monkeypatch.setattr(victoriametrics, "ROWS_PER_LINE", 100)
    monkeypatch.setattr(victoriametrics, "POINTS_PER_SERIES", 7)
    values = np.arange(20_000) / 7
    await engine.write([frame(START + np.arange(10_000) * 10 * MILLI, [prefix], ["a", "b{c=d}"], values)], info_of)
    await victoria.settle()
    found = rows(await engine.read(everything(prefix, "a", "b{c=d}")))
    for name, first in ((prefix, "a"), 0), ((prefix, "b{c=d}"), 1):
        np.testing.assert_allclose(found[name][1], values[first::2], rtol=1e-11)
    buckets = rows(await engine.read_buckets(everything(prefix, "a", "b{c=d}"), SECOND, "FIRST"))
    np.testing.assert_allclose(buckets[prefix, "a"][1], values[::200], rtol=1e-11)


@pytest.mark.parametrize("aggregation", ["MIN", "COUNT"])
async def test_a_range_without_ends_is_answered(victoria, engine, prefix, aggregation):
    await engine.write([frame([START], [prefix], ["a"], [1])], info_of)
    await victoria.settle()
    wanted = replace(everything(prefix, "a"), start=-9000 * DAY, end=90_000 * DAY)
    found = await engine.read_buckets(wanted, DAY, aggregation)
    assert (found.times.tolist(), found.values.tolist()) == ([START // DAY * DAY], [1.0])
    assert (await engine.read(wanted)).values.tolist() == [1.0]
