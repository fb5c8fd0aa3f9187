"""Follows the log: the newest samples first, then every frame as it comes."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass

from openmanager import progress
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.errors import OpenManagerError, OutOfRangeError
from openmanager.frame import decode_trusted
from openmanager.runtime.clock import Clock
from openmanager.runtime.peer import Peer, backoff
from openmanager_cache.fleet import Fleet

SERVICE = "/openmanager.api.timeseries.v1.TimeseriesService"
CONFIRM = "/openmanager.api.timeseries.v1.LogService/ConfirmPosition"
LEDGER = "/openmanager.api.timeseries.v1.LogService/GetLedger"
CONSUMER = "cache"
CONFIRM_SECONDS = 2.0
SYNC_SECONDS = 5.0

log = logging.getLogger(__name__)


@dataclass(slots=True)
class LogView:
    """How far the cache has come with the log, and whether it follows it now."""

    position: int = 0
    confirmed: int = 0
    following: bool = False
    heard: float = 0.0


class LogFollower:
    """The consumer `cache`."""

    def __init__(
        self,
        *,
        peer: Peer,
        fleet: Fleet,
        clock: Clock,
        jitter: random.Random,
        on_change: Callable[[str], None],
    ) -> None:
        self._peer = peer
        self._fleet = fleet
        self._clock = clock
        self._jitter = jitter
        self._on_change = on_change
        self.view = LogView()

    async def run(self) -> None:
        """Follow for ever, beginning anew from the position that was reached."""
        attempt = 0
        while True:
            try:
                if self.view.position == 0:
                    await self._copy_latest()
                await self._follow()
            except OutOfRangeError:
                self.view.position = 0  # no longer kept: copy the state and go on from there
            except (OpenManagerError, TimeoutError) as err:
                if self.view.following:
                    log.warning("the log is out of reach: %s", err)
            attempt = 0 if self.view.following else attempt + 1
            self.view.following = False
            await asyncio.sleep(backoff(attempt, self._jitter.random(), cap=1.0).total_seconds())

    async def _copy_latest(self) -> None:
        position = 0
        async with asyncio.timeout(SYNC_SECONDS):
            async for data in self._peer.server_stream(
                f"{SERVICE}/QueryLatest", pb.QueryLatestRequest(), seconds=SYNC_SECONDS
            ):
                part = pb.QueryLatestResponse.FromString(data)
                position = part.position
                if part.WhichOneof("part") == "frame":
                    frame = decode_trusted(part.frame)
                    self._fleet.apply(frame, int(frame.times[-1]))
        self.view.position = position  # only now: a copy that is cut short has to be made again
        self._on_change("")
        await self._confirm(resynced=True)

    async def _follow(self) -> None:
        head = await self._head()
        request = pb.WatchFramesRequest(from_position=self.view.position + 1, consumer=CONSUMER)
        request.progress_interval.FromTimedelta(progress.OWN)
        confirmed = self._clock.monotonic()
        stream = self._peer.server_stream(f"{SERVICE}/WatchFrames", request)
        try:
            while True:
                async with asyncio.timeout(progress.SILENCE_SECONDS):
                    part = pb.WatchFramesResponse.FromString(await anext(stream))
                self.view.heard = self._clock.monotonic()
                self.view.position = max(self.view.position, part.position)
                if part.HasField("frame"):
                    self._fleet.apply(decode_trusted(part.frame), part.receive_time.ToNanoseconds())
                    self._on_change(part.trace_parent)
                # Not before: what was written while the log was out of reach is still to come.
                self.view.following = self.view.position >= head
                if self._clock.monotonic() - confirmed >= CONFIRM_SECONDS:
                    confirmed = self._clock.monotonic()
                    await self._confirm()
        except StopAsyncIteration:
            return
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    async def _head(self) -> int:
        reply = await self._peer.unary(LEDGER, pb.GetLedgerRequest(), pb.GetLedgerResponse, seconds=1.0)
        return reply.ledger.head_position

    async def _confirm(self, *, resynced: bool = False) -> None:
        if self.view.position == self.view.confirmed and not resynced:
            return
        request = pb.ConfirmPositionRequest(consumer=CONSUMER, position=self.view.position, resynced=resynced)
        await self._peer.unary(CONFIRM, request, pb.ConfirmPositionResponse, seconds=1.0)
        self.view.confirmed = self.view.position
