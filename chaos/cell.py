"""One cell of the matrix: a fault of a part under load, when it was seen, what it cost, and when it was over."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from chaos import faults
from chaos.load import GATEWAY
from chaos.world import World
from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.metadata.v1 import metadata_pb2
from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.api.status.v1 import status_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.errors import OpenManagerError
from openmanager.frame import Frame, encode_write_request
from openmanager.runtime.peer import Peer

INVENTORY = "/openmanager.api.metadata.v1.ServerService/GetServer"
QUERY_RANGE = "/openmanager.api.timeseries.v1.TimeseriesService/QueryRange"
SERVER, METRIC = "web-onpremise-01", "cell.value"
HOT, KEPT, PAST = "hot", "inventory", "history"
# Of ten reads, so many of each kind.
MIX = (HOT, HOT, HOT, HOT, HOT, HOT, HOT, HOT, KEPT, PAST)
READ_SECONDS, WRITE_SECONDS = 1.0, 2.0
POLL_SECONDS = 0.05
WHOLE_SECONDS = 60.0
# A cell's promises on time may take so many times as long: the machine may have other work.
PATIENCE = 2.0
MILLI = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A row of the table: what happens to whom, and what is promised. Times are in seconds."""

    name: str
    part: str | tuple[str, ...]
    fault: str
    options: Mapping[str, Any] = field(default_factory=dict)
    engine: str = ""
    # What the part's state may be meanwhile; empty: nothing need be seen.
    states: tuple[str, ...] = ()
    detected: float = 3.0
    recovered: float = 3.0
    # The kinds of reads that are answered all the while.
    reads: tuple[str, ...] = (HOT, KEPT, PAST)
    # Whether writes are acknowledged all the while.
    writes: bool = True
    p99: float = 0.3
    small_disks: bool = False
    smoke: bool = False
    # It takes what is not on every machine: `root`, `influxdb`, `victoriametrics`.
    needs: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Whom it happens to."""
        return (self.part,) if isinstance(self.part, str) else self.part


def cells() -> list[Cell]:
    """Return the table."""
    rows: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("matrix.yaml").read_text(encoding="utf-8"))
    return [Cell(**{key: tuple(each) if isinstance(each, list) else each for key, each in row.items()}) for row in rows]


@dataclass(kw_only=True)
class Result:
    """What a cell showed. Times are in seconds, None for what did not happen."""

    name: str
    reads: int = 0
    failed: int = 0
    p50: float = 0.0
    p99: float = 0.0
    writes: int = 0
    refused: int = 0
    write_p99: float = 0.0
    detected: float | None = None
    recovered: float | None = None
    acknowledged: int = 0
    lost: int = 0
    foreign: int = 0
    # Promises that were broken, in words.
    broken: list[str] = field(default_factory=list)


async def run(world: World, cell: Cell, *, seconds: float, rate: float, patience: float = PATIENCE) -> Result:
    """Make the fault for so long, with so many reads a second; what is promised may take `patience` times as long."""
    await _whole(world, cell, WHOLE_SECONDS, "before the fault")
    watch = Watch(world.peer, rate)
    result = Result(name=cell.name)
    async with watch.running():
        began = time.monotonic()
        # From the first moment on: some faults are over before they are made, but for what they leave behind.
        seeing = asyncio.create_task(_seen(world, cell, began, cell.detected * patience))
        try:
            async with faults.made(world, cell.parts, cell.fault, cell.options):
                result.detected = await seeing
                await asyncio.sleep(max(0.0, seconds - (time.monotonic() - began)))
        finally:
            seeing.cancel()
        healed = time.monotonic()
        with contextlib.suppress(TimeoutError):
            await _whole(world, cell, max(30.0, cell.recovered * patience), "after it")
            result.recovered = time.monotonic() - healed
    watch.sum_up(result, cell, began)
    await _count_losses(world.peer, watch, result)
    _judge(result, cell, patience)
    return result


async def _seen(world: World, cell: Cell, began: float, most: float) -> float | None:
    """Return after how many seconds the status told of the fault, None when it did not in time."""
    while cell.states and time.monotonic() - began < most:
        with contextlib.suppress(OpenManagerError):
            told = await states(world.peer)
            if all(told.get(part) in cell.states for part in cell.parts):
                return time.monotonic() - began
        await asyncio.sleep(POLL_SECONDS)
    return None


async def _whole(world: World, cell: Cell, seconds: float, when: str) -> None:
    """Return when all is answered from where it should be; TimeoutError when it is not in time."""
    end, why = time.monotonic() + seconds, ""
    while why := await _what_is_wrong(world, cell):
        if time.monotonic() > end:
            raise TimeoutError(f"{cell.name}: not whole {when}: {why}")
        await asyncio.sleep(POLL_SECONDS)


async def _what_is_wrong(world: World, cell: Cell) -> str:
    """Return what is not as it should be, empty when all is well."""
    try:
        told = await states(world.peer)
        if bad := [f"{part} is {told.get(part)}" for part in cell.parts if told.get(part) != "OK"]:
            return ", ".join(bad)
        for kind in (HOT, KEPT, PAST):
            about = await read(world.peer, kind)
            if about.degraded or (kind == KEPT and about.source != "postgresql"):
                return f"{kind} is answered by {about.source}: {about.reason}"
        await write(world.peer, "whole", time.time_ns() // MILLI * MILLI, 1.0)
    except OpenManagerError as err:
        return err.message
    return ""


async def states(peer: Peer) -> dict[str, str]:
    """Return the state of every service and store by name, as the gateway tells it."""
    request = gateway_pb2.GetStorageStatusRequest()
    reply = await peer.unary(f"{GATEWAY}/GetStorageStatus", request, gateway_pb2.GetStorageStatusResponse, seconds=2)
    rows = {service.service: service.state for service in reply.services}
    rows |= {storage.name: storage.state for service in reply.services for storage in service.storages}
    return {name: status_pb2.StorageState.Name(state).removeprefix("STORAGE_STATE_") for name, state in rows.items()}


async def read(peer: Peer, kind: str) -> provenance_pb2.Provenance:
    """Ask for something of a kind; return where the answer came from."""
    if kind == HOT:
        hot = gateway_pb2.GetServerRequest(id=SERVER)
        answer = await peer.unary(f"{GATEWAY}/GetServer", hot, gateway_pb2.GetServerResponse, seconds=READ_SECONDS)
        return answer.provenance
    if kind == KEPT:
        kept = metadata_pb2.GetServerRequest(id=SERVER)
        return (await peer.unary(INVENTORY, kept, metadata_pb2.GetServerResponse, seconds=READ_SECONDS)).provenance
    request = timeseries_pb2.QueryRangeRequest()
    request.selector.servers.append(SERVER)
    request.selector.metrics.append("cpu_usage")
    request.start_time.FromNanoseconds(time.time_ns() - 60 * 10**9)
    request.end_time.FromNanoseconds(time.time_ns() + 10**9)
    about = provenance_pb2.Provenance()
    async for data in peer.server_stream(QUERY_RANGE, request, seconds=READ_SECONDS):
        part = timeseries_pb2.QueryRangeResponse.FromString(data)
        if part.WhichOneof("part") == "header":
            about = part.header.provenance
    return about


async def write(peer: Peer, server: str, moment: int, value: float) -> str:
    """Write a sample at a time in nanoseconds; return why it was not taken, empty when it was."""
    frame = Frame(times=np.array([moment]), servers=(server,), metrics=(METRIC,), values=np.full((1, 1, 1), value))
    request = encode_write_request(frame)
    reply = await peer.unary(f"{GATEWAY}/WriteFrame", request, gateway_pb2.WriteFrameResponse, seconds=WRITE_SECONDS)
    return "" if reply.ack.accepted_sample_count == 1 else str(reply.ack.rejections[0].reason)


class Watch:
    """Reads and writes at an even pace all the while, and keeps what became of each.

    A sample's value is the number of its write; every write has a time of its own.
    """

    def __init__(self, peer: Peer, rate: float) -> None:
        self.server = f"cell-{time.time_ns()}"
        self._peer = peer
        self._rate = rate
        # Of reads: when it began, how long it took, which kind, whether it was answered.
        self._reads: list[tuple[float, float, int, bool]] = []
        self._writes: list[tuple[float, float, bool]] = []
        # What was acknowledged, and what may be there: times by number.
        self.acknowledged: dict[int, float] = {}
        self.attempted: dict[int, float] = {}
        self.failures: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Read and write while the block runs."""
        tasks = [
            asyncio.create_task(self._paced(self._rate, self._read)),
            asyncio.create_task(self._paced(self._rate / 10, self._write)),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _paced(self, rate: float, work: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        pending: set[asyncio.Task[None]] = set()
        begin = time.monotonic()
        try:
            for count in itertools.count(1):
                task = asyncio.create_task(work(count))
                pending.add(task)
                task.add_done_callback(pending.discard)
                await asyncio.sleep(max(0.0, begin + count / rate - time.monotonic()))
        finally:
            await asyncio.gather(*pending, return_exceptions=True)

    async def _read(self, count: int) -> None:
        kind, began = MIX[count % len(MIX)], time.monotonic()
        try:
            await read(self._peer, kind)
        except OpenManagerError as err:
            self._failed(f"{kind}: {err.message}")
            self._reads.append((began, time.monotonic() - began, MIX.index(kind), False))
        else:
            self._reads.append((began, time.monotonic() - began, MIX.index(kind), True))

    async def _write(self, count: int) -> None:
        began, moment = time.monotonic(), time.time_ns() // MILLI * MILLI
        while moment in self.attempted:
            moment += MILLI
        self.attempted[moment] = float(count)
        try:
            refused = await write(self._peer, self.server, moment, float(count))
        except OpenManagerError as err:
            refused = err.message
        taken = not refused
        if refused:
            self._failed(f"write: {refused}")
        if taken:
            self.acknowledged[moment] = float(count)
        self._writes.append((began, time.monotonic() - began, taken))

    def _failed(self, why: str) -> None:
        self.failures[why] = self.failures.get(why, 0) + 1

    def sum_up(self, result: Result, cell: Cell, began: float) -> None:
        """Fill in what the load saw of the promised kinds since the fault began."""
        promised = {MIX.index(kind) for kind in cell.reads}
        reads = [each for each in self._reads if each[0] >= began and each[2] in promised]
        writes = [each for each in self._writes if each[0] >= began]
        result.reads, result.failed = len(reads), sum(not each[3] for each in reads)
        result.writes, result.refused = len(writes), sum(not each[2] for each in writes)
        if reads:
            result.p50, result.p99 = map(float, np.percentile([each[1] for each in reads], [50, 99]))
        if writes:
            result.write_p99 = float(np.percentile([each[1] for each in writes], 99))
        kinds = {*cell.reads, *(["write"] if cell.writes else [])}
        result.broken += [f"{why} ({n} ×)" for why, n in self.failures.items() if why.partition(":")[0] in kinds]


async def _count_losses(peer: Peer, watch: Watch, result: Result) -> None:
    """Compare what was acknowledged with what is there."""
    result.acknowledged = len(watch.acknowledged)
    if not watch.attempted:
        return
    request = timeseries_pb2.QueryRangeRequest()
    request.selector.servers.append(watch.server)
    request.start_time.FromNanoseconds(min(watch.attempted) - 10**9)
    request.end_time.FromNanoseconds(max(watch.attempted) + 10**9)
    there: dict[int, float] = {}
    try:
        async for data in peer.server_stream(QUERY_RANGE, request, seconds=10):
            series = timeseries_pb2.QueryRangeResponse.FromString(data).series
            there.update(zip(series.time_unix_nanos, series.values, strict=True))
    except OpenManagerError as err:
        result.broken.append(f"what was written cannot be read: {err.message}")
        return
    result.lost = sum(there.get(moment) != value for moment, value in watch.acknowledged.items())
    result.foreign = sum(watch.attempted.get(moment) != value for moment, value in there.items())


def _judge(result: Result, cell: Cell, patience: float) -> None:
    """Say which promises were broken."""
    if cell.states and result.detected is None:
        result.broken.append(f"not seen as {' or '.join(cell.states)} within {cell.detected * patience:g} s")
    if result.recovered is None or result.recovered > cell.recovered * patience:
        when = "not" if result.recovered is None else f"only after {result.recovered:.1f} s"
        result.broken.append(f"{when} back, promised within {cell.recovered:g} s")
    if result.p99 > cell.p99 * patience:
        result.broken.append(f"reads take {1e3 * result.p99:.0f} ms at p99")
    if result.lost or result.foreign:
        result.broken.append(f"{result.lost} acknowledged samples lost, {result.foreign} foreign")


def applicable(cell: Cell, present: Sequence[str]) -> bool:
    """Say whether a machine that has so much can make a cell."""
    return all(need in present for need in cell.needs)
