"""Runs a reader of the log: in order, at its own pace, from its own durable position."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Sequence

from google.protobuf.message import DecodeError

from openmanager.api.frame.v1 import frame_pb2
from openmanager.api.status.v1 import status_pb2
from openmanager.errors import (
    AbortedError,
    CancelledCallError,
    DeadlineExceededError,
    OpenManagerError,
    OutOfRangeError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from openmanager.frame import decode_trusted
from openmanager.runtime.clock import Clock
from openmanager.runtime.peer import backoff
from openmanager_timeseries.dead_letter import Refusal
from openmanager_timeseries.ledger import Ledger
from openmanager_timeseries.log import Cursor, Log
from openmanager_timeseries.port import Consumer
from openmanager_timeseries.record import Record

BATCH_BYTES = 4 << 20
READ_RETRY_SECONDS = 1.0
# How often a consumer is asked, while nothing comes, what of the past is now for good.
IDLE_SECONDS = 1.0
# A frame that a consumer fails on is not tried more often than that.
MAX_TRIES = 5
# What says nothing about a frame, and passes.
_LATER = (
    AbortedError,
    CancelledCallError,
    DeadlineExceededError,
    PermissionDeniedError,
    ResourceExhaustedError,
    TimeoutError,
    UnauthenticatedError,
    UnavailableError,
)

log = logging.getLogger(__name__)


class Runner:
    """Feeds one consumer. Its books advance in memory after each batch; the keeper makes them durable."""

    def __init__(self, *, consumer: Consumer, source: Log, ledger: Ledger, clock: Clock, jitter: random.Random) -> None:
        self._consumer = consumer
        self._log = source
        self._ledger = ledger
        self._clock = clock
        self._jitter = jitter

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
        """Have records taken, however long that takes; what can never be taken is set aside with the reason.

        Of several records that are refused the halves are tried apart, so that only those that are at fault stay behind.
        """
        attempt = refusals = 0
        while (failure := await self._failure(records)) is not None:
            if not isinstance(failure, _LATER):
                if len(records) > 1:
                    middle = len(records) // 2
                    await self._deliver(records[:middle])
                    await self._deliver(records[middle:])
                    return
                refusals += 1
                if isinstance(failure, OpenManagerError) or refusals == MAX_TRIES:
                    self._set_aside(records[0], failure)
                    return
            await asyncio.sleep(backoff(attempt, self._jitter.random()).total_seconds())
            attempt += 1

    async def _failure(self, records: Sequence[Record]) -> Exception | None:
        """Try to have records taken; return why they were not."""
        try:
            async with asyncio.timeout(self._consumer.take_seconds):
                await self._consumer.take(records)
        except _LATER as err:
            state = status_pb2.STORAGE_STATE_HUNG if isinstance(err, TimeoutError) else status_pb2.STORAGE_STATE_DOWN
            self._found(state, str(err) or "it does not answer in time")
            return err
        except OpenManagerError as err:
            return err
        except Exception as err:  # a defect, or a frame that nobody thought of: the log must not stop at it
            log.exception("%s failed on frames from position %d on", self._consumer.name, records[0].position)
            return err
        self._found(status_pb2.STORAGE_STATE_OK)
        return None

    def _found(self, state: status_pb2.StorageState.ValueType, reason: str = "") -> None:
        before = self._ledger.conditions.get(self._consumer.name)
        if reason and (before is None or before.state == status_pb2.STORAGE_STATE_OK):
            log.warning("%s cannot take frames and is tried again: %s", self._consumer.name, reason)
        self._ledger.found(self._consumer.name, state, reason)

    def _set_aside(self, record: Record, failure: Exception) -> None:
        reason = failure.message if isinstance(failure, OpenManagerError) else "it could not be taken: see the log"
        try:
            frame = decode_trusted(frame_pb2.Frame.FromString(bytes(record.payload)))
            servers, start, end = frame.servers, int(frame.times[0]), int(frame.times[-1]) + 1
        except (DecodeError, ValueError, IndexError):
            servers, start, end = (), record.receive_nanos, record.receive_nanos + 1
        log.error("%s cannot take the frame at position %d: %s", self._consumer.name, record.position, reason)
        self._ledger.set_aside(
            self._consumer.name,
            Refusal(
                reason=reason,
                servers=servers,
                start=start,
                end=end,
                first=record.position,
                last=record.position,
                sample_count=record.samples,
            ),
        )
