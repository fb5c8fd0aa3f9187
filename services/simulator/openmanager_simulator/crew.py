"""The processes that make a backfill between them, read in the order of its plan."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator

from openmanager.errors import UnavailableError
from openmanager.runtime import launch
from openmanager_simulator.worker import END, HEADER, Job

MAX_WORKERS = 8
# What is read ahead of each worker: it makes its next unit meanwhile.
_AHEAD_BYTES = 8 << 20
_CHUNK_BYTES = 1 << 20


class Crew:
    """Workers that take turns at the units of a plan."""

    def __init__(self, workers: list[Process]) -> None:
        self._workers = workers

    async def requests(self, unit: int) -> AsyncIterator[bytes]:
        """Yield the requests of unit number `unit`; to be called for each in turn, and read to the end."""
        stream = self._workers[unit % len(self._workers)].stdout
        assert stream is not None  # noqa: S101  (it is a pipe)
        try:
            while True:
                kind, size = HEADER.unpack(await stream.readexactly(HEADER.size))
                if kind == END:
                    return
                yield await stream.readexactly(size)
        except asyncio.IncompleteReadError as err:
            raise UnavailableError("a process of the backfill has ended early") from err


@contextlib.asynccontextmanager
async def open_crew(job: Job, count: int) -> AsyncIterator[Crew]:
    """Start `count` workers; on leaving they are killed, whatever they are doing."""
    data = job.encode()
    async with contextlib.AsyncExitStack() as stack:
        workers = [await _start(stack, index, count) for index in range(count)]
        await asyncio.gather(*(_tell(worker, data) for worker in workers))
        yield Crew(workers)


async def _start(stack: contextlib.AsyncExitStack, index: int, count: int) -> Process:
    program = [sys.executable, "-m", "openmanager_simulator.worker", str(index), str(count)]
    worker = await asyncio.create_subprocess_exec(
        *launch.argv(program, death_signal=signal.SIGKILL),
        stdin=PIPE,
        stdout=PIPE,
        limit=_AHEAD_BYTES,
        # Nothing is multiplied by BLAS; its threads would only take memory.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    stack.push_async_callback(_end, worker)
    return worker


async def _tell(worker: Process, job: bytes) -> None:
    assert worker.stdin is not None  # noqa: S101  (it is a pipe)
    with contextlib.suppress(ConnectionError):  # that it has ended is found when it is read
        worker.stdin.write(job)
        await worker.stdin.drain()
    worker.stdin.close()


async def _end(worker: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        worker.kill()
    assert worker.stdout is not None  # noqa: S101  (it is a pipe)
    while await worker.stdout.read(_CHUNK_BYTES):
        pass
    await worker.wait()


def worker_count() -> int:
    """Return how many workers there should be: one for each core that is ours."""
    return max(1, min(MAX_WORKERS, len(os.sched_getaffinity(0))))
