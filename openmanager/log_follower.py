"""Follows the log from another service: what there is first, then every frame as it comes."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from openmanager import progress
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.errors import OpenManagerError, OutOfRangeError
from openmanager.runtime.clock import Clock
from openmanager.runtime.peer import Peer, backoff

SERVICE = "/openmanager.api.timeseries.v1.TimeseriesService"
CONFIRM = "/openmanager.api.timeseries.v1.LogService/ConfirmPosition"
LEDGER = "/openmanager.api.timeseries.v1.LogService/GetLedger"
CONFIRM_SECONDS = 2.0

log = logging.getLogger(__name__)


@dataclass(slots=True)
class LogView:
    """How far a consumer has come with the log, and whether it follows it now."""

    position: int = 0
    confirmed: int = 0
    following: bool = False
    heard: float = 0.0


class LogFollower:
    """The consumer of a name, one that keeps its state itself.

    `sync` is called before the log can be followed from a position: at first, and when what comes next is no longer kept;
    it returns the position that its state is of then. `take` gets every part of the log that has a frame, in order, and the
    log waits for it.
    `durable` returns the position that the log need not keep before; by default what was taken.
    """

    def __init__(
        self,
        *,
        consumer: str,
        peer: Peer,
        clock: Clock,
        jitter: random.Random,
        sync: Callable[[], Awaitable[int]],
        take: Callable[[pb.WatchFramesResponse], Awaitable[None]],
        durable: Callable[[], int] | None = None,
    ) -> None:
        self._consumer = consumer
        self._peer = peer
        self._clock = clock
        self._jitter = jitter
        self._sync = sync
        self._take = take
        self._durable = durable or self._taken
        self.view = LogView()

    async def run(self) -> None:
        """Follow for ever, beginning anew from the position that was reached."""
        attempt = 0
        while True:
            try:
                if self.view.position == 0:
                    self.view.position = await self._sync()  # one that is cut short has to be made again
                    await self._confirm(resynced=True)
                await self._follow()
            except OutOfRangeError:
                self.view.position = 0
            except (OpenManagerError, TimeoutError) as err:
                if self.view.following:
                    log.warning("the log is out of reach: %s", err)
            attempt = 0 if self.view.following else attempt + 1
            self.view.following = False
            await asyncio.sleep(backoff(attempt, self._jitter.random(), cap=1.0).total_seconds())

    async def head(self) -> int:
        """Return the newest position of the log."""
        reply = await self._peer.unary(LEDGER, pb.GetLedgerRequest(), pb.GetLedgerResponse, seconds=1.0)
        return reply.ledger.head_position

    async def _follow(self) -> None:
        head = await self.head()
        request = pb.WatchFramesRequest(from_position=self.view.position + 1, consumer=self._consumer)
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
                    await self._take(part)
                # Not before: what was written while the log was out of reach is still to come.
                self.view.following = self.view.position >= head
                if self._clock.monotonic() - confirmed >= CONFIRM_SECONDS:
                    confirmed = self._clock.monotonic()
                    await self._confirm()
        except StopAsyncIteration:
            return
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    def _taken(self) -> int:
        return self.view.position

    async def _confirm(self, *, resynced: bool = False) -> None:
        position = self._durable()
        if position == self.view.confirmed and not resynced:
            return
        request = pb.ConfirmPositionRequest(consumer=self._consumer, position=position, resynced=resynced)
        await self._peer.unary(CONFIRM, request, pb.ConfirmPositionResponse, seconds=1.0)
        self.view.confirmed = position
