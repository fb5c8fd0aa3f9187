"""The load: writers whose every value is unlike all others, and readers that keep what they were shown, all through the gateway.

A value tells who wrote it and which of their frames it was; all metrics of a frame have the same one. So a value that
is found under another name or time is known for what it is, and half a frame is seen. Now and then a writer writes a
time once more, with another value: of these the later one is to stay.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

from chaos.journal import Journal, Kind
from openmanager.api.cache.v1 import cache_pb2
from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.metadata.v1 import metadata_pb2
from openmanager.api.server.v1 import server_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    OpenManagerError,
    OutOfRangeError,
    ResourceExhaustedError,
)
from openmanager.frame import Frame, encode_write_request
from openmanager.runtime.peer import Peer

GATEWAY = "/openmanager.api.gateway.v1.GatewayService"
TIMESERIES = "/openmanager.api.timeseries.v1.TimeseriesService"
INVENTORY = "/openmanager.api.metadata.v1.ServerService"
METRICS = tuple(f"chaos.m{at:02d}" for at in range(50))
WRITERS = 6
MILLI = 1_000_000
WRITE_SECONDS, READ_SECONDS = 2.0, 1.0
PAUSE_SECONDS = 0.1
READS_PER_SECOND = 50.0
# Reads of many samples cost more.
OTHERS_PER_SECOND = 2.0
RANGE_SECONDS = 2.0
# Every so many frames a writer corrects the one before.
CORRECTED = 8
# Stands for the values of another server than the one that was asked for.
NOBODYS = -1.0
# An answer that says for certain that nothing was taken.
_REFUSED = (FailedPreconditionError, InvalidArgumentError, OutOfRangeError, ResourceExhaustedError)


def server_of(writer: int) -> str:
    """Return the server that a writer writes for."""
    return f"chaos-{writer}"


def registered(number: int) -> str:
    """Return a server that is only in the inventory."""
    return f"registered-{number}"


def writer_of(value: float) -> int:
    """Return whose value it is."""
    return int(value) % WRITERS


async def write(peer: Peer, writer: int, journal: Journal, stop: asyncio.Event) -> None:
    """Write a frame after the other, most at a time of their own; what failed is not tried again."""
    moment = number = 0
    while not stop.is_set():
        number += 1
        if number % CORRECTED:
            moment = max(time.time_ns() // MILLI * MILLI, moment + MILLI)
        value = float(number * WRITERS + writer)
        frame = Frame(
            times=np.array([moment]),
            servers=(server_of(writer),),
            metrics=METRICS,
            values=np.full((1, 1, len(METRICS)), value),
        )
        journal.add(Kind.INVOKED, writer, moment, value, time.monotonic())
        try:
            request = encode_write_request(frame)
            reply = await peer.unary(
                f"{GATEWAY}/WriteFrame", request, gateway_pb2.WriteFrameResponse, seconds=WRITE_SECONDS
            )
            kind = Kind.OK if reply.ack.accepted_sample_count == len(METRICS) else Kind.FAILED
        except _REFUSED:
            kind = Kind.FAILED
        except OpenManagerError:
            kind = Kind.UNKNOWN
        journal.add(kind, writer, moment, value, time.monotonic())
        if kind is not Kind.OK:
            await asyncio.sleep(PAUSE_SECONDS)


async def register(peer: Peer, journal: Journal, stop: asyncio.Event) -> None:
    """Put a server after the other into the inventory."""
    number = 0
    while not stop.is_set():
        number += 1
        request = metadata_pb2.CreateServerRequest(server=metadata_pb2.Server(id=registered(number)))
        with contextlib.suppress(OpenManagerError):
            await peer.unary(
                f"{INVENTORY}/CreateServer", request, metadata_pb2.CreateServerResponse, seconds=WRITE_SECONDS
            )
            journal.add(Kind.REGISTERED, 0, number, 0.0, time.monotonic())
        await asyncio.sleep(1 / OTHERS_PER_SECOND)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Reader:
    """Asks in each of the ways there are, and keeps what was shown of the writers."""

    def __init__(self, peer: Peer, journal: Journal) -> None:
        self._peer = peer
        self._journal = journal

    async def get(self, writer: int) -> None:
        """Ask for one server."""
        start = time.monotonic()
        request = gateway_pb2.GetServerRequest(id=server_of(writer))
        try:
            reply = await self._peer.unary(
                f"{GATEWAY}/GetServer", request, gateway_pb2.GetServerResponse, seconds=READ_SECONDS
            )
        except OpenManagerError:
            self._journal.add_shown(Kind.READ_FAILED, writer, 0, 0.0, at=start, seconds=time.monotonic() - start)
            return
        self._keep_server(Kind.READ, writer, reply.server, start, degraded=reply.provenance.degraded)

    async def list(self, _: int) -> None:
        """Ask for a list of the writers' servers."""
        start = time.monotonic()
        names = " OR ".join(f'id = "{server_of(writer)}"' for writer in range(WRITERS))
        request = cache_pb2.ListServersRequest(filter=names, view=server_pb2.VIEW_FULL)
        reply = await self._peer.unary(
            f"{GATEWAY}/ListServers", request, cache_pb2.ListServersResponse, seconds=READ_SECONDS
        )
        full = [server for server in reply.servers if server.metrics]
        for server in full:
            writer = int(server.id.rpartition("-")[2])
            self._keep_server(Kind.LISTED, writer, server, start, degraded=reply.provenance.degraded)

    async def latest(self, _: int) -> None:
        """Ask history for the newest samples of the writers."""
        start = time.monotonic()
        request = timeseries_pb2.QueryLatestRequest()
        request.selector.servers.extend(map(server_of, range(WRITERS)))
        degraded = False
        async for data in self._peer.server_stream(f"{TIMESERIES}/QueryLatest", request, seconds=READ_SECONDS):
            part = timeseries_pb2.QueryLatestResponse.FromString(data)
            if part.WhichOneof("part") == "provenance":
                degraded = part.provenance.degraded or part.provenance.partial
                continue
            values = np.asarray(part.frame.values).reshape(len(part.frame.servers), -1)
            ours = np.isin(part.frame.metrics, METRICS)  # others who wrote at the same time are in the same frame
            for server, row in zip(part.frame.servers, values[:, ours], strict=True):
                writer, moment = int(server.rpartition("-")[2]), int(part.frame.time_unix_nanos[0])
                self._keep(Kind.LATEST, writer, moment, row, start, degraded=degraded)

    async def range(self, writer: int) -> None:
        """Ask history for the last seconds of a writer."""
        start, end = time.monotonic(), time.time_ns() // MILLI * MILLI
        begin = end - int(RANGE_SECONDS * 1e9)
        request = timeseries_pb2.QueryRangeRequest(series_per_message=len(METRICS))
        request.selector.servers.append(server_of(writer))
        request.start_time.FromNanoseconds(begin)
        request.end_time.FromNanoseconds(end)
        times, values, degraded = [], [], False
        async for data in self._peer.server_stream(f"{TIMESERIES}/QueryRange", request, seconds=READ_SECONDS):
            part = timeseries_pb2.QueryRangeResponse.FromString(data)
            if part.WhichOneof("part") == "header":
                degraded = part.header.provenance.degraded or part.header.provenance.partial
            for series in part.batch.series:
                times.append(np.asarray(series.time_unix_nanos, np.int64))
                values.append(np.asarray(series.values))
        seconds = time.monotonic() - start
        self._journal.add_shown(Kind.RANGE, writer, begin, RANGE_SECONDS, at=start, seconds=seconds, degraded=degraded)
        if times:
            every, all_values = np.concatenate(times), np.concatenate(values)
            for moment in np.unique(every).tolist():
                self._keep(Kind.RANGED, writer, moment, all_values[every == moment], start, degraded=degraded)

    def _keep_server(self, kind: Kind, writer: int, server: server_pb2.Server, start: float, *, degraded: bool) -> None:
        moment = server.sample_time.ToNanoseconds()
        if len(server.metrics) != len(server.values):
            return  # the names are not known yet: nobody can take it for anything
        values = np.asarray(server.values)[np.isin(server.metrics, METRICS)]
        if server.id != server_of(writer):
            values = np.full(len(METRICS), NOBODYS)
        self._keep(kind, writer, moment, values, start, degraded=degraded)

    def _keep(self, kind: Kind, writer: int, moment: int, values: np.ndarray, start: float, *, degraded: bool) -> None:
        """Keep the samples of one time: their one value, or each of several, NaN for those that are missing."""
        there = np.unique(values[~np.isnan(values)]).tolist()
        if len(values) != len(METRICS) or np.isnan(values).any():
            there.append(np.nan)
        seconds = time.monotonic() - start
        for value in there:
            self._journal.add_shown(kind, writer, moment, value, at=start, seconds=seconds, degraded=degraded)


async def read(ask: Callable[[int], Awaitable[None]], per_second: float, stop: asyncio.Event) -> None:
    """Ask at an even pace, whatever becomes of the answers before."""
    pending: set[asyncio.Task[None]] = set()
    begin, count = time.monotonic(), 0
    while not stop.is_set():
        count += 1
        task = asyncio.create_task(_passing_over_errors(ask, count % WRITERS))
        pending.add(task)
        task.add_done_callback(pending.discard)
        await asyncio.sleep(max(0.0, begin + count / per_second - time.monotonic()))
    await asyncio.gather(*pending)


async def _passing_over_errors(ask: Callable[[int], Awaitable[None]], writer: int) -> None:
    with contextlib.suppress(OpenManagerError):  # what is away shows nothing
        await ask(writer)


async def run(gateway: str, path: Path) -> None:
    """Write and read until standard input is closed."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.run_in_executor(None, _wait_for_end, loop, stop)
    with Journal(path) as journal:
        async with Peer("the gateway", gateway) as peer:
            reader = Reader(peer, journal)
            writers = [write(peer, each, journal, stop) for each in range(WRITERS)]
            others = [read(each, OTHERS_PER_SECOND, stop) for each in (reader.list, reader.latest, reader.range)]
            await asyncio.gather(
                *writers, register(peer, journal, stop), read(reader.get, READS_PER_SECOND, stop), *others
            )


def _wait_for_end(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    sys.stdin.read()
    loop.call_soon_threadsafe(stop.set)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("gateway")
    parser.add_argument("journal", type=Path)
    asked = parser.parse_args()
    asyncio.run(run(asked.gateway, asked.journal))
