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
    AlreadyExistsError,
    CancelledCallError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    OpenManagerError,
    OutOfRangeError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from openmanager.frame import decode_trusted
from openmanager.runtime.breaker import NotAskedError
from openmanager.runtime.clock import Clock, until_next
from openmanager.runtime.peer import backoff
from openmanager_timeseries.dead_letter import Refusal
from openmanager_timeseries.ledger import Ledger
from openmanager_timeseries.log import Cursor, Log
from openmanager_timeseries.port import Consumer
from openmanager_timeseries.record import Record

BATCH_BYTES = 4 << 20
READ_RETRY_SECONDS = 1.0
# The longest waits between two tries, and until a breaker is looked at again.
RETRY_CAP_SECONDS, ASK_SECONDS = 5.0, 0.5
# How often a consumer is asked, while nothing comes, what of the past is now for good.
IDLE_SECONDS = 1.0
# A frame that a consumer fails on is not tried more often than that.
MAX_TRIES = 5
# What may be too much at once.
_TOO_MUCH = (DeadlineExceededError, ResourceExhaustedError, TimeoutError)
# What says nothing about a frame, and passes.
_LATER = (
    *_TOO_MUCH,
    AbortedError,
    CancelledCallError,
    MemoryError,
    OSError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
# What is so of a frame whenever it comes.
_FOR_GOOD = (AlreadyExistsError, DataLossError, FailedPreconditionError, InvalidArgumentError, OutOfRangeError)

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
        while True:
            try:
                await self._read()
            except OSError as err:  # no descriptor is left, say: the log itself deals with damage
                log.warning("%s cannot read the log and tries again: %s", self._consumer.name, type(err).__name__)
                await asyncio.sleep(READ_RETRY_SECONDS)

    async def _read(self) -> None:
        """Read from the position in the books on, until reading has to begin again."""
        books, rewinds = self._ledger.open_books(self._consumer.name), self._consumer.rewinds
        taken = books.position, books.accepted
        cursor = Cursor(books.position + 1, accepted=books.accepted)
        while self._consumer.rewinds == rewinds:
            try:
                self._log.check_kept(cursor.position)
            except OutOfRangeError:
                await self._skip_to(cursor)
                taken = books.position, books.accepted
            before = cursor.accepted
            if records := await self._log.read(cursor, BATCH_BYTES):
                for part in _parts(records, books.counted):
                    await self._deliver(part, before, rewinds)
                    before = part[-1].accepted
                if self._consumer.rewinds != rewinds:
                    return
                books.confirmed_nanos = self._clock.now_nanos()
                taken = records[-1].position, records[-1].accepted
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(until_next(IDLE_SECONDS)):
                        await self._log.wait_beyond(cursor.position - 1)
            if self._consumer.rewinds == rewinds:
                books.stand_at(*self._consumer.settled(*taken))

    async def _skip_to(self, cursor: Cursor) -> None:
        """Go on at the oldest frame that is kept: what went before is lost to this consumer, and counted."""
        await asyncio.to_thread(self._consumer.cut_loose)
        first = min(self._log.first_position, self._log.state.head_position + 1)
        accepted = await asyncio.to_thread(self._log.accepted_at, first - 1)
        self._ledger.resync(self._consumer.name, first - 1, accepted)
        cursor.position, cursor.accepted, cursor.segment = first, accepted, ""

    async def _deliver(self, records: Sequence[Record], before: int, rewinds: int) -> None:
        """Have records taken, however long that takes; what can never be taken is set aside with the reason.

        Of several records that are refused, or take too long, the halves are tried apart, so that only those that are
        at fault stay behind. Gives up when reading has to begin again.
        """
        attempt = failures = 0
        while self._consumer.rewinds == rewinds:
            refusals, failure = await self._try(records)
            if failure is None:
                self._count(records, before, refusals, rewinds)
                return
            if len(records) > 1 and (isinstance(failure, _TOO_MUCH) or not isinstance(failure, _LATER)):
                middle = len(records) // 2
                await self._deliver(records[:middle], before, rewinds)
                await self._deliver(records[middle:], records[middle - 1].accepted, rewinds)
                return
            failures += not isinstance(failure, _LATER)
            if isinstance(failure, _FOR_GOOD) or failures == MAX_TRIES:
                self._count(records, before, [self._refusal(records[0], failure)], rewinds)
                return
            # A breaker that is asked costs nothing.
            cap = ASK_SECONDS if isinstance(failure, NotAskedError) else RETRY_CAP_SECONDS
            await asyncio.sleep(backoff(attempt, self._jitter.random(), cap=cap).total_seconds())
            attempt += 1

    def _count(self, records: Sequence[Record], before: int, refusals: Sequence[Refusal], rewinds: int) -> None:
        if self._consumer.rewinds == rewinds:
            self._ledger.took(self._consumer.name, records, before, refusals)

    async def _try(self, records: Sequence[Record]) -> tuple[Sequence[Refusal], Exception | None]:
        """Try to have records taken; return what was refused of them, or why they were not taken."""
        try:
            async with asyncio.timeout(self._consumer.take_seconds):
                refusals = await self._consumer.take(records)
        except _LATER as err:
            self._found(_state(err), _text(err) or "it does not answer in time")
            return (), err
        except _FOR_GOOD as err:
            return (), err
        except Exception as err:  # a defect, here or there: the log must not stop at a frame
            log.exception("%s failed on frames from position %d on", self._consumer.name, records[0].position)
            self._found(status_pb2.STORAGE_STATE_DOWN, "it fails on a frame, which is tried again")
            return (), err
        self._found(status_pb2.STORAGE_STATE_OK)
        return refusals, None

    def _found(self, state: status_pb2.StorageState.ValueType, reason: str = "") -> None:
        before = self._ledger.conditions.get(self._consumer.name)
        if reason and (before is None or before.state == status_pb2.STORAGE_STATE_OK):
            log.warning("%s cannot take frames and is tried again: %s", self._consumer.name, reason)
        self._ledger.found(self._consumer.name, state, reason)

    def _refusal(self, record: Record, failure: Exception) -> Refusal:
        """Return what becomes of a record that can never be taken."""
        reason = failure.message if isinstance(failure, _FOR_GOOD) else "it fails on it: see the logs"
        try:
            frame = decode_trusted(frame_pb2.Frame.FromString(bytes(record.payload)))
            servers, start, end = frame.servers, int(frame.times[0]), int(frame.times[-1]) + 1
        except (DecodeError, ValueError, IndexError):
            servers, start, end = (), record.receive_nanos, record.receive_nanos + 1
        log.error("%s cannot take the frame at position %d: %s", self._consumer.name, record.position, reason)
        return Refusal(
            reason=reason,
            servers=servers,
            start=start,
            end=end,
            first=record.position,
            last=record.position,
            sample_count=record.samples,
        )


def _state(failure: BaseException) -> status_pb2.StorageState.ValueType:
    """Return how a consumer is that fails for now."""
    if isinstance(failure, NotAskedError):
        return failure.state
    return status_pb2.STORAGE_STATE_HUNG if isinstance(failure, TimeoutError) else status_pb2.STORAGE_STATE_DOWN


def _text(failure: BaseException) -> str:
    """Return what an error says to people: others than ours may name what is nobody's business."""
    if isinstance(failure, NotAskedError):
        return failure.why
    if isinstance(failure, OpenManagerError):
        return failure.message
    return "" if isinstance(failure, TimeoutError) else type(failure).__name__


def _parts(records: Sequence[Record], counted: int) -> list[Sequence[Record]]:
    """Return records up to a position, and those after it, apart."""
    first = sum(record.position <= counted for record in records)
    return [part for part in (records[:first], records[first:]) if part]
