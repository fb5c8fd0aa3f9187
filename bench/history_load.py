"""Frames from a process of its own: the next ticks of the TSBS hosts and a large fleet beside them, at a set pace."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator

import grpc

from bench.history_ingest import Fleet
from bench.history_server import OPTIONS
from bench.tsbs import Data
from openmanager.frame import encode_write_request

WRITE_FRAMES = "/openmanager.api.gateway.v1.GatewayService/WriteFrames"
# Ticks of the hosts a second, and servers of the fleet that sends once a second.
HOST_TICKS = 20
FLEET_SERVERS = 100


async def main(target: str, start: int, ticks: int, hosts: int, first: int) -> None:
    """Send until there are no more ticks."""
    data, fleet = Data.make(start, ticks, hosts), Fleet(FLEET_SERVERS)
    frames = data.frames(first)

    async def requests() -> AsyncIterator[bytes]:
        begin = time.perf_counter()
        for at, frame in enumerate(frames):
            await asyncio.sleep(max(0.0, begin + at / HOST_TICKS - time.perf_counter()))
            yield encode_write_request(frame)
            if at % HOST_TICKS == 0:
                for request in fleet.requests(1):
                    yield request

    async with grpc.aio.insecure_channel(target, OPTIONS) as channel:
        print("ready", flush=True)
        async for _ in channel.stream_stream(WRITE_FRAMES)(requests()):
            pass


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
