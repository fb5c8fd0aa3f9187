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
import re
import threading
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

from openmanager import failpoint
from openmanager.errors import OpenManagerError, OutOfRangeError, Reason, ResourceExhaustedError, UnavailableError
from openmanager.runtime.clock import Clock
from openmanager_timeseries.disk import Disk, File
from openmanager_timeseries.record import (
    MAGIC,
    MAX_POSITION,
    MAX_RECORD_BYTES,
    RECORD_OVERHEAD,
    SEGMENT_HEADER,
    Payload,
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
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SEGMENT = re.compile(rf"(?!0{{20}})0[0-3][0-9]{{18}}{re.escape(SUFFIX)}")
_SKIPPED = 1 << 20  # more positions than are given out between two records of the floor
_PAGE = 4096

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """Sizes in bytes; `reserve` is the free space below which writes are refused."""

    segment_size: int = 64 << 20
    ballast_size: int = 64 << 20
    reserve: int = 32 << 20


@dataclass(slots=True)
class Segment:
    """A file of the log. `last` is the newest position in it, 0 while it is empty; `end` the bytes that are synced.

    Nothing after `last` is of the log: a segment ends where the next one begins.
    """

    name: str
    first: int
    last: int = 0
    end: int = SEGMENT_HEADER.size
    newest_nanos: int = 0
    accepted_before: int = 0


@dataclass(slots=True)
class _Pending:
    payload: Payload
    samples: int
    trace: str
    done: asyncio.Future[Record]


@dataclass(slots=True, kw_only=True)
class LogState:
    """What status reports of the log."""

    head_position: int = 0
    accepted: int = 0
    damaged_regions: int = 0
    torn_bytes: int = 0
    full: bool = False
    failure: str = ""
    commit_seconds: float = 0.0


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
        self._set_aside: set[str] = set()
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
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def _recover(self, floor: int, accepted: int) -> None:
        self._find_segments()
        highest, torn = self._recover_last()
        # Torn bytes may have been records that were acknowledged before they were damaged: skip their positions. What
        # the floor remembers and is not there was lost together with what came after the floor was saved.
        skipped = (torn // RECORD_OVERHEAD + 1 if torn else 0) + (_SKIPPED if floor > highest else 0)
        names = [_named(segment.name) for segment in self.segments]
        self._next = max([highest, floor, *names, *(segment.first for segment in self.segments)]) + 1 + skipped
        self.state.head_position = max(highest, floor)
        self.state.accepted = max(self.state.accepted, accepted)
        total, nanos = self.state.accepted, self._clock.now_nanos()
        for segment in reversed(self.segments):
            head = self._first_record(segment)
            segment.newest_nanos = segment.newest_nanos or nanos
            if head is None:
                segment.last = 0
            else:
                total, nanos = head.accepted - head.samples, head.receive_nanos
            segment.accepted_before = total
        self._restore_ballast()

    def _find_segments(self) -> None:
        borders = []
        for name, size in self._disk.sizes().items():
            if size > SEGMENT_HEADER.size and _SEGMENT.fullmatch(name):
                first, certain = self._survey(name, size)
                self.segments.append(Segment(name, first, end=size))
                borders += [first] if certain else []
            elif _SEGMENT.fullmatch(name):
                with contextlib.suppress(OSError):
                    self._disk.remove(name)  # created and never written to
        self.segments.sort(key=lambda segment: (segment.first, segment.end))
        borders.sort()
        for segment in self.segments:
            following = bisect_right(borders, segment.first)
            segment.last = borders[following] - 1 if following < len(borders) else MAX_POSITION

    def _survey(self, name: str, size: int) -> tuple[int, bool]:
        """Return a segment's first position, and whether two of its name, its header and its first record tell it.

        A damaged or foreign file must not be taken for the end of the segment before it.
        """
        header = self._read(name, 0, SEGMENT_HEADER.size).ljust(SEGMENT_HEADER.size, b"\0")
        magic, headed = SEGMENT_HEADER.unpack(header)
        head = self._record_at(name, SEGMENT_HEADER.size, size)
        witnesses = [_named(name)]
        witnesses += [headed] if magic == MAGIC else []
        witnesses += [head.position] if head else []
        first, agreeing = Counter(witnesses).most_common(1)[0]
        return first, agreeing > 1

    def _recover_last(self) -> tuple[int, int]:
        """Read the newest segment that has a record; return its last position and the bytes torn after it."""
        for segment in reversed(self.segments):
            self._make_durable(segment)
            data = self._read(segment.name, 0, segment.end)
            last, end = None, SEGMENT_HEADER.size
            for item, offset in scan(data, SEGMENT_HEADER.size, segment.first - 1, segment.last):
                if isinstance(item, Record):
                    last, end = item, offset
            self.state.torn_bytes += segment.end - end
            segment.end = end
            if last is not None:
                segment.newest_nanos = last.receive_nanos
                self.state.accepted = last.accepted
                for each in self.segments:
                    each.last = min(each.last, last.position)
                return last.position, self.state.torn_bytes
        return 0, self.state.torn_bytes

    def _make_durable(self, segment: Segment) -> None:
        """See to it that what is served of the newest segment is not lost again.

        A killed process leaves records in the cache alone, and a failed sync leaves some that the next one passes over;
        so the file is written anew, or synced where there is no room for that.
        """
        try:
            self._disk.replace(segment.name, self._disk.read(segment.name, 0, segment.end))
        except OSError:
            with contextlib.suppress(OSError):
                self._disk.sync(segment.name)
                self._disk.sync()

    def _first_record(self, segment: Segment) -> Record | None:
        head = self._record_at(segment.name, SEGMENT_HEADER.size, segment.end)
        if head is not None and head.position == segment.first:
            return head
        return next((record for record, _ in self._records(segment, SEGMENT_HEADER.size, 0)), None)

    def _record_at(self, name: str, offset: int, end: int) -> Record | None:
        size = int.from_bytes(self._read(name, offset, 4), "little")
        found = decode_at(self._read(name, offset, min(RECORD_OVERHEAD + min(size, MAX_RECORD_BYTES), end - offset)), 0)
        return found[0] if found else None

    # ── writing ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def append(self, payload: Payload, samples: int, trace_parent: str = "") -> Record:
        """Append a frame and return its record when it is durable; errors as `begin`."""
        return await self.begin(payload, samples, trace_parent)

    def begin(self, payload: Payload, samples: int, trace_parent: str = "") -> asyncio.Future[Record]:
        """Append a frame; its record can be had when it is durable.

        ResourceExhaustedError (`LOG_FULL`, `OVERLOADED`, `MESSAGE_TOO_LARGE`) or UnavailableError (`LOG_UNFIT`,
        `SHUTTING_DOWN`), then or at once, when it was not accepted.
        """
        if self._closing:
            raise UnavailableError("the log is closing", reason=Reason.SHUTTING_DOWN)
        if len(payload) > MAX_RECORD_BYTES:
            raise ResourceExhaustedError("the frame is too large for the log", reason=Reason.MESSAGE_TOO_LARGE)
        if self._pending_bytes + len(payload) > MAX_PENDING_BYTES:
            raise ResourceExhaustedError(
                "the log is behind", reason=Reason.OVERLOADED, retry_after=timedelta(milliseconds=200)
            )
        done: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        self._pending.append(_Pending(payload, samples, trace_parent, done))
        self._pending_bytes += len(payload)
        self._wake.set()
        return done

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
        with self._lock:
            self._tail.extend(records)
            self._tail_bytes += sum(len(record.payload) for record in records)
            while self._tail_bytes > TAIL_BYTES and len(self._tail) > 1:
                self._tail_bytes -= len(self._tail.popleft().payload)
        try:
            self.on_commit(records)
        except Exception:  # they are durable, and those after them must not wait for ever
            log.exception("a reader failed on what was committed")
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    def _write(self, batch: Sequence[_Pending]) -> list[Record]:
        """Write and sync a batch (in the writer's thread)."""
        try:
            self._refuse_when_full()
            return self._append(batch)
        except OpenManagerError:
            raise
        except Exception as err:  # whatever it was, what the file now holds is not known
            raise self._failed(err) from err

    def _append(self, batch: Sequence[_Pending]) -> list[Record]:
        records, parts, accepted = [], [], self.state.accepted
        for position, item in enumerate(batch, self._next):
            accepted += item.samples
            record = Record(position, self._clock.now_nanos(), accepted, item.samples, item.trace, item.payload)
            records.append(record)
            parts += [encode_header(record), item.payload]
        size = sum(len(part) for part in parts)
        segment, file = self._segment_for(size)
        failpoint.passed("log.before-append")
        file.append(parts)
        failpoint.passed("log.before-sync")
        file.sync()
        failpoint.passed("log.before-ack")
        self._next = records[-1].position + 1
        segment.end += size
        segment.last = records[-1].position
        segment.newest_nanos = records[-1].receive_nanos
        self.state.failure = ""
        return records

    def _segment_for(self, size: int) -> tuple[Segment, File]:
        if self._file is not None:
            current = self.segments[-1]
            if current.last == 0 or current.end + size <= self._options.segment_size:
                return current, self._file
            file, self._file = self._file, None
            file.close()
        segment = Segment(segment_name(self._next), self._next, accepted_before=self.state.accepted)
        self._file = file = self._disk.create(segment.name)
        with self._lock:
            self.segments.append(segment)
        file.append([SEGMENT_HEADER.pack(MAGIC, segment.first)])
        file.sync()
        self._disk.sync()
        return segment, file

    def _failed(self, err: Exception) -> OpenManagerError:
        """Give up a batch: cut it off where that is possible, and never sync the same file again after an error.

        Its positions are given out again. Should it come back, it lies after the border of the next segment.
        """
        file, self._file = self._file, None
        if file is not None:
            segment = self.segments[-1]
            with contextlib.suppress(OSError):
                file.truncate(segment.end)
            with contextlib.suppress(OSError):
                file.close()
            if segment.last == 0:
                with contextlib.suppress(OSError):
                    self._disk.remove(segment.name)
                with self._lock:
                    self.segments.pop()
        if isinstance(err, OSError) and err.errno in _FULL:
            return self._full()
        self.state.failure = "io"
        log.error("log write failed", exc_info=err)
        return UnavailableError("the log cannot be written", reason=Reason.LOG_UNFIT)

    def _refuse_when_full(self) -> None:
        free, _ = self._disk.free_bytes()
        if free < self._options.reserve:
            raise self._full()
        self.state.full = False

    def _full(self) -> OpenManagerError:
        self.state.full = True
        with contextlib.suppress(OSError):
            self._disk.remove(BALLAST)
        return ResourceExhaustedError("the log's disk is full", reason=Reason.LOG_FULL, retry_after=FULL_RETRY)

    def _restore_ballast(self) -> None:
        """Lay the ballast down again where there is room for twice its size."""
        size = self._options.ballast_size
        with contextlib.suppress(OSError):
            if not size or self._disk.sizes().get(BALLAST) == size:
                return
            if self._disk.free_bytes()[0] <= 2 * size + self._options.reserve:
                return
            try:
                with contextlib.closing(self._disk.create(BALLAST)) as file:
                    block = bytes(min(size, 1 << 20))
                    file.append([*[block] * (size // len(block)), block[: size % len(block)]])
            except OSError:
                self._disk.remove(BALLAST)

    # ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def first_position(self) -> int:
        """The oldest position that is kept; one past the newest when nothing is."""
        return min([self.state.head_position + 1, *(segment.first for segment in self._kept()[:1])])

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
        newer = self.state.head_position - cursor.position + 1
        for index in range(max(0, len(self._tail) - newer), len(self._tail)):
            record = self._tail[index]
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
        for segment in self._kept():
            if segment.last < cursor.position:
                continue
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

    def _kept(self) -> list[Segment]:
        """Return the segments that hold records, oldest first."""
        with self._lock:
            return [segment for segment in self.segments if segment.last >= segment.first]

    def _records(self, segment: Segment, begin: int, position: int) -> Iterator[tuple[Record, int]]:
        """Yield the records after `position` from offset `begin` on, each with the offset after it."""
        data = self._read(segment.name, begin, segment.end - begin)
        before = position if begin > SEGMENT_HEADER.size else segment.first - 1
        for item, after in scan(data, 0, before, segment.last):
            if isinstance(item, Record):
                if item.position > position:
                    yield item, begin + after
            else:
                torn = after == len(data)  # what a crash left behind; a loss shows in the running total
                self._keep_damage(segment, begin + item.offset, data[item.offset : after], torn=torn)

    def _read(self, name: str, offset: int, size: int) -> bytes:
        """Read a range of a segment; pages that the disk cannot give are zeros, and so are found to be damaged."""
        try:
            return self._disk.read(name, offset, size)
        except FileNotFoundError:
            return b""  # deleted by retention in between
        except OSError as err:
            if err.errno != errno.EIO:
                raise
        data = bytearray(size)
        for at in range(0, size, _PAGE):
            with contextlib.suppress(OSError):
                piece = self._disk.read(name, offset + at, min(_PAGE, size - at))
                data[at : at + len(piece)] = piece
        return bytes(data)

    def _keep_damage(self, segment: Segment, offset: int, data: bytes, *, torn: bool) -> None:
        """Keep damaged bytes for a person to look at, once."""
        name = f"{segment.name}.{offset}.{'torn' if torn else 'damaged'}"
        with self._lock:
            known = name in self._set_aside
            self._set_aside.add(name)
        if known:
            return
        with contextlib.suppress(OSError):
            if name not in self._disk.sizes():
                self._disk.replace(name, data)
        self.state.damaged_regions += not torn
        log.warning("log: %s bytes at %s of %s are no record and were set aside", len(data), offset, segment.name)

    def accepted_at(self, position: int) -> int:
        """Return the running total at a position that is kept or is the newest; blocking for an old one."""
        if position >= self.state.head_position:
            return self.state.accepted
        with self._lock:
            for record in reversed(self._tail):
                if record.position <= position:
                    return record.accepted
        kept = self._kept()
        holding = [segment for segment in kept if segment.first <= position]
        if not holding:
            return kept[0].accepted_before if kept else 0
        accepted = holding[-1].accepted_before
        for record, _ in self._records(holding[-1], SEGMENT_HEADER.size, 0):
            if record.position > position:
                break
            accepted = record.accepted
        return accepted

    # ── deleting ───────────────────────────────────────────────────────────────────────────────────────────────────

    def size_bytes(self) -> int:
        """Return the bytes of all segments."""
        with self._lock:
            return sum(segment.end for segment in self.segments)

    def delete_through(self, position: int, before_nanos: int) -> int:
        """Delete the segments with nothing after `position` and nothing newer than `before_nanos`; return how many.

        The caller has made durable that nobody needs them. The newest segment stays, and so does the newest record.
        """
        going, newest = [], self._kept()[-1:]
        for segment in self.oldest_segments()[:-1]:
            if segment.last > position or segment.newest_nanos > before_nanos or segment in newest:
                break
            going.append(segment)
        for segment in going:
            self._disk.remove(segment.name)
            failpoint.passed("log.amid-trim")
            with self._lock:
                self.segments.remove(segment)
        if going:
            self._disk.sync()
        self._restore_ballast()
        return len(going)

    def oldest_segments(self) -> list[Segment]:
        """Return the segments, oldest first."""
        with self._lock:
            return list(self.segments)


def _named(name: str) -> int:
    return int(name.removesuffix(SUFFIX))
