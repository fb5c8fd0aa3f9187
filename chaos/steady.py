"""A modest load, at an even pace: writers that never write a sample twice, readers of everything, and somebody who watches."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from chaos.journal import Journal
from chaos.load import WRITERS, write
from openmanager.client import Client
from openmanager.client.rpc import DEADLINE_SECONDS, closable
from openmanager.errors import OpenManagerError

AGAIN_SECONDS = 1.0
SERVER = "web-onpremise-01"

Question = Callable[[], Awaitable[object]]


@dataclass
class Reads:
    """What was asked: when and for how long, on the monotonic clock, and what was not answered."""

    at: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    failures: list[tuple[float, str]] = field(default_factory=list)
    # What came of the watch.
    events: int = 0


class _Paced:
    """A channel that lets its caller make a call every so often; who was kept waiting by one makes up for it."""

    def __init__(self, client: Client, pause: float, seconds: float) -> None:
        self._client, self._pause, self._seconds = client, pause, seconds
        self._due = time.monotonic()

    async def unary(self, *args: Any, **named: Any) -> Any:
        self._due += self._pause
        await asyncio.sleep(max(0.0, self._due - time.monotonic()))
        return await self._client.rpc.peer.unary(*args, **{**named, "seconds": self._seconds})


@asynccontextmanager
async def load(
    gateway: str,
    journal: Journal,
    frames_per_second: float,
    reads_per_second: float,
    *,
    seconds: float = DEADLINE_SECONDS,
) -> AsyncIterator[Reads]:
    """Write and read through a gateway, as our own client does, while the block runs; a call may take `seconds`."""
    stop, reads = asyncio.Event(), Reads()
    async with Client(gateway) as client, asyncio.TaskGroup() as tasks:
        for writer in range(WRITERS):
            paced: Any = _Paced(client, WRITERS / frames_per_second, seconds)
            tasks.create_task(write(paced, writer, journal, stop))
        tasks.create_task(_read(_questions(client, seconds), reads, 1 / reads_per_second, stop))
        watching = tasks.create_task(_watch(client, reads))
        try:
            yield reads
        finally:
            stop.set()
            watching.cancel()


async def _read(questions: Sequence[Question], reads: Reads, pause: float, stop: asyncio.Event) -> None:
    """Ask one question after the other at an even pace, whatever becomes of the answers before."""
    pending: set[asyncio.Task[None]] = set()
    begin, count = time.monotonic(), 0
    while not stop.is_set():
        count += 1
        task = asyncio.create_task(_ask(questions[count % len(questions)], reads))
        pending.add(task)
        task.add_done_callback(pending.discard)
        await asyncio.sleep(max(0.0, begin + count * pause - time.monotonic()))
    await asyncio.gather(*pending)


async def _ask(question: Question, reads: Reads) -> None:
    start = time.monotonic()
    try:
        await question()
    except OpenManagerError as err:
        reads.failures.append((start, err.message))
    reads.at.append(start)
    reads.seconds.append(time.monotonic() - start)


def _questions(client: Client, seconds: float) -> Sequence[Question]:
    """Return one question for each way that an answer can take through the mesh."""

    async def list_servers() -> None:
        async for _ in client.list_servers(seconds=seconds):
            pass

    def query_range() -> Awaitable[object]:
        start, step = datetime.now(UTC) - timedelta(minutes=10), timedelta(seconds=30)
        return client.query_range("cpu_usage", start=start, step=step, seconds=seconds)

    return (
        lambda: client.get_server(SERVER, seconds=seconds),
        list_servers,
        lambda: client.fleet_summary(seconds=seconds),
        query_range,
        lambda: client.query_latest("memory_usage", seconds=seconds),
        lambda: client.inventory.get(SERVER, seconds=seconds),
        lambda: client.simulation.get(seconds=seconds),
        lambda: client.storage_status(seconds=seconds),
    )


async def _watch(client: Client, reads: Reads) -> None:
    while True:  # until the first connection is made, after which a watch goes on by itself
        with contextlib.suppress(OpenManagerError):
            async with aclosing(closable(client.watch_servers())) as events:
                async for _ in events:
                    reads.events += 1
        await asyncio.sleep(AGAIN_SECONDS)
