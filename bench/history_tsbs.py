"""Rows of TSBS's devops queries through the gateway, with and without frames arriving; every answer is checked."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bench.history_ask import QUERY_RANGE, Reply
from bench.history_folder import HOUR, HOUR_TICKS, fill
from bench.history_load import FLEET_SERVERS, HOST_TICKS
from bench.history_server import SERVICE, Client, mesh
from bench.pair import Row
from bench.tsbs import METRICS, SHAPES, Data, Question, Shape
from openmanager.api.frame.v1 import frame_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.frame import decode_trusted

HOSTS, HOURS = 100, 24
LIVE_TICKS = 4000
QUERY_LATEST = f"{SERVICE}QueryLatest"
# Of each shape so many queries at most and at least, within so many seconds.
MOST, LEAST, SECONDS = 60, 8, 2.0


def rows() -> Iterator[Row]:
    """Ask one query after the other, of every shape, first alone and then while frames arrive."""
    start = (time.time_ns() // HOUR - HOURS - 14) * HOUR
    data = Data.make(start, HOURS * HOUR_TICKS + LIVE_TICKS, HOSTS)
    past = Data(start, data.values[: HOURS * HOUR_TICKS])
    with tempfile.TemporaryDirectory(prefix="bench-tsbs-") as folder:
        hours = past.values.reshape(HOURS, HOUR_TICKS, HOSTS, len(METRICS))
        asyncio.run(
            fill(
                Path(folder) / "timeseries",
                (data.hosts, METRICS),
                start,
                HOURS - 1,
                lambda hour: np.ascontiguousarray(hours[hour]),
                tail=hours[-1],
            )
        )
        with mesh(Path(folder)) as gateway:
            alone = asyncio.run(_all(gateway, past, data))
            with _arriving(gateway, data, len(past.values)):
                busy = asyncio.run(_all(gateway, past, data))
    rate = HOST_TICKS * HOSTS * len(METRICS) + FLEET_SERVERS * 511
    for shape in SHAPES:
        yield _row(shape, alone[shape.name], busy[shape.name], rate)


def _row(shape: Shape, alone: Sequence[float], busy: Sequence[float], rate: int) -> Row:
    first, second = (np.percentile(each, [50, 95, 99]) * 1e3 for each in (busy, alone))
    note = " ".join(
        f"{name} p50/p95/p99 {figures[0]:.1f}/{figures[1]:.1f}/{figures[2]:.1f} ms of {count};"
        for name, figures, count in (("with", first, len(busy)), ("without", second, len(alone)))
    )
    name = (
        f"TSBS {shape.name}, {HOSTS} hosts, {HOURS} h, through the gateway, p50 with {rate / 1e3:.0f} k samples/s "
        "arriving, against without"
    )
    how = f" client: {shape.client}" if shape.client else ""
    return Row(name, f"{first[0]:.3g} ms", f"{second[0]:.3g} ms", first[0] / second[0], "—", met=True, note=note + how)


async def _all(gateway: str, past: Data, data: Data) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    async with Client(gateway) as client:
        await client.rolled_up()
        for shape in SHAPES:
            await _ask(client, shape.make(past, np.random.default_rng(2)), data)
        for shape in SHAPES:
            generator = np.random.default_rng(3)
            waits = found[shape.name] = []
            end = time.perf_counter() + SECONDS
            while len(waits) < LEAST or (len(waits) < MOST and time.perf_counter() < end):
                waits.append(await _ask(client, shape.make(past, generator), data))
    return found


async def _ask(client: Client, question: Question, data: Data) -> float:
    """Ask and check; return the seconds until the reply is in arrays."""
    if question.asked is None:
        return await _ask_latest(client, question, data)
    message = question.asked.message()
    begin = time.perf_counter()
    reply = Reply.of_range(await client.stream(QUERY_RANGE, message))
    elapsed = time.perf_counter() - begin
    np.testing.assert_allclose(question.result(reply), question.expected, rtol=1e-12)
    return elapsed


async def _ask_latest(client: Client, question: Question, data: Data) -> float:
    """The newest samples are those of the tick that they say they are of."""
    message = pb.QueryLatestRequest(selector=frame_pb2.Selector(metrics=METRICS)).SerializeToString()
    begin = time.perf_counter()
    replies = [pb.QueryLatestResponse.FromString(each) for each in await client.stream(QUERY_LATEST, message)]
    frames = [decode_trusted(each.frame) for each in replies if each.HasField("frame")]
    elapsed = time.perf_counter() - begin
    (time_,) = {int(frame.times[0]) for frame in frames}
    tick = (time_ - data.start) // (10 * 10**9)
    np.testing.assert_array_equal(question.result(Reply.of_latest(frames)).ravel(), data.values[tick].ravel())
    return elapsed


@contextlib.contextmanager
def _arriving(gateway: str, data: Data, first: int) -> Iterator[None]:
    numbers = [str(each) for each in (data.start, len(data.values), len(data.hosts), first)]
    command = [sys.executable, "-m", "bench.history_load", gateway, *numbers]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        if process.poll() is not None:
            raise OSError("no more frames arrived")
    finally:
        process.kill()
        process.wait()
