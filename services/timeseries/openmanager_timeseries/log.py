"""The log: every accepted frame, in order, fsynced before it is acknowledged.

One thread appends. Frames that arrive while it waits for the disk are written and synced together with the next ones
(group commit), so that a lone writer pays one fdatasync and many share one. Readers take recent records from memory
and older ones from the segments.

What can go wrong, and what then holds:

- A crash at any instant: the records whose sync returned are there; a torn tail is passed over and never counted.
- Disk full: the batch is cut off again and refused; the ballast is given back so that deletion goes on working.
- An I/O error: the segment is abandoned, for its pages may be gone although a second fsync succeeds; a new one begins.
- Damage: found by checksum, set aside, counted by the running total, and the rest is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta

from openmanager.errors import OpenManagerError, OutOfRangeError, Reason, ResourceExhaustedError, UnavailableError
from openmanager.runtime.clock import Clock
from openmanager_timeseries.disk import Disk, File
from openmanager_timeseries.record import (
    MAGIC,
    RECORD_OVERHEAD,
    SEGMENT_HEADER,
    Damage,
    Record,
    decode_at,
    encode_header,
    scan,
)

MAX_PENDING_BYTES = 64 << 20
MAX_BATCH_BYTES = 16 << 20
TAIL_BYTES = 32 << 20
READ_BYTES = 4 << 20
BALLAST = "ballast"
SUFFIX = ".log"
FULL_RETRY = timedelta(seconds=1)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """Sizes in bytes; `reserve` is the free space below which writes are refused."""

    segment_size: int = 16 << 20
    ballast_size: int = 64 << 20
    reserve: int = 32 << 20


@dataclass(slots=True)
class Segment:
    """A file of the log. `last` is the newest position in it, 0 while it is empty; `end` the bytes that are synced."""

    name: str
    first: int
    last: int = 0
    end: int = SEGMENT_HEADER.size
    newest_nanos: int = 0
    accepted_before: int = 0


@dataclass(slots=True)
class _Pending:
    payload: bytes
    samples: int
    trace: str
    done: asyncio.Future[Record]


@dataclass(slots=True, kw_only=True)
class LogState:
    """What status reports of the log."""

    head_position: int = 0
    accepted: int = 0
    damaged_samples: int = 0
    damaged_regions: int = 0
    torn_bytes: int = 0
    full: bool = False
    failure: str = ""
    commit_seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Cursor:
    """Where a reader is: the next position it wants, and where in the segments that is."""

    position: int
    segment: str = ""
    offset: int = 0
    # The running total at the last record, −1 where it is not known; a step larger than the next record is a loss.
    accepted: int = -1
    damaged: int = 0


def segment_name(first: int) -> str:
    """Return the name of the segment whose first position is `first`."""
    return f"{first:020d}{SUFFIX}"


class Log:
    """The log of one shard. Open it with `Log.open`; `append`, `read` and `close` are for one event loop."""

    def __init__(self, disk: Disk, options: LogOptions, clock: Clock) -> None:
        self._disk = disk
        self._options = options
        self._clock = clock
        self.state = LogState()
        self.segments: list[Segment] = []
        self._file: File | None = None
        self._next = 1
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="log-writer")
        self._pending: deque[_Pending] = deque()
        self._pending_bytes = 0
        self._wake = asyncio.Event()
        self._closing = False
        self._committer: asyncio.Task[None] | None = None
        self._tail: deque[Record] = deque()
        self._tail_bytes = 0
        self._grown = asyncio.Event()
        self.on_commit: Callable[[Sequence[Record]], None] = lambda _: None

    # ── opening ────────────────────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    async def open(cls, disk: Disk, options: LogOptions, clock: Clock, *, floor: int = 0, accepted: int = 0) -> Log:
        """Open the log of a folder, whatever state it is in.

        Positions and the running total continue above `floor` and `accepted`, which somebody else remembers, and above
        all that is there.
        """
        opened = cls(disk, options, clock)
        await asyncio.to_thread(opened._recover, floor, accepted)
        opened._committer = asyncio.create_task(opened._commit_forever())
        return opened

    async def close(self) -> None:
        """Write what is pending and close."""
        self._closing = True
        self._wake.set()
        if self._committer is not None:
            await self._committer
        self._thread.shutdown(wait=True)
        if self._file is not None:
            self._file.close()

    def _recover(self, floor: int, accepted: int) -> None:
        sizes = self._disk.sizes()
        names = sorted(name for name in sizes if name.endswith(SUFFIX) and name.removesuffix(SUFFIX).isdigit())
        for name in names:
            if sizes[name] <= SEGMENT_HEADER.size:
                self._disk.remove(name)  # created and never written to
            else:
                self.segments.append(Segment(name, int(name.removesuffix(SUFFIX)), end=sizes[name]))
        for older, newer in zip(self.segments, self.segments[1:], strict=False):
            older.last = newer.first - 1
        highest, torn = self._recover_last()
        first = self.segments[-1].first if self.segments else 1
        # Torn bytes may have been records that were acknowledged before they were damaged: skip their positions.
        self._next = max(highest, floor, first - 1) + 1 + (torn // RECORD_OVERHEAD + 1 if torn else 0)
        self.state.head_position = max(highest, floor)
        self.state.accepted = max(self.state.accepted, accepted)
        for segment in self.segments:
            head = self._first_record(segment)
            segment.accepted_before = head.accepted - head.samples if head else self.state.accepted
            segment.newest_nanos = segment.newest_nanos or (head.receive_nanos if head else self._clock.now_nanos())
        self._restore_ballast()

    def _recover_last(self) -> tuple[int, int]:
        """Read the newest segment that has a record; return its last position and the bytes torn after it."""
        torn = 0
        for segment in reversed(self.segments):
            data = self._disk.read(segment.name, 0, segment.end)
            last, end = None, SEGMENT_HEADER.size
            for item, offset in scan(data, SEGMENT_HEADER.size, 0):
                if isinstance(item, Record):
                    last, end = item, offset
                    segment.newest_nanos = item.receive_nanos
            torn += segment.end - end
            segment.end = end
            if last is not None:
                segment.last = last.position
                self.state.accepted = last.accepted
                self.state.torn_bytes = torn
                return last.position, torn
            segment.last = segment.first - 1
        self.state.torn_bytes = torn
        return 0, torn

    def _first_record(self, segment: Segment) -> Record | None:
        header_end = SEGMENT_HEADER.size + RECORD_OVERHEAD
        head = self._disk.read(segment.name, SEGMENT_HEADER.size, RECORD_OVERHEAD)
        if len(head) < RECORD_OVERHEAD:
            return None
        size = int.from_bytes(head[:4], "little")
        data = self._disk.read(segment.name, 0, min(header_end + size, segment.end))
        found = decode_at(data, SEGMENT_HEADER.size)
        return found[0] if found else None

    # ── writing ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def append(self, payload: bytes, samples: int, trace_parent: str = "") -> Record:
        """Append a frame and return its record when it is durable.

        ResourceExhaustedError (`LOG_FULL`, `OVERLOADED`) or UnavailableError (`LOG_UNFIT`) when it was not accepted.
        """
        if self._pending_bytes + len(payload) > MAX_PENDING_BYTES:
            raise ResourceExhaustedError(
                "the log is behind", reason=Reason.OVERLOADED, retry_after=timedelta(milliseconds=200)
            )
        done: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        self._pending.append(_Pending(payload, samples, trace_parent, done))
        self._pending_bytes += len(payload)
        self._wake.set()
        return await done

    async def _commit_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while not (self._closing and not self._pending):
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                batch = self._take_batch()
                start = self._clock.monotonic()
                try:
                    records = await asyncio.shield(loop.run_in_executor(self._thread, self._write, batch))
                except OpenManagerError as failure:
                    for item in batch:
                        if not item.done.done():
                            item.done.set_exception(failure)
                    continue
                self.state.commit_seconds = self._clock.monotonic() - start
                self._publish(records)
                for item, record in zip(batch, records, strict=True):
                    if not item.done.done():
                        item.done.set_result(record)

    def _take_batch(self) -> list[_Pending]:
        batch: list[_Pending] = []
        size = 0
        while self._pending and (not batch or size + len(self._pending[0].payload) <= MAX_BATCH_BYTES):
            item = self._pending.popleft()
            size += len(item.payload)
            batch.append(item)
        self._pending_bytes -= size
        return batch

    def _publish(self, records: Sequence[Record]) -> None:
        self.state.head_position = records[-1].position
        self.state.accepted = records[-1].accepted
        self._tail.extend(records)
        self._tail_bytes += sum(len(record.payload) for record in records)
        while self._tail_bytes > TAIL_BYTES and len(self._tail) > 1:
            self._tail_bytes -= len(self._tail.popleft().payload)
        self.on_commit(records)
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    def _write(self, batch: Sequence[_Pending]) -> list[Record]:
        """Write and sync a batch (in the writer's thread)."""
        self._refuse_when_full()
        size = sum(RECORD_OVERHEAD + len(item.payload) for item in batch)
        segment = self._segment_for(size)
        records, parts, accepted = [], [], self.state.accepted
        for item in batch:
            accepted += item.samples
            record = Record(self._next, self._clock.now_nanos(), accepted, item.samples, item.trace, item.payload)
            records.append(record)
            parts += [encode_header(record), item.payload]
            self._next += 1
        file = self._file
        assert file is not None  # noqa: S101  (_segment_for has just made sure)
        try:
            file.append(parts)
            file.sync()
        except OSError as err:
            raise self._failed(segment, err) from err
        segment.end += size
        segment.last = records[-1].position
        segment.newest_nanos = records[-1].receive_nanos
        self.state.failure = ""
        return records

    def _segment_for(self, size: int) -> Segment:
        with self._lock:
            current = self.segments[-1] if self.segments and self._file is not None else None
        if current is not None and (current.last == 0 or current.end + size <= self._options.segment_size):
            return current
        if self._file is not None:
            self._file.close()
            self._file = None
        segment = Segment(segment_name(self._next), self._next, accepted_before=self.state.accepted)
        try:
            self._file = self._disk.create(segment.name)
            self._file.append([SEGMENT_HEADER.pack(MAGIC, segment.first)])
            self._file.sync()
            self._disk.sync_names()
        except OSError as err:
            raise self._failed(segment, err) from err
        with self._lock:
            self.segments.append(segment)
        return segment

    def _failed(self, segment: Segment, err: OSError) -> OpenManagerError:
        """Give up a batch: cut it off where that is possible, and never sync the same file again after an error."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.truncate(segment.end)
            with contextlib.suppress(OSError):
                file.close()
        with self._lock, contextlib.suppress(OSError):
            if segment.last == 0:
                self._disk.remove(segment.name)
                if segment in self.segments:
                    self.segments.remove(segment)
        if err.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            self._disk.remove(BALLAST)
            self.state.full = True
            return _log_full()
        self.state.failure = "io"
        log.error("log write failed", exc_info=err)
        return UnavailableError("the log cannot be written", reason=Reason.LOG_UNFIT)

    def _refuse_when_full(self) -> None:
        free, _ = self._disk.free_bytes()
        if free < self._options.reserve:
            self._disk.remove(BALLAST)
            self.state.full = True
            raise _log_full()
        self.state.full = False

    def _restore_ballast(self) -> None:
        """Lay the ballast down again where there is room for twice its size."""
        size = self._options.ballast_size
        if self._disk.sizes().get(BALLAST) == size:
            return
        with contextlib.suppress(OSError):
            if size and self._disk.free_bytes()[0] > 2 * size + self._options.reserve:
                file = self._disk.create(BALLAST)
                block = bytes(min(size, 1 << 20))
                for _ in range(size // len(block)):
                    file.append([block])
                file.close()

    # ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def first_position(self) -> int:
        """The oldest position that is kept; one past the newest when nothing is."""
        with self._lock:
            kept = [segment for segment in self.segments if segment.last >= segment.first]
        return kept[0].first if kept else self._next

    def check_kept(self, position: int) -> None:
        """Raise OutOfRangeError unless reading may begin at `position`."""
        if position < self.first_position:
            raise OutOfRangeError(
                f"position {position} is no longer kept; the oldest is {self.first_position}",
                reason=Reason.HISTORY_COMPACTED,
                field="from_position",
            )
        if position > self.state.head_position + 1:
            raise OutOfRangeError(
                f"position {position} does not exist yet; the newest is {self.state.head_position}",
                reason=Reason.POSITION_OUT_OF_RANGE,
                field="from_position",
            )

    async def wait_beyond(self, position: int) -> None:
        """Return when there is a record after `position`."""
        while self.state.head_position <= position:
            await self._grown.wait()

    async def read(self, cursor: Cursor, max_bytes: int = READ_BYTES) -> list[Record]:
        """Return the next records of a cursor, empty when there are none yet, and move it on.

        At least one record is returned where there is one, and no more than about `max_bytes`.
        """
        if cursor.position > self.state.head_position:
            return []
        if self._tail and cursor.position >= self._tail[0].position:
            records = self._from_tail(cursor, max_bytes)
        else:
            records = await asyncio.to_thread(self._from_segments, cursor, max_bytes)
        if records:
            for record in records:
                if cursor.accepted >= 0:
                    cursor.damaged += max(0, record.accepted - cursor.accepted - record.samples)
                cursor.accepted = record.accepted
            cursor.position = records[-1].position + 1
        return records

    def _from_tail(self, cursor: Cursor, max_bytes: int) -> list[Record]:
        records: list[Record] = []
        size = 0
        for record in self._tail:
            if record.position < cursor.position:
                continue
            if records and size + len(record.payload) > max_bytes:
                break
            size += len(record.payload)
            records.append(record)
        cursor.segment = ""
        return records

    def _from_segments(self, cursor: Cursor, max_bytes: int) -> list[Record]:
        """Read from the files (in a thread), passing over damage."""
        newest = self.state.head_position
        for segment in self._segments_from(cursor):
            begin = cursor.offset if cursor.segment == segment.name else SEGMENT_HEADER.size
            records: list[Record] = []
            size = 0
            for record, after in self._records(segment, begin, cursor.position - 1):
                if record.position > newest or (records and size + len(record.payload) > max_bytes):
                    break
                records.append(record)
                size += len(record.payload)
                cursor.segment, cursor.offset = segment.name, after
            if records:
                return records
        cursor.position = max(cursor.position, newest + 1)  # only damage was left
        return []

    def _segments_from(self, cursor: Cursor) -> list[Segment]:
        with self._lock:
            return [segment for segment in self.segments if segment.last >= cursor.position]

    def _records(self, segment: Segment, begin: int, position: int) -> Iterator[tuple[Record, int]]:
        try:
            data = self._disk.read(segment.name, begin, segment.end - begin)
        except FileNotFoundError:
            return  # deleted by retention in between
        for item, after in scan(data, 0, position):
            if isinstance(item, Damage):
                torn = after == len(data)  # what a crash left behind; a loss shows in the running total
                self._set_aside(segment, begin + item.offset, data[item.offset : after], torn=torn)
            else:
                yield item, begin + after

    def _set_aside(self, segment: Segment, offset: int, data: bytes, *, torn: bool) -> None:
        """Keep damaged bytes for a person to look at, once."""
        name = f"{segment.name}.{offset}.{'torn' if torn else 'damaged'}"
        with contextlib.suppress(OSError):
            if name not in self._disk.sizes():
                self.state.damaged_regions += not torn
                log.warning(
                    "log: %s bytes at %s of %s are no record and were set aside", len(data), offset, segment.name
                )
                self._disk.replace(name, data)

    def accepted_at(self, position: int) -> int:
        """Return the running total at a position that is kept or is the newest; blocking for an old one."""
        if position >= self.state.head_position:
            return self.state.accepted
        for record in reversed(self._tail):
            if record.position <= position:
                return record.accepted
        accepted = 0
        for segment in self.oldest_segments():
            if segment.first > position:
                return max(accepted, segment.accepted_before)
            if segment.last >= position or segment.first <= position:
                accepted = max(accepted, segment.accepted_before)
                for record, _ in self._records(segment, SEGMENT_HEADER.size, 0):
                    if record.position > position:
                        return accepted
                    accepted = record.accepted
        return accepted

    # ── deleting ───────────────────────────────────────────────────────────────────────────────────────────────────

    def size_bytes(self) -> int:
        """Return the bytes of all segments."""
        with self._lock:
            return sum(segment.end for segment in self.segments)

    def delete_through(self, position: int, before_nanos: int) -> int:
        """Delete the segments with nothing after `position` and nothing newer than `before_nanos`; return how many.

        The caller has made durable that nobody needs them. The newest segment stays.
        """
        with self._lock:
            going = []
            for segment in self.segments[:-1]:
                if segment.last > position or segment.newest_nanos > before_nanos:
                    break
                going.append(segment)
            del self.segments[: len(going)]
        for segment in going:
            self._disk.remove(segment.name)
        if going:
            self._disk.sync_names()
        self._restore_ballast()
        return len(going)

    def oldest_segments(self) -> list[Segment]:
        """Return the segments, oldest first."""
        with self._lock:
            return list(self.segments)


def _log_full() -> ResourceExhaustedError:
    return ResourceExhaustedError("the log's disk is full", reason=Reason.LOG_FULL, retry_after=FULL_RETRY)
