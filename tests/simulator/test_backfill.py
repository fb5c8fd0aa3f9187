"""The making of history: what is written is what live ticks would have left, whatever happens on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from client.proxy import proxy
from conftest import clean_environment, wait_until
from openmanager_simulator.backfill import Backfill
from openmanager_simulator.catalogue import load_catalogue
from openmanager_simulator.fault import FaultPattern, plan_fault
from openmanager_simulator.fleet import make_fleet
from openmanager_simulator.gateway import GatewayHistory, GatewayWriter
from openmanager_simulator.service import SimulatorService
from openmanager_simulator.simulation import Simulation
from openmanager_simulator.ticker import Settings, Ticker

from openmanager import rollup
from openmanager.api.simulator.v1 import simulator_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.client import Client
from openmanager.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    OutOfRangeError,
    UnavailableError,
    UnimplementedError,
)
from openmanager.frame import MAX_FRAME_BYTES, FrameReader
from openmanager.rollup import COLUMNS
from openmanager.runtime.edge import raw
from openmanager.runtime.module import ServerConfig, Service
from openmanager.runtime.peer import Peer
from openmanager.runtime.server import Server

SECOND = 10**9
HOUR = 3600 * SECOND
DAY = 24 * HOUR
# 2026-09-28T10:20:00Z
NOW = 1_790_590_800 * SECOND + 20 * 60 * SECOND
MIDNIGHT = NOW // DAY * DAY
SETTINGS = Settings(server_count=3, interval_millis=30_000, seed=7)
CATALOGUE = load_catalogue()
COUNTERS = np.asarray([metric.kind == "counter" for metric in CATALOGUE.metrics])
BACKFILL = "/openmanager.api.simulator.v1.SimulatorService/BackfillHistory"
TIMESERIES = "openmanager.api.timeseries.v1"
FAULTS = tuple(
    plan_fault(
        id=f"fault-{at}",
        pattern=pattern,
        servers=("web-onpremise-01",),
        start_nanos=MIDNIGHT - 5 * HOUR + at * HOUR // 3,
        end_nanos=MIDNIGHT - 4 * HOUR + at * HOUR // 3,
        seed=at,
    )
    for at, pattern in enumerate(FaultPattern)
)


@dataclass
class Store:
    """Stands for timeseries: keeps what is imported, and answers each request.

    After `hold_after` requests it waits for `hold`; after `fail_after` it goes away.
    """

    retentions: dict[str, timedelta] = field(
        default_factory=lambda: {"raw": timedelta(days=2), "5m": timedelta(days=3), "1h": timedelta(days=30)}
    )
    rollups: list[tuple[str, rollup.Grid]] = field(default_factory=list)
    frames: list = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    fail_after: int = 1_000_000
    hold: asyncio.Event | None = None
    hold_after: int = 0

    async def ListTiers(self, request, context):
        reply = timeseries_pb2.ListTiersResponse()
        for name, retention in self.retentions.items():
            tier = reply.tiers.add(name=name)
            tier.retention.FromTimedelta(retention)
            if name != "raw":
                tier.resolution.FromTimedelta({"5m": timedelta(minutes=5), "1h": timedelta(hours=1)}[name])
        return reply

    @raw
    async def ImportRollups(self, requests, context):
        async for data in requests:
            await self._take(data)
            tier, grid = rollup.decode_grid(_payload(timeseries_pb2.ImportRollupsRequest, data))
            self.rollups.append((tier, grid))
            yield timeseries_pb2.ImportRollupsResponse(accepted_bucket_count=grid.columns["min"].size)

    @raw
    async def ImportFrames(self, requests, context):
        reader = FrameReader()
        async for data in requests:
            await self._take(data)
            frame, _ = reader.read(_payload(timeseries_pb2.ImportFramesRequest, data))
            self.frames.append(frame)
            reply = timeseries_pb2.ImportFramesResponse()
            reply.ack.accepted_sample_count = frame.values.size
            yield reply

    async def _take(self, data: bytes) -> None:
        self.sizes.append(len(data))
        if self.hold is not None and len(self.sizes) > self.hold_after:
            await self.hold.wait()
        if len(self.sizes) > self.fail_after:
            raise UnavailableError("gone")

    async def _unknown(self, *_):
        raise UnimplementedError("not here")

    GetRetentionPolicy = UpdateRetentionPolicy = RebuildTier = _unknown

    def columns(self, tier: str) -> dict[tuple[str, str, int], tuple[float, ...]]:
        """Return every bucket that a tier got by server, metric and start."""
        found = {}
        for name, grid in self.rollups:
            if name == tier:
                for t, s, m in np.ndindex(*grid.columns["min"].shape):
                    key = grid.servers[s], grid.metrics[m], int(grid.times[t])
                    assert key not in found
                    found[key] = tuple(float(grid.columns[column][t, s, m]) for column in COLUMNS)
        return found


def _payload(cls, data: bytes) -> bytes:
    return cls.FromString(data).frame.SerializeToString()


class At:
    """A clock that stands still."""

    def now_nanos(self) -> int:
        return NOW

    def monotonic(self) -> float:
        return 0.0


@contextlib.asynccontextmanager
async def served(servicers: dict[str, object]) -> AsyncIterator[Peer]:
    server = Server(
        service=Service(servicers=servicers),
        name="test",
        address="127.0.0.1:0",
        config=ServerConfig(),
        clock=At(),
    )
    async with server.running(), Peer("the test", f"127.0.0.1:{server.port}") as peer:
        yield peer


@dataclass
class Mesh:
    """A simulator that writes to a store, and a channel to it."""

    store: Store
    ticker: Ticker
    work: Backfill
    peer: Peer

    async def idle(self) -> bool:
        """Say whether nothing is left of any call."""
        return not self.work._running and not workers()

    async def backfill(self, start: int, end: int = 0, *, raw: bool = False, resume_token: str = ""):
        """Yield the messages of a call."""
        request = simulator_pb2.BackfillHistoryRequest(raw=raw, resume_token=resume_token)
        request.start_time.FromNanoseconds(start)
        if end:
            request.end_time.FromNanoseconds(end)
        async with contextlib.aclosing(self.peer.server_stream(BACKFILL, request)) as replies:
            async for data in replies:
                yield simulator_pb2.BackfillHistoryResponse.FromString(data)

    async def finished(self, *args, **kwargs):
        """Return the last message of a call."""
        messages = [message async for message in self.backfill(*args, **kwargs)]
        assert [message.done for message in messages] == [False] * (len(messages) - 1) + [True]
        return messages[-1]


def simulation(settings: Settings = SETTINGS, faults=FAULTS) -> Simulation:
    return Simulation(
        fleet=make_fleet(settings.server_count),
        catalogue=CATALOGUE,
        seed=settings.seed,
        interval_nanos=settings.interval_millis * 10**6,
        faults=faults,
    )


@contextlib.asynccontextmanager
async def running(settings: Settings = SETTINGS) -> AsyncIterator[Mesh]:
    store = Store()
    services = {f"{TIMESERIES}.ImportService": store, f"{TIMESERIES}.RetentionService": store}
    async with served(services) as gateway:
        ticker = Ticker(
            settings=settings,
            catalogue=CATALOGUE,
            writer=GatewayWriter(gateway),
            clock=At(),
            jitter=random.Random(1),
            buffer_frames=10,
            make=lambda settings, _, faults: simulation(settings, faults),
        )
        ticker.set_faults(FAULTS)
        history = GatewayHistory(gateway)
        backfill = Backfill(ticker=ticker, store=history, clock=At(), noise="normal", schedule=True)
        servicers = {"openmanager.api.simulator.v1.SimulatorService": SimulatorService(ticker, backfill)}
        async with served(servicers) as peer:
            yield Mesh(store, ticker, backfill, peer)


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with running() as made:
        yield made


def live(start: int, end: int, widths=(300 * SECOND, HOUR), settings: Settings = SETTINGS):
    """Return the buckets that live ticks leave in each tier, as timeseries makes them, metric by metric."""
    interval = settings.interval_millis * 10**6
    first, last = -(-start // interval), -(-end // interval)
    values = simulation(settings).values(first, last - first)
    times = np.arange(first, last) * interval
    fleet = make_fleet(settings.server_count)
    out = [{} for _ in widths]
    for m, metric in enumerate(CATALOGUE.metrics):
        for s, server in enumerate(fleet):
            counters = np.full(len(times), metric.kind == "counter")
            cells, columns = rollup.reduce_samples(values[:, s, m], times // widths[0] * widths[0], counters)
            for at, width in enumerate(widths):
                if at:
                    cells, columns = rollup.coarsen(columns, cells // width * width)
                for k, cell in enumerate(cells.tolist()):
                    out[at][server.id, metric.key, cell] = tuple(float(columns[name][k]) for name in COLUMNS)
    return out


def same(expected: dict, found: dict) -> bool:
    keys = sorted(expected)
    if keys != sorted(found):
        return False
    return np.array_equal([expected[key] for key in keys], [found[key] for key in keys], equal_nan=True)


# ── what is written ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_buckets_are_those_that_live_ticks_leave_bit_for_bit(mesh: Mesh):
    start, end = MIDNIGHT - 5 * HOUR, MIDNIGHT + HOUR
    last = await mesh.finished(start, end)
    fine, coarse = live(start, end)
    assert same(fine, mesh.store.columns("5m"))
    assert same(coarse, mesh.store.columns("1h"))
    assert mesh.store.frames == []
    assert (last.done_ratio, last.resume_token) == (1.0, "")
    assert last.done_time.ToNanoseconds() == end
    assert last.sample_count == 6 * 120 * 3 * 511
    assert last.bucket_count == 6 * (12 + 1) * 3 * 511
    assert last.raw_sample_count == 0


COARSE = Settings(server_count=2, interval_millis=600_000, seed=7)


async def test_a_tier_gets_only_what_it_keeps():
    async with running(COARSE) as mesh:
        last = await mesh.finished(MIDNIGHT - 40 * DAY)
        hours, fines = ({key[2] for key in mesh.store.columns(tier)} for tier in ("1h", "5m"))
        end = NOW // HOUR * HOUR
        oldest = (NOW - 30 * DAY) // HOUR * HOUR
        assert hours == set(range(oldest, end, HOUR))
        # A tick every ten minutes leaves every other bucket of five without one.
        assert fines == set(range((NOW - 3 * DAY) // (2 * 300 * SECOND) * 600 * SECOND, end, 600 * SECOND))
        assert last.done_time.ToNanoseconds() == end
        assert last.sample_count == (end - oldest) // (600 * SECOND) * 2 * 511


async def test_the_first_request_tells_of_servers_and_metrics_and_no_other(mesh: Mesh):
    await mesh.finished(MIDNIGHT - 2 * DAY, MIDNIGHT)
    told = [(len(grid.server_infos), len(grid.metric_infos)) for _, grid in mesh.store.rollups]
    assert told == [(3, len({metric.name for metric in CATALOGUE.metrics}))] + [(0, 0)] * (len(told) - 1)
    assert len(told) > 4
    assert max(mesh.store.sizes) <= MAX_FRAME_BYTES


async def test_samples_are_written_where_they_are_kept_and_buckets_before():
    async with running(COARSE) as mesh:
        start, end = MIDNIGHT - 4 * DAY, MIDNIGHT + 9 * HOUR
        last = await mesh.finished(start, end, raw=True)
        # An hour later than what is kept now, for it must still be kept when it arrives.
        cut = -(-(NOW - 2 * DAY + HOUR) // HOUR) * HOUR
        assert {key[2] for key in mesh.store.columns("1h")} == set(range(start, cut, HOUR))
        times = np.concatenate([frame.times for frame in mesh.store.frames])
        assert times.tolist() == list(range(cut, end, 600 * SECOND))
        values = np.concatenate([frame.values for frame in mesh.store.frames])
        assert np.array_equal(values, simulation(COARSE).values(cut // (600 * SECOND), len(times)))
        assert last.raw_sample_count == values.size
        assert last.sample_count == (end - start) // (600 * SECOND) * 2 * 511


async def test_what_cuts_a_bucket_is_written_as_samples(mesh: Mesh):
    start, end = MIDNIGHT + 90 * 60 * SECOND, MIDNIGHT + 4 * HOUR + 7 * SECOND
    await mesh.finished(start, end)
    times = [int(time) for frame in mesh.store.frames for time in frame.times]
    assert times == [*range(start, MIDNIGHT + 2 * HOUR, 30 * SECOND), MIDNIGHT + 4 * HOUR]
    fine, coarse = live(MIDNIGHT + 2 * HOUR, MIDNIGHT + 4 * HOUR)
    assert same(fine, mesh.store.columns("5m"))
    assert same(coarse, mesh.store.columns("1h"))


async def test_a_range_within_a_bucket_is_written_as_samples(mesh: Mesh):
    last = await mesh.finished(MIDNIGHT, MIDNIGHT + 1800 * SECOND)
    assert (mesh.store.rollups, last.raw_sample_count) == ([], 60 * 3 * 511)


async def test_a_range_without_a_tick_is_done_at_once(mesh: Mesh):
    last = await mesh.finished(MIDNIGHT + SECOND, MIDNIGHT + 2 * SECOND)
    assert (last.sample_count, mesh.store.sizes) == (0, [])
    last = await mesh.finished(MIDNIGHT - 400 * DAY, MIDNIGHT - 399 * DAY)
    assert (last.sample_count, mesh.store.sizes) == (0, [])


async def test_a_large_fleet_is_made_in_parts_that_are_the_same():
    settings = Settings(server_count=45, interval_millis=60_000, seed=3)
    async with running(settings) as mesh:
        start, end = MIDNIGHT - 2 * HOUR, MIDNIGHT
        await mesh.finished(start, end)
        servers = {len(grid.servers) for _, grid in mesh.store.rollups}
        assert servers == {20, 5}
        ids = {info.id for _, grid in mesh.store.rollups for info in grid.server_infos}
        assert ids == {server.id for server in make_fleet(45)}
        assert same(live(start, end, settings=settings)[1], mesh.store.columns("1h"))


# ── what is refused ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("start", "end", "error", "text"),
    [
        (None, MIDNIGHT, InvalidArgumentError, "start_time is required"),
        (MIDNIGHT, MIDNIGHT, InvalidArgumentError, "end_time must be after start_time"),
        (MIDNIGHT, MIDNIGHT - 1, InvalidArgumentError, "end_time must be after start_time"),
        (NOW, None, InvalidArgumentError, "start_time must be before end_time, or, without one, before the last"),
        (915_148_800 * SECOND, MIDNIGHT, OutOfRangeError, "start_time is outside the years 2000–2099"),
        (MIDNIGHT, 4_102_444_801 * SECOND, OutOfRangeError, "end_time is outside the years 2000–2099"),
        (MIDNIGHT - 9 * DAY + 1, MIDNIGHT, InvalidArgumentError, "start_time must be a multiple of 1h"),
        (MIDNIGHT - 9 * DAY, MIDNIGHT - 9 * DAY + 1, InvalidArgumentError, "end_time must be a multiple of 1h"),
        (MIDNIGHT - 9 * DAY, MIDNIGHT - 5 * DAY - 1, InvalidArgumentError, "end_time must be a multiple of 1h"),
    ],
)
async def test_a_range_that_cannot_be_names_its_field(mesh: Mesh, start, end, error, text: str):
    request = simulator_pb2.BackfillHistoryRequest()
    for name, value in (("start_time", start), ("end_time", end)):
        if value is not None:
            getattr(request, name).FromNanoseconds(value)
    with pytest.raises(error, match=text) as caught:
        async for _ in mesh.peer.server_stream(BACKFILL, request):
            pass
    assert caught.value.field == text.partition(" ")[0]


async def test_a_token_is_of_one_request_and_one_fleet_only(mesh: Mesh):
    start, end = MIDNIGHT - 2 * DAY, MIDNIGHT
    stream = mesh.backfill(start, end)
    token = (await anext(stream)).resume_token
    await stream.aclose()
    await wait_until(mesh.idle)

    async def refused(*args, **kwargs) -> None:
        with pytest.raises(InvalidArgumentError, match="resume_token is not one of this request"):
            await mesh.finished(*args, **kwargs)

    for wrong in ("x", token[:-2], "A" + token[1:], token + "AA"):
        await refused(start, end, resume_token=wrong)
    await refused(start, end - HOUR, resume_token=token)
    await refused(start, resume_token=token)
    await refused(start, end, raw=True, resume_token=token)
    await mesh.ticker.start(Settings(server_count=3, interval_millis=30_000, seed=8))
    await refused(start, end, resume_token=token)
    await mesh.ticker.stop()


async def test_there_is_one_backfill_at_a_time(mesh: Mesh):
    mesh.store.hold = asyncio.Event()
    first = mesh.backfill(MIDNIGHT - DAY, MIDNIGHT)
    await anext(first)
    with pytest.raises(FailedPreconditionError, match="a backfill is under way") as caught:
        await mesh.finished(MIDNIGHT - DAY, MIDNIGHT)
    assert caught.value.reason == "SIMULATION_RUNNING"
    mesh.store.hold.set()
    assert [message.done async for message in first][-1]
    await mesh.finished(MIDNIGHT - HOUR, MIDNIGHT)


# ── what happens on the way ────────────────────────────────────────────────────────────────────────────────────────


def workers() -> list[int]:
    """Return the process ids of workers of this process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == os.getpid() and b"openmanager_simulator.worker" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


async def test_a_caller_that_goes_ends_the_work_and_its_processes(mesh: Mesh):
    stream = mesh.backfill(MIDNIGHT - 30 * DAY, MIDNIGHT)
    await anext(stream)

    async def working() -> bool:
        return bool(workers()) and bool(mesh.store.sizes)

    await wait_until(working)
    await stream.aclose()
    await wait_until(mesh.idle, 5)
    written = len(mesh.store.sizes)
    assert (await mesh.finished(MIDNIGHT - HOUR, MIDNIGHT)).done
    assert len(mesh.store.sizes) > written


async def test_progress_comes_while_nothing_is_answered(mesh: Mesh):
    mesh.store.hold = asyncio.Event()
    stream = mesh.backfill(MIDNIGHT - 20 * DAY, MIDNIGHT)
    async with asyncio.timeout(20):
        messages = [await anext(stream) for _ in range(4)]
    assert [message.done_ratio for message in messages] == [0.0] * 4
    assert all(message.resume_token for message in messages)
    # What is under way is bounded: neither requests nor samples pile up behind a store that does not answer.
    assert len(mesh.store.sizes) <= 4
    mesh.store.hold.set()
    await stream.aclose()
    await wait_until(mesh.idle)


async def test_after_a_store_that_went_away_the_token_goes_on_and_the_whole_is_the_same(mesh: Mesh):
    start, end = MIDNIGHT - 6 * DAY, MIDNIGHT
    mesh.store.fail_after = 9
    token, done = "", 0
    with pytest.raises(UnavailableError):
        async for message in mesh.backfill(start, end):
            token, done = message.resume_token, message.done_time.ToNanoseconds()
    await wait_until(mesh.idle)
    mesh.store.fail_after = 1_000_000
    # What was under way is written again: the same buckets.
    kept = [(tier, grid) for tier, grid in mesh.store.rollups if grid.times[-1] < done]
    mesh.store.rollups[:] = kept
    last = await mesh.finished(start, end, resume_token=token)
    assert {key[2] for key in mesh.store.columns("1h")} == set(range(start, end, HOUR))
    assert last.sample_count == 6 * 2880 * 3 * 511


async def test_a_worker_that_dies_ends_the_call_and_is_no_mystery(mesh: Mesh):
    mesh.store.hold = asyncio.Event()
    stream = mesh.backfill(MIDNIGHT - 30 * DAY, MIDNIGHT)
    await anext(stream)

    async def working() -> bool:
        return bool(workers())

    await wait_until(working)
    for pid in workers():
        os.kill(pid, signal.SIGKILL)
    mesh.store.hold.set()
    with pytest.raises(UnavailableError, match="a process of the backfill has ended early"):
        async for _ in stream:
            pass
    await wait_until(mesh.idle)


async def test_the_simulation_ticks_on_meanwhile_and_is_as_it_was(mesh: Mesh):
    before = mesh.ticker.simulation
    await mesh.ticker.start(SETTINGS)
    await mesh.finished(MIDNIGHT - 2 * DAY, MIDNIGHT)
    assert mesh.ticker.progress.running
    assert mesh.ticker.simulation is before
    assert mesh.ticker.settings == SETTINGS
    assert mesh.ticker.faults == FAULTS
    await mesh.ticker.stop()


def test_a_worker_knows_no_grpc():
    code = "import sys, openmanager_simulator.worker; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ── the client and the command ─────────────────────────────────────────────────────────────────────────────────────


async def test_the_client_goes_on_by_itself_when_its_connection_breaks(mesh: Mesh):
    mesh.store.hold, mesh.store.hold_after = asyncio.Event(), 3
    start, end = MIDNIGHT - 8 * DAY, MIDNIGHT
    away, ratios = [], []
    async with asyncio.timeout(40), proxy(mesh.peer.target) as road, Client(road.address) as client:
        async for progress in client.simulation.backfill(start, end=end, on_away=away.append):
            ratios.append(progress.done_ratio)
            if not away and progress.done_ratio:
                road.cut()
                mesh.store.hold.set()
        assert progress.done
    assert away
    assert ratios == sorted(ratios)
    assert progress.sample_count == 8 * 2880 * 3 * 511
    assert hours_of(mesh.store) == set(range(start, end, HOUR))


def hours_of(store: Store) -> set[int]:
    return {time for tier, grid in store.rollups if tier == "1h" for time in grid.times.tolist()}


async def test_the_client_of_nobody_fails_at_once():
    async with Client("127.0.0.1:1") as client:
        with pytest.raises(UnavailableError):
            await anext(client.simulation.backfill(MIDNIGHT))


async def command(mesh: Mesh, *arguments: str) -> asyncio.subprocess.Process:
    program = [sys.executable, "-m", "openmanager.cli", "--gateway", mesh.peer.target, "simulate", "backfill"]
    return await asyncio.create_subprocess_exec(
        *program,
        *arguments,
        env={**clean_environment(), "TZ": "UTC"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )


def iso(nanos: int) -> str:
    return datetime.fromtimestamp(nanos // SECOND, UTC).isoformat()


async def test_the_command_says_what_it_made(mesh: Mesh):
    running_ = await command(mesh, "--start", iso(MIDNIGHT + 1800 * SECOND), "--end", iso(MIDNIGHT + HOUR))
    out, err = await running_.communicate()
    assert (running_.returncode, err) == (0, b"")
    # From the whole hour on.
    assert out.decode() == ("183,960 samples made until 2026-09-28 01:00:00; written: 19,929 buckets, 0 samples\n")


async def test_the_command_prints_every_message_as_json(mesh: Mesh):
    running_ = await command(mesh, "--start", iso(MIDNIGHT), "--end", iso(MIDNIGHT + HOUR), "--json")
    out, _ = await running_.communicate()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["bucket_count"] == "19929"


async def test_an_interrupted_command_says_how_to_go_on_and_that_goes_on(mesh: Mesh):
    mesh.store.hold, mesh.store.hold_after = asyncio.Event(), 3
    start, end = MIDNIGHT - 8 * DAY, MIDNIGHT
    running_ = await command(mesh, "--start", iso(start), "--end", iso(end), "--json")
    while json.loads(await running_.stdout.readline())["done_ratio"] == 0:
        pass
    running_.send_signal(signal.SIGINT)
    _, err = await running_.communicate()
    assert running_.returncode == 130
    mesh.store.hold.set()
    await wait_until(mesh.idle)
    words = err.decode().partition("To go on:")[2].split()
    assert words[:3] == ["openmanager", "simulate", "backfill"]
    again = await command(mesh, *words[3:], "--json")
    out, _ = await again.communicate()
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines[0]["done_ratio"] > 0
    assert lines[-1]["done"]
    assert int(lines[-1]["sample_count"]) == 8 * 2880 * 3 * 511
    assert hours_of(mesh.store) == set(range(start, end, HOUR))


async def test_a_token_that_is_refused_is_not_offered_again(mesh: Mesh):
    running_ = await command(mesh, "--start", iso(MIDNIGHT), "--resume", "x")
    _, err = await running_.communicate()
    assert (running_.returncode, err.decode()) == (1, "openmanager: resume_token is not one of this request\n")
