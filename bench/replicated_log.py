"""The log on NATS JetStream, three servers of it, beside our own log: `python -m bench.replicated_log`.

Needs `nats-server` on the path and the package `nats-py`. The same frames, as many under way; a batch is what came while
the one before was on its way, as our own log's is. All three servers sync to one disk here, which is not what they would do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import itertools
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmanager_timeseries.disk import PosixDisk
from openmanager_timeseries.log import Log, LogOptions

from bench.data import frame
from bench.rpc import cpu_seconds, free_ports
from openmanager.frame import encode
from openmanager.runtime import launch
from openmanager.runtime.clock import SystemClock

SERVER = "nats-server"
METRICS = 511
MAX_PAYLOAD = 8 << 20
PAIRS = 3
# How long an acknowledgement is waited for while a leader may be dead, and the pause before the next try.
ANSWER_SECONDS, AGAIN_SECONDS = 1.0, 0.05
WRITERS = 4
# So many are acknowledged before a leader is killed, and after it is back.
FRAMES = 40

Append = Callable[[bytes], Awaitable[Any]]


@dataclass
class Figures:
    """Of one run: acknowledged samples per second, p50 and p99 of an acknowledgement in s, CPU in s per million samples."""

    rate: float
    p50: float
    p99: float
    cpu: float


class Batches:
    """Publishes frames together that come while others are on their way."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def append(self, payload: bytes) -> None:
        """Return when a frame is acknowledged."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((payload, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._publish())
        await done

    async def _publish(self) -> None:
        while self._waiting:
            size, count = 0, 0
            for payload, _ in self._waiting:
                if count and size + len(payload) > MAX_PAYLOAD:
                    break
                size, count = size + len(payload), count + 1
            batch, self._waiting = self._waiting[:count], self._waiting[count:]
            await self._stream.publish("log", b"".join(payload for payload, _ in batch), timeout=30)
            for _, done in batch:
                done.set_result(None)


@contextlib.asynccontextmanager
async def jetstream(*, synced: bool) -> AsyncIterator[tuple[Any, dict[str, subprocess.Popen[bytes]], Any]]:
    """Run three servers; yield a client's stream, the servers' processes by name, and how to start one again."""
    import nats

    base = free_ports(6)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        running: dict[str, subprocess.Popen[bytes]] = {}

        def start(name: str) -> None:
            at = int(name[1:])
            routes = ",".join(f"nats://127.0.0.1:{base + 3 + each}" for each in range(3))
            file = Path(folder) / f"{name}.conf"
            file.write_text(
                f"server_name: {name}\nlisten: 127.0.0.1:{base + at}\nmax_payload: {MAX_PAYLOAD}\n"
                f"jetstream {{store_dir: {folder}/{name}\n max_file_store: 8GB\n{'sync_interval: always' if synced else ''}}}\n"
                f"cluster {{name: log, listen: 127.0.0.1:{base + 3 + at}, routes: [{routes}]}}\n"
            )
            running[name] = subprocess.Popen(
                launch.argv([str(shutil.which(SERVER)), "-c", str(file)], death_signal=signal.SIGKILL),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

        for each in range(3):
            start(f"n{each}")
        stack.callback(lambda: [(each.kill(), each.wait()) for each in running.values()])
        client = await nats.connect(
            [f"nats://127.0.0.1:{base + each}" for each in range(3)],
            reconnect_time_wait=0.05,
            max_reconnect_attempts=-1,
            connect_timeout=1,
            allow_reconnect=True,
            error_cb=_silent,
            pending_size=4 * MAX_PAYLOAD,
        )
        stream = client.jetstream(timeout=30)
        for _ in range(100):
            try:
                await stream.add_stream(name="log", subjects=["log"], num_replicas=3, duplicate_window=120)
                break
            except Exception:  # until the servers have elected one who may  # noqa: BLE001
                await asyncio.sleep(0.2)
        try:
            yield stream, running, start
        finally:
            await client.close()


async def _silent(_: Exception) -> None:
    """Say nothing of a server that is gone: it was killed."""


async def measured(
    append: Append, payload: bytes, servers: int, count: int, under_way: int, pids: list[int]
) -> Figures:
    """Append `count` frames with so many under way."""
    await append(payload)
    before = time.process_time() + sum(cpu_seconds(pid) for pid in pids)
    took: list[float] = []

    async def one() -> None:
        start = time.perf_counter()
        await append(payload)
        took.append(time.perf_counter() - start)

    left = iter(range(count))

    async def worker() -> None:
        for _ in left:
            await one()

    start = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(under_way)))
    elapsed = time.perf_counter() - start
    used = time.process_time() + sum(cpu_seconds(pid) for pid in pids) - before
    took.sort()
    samples = count * servers * METRICS
    return Figures(samples / elapsed, took[len(took) // 2], took[int(0.99 * (len(took) - 1))], used / samples * 1e6)


async def ours(payload: bytes, servers: int, count: int, under_way: int) -> Figures:
    """Append to our own log."""
    with tempfile.TemporaryDirectory() as folder:
        log = await Log.open(PosixDisk(Path(folder)), LogOptions(ballast_size=0), SystemClock())
        try:
            return await measured(lambda data: log.append(data, 1), payload, servers, count, under_way, [])
        finally:
            await log.close()


async def compare(servers: int, count: int, under_way: int) -> None:
    """Print our log's figures, and those of JetStream in each way of using it, by interleaved pairs."""
    payload = encode(frame(servers, METRICS))
    print(
        f"\n{servers} × {METRICS} ({len(payload) / 1e3:,.0f} kB), {under_way} under way, medians of {PAIRS} interleaved runs"
    )
    print(f"{'':34}{'samples/s':>12}{'ack p50':>12}{'p99':>12}{'CPU s per 10⁶':>16}")
    async with jetstream(synced=True) as synced, jetstream(synced=False) as lazy:
        ways: dict[str, tuple[Any, bool]] = {
            "JetStream, each frame, synced": (synced, False),
            "JetStream, in batches, synced": (synced, True),
            "JetStream, in batches, not synced": (lazy, True),
        }
        found: dict[str, list[Figures]] = {"our log": [], **{name: [] for name in ways}}
        for _ in range(PAIRS):
            found["our log"].append(await ours(payload, servers, count, under_way))
            for name, ((stream, running, _), together) in ways.items():
                append = Batches(stream).append if together else _each(stream)
                pids = [each.pid for each in running.values()]
                found[name].append(await measured(append, payload, servers, count, under_way, pids))
                await stream.purge_stream("log")
    for name, runs in found.items():
        rate, p50, p99, cpu = (
            statistics.median(getattr(run, key) for run in runs) for key in ("rate", "p50", "p99", "cpu")
        )
        print(f"{name:34}{rate:>12,.0f}{p50 * 1e3:>9,.1f} ms{p99 * 1e3:>9,.1f} ms{cpu:>16.3f}")


def _each(stream: Any) -> Append:
    return lambda payload: stream.publish("log", payload, timeout=30)


class Numbered:
    """Publishes numbered frames, each until it is acknowledged; `acknowledged` says when each was."""

    def __init__(self, stream: Any, payload: bytes) -> None:
        self._stream = stream
        self._payload = payload
        self._numbers = itertools.count()
        self.acknowledged: dict[int, float] = {}
        self.ended = False

    async def write(self) -> None:
        """Publish one frame after the other."""
        while not self.ended:
            number = next(self._numbers)
            headers = {"Nats-Msg-Id": str(number), "Number": str(number)}
            while number not in self.acknowledged:
                try:
                    await self._stream.publish("log", self._payload, timeout=ANSWER_SECONDS, headers=headers)
                    self.acknowledged[number] = time.perf_counter()
                except Exception:  # noqa: BLE001  (tried again, under the same id)
                    await asyncio.sleep(AGAIN_SECONDS)

    async def reach(self, number: int) -> None:
        """Return when a frame of this number or a later one is acknowledged."""
        while max(self.acknowledged, default=-1) < number:  # noqa: ASYNC110  (nobody tells)
            await asyncio.sleep(0.002)

    def first_after(self, number: int) -> float:
        """Return when the first frame after a number was acknowledged."""
        return min(at for each, at in self.acknowledged.items() if each > number)


async def fail_over(*, synced: bool, rounds: int) -> None:
    """Kill the leader while frames are published; print how long nothing was acknowledged, and what was lost."""
    gaps, lost, twice, acknowledged = [], 0, 0, 0
    payload = encode(frame(20, METRICS))
    for _ in range(rounds):
        async with jetstream(synced=synced) as (stream, running, start):
            numbered = Numbered(stream, payload)
            writers = [asyncio.create_task(numbered.write()) for _ in range(WRITERS)]
            await numbered.reach(FRAMES)
            leader = (await stream.stream_info("log")).cluster.leader
            running[leader].kill()
            killed = time.perf_counter()
            running[leader].wait()
            # What was on its way may still be acknowledged, by who is dead: what was published afterwards counts.
            newest = max(numbered.acknowledged) + WRITERS
            await numbered.reach(newest + 1)
            gaps.append(numbered.first_after(newest) - killed)
            start(leader)
            await numbered.reach(newest + FRAMES)
            numbered.ended = True
            await asyncio.gather(*writers)
            state = (await stream.stream_info("log")).state
            kept = [await stream.get_msg("log", at) for at in range(state.first_seq, state.last_seq + 1)]
            found = [int(each.headers["Number"]) for each in kept]
            lost += len(set(numbered.acknowledged) - set(found))
            twice += len(found) - len(set(found))
            acknowledged += len(numbered.acknowledged)
    print(
        f"leader killed, {'synced' if synced else 'not synced'}: no acknowledgement for {statistics.median(gaps):.2f} s,"
        f" at most {max(gaps):.2f} ({rounds} times);"
        f" of {acknowledged:,} acknowledged frames {lost} lost, {twice} there twice"
    )


async def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.replicated_log", description=__doc__)
    parser.add_argument("--only-failover", action="store_true", help="leave out the comparison")
    parser.add_argument("--rounds", type=int, default=5, help="how often a leader is killed")
    options = parser.parse_args()
    missing = [name for name, there in (
        (SERVER, shutil.which(SERVER)), ("nats-py", importlib.util.find_spec("nats"))
    ) if not there]  # fmt: skip
    if missing:
        print(f"not run: {', '.join(missing)} is missing")
        return
    print(f"{os.cpu_count()} cores")
    if not options.only_failover:
        await compare(20, 160, 16)
        await compare(1000, 16, 4)
    for synced in (True, False):
        await fail_over(synced=synced, rounds=options.rounds)


if __name__ == "__main__":
    asyncio.run(main())
