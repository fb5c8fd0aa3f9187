"""The load: writers that never write a sample twice, and a reader, all through the gateway.

A value tells who wrote it and which of their frames it was; all metrics of a frame have the same one. So a value that
is found under another name or time is known for what it is, and half a frame is seen.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

import numpy as np

from chaos.journal import Journal, Kind
from openmanager.api.gateway.v1 import gateway_pb2
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
METRICS = tuple(f"chaos.m{at:02d}" for at in range(50))
WRITERS = 6
MILLI = 1_000_000
WRITE_SECONDS, READ_SECONDS = 2.0, 1.0
PAUSE_SECONDS = 0.02
READS_PER_SECOND = 50.0
# An answer that says for certain that nothing was taken.
_REFUSED = (FailedPreconditionError, InvalidArgumentError, OutOfRangeError, ResourceExhaustedError)


def server_of(writer: int) -> str:
    """Return the server that a writer writes for."""
    return f"chaos-{writer}"


def writer_of(value: float) -> int:
    """Return whose value it is."""
    return int(value) % WRITERS


async def write(peer: Peer, writer: int, journal: Journal, stop: asyncio.Event) -> None:
    """Write a frame after the other, each at a time of its own; what failed is not tried again."""
    last = number = 0
    while not stop.is_set():
        moment = max(time.time_ns() // MILLI * MILLI, last + MILLI)
        last, number = moment, number + 1
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


async def read(peer: Peer, journal: Journal, stop: asyncio.Event) -> None:
    """Ask for a server at an even pace, whatever becomes of the answers before."""
    pending: set[asyncio.Task[None]] = set()
    begin, count = time.monotonic(), 0
    while not stop.is_set():
        count += 1
        task = asyncio.create_task(_read_one(peer, journal, count % WRITERS))
        pending.add(task)
        task.add_done_callback(pending.discard)
        await asyncio.sleep(max(0.0, begin + count / READS_PER_SECOND - time.monotonic()))
    await asyncio.gather(*pending)


async def _read_one(peer: Peer, journal: Journal, writer: int) -> None:
    start = time.monotonic()
    request = gateway_pb2.GetServerRequest(id=server_of(writer))
    try:
        reply = await peer.unary(f"{GATEWAY}/GetServer", request, gateway_pb2.GetServerResponse, seconds=READ_SECONDS)
        kind = Kind.DEGRADED if reply.provenance.degraded else Kind.READ
    except OpenManagerError:
        kind = Kind.READ_FAILED
    journal.add(kind, writer, 0, time.monotonic() - start, start)


async def run(gateway: str, path: Path) -> None:
    """Write and read until standard input is closed."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.run_in_executor(None, _wait_for_end, loop, stop)
    with Journal(path) as journal:
        async with Peer("the gateway", gateway) as peer:
            writers = [write(peer, each, journal, stop) for each in range(WRITERS)]
            await asyncio.gather(*writers, read(peer, journal, stop))


def _wait_for_end(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    sys.stdin.read()
    loop.call_soon_threadsafe(stop.set)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("gateway")
    parser.add_argument("journal", type=Path)
    asked = parser.parse_args()
    asyncio.run(run(asked.gateway, asked.journal))
