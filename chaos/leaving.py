"""`python -m chaos.leaving`: end each service, and all of `up`, under load while a store hangs, and see who is left waiting.

With InfluxDB the collector of traces hangs all the while.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import Message

from bench.rpc import free_ports
from bench.store import influx_binary, victoria_binary
from chaos import checker, journal, reading, steady
from chaos.journal import Journal
from chaos.load import WRITERS
from chaos.mesh import PORTS, SERVICES, Mesh, Probe, family, signalled
from chaos.stores import INFLUXDB, POSTGRESQL, REDIS, VICTORIAMETRICS, Stores, stores
from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.client import Client, InventoryServer, rpc
from openmanager.errors import DeadlineExceededError, OpenManagerError
from openmanager.frame import Frame, encode_write_request
from openmanager.runtime.peer import Peer

# What is promised: a service ends within 6 s, the whole within 12 s, and no call is left to its own deadline.
SERVICE_SECONDS, MESH_SECONDS = 6.0, 12.0
CALL_SECONDS = 30.0
# After its process has ended a call is told so at once.
ANSWER_SECONDS = 1.0
# The store is hung for so long before somebody is told to end.
HUNG_SECONDS = 1.0
CALL_PAUSE_SECONDS = 0.1
FRAMES_PER_SECOND, READS_PER_SECOND = 30.0, 20.0
COLLECTOR, EVERYTHING, UP = "collector", "everything", "up"


def main() -> None:
    parser = argparse.ArgumentParser(prog="chaos.leaving", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one document")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no mesh is left behind
    with tempfile.TemporaryDirectory(prefix="openmanager-leaving-") as folder:
        found = asyncio.run(run(Path(folder)))
    print(json.dumps([asdict(each) for each in found], indent=1) if options.json else "\n".join(lines(found)))
    sys.exit(1 if any(broken(found)) else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Somebody who was told to end while a store was hung: how long it took, and what became of the calls under way."""

    store: str
    who: str
    seconds: float
    calls: int = 0
    # For how long the longest of them was waited for after its server had ended.
    longest: float = 0.0
    overdue: tuple[str, ...] = ()
    lost: int = 0

    @property
    def limit(self) -> float:
        """How long it may take."""
        return MESH_SECONDS if self.who == UP else SERVICE_SECONDS

    def broken(self) -> Iterator[str]:
        """Yield the promises that were not kept."""
        if self.seconds > self.limit:
            yield f"{self.who} took {self.seconds:.1f} s to end without {self.store}"
        if self.overdue:
            yield f"{self.who} without {self.store} left calls unanswered: {', '.join(sorted(set(self.overdue)))}"
        if self.lost:
            yield f"{self.lost} samples lost when {self.who} ended without {self.store}"


def broken(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield the promises that were not kept."""
    for cell in cells:
        yield from cell.broken()


def lines(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield a table, hung stores down and who ends across, in seconds, and the sum."""
    names = [*SERVICES, UP]
    yield f"{'hung':16}" + "".join(f"{name:>12}" for name in names)
    for store in dict.fromkeys(cell.store for cell in cells):
        found = {cell.who: cell for cell in cells if cell.store == store}
        yield f"{store:16}" + "".join(
            f"{found[name].seconds:10.1f} s" if name in found else f"{'':12}" for name in names
        )
    calls, longest = sum(cell.calls for cell in cells), max(cell.longest for cell in cells)
    yield ""
    yield f"{calls:,} calls were under way, the last answered {longest:.2f} s after its server had ended"
    yield from (f"broken: {promise}" for promise in broken(cells))


async def run(folder: Path) -> list[Cell]:
    """Try every store that is here with everybody."""
    cells: list[Cell] = []
    for engine, binary in ((VICTORIAMETRICS, victoria_binary()), (INFLUXDB, influx_binary())):
        if binary is not None:
            place = folder / engine
            place.mkdir()
            cells += await _with_engine(place, engine)
    return cells


async def _with_engine(folder: Path, engine: str) -> list[Cell]:
    """Try the stores of a mesh with one engine: the engine, and with the first of them all the others."""
    cells: list[Cell] = []
    async with contextlib.AsyncExitStack() as stack:
        collector = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        behind = await stack.enter_async_context(stores(folder / "stores", 1, engine=engine))
        environment = {**behind.environment}
        if engine == INFLUXDB:
            environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{collector.getsockname()[1]}"
        trial = Trial(folder, free_ports(len(PORTS)), environment, behind)
        told = stack.enter_context(Journal(folder / "journal"))
        await stack.enter_async_context(steady.load(trial.gateway, told, FRAMES_PER_SECOND, READS_PER_SECOND))
        stack.push_async_callback(trial.end)
        await trial.start()
        others = (COLLECTOR, EVERYTHING) if engine == INFLUXDB else (REDIS, POSTGRESQL)
        for store in (*others, engine):
            for who in (*SERVICES, UP):
                cells.append(await trial.cell(store, who))
                print(cells[-1], file=sys.stderr, flush=True)
        rows = journal.load(folder / "journal")
        async with Peer("the gateway", trial.gateway) as peer:
            found = [await reading.queried(peer, writer, rows) for writer in range(WRITERS)]
            verdict = checker.check(rows, found)
        cells.append(replace(cells.pop(), lost=verdict.lost))
    return cells


class Trial:
    """A mesh that is ended again and again, as a whole or in part."""

    def __init__(self, folder: Path, base: int, environment: Mapping[str, str], behind: Stores) -> None:
        self.gateway = f"127.0.0.1:{base}"
        self._folder, self._base, self._environment, self._behind = folder, base, environment, behind
        self._mesh: Mesh | None = None

    @property
    def mesh(self) -> Mesh:
        """The mesh that runs now."""
        assert self._mesh is not None
        return self._mesh

    async def start(self) -> None:
        """Start it and wait until all works."""
        self._mesh = Mesh.start(self._folder / "data", self._base, self._folder / "screen", self._environment)
        await self._works("a start")

    async def end(self) -> None:
        """End it, if it was started and has not ended."""
        if self._mesh is not None and self._mesh.process.poll() is None:
            await asyncio.to_thread(self._mesh.end)

    async def cell(self, store: str, who: str) -> Cell:
        """Hang a store, tell somebody to end, and watch the calls that are under way."""
        async with Client(self.mesh.addresses().get(who, self.gateway)) as client, asyncio.TaskGroup() as tasks:
            calls = Calls(client, who)
            with self._hung(store):
                calling = tasks.create_task(calls.go_on())
                await asyncio.sleep(HUNG_SECONDS)
                seconds = await self._end(who)
                ended = time.monotonic()
                calling.cancel()
                longest, overdue = await calls.after(ended)
        if who == UP:
            await self.start()
        await self._works(f"{who} was told to end without {store}")
        return Cell(store=store, who=who, seconds=seconds, calls=calls.count, longest=longest, overdue=overdue)

    async def _end(self, who: str) -> float:
        if who == UP:
            return await asyncio.to_thread(self.mesh.end)
        start, pid = time.monotonic(), self.mesh.pid(who)
        signalled([pid or 0], signal.SIGTERM)
        while self.mesh.pid(who) == pid:
            await asyncio.sleep(0.01)
        return time.monotonic() - start

    @contextlib.contextmanager
    def _hung(self, store: str) -> Iterator[None]:
        """Stop a store and all below it; the collector is always hung."""
        chosen = {COLLECTOR: (), EVERYTHING: tuple(self._behind.parts)}.get(store, (store,))
        pids = [pid for name in chosen for pid in family(self._behind.pid(name) or 0)]
        signalled(pids, signal.SIGSTOP)
        try:
            yield
        finally:
            signalled(pids, signal.SIGCONT)

    async def _works(self, what: str) -> None:
        async with Peer("the gateway", self.gateway) as peer:
            await Probe(peer).wait(what)


class Calls:
    """Calls that are under way when their server ends, each with a deadline that is far away."""

    def __init__(self, client: Client, who: str) -> None:
        self._questions = questions(client, who)
        self._tasks: set[asyncio.Task[OpenManagerError | None]] = set()

    @property
    def count(self) -> int:
        """How many were made."""
        return len(self._tasks)

    async def go_on(self) -> None:
        """Make one call of each kind, again and again."""
        while True:
            self._tasks |= {asyncio.create_task(_told(ask), name=name) for name, ask in self._questions.items()}
            await asyncio.sleep(CALL_PAUSE_SECONDS)

    async def after(self, ended: float) -> tuple[float, tuple[str, ...]]:
        """Return how long after the end of their server the last was answered, and which were left to their deadline."""
        done, late = await asyncio.wait(self._tasks, timeout=ANSWER_SECONDS)
        longest = time.monotonic() - ended
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        overdue = late | {task for task in done if isinstance(task.result(), DeadlineExceededError)}
        return longest, tuple(sorted({task.get_name() for task in overdue}))


async def _told(ask: Callable[[], Coroutine[Any, Any, object]]) -> OpenManagerError | None:
    """Return the error that a call ended with, None for an answer."""
    try:
        await ask()
    except OpenManagerError as err:
        return err
    return None


def questions(client: Client, who: str) -> dict[str, Callable[[], Coroutine[Any, Any, object]]]:
    """Return calls that a service answers with the help of its stores, and a watch, which nothing else would end."""
    hour, long = timedelta(hours=1), CALL_SECONDS
    # Timeseries itself has the method under its own name.
    write = replace(rpc.WRITE_FRAME, service=rpc.QUERY_RANGE.service) if who == "timeseries" else rpc.WRITE_FRAME
    frame = Frame(times=np.array([time.time_ns()]), servers=("leaving",), metrics=("x",), values=np.ones((1, 1, 1)))
    direct: dict[str, dict[str, Callable[[], Coroutine[Any, Any, object]]]] = {
        "timeseries": {
            "WriteFrame": lambda: client.rpc.call(write, encode_write_request(frame), seconds=long),
            "QueryRange": lambda: client.query_range("cpu_usage", start=datetime.now(UTC) - hour, seconds=long),
            "WatchFrames": lambda: _watch(client, rpc.WATCH_FRAMES, timeseries_pb2.WatchFramesRequest()),
        },
        "cache": {
            "SetEntry": lambda: client.entries.set("leaving", "key", b"value", seconds=long),
            "GetEntry": lambda: client.entries.get("leaving", "key", seconds=long),
        },
        "metadata": {
            "CreateServer": lambda: client.inventory.create(
                InventoryServer(id=f"leaving-{time.time_ns()}"), seconds=long
            ),
            "GetServer": lambda: client.inventory.get(steady.SERVER, seconds=long),
        },
        "simulator": {"GetSimulation": lambda: client.simulation.get(seconds=long)},
    }
    if who in direct:
        return direct[who]
    return {name: ask for each in direct.values() for name, ask in each.items()} | {
        "GetStorageStatus": lambda: client.storage_status(seconds=long),
        "WatchServers": lambda: _watch(client, rpc.WATCH_SERVERS, gateway_pb2.WatchServersRequest()),
    }


async def _watch(client: Client, method: rpc.Method[Any], request: Message) -> None:
    async with contextlib.aclosing(rpc.closable(client.rpc.stream(method, request, seconds=None))) as messages:
        async for _ in messages:
            pass


if __name__ == "__main__":
    main()
