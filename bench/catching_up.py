"""How fast each reader of the log catches up after it was away, while the standard fleet goes on sending."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
from openmanager_cache.fleet import Fleet
from openmanager_cache.follower import follower as follow
from openmanager_timeseries.config import TimeseriesConfig
from openmanager_timeseries.consumer import Runner
from openmanager_timeseries.disk import PosixDisk
from openmanager_timeseries.engine_link import EngineLink
from openmanager_timeseries.engines.influxdb import InfluxEngine
from openmanager_timeseries.engines.port import Engine
from openmanager_timeseries.engines.victoriametrics import VictoriaEngine
from openmanager_timeseries.history import History
from openmanager_timeseries.log_service import LogService
from openmanager_timeseries.opening import open_history
from openmanager_timeseries.port import Consumer
from openmanager_timeseries.registrar import Registrar
from openmanager_timeseries.service import TimeseriesService

from bench import store
from bench.data import names, standard_series
from bench.pair import Row
from openmanager.config import Secret
from openmanager.frame import Frame, ServerInfo, encode
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.module import ServerConfig, Service
from openmanager.runtime.peer import Peer
from openmanager.runtime.server import Server

SERVERS, METRICS = 20, 511
# Of the fleet, at a tick a second.
SAMPLES_PER_SECOND = SERVERS * METRICS
BACKLOG_MINUTES = 5
GOAL = 5.0
PACKAGE = "openmanager.api.timeseries.v1"
CLOCK = SystemClock()

# Catches up with a history, and returns when it has.
CatchUp = Callable[[History], Awaitable[None]]


def rows() -> Iterator[Row]:
    """Let each reader of the log catch up."""
    with store.victoria() as victoria:
        yield _row("victoriametrics", victoria and (lambda history: _deliver(history, _victoria(victoria))))
    with store.influx() as influx:
        yield _row("influxdb", influx and (lambda history: _deliver(history, _influx(influx))))
    yield _row("cache, by WatchFrames", _follow)
    yield _row("registrar, an inventory that answers at once", _register)
    yield _row("blocks", History.seal)


def _row(name: str, catch_up: CatchUp | None) -> Row:
    what, goal = f"catching up with {BACKLOG_MINUTES} min of {SERVERS} × {METRICS}: {name}", f"≥ {GOAL:g}"
    if catch_up is None:
        return store.missing(what, goal, name)
    rate = asyncio.run(_rate(catch_up))
    ratio = rate / SAMPLES_PER_SECOND
    ours, peer = f"{rate:,.0f} S/s", f"{SAMPLES_PER_SECOND:,} S/s"
    return Row(what, ours, peer, ratio, goal, met=ratio >= GOAL, note="the peer is what is sent meanwhile")


async def _rate(catch_up: CatchUp) -> float:
    """Return the samples a second at which a backlog is caught up with."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        config = TimeseriesConfig(data_dir=Path(folder), ballast_size=0, seal_interval=timedelta(days=1))
        async with open_history(config, PosixDisk(Path(folder) / "log"), CLOCK) as history:
            payloads = _payloads()
            for _ in range(60 * BACKLOG_MINUTES):
                await history.write(next(payloads))
            async with _sending(history, payloads):
                start = time.perf_counter()
                await catch_up(history)
                return history.log.state.accepted / (time.perf_counter() - start)


def _payloads() -> Iterator[bytes]:
    """Yield frames of the standard fleet, a second from one to the next, up to now and beyond."""
    values = standard_series(64, SERVERS, METRICS)
    ids, keys = names(SERVERS, METRICS)
    start = time.time_ns() // 10**9 * 10**9 - 60 * BACKLOG_MINUTES * 10**9
    for tick in itertools.count():
        at = tick % len(values)
        times = np.array([start + tick * 10**9])
        yield encode(Frame(times=times, servers=ids, metrics=keys, values=values[at : at + 1]))


@contextlib.asynccontextmanager
async def _sending(history: History, payloads: Iterator[bytes]) -> AsyncIterator[None]:
    async def send() -> None:
        while True:
            await history.write(next(payloads))
            await asyncio.sleep(1.0)

    task = asyncio.create_task(send())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def _running(*works: Awaitable[None]) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _through(history: History, name: str) -> None:
    """Return when nothing waits for a consumer."""
    # The books tell nobody when they change.
    while history.ledger.open_books(name).counted < history.log.state.head_position:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def _runner(history: History, consumer: Consumer) -> Runner:
    jitter = random.Random(1)
    return Runner(consumer=consumer, source=history.log, ledger=history.ledger, clock=CLOCK, jitter=jitter)


async def _deliver(history: History, engine: Engine) -> None:
    link = EngineLink(engine, history, CLOCK, history.config.data_dir / "engine.json")
    try:
        await link.look()
        async with _running(_runner(history, link).run(), link.watch()):
            await _through(history, link.name)
    finally:
        await engine.close()


def _victoria(of: store.Victoria) -> Engine:
    url = f"http://127.0.0.1:{of.port}"
    return VictoriaEngine(
        write_url=url, read_url=url, write_timeout=timedelta(seconds=10), query_timeout=timedelta(seconds=10)
    )


def _influx(of: store.Influx) -> Engine:
    return InfluxEngine(
        url=f"http://127.0.0.1:{of.port}",
        token=Secret(of.headers["Authorization"].removeprefix("Token ")),
        org=store.ORG,
        bucket=store.BUCKET,
        retention=timedelta(days=14),
        write_timeout=timedelta(seconds=10),
        query_timeout=timedelta(seconds=10),
    )


class _Inventory:
    async def register(self, infos: Sequence[ServerInfo], seen_nanos: int) -> None:
        """Take everybody."""


async def _register(history: History) -> None:
    registrar = Registrar(_Inventory(), CLOCK, history.catalog.info_of)
    async with _running(_runner(history, registrar).run()):
        await _through(history, registrar.name)


async def _follow(history: History) -> None:
    """Follow the log as the cache service does, over gRPC, in one process with what it follows."""
    servicers = {
        f"{PACKAGE}.TimeseriesService": TimeseriesService(history, CLOCK),
        f"{PACKAGE}.LogService": LogService(history, {}),
    }
    server = Server(
        service=Service(servicers=servicers), name="bench", address="127.0.0.1:0", config=ServerConfig(), clock=CLOCK
    )
    async with server.running(), Peer("timeseries", f"127.0.0.1:{server.port}") as peer:
        follower = follow(peer=peer, fleet=Fleet(CLOCK), clock=CLOCK, jitter=random.Random(1), on_change=lambda _: None)
        follower.view.position = 1  # else it begins with the newest of each
        async with _running(follower.run()):
            while follower.view.position < history.log.state.head_position:  # noqa: ASYNC110  (nor does it)
                await asyncio.sleep(0.005)
