"""Rows of a large fleet: how long an acknowledgement takes while history is sealed and rolled up; one tick of 20,000."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.data import INTERVAL
from bench.history_ingest import METRICS, Fleet
from bench.history_server import SERVICE, Client, Server, timeseries
from bench.pair import Row, at_least, at_most

SERVERS = 1000
# An interval of the fleet passes in so many seconds: ten times as fast as it would.
PACE_SECONDS = 1.0
MINUTES = 2.0
LARGE = 20_000
LARGE_TICKS = 4


@dataclass(frozen=True)
class Steady:
    """What a steady load saw: seconds to each acknowledgement, CPU seconds a second, and the most bytes of memory.

    Also the blocks and the files of the 5 m tier that there were at the end.
    """

    waits: Sequence[float]
    cpu: float
    peak: int
    blocks: int = 0
    buckets: int = 0


def steady(minutes: float = MINUTES, pace: float = PACE_SECONDS) -> Iterator[Row]:
    """Send a frame of 1,000 × 511 every `pace` seconds; sealing, rolling up and merging go on as they are set to."""
    found = loaded(minutes, pace)
    waits = sorted(found.waits)
    p50, p99 = (waits[min(len(waits) - 1, int(len(waits) * share))] for share in (0.5, 0.99))
    shape = f"{SERVERS:,} × {METRICS} every {pace:g} s for {minutes:g} min"
    note = (
        f"{len(waits)} frames, max {waits[-1] * 1e3:.0f} ms; frames are {INTERVAL / 1e9:g} s apart, "
        f"{found.blocks} blocks and {found.buckets} files of 5 m at the end"
    )
    yield at_most(f"{shape}, ack p99 against p50", (p99, p50, p99 / p50), 3, "ms", 1e3, note)
    share = found.cpu * pace / (INTERVAL / 1e9)
    yield at_most(
        f"{shape}, CPU of timeseries, for the pace of {INTERVAL / 1e9:g} s, against 25 % of a core",
        (share, 0.25, share / 0.25),
        1,
        "%",
        100,
        f"{found.cpu:.2f} cores at the pace measured",
    )
    yield at_most(f"{shape}, RSS of timeseries, against 1 GiB", _gigabytes(found.peak), 1, "GiB", 2.0**-30)


def loaded(minutes: float = MINUTES, pace: float = PACE_SECONDS) -> Steady:
    """Return what timeseries takes while a frame of 1,000 × 511 comes every `pace` seconds."""
    fleet = Fleet(SERVERS)
    with tempfile.TemporaryDirectory() as folder, timeseries(Path(folder)) as server:
        found = asyncio.run(_send(server, fleet, int(minutes * 60 / pace), pace))
        blocks, buckets = (len(list((Path(folder) / name).iterdir())) for name in ("blocks", "tiers/5m"))
    return replace(found, blocks=blocks, buckets=buckets)


def _gigabytes(peak: int) -> tuple[float, float, float]:
    return float(peak), 2.0**30, peak / 2**30


async def _send(server: Server, fleet: Fleet, count: int, pace: float) -> Steady:
    """Send frames at their time whatever becomes of the ones before; each is measured from its intended time."""
    waits: list[float] = []
    async with Client(server.target) as client:
        for request in fleet.requests(3):
            await client.unary(f"{SERVICE}WriteFrame", request)

        async def one(request: bytes, intended: float) -> None:
            await client.unary(f"{SERVICE}WriteFrame", request)
            waits.append(time.perf_counter() - intended)

        begin, cpu, tasks = time.perf_counter() + 0.1, server.cpu(), []
        for at in range(count):
            (request,) = fleet.requests(1)
            intended = begin + at * pace
            await asyncio.sleep(max(0.0, intended - time.perf_counter()))
            tasks.append(asyncio.create_task(one(request, intended)))
        await asyncio.gather(*tasks)
        used = (server.cpu() - cpu) / (time.perf_counter() - begin)
    return Steady(waits, used, server.peak())


def tick() -> Iterator[Row]:
    """Send whole ticks of 20,000 × 511 as frames of at most 4 MiB, against appending and syncing the same bytes."""
    fleet = Fleet(LARGE, ticks=1)
    with tempfile.TemporaryDirectory() as folder:
        with timeseries(Path(folder) / "own", max_series="11000000") as server:
            found = [asyncio.run(_tick(server, fleet)) for _ in range(LARGE_TICKS)]
            peak = server.peak()
        limits = [_append(Path(folder) / "bare", fleet.requests(1)) for _ in range(LARGE_TICKS)]
    later = [seconds for seconds, _ in found[1:]]
    ours, peer = statistics.median(later), statistics.median(limits)
    samples = LARGE * METRICS
    shape = f"one tick of {LARGE:,} × {METRICS} ({samples / 1e6:.1f} M samples) over gRPC until the last ack"
    note = (
        f"the first tick, with new series, {found[0][0]:.2f} s; CPU {statistics.median(c for _, c in found[1:]):.2f} s "
        f"a tick of 10 s; RSS at most {peak / 2**30:.2f} GiB"
    )
    yield at_least(f"{shape}, against append + fdatasync", (ours, peer, peer / ours), 0.2, "s", 1, note)
    yield at_most(f"{shape}, against its interval of 10 s", (ours, 10.0, ours / 10), 0.5, "s", 1, note)


async def _tick(server: Server, fleet: Fleet) -> tuple[float, float]:
    requests = fleet.requests(1)
    async with Client(server.target) as client:
        await client.ledger()
        cpu, start = server.cpu(), time.perf_counter()
        await client.write(requests, 4)
        return time.perf_counter() - start, server.cpu() - cpu


def _append(path: Path, requests: Sequence[bytes]) -> float:
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    start = time.perf_counter()
    for at in range(0, len(requests), 4):
        for request in requests[at : at + 4]:
            os.write(file, request)
        os.fdatasync(file)
    elapsed = time.perf_counter() - start
    os.close(file)
    return elapsed
