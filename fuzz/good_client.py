"""A good client: calls at an even pace through the gateway, and how long each took, whatever others do meanwhile."""

from __future__ import annotations

import asyncio
import math
import time

import numpy as np

from openmanager.api.cache.v1 import cache_pb2
from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.errors import OpenManagerError
from openmanager.frame import Frame, encode_write_request
from openmanager.runtime.peer import Peer

GATEWAY = "/openmanager.api.gateway.v1.GatewayService"
CACHE = "/openmanager.api.cache.v1.CacheService"
RATE = 100.0
SECONDS = 2.0


class GoodClient:
    """Reads hot state of the gateway and of the cache behind it, and writes frames, in turn."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._frames = 0

    async def latencies(self, seconds: float) -> np.ndarray:
        """Return the seconds that each call of a while took from when it was due; infinity for one that failed."""
        count = int(seconds * RATE)
        begin = time.monotonic()
        tasks = []
        for at in range(count):
            due = begin + at / RATE
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.create_task(self._one(at, due)))
        return np.array(await asyncio.gather(*tasks))

    async def works(self) -> bool:
        """Say whether one call of each kind succeeds."""
        now = time.monotonic()
        return all(math.isfinite(each) for each in [await self._one(at, now) for at in range(3)])

    async def _one(self, at: int, due: float) -> float:
        try:
            match at % 3:
                case 0:
                    await self._peer.unary(
                        f"{GATEWAY}/ListServers",
                        gateway_pb2.ListServersRequest(),
                        gateway_pb2.ListServersResponse,
                        seconds=SECONDS,
                    )
                case 1:
                    await self._peer.unary(
                        f"{CACHE}/GetFleetSummary",
                        cache_pb2.GetFleetSummaryRequest(),
                        cache_pb2.GetFleetSummaryResponse,
                        seconds=SECONDS,
                    )
                case _:
                    await self._peer.unary(
                        f"{GATEWAY}/WriteFrame", self._frame(), gateway_pb2.WriteFrameResponse, seconds=SECONDS
                    )
        except OpenManagerError:
            return math.inf
        return time.monotonic() - due

    def _frame(self) -> bytes:
        self._frames += 1
        moment = time.time_ns() // 1_000_000 * 1_000_000
        return encode_write_request(
            Frame(
                times=np.array([moment]), servers=("good",), metrics=("calls",), values=np.full((1, 1, 1), self._frames)
            )
        )
