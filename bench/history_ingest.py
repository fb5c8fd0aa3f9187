"""Rows of taking samples in: durable acknowledgements over gRPC, and what a sample costs beside real engines."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from openmanager_timeseries.line_protocol import LineEncoder, split

from bench import store
from bench.data import INTERVAL, names, standard_series
from bench.history_server import Client, Server, timeseries
from bench.pair import Row, at_least, at_most, pairs
from bench.rpc import free_ports
from openmanager.frame import Frame, ServerInfo, encode_write_request
from openmanager.frame import split as split_frame

METRICS = 511
SINK_WRITE = "/bench.Sink/Write"
BATCH_BYTES = 1 << 20
LARGE_FLEET = 20_000
# Ticks of the standard fleet that every engine gets in a round, and rounds.
TICKS, ROUNDS = 200, 3
DAY = 86_400 * 10**9


class Fleet:
    """Requests of one tick each, ever later, from a day ago on; values of the standard series, again and again."""

    def __init__(self, servers: int, metrics: int = METRICS, ticks: int = 32) -> None:
        self.servers, self.metrics = names(servers, metrics)
        self._values = standard_series(ticks, servers, metrics)
        self._ticks = itertools.count()
        self._start = (time.time_ns() - DAY) // INTERVAL * INTERVAL

    def frame(self) -> Frame:
        tick = next(self._ticks)
        at = tick % len(self._values)
        times = np.array([self._start + tick * INTERVAL])
        return Frame(times=times, servers=self.servers, metrics=self.metrics, values=self._values[at : at + 1])

    def requests(self, count: int) -> list[bytes]:
        return [encode_write_request(part) for _ in range(count) for part in split_frame(self.frame())]


# ── until it is durable ──────────────────────────────────────────────────────────────────────────────────────────────


def acknowledged() -> Iterator[Row]:
    """Stream frames into the real process against appending and syncing the same bytes, bare and behind bare gRPC.

    A burst finds room in the head; of a load that goes on, sealing and rolling up are what limits it.
    """
    for servers, count, in_flight in ((20, 640, 16), (1000, 32, 4)):
        fleet = Fleet(servers, ticks=8)
        with (
            tempfile.TemporaryDirectory() as folder,
            timeseries(Path(folder) / "own", head_size="8GiB") as server,
            _sink(Path(folder) / "sink") as sink,
        ):
            yield from _burst(server, sink, fleet, count, in_flight, Path(folder) / "bare")
    with tempfile.TemporaryDirectory() as folder, timeseries(Path(folder), seal_interval="1s") as server:
        yield _sustained(server, fleet, 32, in_flight)


def _burst(server: Server, sink: str, fleet: Fleet, count: int, in_flight: int, bare: Path) -> Iterator[Row]:
    taken = _Taken(server, fleet, count, in_flight)
    taken.ours()
    shape = f"gRPC → durable ack, {len(fleet.servers)} × {METRICS}, {in_flight} in flight"
    for what, peer in (
        ("append + fdatasync", lambda: _bare(bare, fleet.requests(count), in_flight)),
        (
            "the same behind bare grpc.aio",
            lambda: asyncio.run(_stream(sink, fleet.requests(count), in_flight, SINK_WRITE)),
        ),
    ):
        yield taken.row(f"{shape}, samples/s against {what}", peer)


def _sustained(server: Server, fleet: Fleet, count: int, in_flight: int) -> Row:
    """Return how fast samples can come for ever: until the last of them is in blocks and tiers."""

    async def send(requests: Sequence[bytes]) -> float:
        async with Client(server.target) as client:
            start = time.perf_counter()
            await client.write(requests, in_flight)
            await client.filed()
            return time.perf_counter() - start

    samples = count * len(fleet.servers) * METRICS
    used = server.cpu()
    found = [asyncio.run(send(fleet.requests(count))) for _ in range(3)]
    rate, needed = samples / statistics.median(found), LARGE_FLEET * METRICS / (INTERVAL / 1e9)
    note = f"{3 * samples / (server.cpu() - used) * 1e-6:.1f} M samples per CPU-second of the server"
    name = f"gRPC → blocks and tiers, {samples / 1e6:.0f} M samples at once, samples/s against those of {LARGE_FLEET:,} servers"
    return at_least(name, (rate, needed, rate / needed), 1, "M/s", 1e-6, note)


class _Taken:
    """What our process takes in at once, and the CPU that it uses for it."""

    def __init__(self, server: Server, fleet: Fleet, count: int, in_flight: int) -> None:
        self.samples = count * len(fleet.servers) * METRICS
        self._server, self._fleet, self._count, self._in_flight = server, fleet, count, in_flight
        self._cpu: list[float] = []

    def ours(self) -> float:
        requests, before = self._fleet.requests(self._count), self._server.cpu()
        elapsed = asyncio.run(_stream(self._server.target, requests, self._in_flight))
        self._server.settle()  # what it does afterwards is part of its bill, and not to be done beside the peer
        self._cpu.append(self._server.cpu() - before)
        return elapsed

    def row(self, name: str, peer: Callable[[], float], count: int = 5) -> Row:
        self._cpu.clear()
        mine, other, ratio = pairs(self.ours, peer, count)
        rate = self.samples / statistics.median(self._cpu) * 1e-6
        figures = (self.samples / mine, self.samples / other, 1 / ratio)
        return at_least(name, figures, 0.8, "M/s", 1e-6, f"{rate:.1f} M samples per CPU-second of the server")


async def _stream(target: str, requests: Sequence[bytes], in_flight: int, *path: str) -> float:
    async with Client(target) as client:
        await client.write([], in_flight, *path)
        start = time.perf_counter()
        await client.write(requests, in_flight, *path)
        return time.perf_counter() - start


def _bare(path: Path, requests: Sequence[bytes], in_flight: int) -> float:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    start = time.perf_counter()
    for at in range(0, len(requests), in_flight):
        for request in requests[at : at + in_flight]:
            os.write(file, request)
        os.fdatasync(file)
    elapsed = time.perf_counter() - start
    os.close(file)
    return elapsed


@contextlib.contextmanager
def _sink(path: Path) -> Iterator[str]:
    port = free_ports(1)
    command = [sys.executable, "-m", "bench.history_sink", str(port), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


# ── beside engines ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Cost:
    """Seconds of CPU of the server and of time, a sample: until it was acknowledged, and until all was in files."""

    acknowledged: float
    wall: float
    filed: float


def engines() -> Iterator[Row]:
    """Give the standard fleet's ticks to our process, to VictoriaMetrics and to InfluxDB, in turn."""
    fleet = Fleet(20)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # The head is sealed at once, so that what sealing and rolling up take is counted.
        server = stack.enter_context(timeseries(folder, seal_interval="1s"))
        takers: dict[str, Callable[[Sequence[Frame]], Cost]] = {
            "ours": lambda frames: asyncio.run(_ours(server, frames))
        }
        if victoria := stack.enter_context(store.victoria()):
            takers["VictoriaMetrics"] = lambda frames: _lines(victoria, frames)
        if influx := stack.enter_context(store.influx()):
            takers["InfluxDB"] = lambda frames: _lines(influx, frames)
        for take in takers.values():
            take([fleet.frame()])  # so that every series is known
        found: dict[str, list[Cost]] = {name: [] for name in takers}
        for _ in range(ROUNDS):
            frames = [fleet.frame() for _ in range(TICKS)]
            for name, take in takers.items():
                found[name].append(take(frames))
    yield from _engine_rows(found)


def _engine_rows(found: dict[str, list[Cost]]) -> Iterator[Row]:
    mine = found["ours"]
    ends = {
        "VictoriaMetrics": (store.VICTORIA, "until its files are flushed", "filed"),
        "InfluxDB": (store.INFLUX, "until it has answered", "acknowledged"),
    }
    for peer, (binary, end, figure) in ends.items():
        name = f"CPU of the server, 20 × {METRICS}, ours until acknowledged, against {peer} {end}"
        sealed = f"CPU of the server, 20 × {METRICS}, ours until sealed and rolled up, against {peer} {end}"
        if peer not in found:
            yield store.missing(name, "≤ 1", binary)
            continue
        others = [getattr(each, figure) for each in found[peer]]
        note = (
            f"lines of {METRICS} fields made beforehand, 1 MiB a request; "
            f"{1e-6 / statistics.median(each.wall for each in mine):.2g} M/s ours, "
            f"{1e-6 / statistics.median(each.wall for each in found[peer]):.2g} M/s {peer}"
        )
        for title, own in ((name, "acknowledged"), (sealed, "filed")):
            yours = [getattr(each, own) for each in mine]
            ratio = statistics.median(a / b for a, b in zip(yours, others, strict=True))
            figures = (statistics.median(yours), statistics.median(others), ratio)
            yield at_most(title, figures, 1, "ns/sample", 1e9, note)


async def _ours(server: Server, frames: Sequence[Frame]) -> Cost:
    requests = [encode_write_request(frame) for frame in frames]
    count = sum(frame.values.size for frame in frames)
    async with Client(server.target) as client:
        before, start = server.cpu(), time.perf_counter()
        await client.write(requests, 16)
        wall, acknowledged = time.perf_counter() - start, server.cpu() - before
        await client.filed()
        return Cost(acknowledged / count, wall / count, (server.cpu() - before) / count)


def wide_field(metric: int) -> str:
    """Return the name of a field of `wide_lines`."""
    return f"system_cpu_utilization_{metric}"


def wide_lines(frames: Sequence[Frame]) -> list[bytes]:
    """Return frames as the rivals like them best: one line with all fields for each server and time, 1 MiB a request."""
    keys = tuple(wide_field(at) for at in range(len(frames[0].metrics)))
    lines = LineEncoder().encode([replace(frame, metrics=keys) for frame in frames], lambda name: ServerInfo(id=name))
    return list(split(lines, BATCH_BYTES))


def _lines(engine: store.Victoria | store.Influx, frames: Sequence[Frame]) -> Cost:
    bodies = wide_lines(frames)
    count = sum(frame.values.size for frame in frames)
    before, start = engine.cpu(), time.perf_counter()
    for body in bodies:
        engine.request("POST", engine.write_path, body)
    wall, acknowledged = time.perf_counter() - start, engine.cpu() - before
    if isinstance(engine, store.Victoria):
        engine.settle()
    return Cost(acknowledged / count, wall / count, (engine.cpu() - before) / count)
