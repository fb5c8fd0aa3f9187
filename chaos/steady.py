"""A modest load, at an even pace: writers that never write a sample twice, readers of everything, and somebody who watches."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from chaos.journal import Journal
from chaos.load import WRITERS, write
from openmanager.client import Client
from openmanager.client.rpc import closable
from openmanager.errors import OpenManagerError
from openmanager.runtime.peer import Peer

READ_SECONDS = 1.0
SERVER = "web-onpremise-01"


@dataclass
class Reads:
    """How many were asked for, and how many of them were not answered."""

    count: int = 0
    failed: int = 0
    # What came of the watch.
    events: int = 0


class _Paced(Peer):
    """A channel that lets a caller wait before each of its calls."""

    def __init__(self, name: str, target: str, seconds: float) -> None:
        super().__init__(name, target)
        self._seconds = seconds

    async def unary(self, *args: Any, **named: Any) -> Any:
        await asyncio.sleep(self._seconds)
        return await super().unary(*args, **named)


@asynccontextmanager
async def load(
    gateway: str, journal: Journal, frames_per_second: float, reads_per_second: float
) -> AsyncIterator[Reads]:
    """Write and read through a gateway while the block runs."""
    stop, reads = asyncio.Event(), Reads()
    async with (
        _Paced("the gateway", gateway, WRITERS / frames_per_second) as peer,
        Client(gateway) as client,
        asyncio.TaskGroup() as tasks,
    ):
        for writer in range(WRITERS):
            tasks.create_task(write(peer, writer, journal, stop))
        tasks.create_task(_read(client, reads, 1 / reads_per_second, stop))
        watching = tasks.create_task(_watch(client, reads))
        try:
            yield reads
        finally:
            stop.set()
            watching.cancel()


async def _read(client: Client, reads: Reads, seconds: float, stop: asyncio.Event) -> None:
    """Ask one question after the other at an even pace, whatever becomes of the answers before."""
    pending: set[asyncio.Task[None]] = set()
    questions = _questions(client)
    begin, count = time.monotonic(), 0
    while not stop.is_set():
        count += 1
        task = asyncio.create_task(_ask(questions[count % len(questions)], reads))
        pending.add(task)
        task.add_done_callback(pending.discard)
        await asyncio.sleep(max(0.0, begin + count * seconds - time.monotonic()))
    await asyncio.gather(*pending)


async def _ask(question: Callable[[], Awaitable[object]], reads: Reads) -> None:
    reads.count += 1
    try:
        await question()
    except OpenManagerError:
        reads.failed += 1


def _questions(client: Client) -> Sequence[Callable[[], Awaitable[object]]]:
    """Return one question for each way that an answer can take through the mesh."""

    async def list_servers() -> None:
        async for _ in client.list_servers(seconds=READ_SECONDS):
            pass

    def query_range() -> Awaitable[object]:
        start = datetime.now(UTC) - timedelta(minutes=10)
        step = timedelta(seconds=30)
        return client.query_range("cpu_usage", start=start, step=step, seconds=READ_SECONDS)

    return (
        lambda: client.get_server(SERVER, seconds=READ_SECONDS),
        list_servers,
        lambda: client.fleet_summary(seconds=READ_SECONDS),
        query_range,
        lambda: client.query_latest("memory_usage", seconds=READ_SECONDS),
        lambda: client.inventory.get(SERVER, seconds=READ_SECONDS),
        lambda: client.storage_status(seconds=READ_SECONDS),
    )


async def _watch(client: Client, reads: Reads) -> None:
    while True:  # until the first connection is made, after which a watch goes on by itself
        with contextlib.suppress(OpenManagerError):
            async with aclosing(closable(client.watch_servers())) as events:
                async for _ in events:
                    reads.events += 1
        await asyncio.sleep(READ_SECONDS)
