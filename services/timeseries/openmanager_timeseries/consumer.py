"""Runs a reader of the log: in order, at its own pace, from its own durable position."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Sequence

from openmanager.errors import OpenManagerError, OutOfRangeError
from openmanager.runtime.clock import Clock
from openmanager.runtime.peer import backoff
from openmanager_timeseries.ledger import Ledger
from openmanager_timeseries.log import Cursor, Log
from openmanager_timeseries.port import Consumer
from openmanager_timeseries.record import Record

BATCH_BYTES = 4 << 20
READ_RETRY_SECONDS = 1.0
# How often a consumer is asked, while nothing comes, what of the past is now for good.
IDLE_SECONDS = 1.0

log = logging.getLogger(__name__)


class Runner:
    """Feeds one consumer. Its books advance in memory after each batch; the keeper makes them durable."""

    def __init__(self, *, consumer: Consumer, source: Log, ledger: Ledger, clock: Clock, jitter: random.Random) -> None:
        self._consumer = consumer
        self._log = source
        self._ledger = ledger
        self._clock = clock
        self._jitter = jitter
        self.failure = ""

    async def run(self) -> None:
        """Read for ever."""
        books = self._ledger.open_books(self._consumer.name)
        taken = books.position, books.accepted
        cursor = Cursor(books.position + 1, accepted=books.accepted)
        while True:
            if self._consumer.rewound():
                taken = books.position, books.accepted
                cursor = Cursor(books.position + 1, accepted=books.accepted)
            try:
                self._log.check_kept(cursor.position)
            except OutOfRangeError:
                await self._skip_to(cursor)
                taken = books.position, books.accepted
            try:
                records = await self._log.read(cursor, BATCH_BYTES)
            except OSError as err:  # no descriptor is left, say: the log itself deals with damage
                log.warning("%s cannot read the log and tries again: %s", self._consumer.name, type(err).__name__)
                await asyncio.sleep(READ_RETRY_SECONDS)
                continue
            if records:
                await self._deliver(records)
                books.damaged, cursor.damaged = books.damaged + cursor.damaged, 0
                books.confirmed_nanos = self._clock.now_nanos()
                taken = records[-1].position, records[-1].accepted
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(IDLE_SECONDS):
                        await self._log.wait_beyond(cursor.position - 1)
            books.position, books.accepted = self._consumer.settled(*taken)

    async def _skip_to(self, cursor: Cursor) -> None:
        """Go on at the oldest frame that is kept: what went before is lost to this consumer, and counted."""
        books = self._ledger.open_books(self._consumer.name)
        first = min(self._log.first_position, self._log.state.head_position + 1)
        accepted = await asyncio.to_thread(self._log.accepted_at, first - 1)
        books.resynced += max(0, accepted - books.accepted)
        books.position, books.accepted = first - 1, accepted
        cursor.position, cursor.accepted, cursor.segment = first, accepted, ""

    async def _deliver(self, records: Sequence[Record]) -> None:
        attempt = 0
        while True:
            try:
                async with asyncio.timeout(self._consumer.take_seconds):
                    await self._consumer.take(records)
            except (OpenManagerError, TimeoutError) as err:
                if not self.failure:
                    log.warning("%s cannot take frames and is tried again: %s", self._consumer.name, err)
                self.failure = str(err) or "timeout"
                await asyncio.sleep(backoff(attempt, self._jitter.random()).total_seconds())
                attempt += 1
            else:
                self.failure = ""
                return
