"""The books: how far each consumer of the log has come, durable, and what became of every sample.

For every consumer, at every moment: accepted = delivered + waiting + dead-lettered + re-synced + damaged. Each of these is
counted where it happens, and the whole by the log, so that a mistake in one of them shows: the books do not balance.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta

from openmanager import durable, failpoint
from openmanager.api.status.v1 import status_pb2
from openmanager.errors import OutOfRangeError, Reason, UnavailableError, invalid
from openmanager.runtime.clock import Clock
from openmanager.shield import shielded
from openmanager_timeseries.dead_letter import DeadLetter, DeadLetters, Refusal
from openmanager_timeseries.disk import Disk
from openmanager_timeseries.log import Log
from openmanager_timeseries.record import Record

POSITIONS = "positions.json"
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
# Readers in this process: what they have dealt with is not for others to say.
OWN_CONSUMERS = frozenset({"head", "blocks", "rollups", "registrar", "influxdb", "victoriametrics"})

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Books:
    """One consumer: its position and the log's running total there, and what became of the samples that it has had.

    What it has had may be more than what it can no longer lose: it gets frames after its position again when it was
    restarted, and these are not counted again.
    """

    position: int = 0
    accepted: int = 0
    delivered: int = 0
    dead_lettered: int = 0
    resynced: int = 0
    damaged: int = 0
    confirmed_nanos: int = 0
    # Up to here it has had everything, and the log's running total there.
    counted: int = 0
    counted_accepted: int = 0

    @property
    def balance(self) -> bool:
        """Whether it is known of every sample what became of it."""
        found = self.delivered, self.dead_lettered, self.resynced, self.damaged
        return min(found) >= 0 and sum(found) == self.counted_accepted

    def stand_at(self, position: int, accepted: int) -> None:
        """Move to a position up to which nothing can be lost, given the log's running total there."""
        self.position, self.accepted = position, accepted


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Frames of the log that follow one another: the last position, and how many samples were in them.

    The log's running total was `before` ahead of the first and is `accepted` at the last one: what is missing between
    the two is damaged.
    """

    position: int
    before: int
    accepted: int
    samples: int


def check_consumer(name: str, field: str = "consumer") -> str:
    """Return a consumer's name; InvalidArgumentError when it is none."""
    if not _NAME.fullmatch(name):
        raise invalid(field, f"must match {_NAME.pattern}")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """How a consumer is, why, and since when (nanoseconds)."""

    state: status_pb2.StorageState.ValueType = status_pb2.STORAGE_STATE_OK
    reason: str = ""
    since: int = 0


class Ledger:
    """The books of one log. Changes are in memory at once, and durable when `save` returns."""

    def __init__(self, disk: Disk, clock: Clock) -> None:
        self._disk = disk
        self._clock = clock
        self._saving = asyncio.Lock()
        self.books: dict[str, Books] = {}
        self._durable: dict[str, int] = {}
        self._stored = b""
        # How the readers in this process are.
        self.conditions: dict[str, Condition] = {}
        # What the log is told to continue above, should its newest segments be lost.
        self.floor = Books()
        self._load()
        self.letters = DeadLetters(disk)

    def _load(self) -> None:
        try:
            raw = self._disk.read(POSITIONS, 0, 1 << 24)
        except FileNotFoundError:
            return
        except OSError as err:
            if err.errno != errno.EIO:
                raise
            raw = b""
        try:
            stored = durable.decode(raw)
            floor = Books(position=stored["head_position"], accepted=stored["accepted"])
            books = {name: _books(each) for name, each in stored["consumers"].items()}
        except (ValueError, LookupError, TypeError, AttributeError):
            # Every consumer begins anew at the oldest frame: nothing is lost, for taking a frame twice changes nothing.
            log.exception("the consumers' positions are damaged; all consumers begin at the oldest frame")
            with contextlib.suppress(OSError):
                self._disk.replace(f"{POSITIONS}.damaged", raw)
            return
        self.floor, self.books = floor, books
        self._durable = {name: each.position for name, each in books.items()}

    async def save(self, source: Log) -> None:
        """Make the books durable, and before them what they count as dead-lettered."""
        await shielded(self._save(source))

    async def _save(self, source: Log) -> None:
        async with self._saving:
            # Of one moment: what comes while the disk is waited for is for the next time.
            letters = self.letters.encode()
            stored = {
                "head_position": source.state.head_position,
                "accepted": source.state.accepted,
                "consumers": {name: asdict(books) for name, books in self.books.items()},
            }
            positions = {name: books.position for name, books in self.books.items()}
            body = json.dumps(stored, indent=1).encode()
            if letters is not None:
                await asyncio.to_thread(self.letters.save, letters)
            if body == self._stored:
                return
            failpoint.passed("ledger.before-save")
            await asyncio.to_thread(self._disk.replace, POSITIONS, body + b"\n%08x" % zlib.crc32(body))
            failpoint.passed("ledger.after-save")
            self._durable, self._stored = positions, body

    def open_books(self, name: str) -> Books:
        """Return the books of a consumer, new ones at position 0 if it has none."""
        return self.books.setdefault(name, Books())

    def found(self, name: str, state: status_pb2.StorageState.ValueType, reason: str = "") -> None:
        """Take note of how a consumer is; since when counts from the last change of its state."""
        before = self.conditions.get(name)
        since = before.since if before is not None and before.state == state else self._clock.now_nanos()
        self.conditions[name] = Condition(state=state, reason=reason, since=since)

    # ── counting ───────────────────────────────────────────────────────────────────────────────────────────────────

    def taken(self, name: str, stretch: Stretch, refusals: Sequence[Refusal] = ()) -> None:
        """Count what a consumer has dealt with, but for what it has had before: delivered, or refused for good."""
        books = self.open_books(name)
        if stretch.position <= books.counted:
            return
        again = max(0, books.counted_accepted - stretch.before)
        refused = sum(self._set_aside(name, refusal) for refusal in refusals)
        books.delivered += stretch.samples - again - refused
        books.damaged += max(0, stretch.accepted - stretch.before - stretch.samples)
        books.counted, books.counted_accepted = stretch.position, stretch.accepted

    def took(self, name: str, records: Sequence[Record], before: int, refusals: Sequence[Refusal] = ()) -> None:
        """Count records that a consumer has dealt with; `before` is the running total ahead of the first one."""
        books = self.open_books(name)
        while records and records[0].position <= books.counted:
            before, records = records[0].accepted, records[1:]
        if records:
            # What was lost of the frames that it has had before is no loss.
            before = max(before, books.counted_accepted)
            samples, last = sum(record.samples for record in records), records[-1]
            found = Stretch(position=last.position, before=before, accepted=last.accepted, samples=samples)
            self.taken(name, found, refusals)

    def brought(self, name: str, position: int, accepted: int) -> None:
        """Count what a consumer got up to a position without looking at each frame: all of it."""
        before = self.open_books(name).counted_accepted
        self.taken(name, Stretch(position=position, before=before, accepted=accepted, samples=accepted - before))

    def resync(self, name: str, position: int, accepted: int) -> None:
        """Let a consumer go on after a position: what it has not had up to there it has from elsewhere, or never gets."""
        books = self.open_books(name)
        if position > books.counted:
            books.resynced += accepted - books.counted_accepted
            books.counted, books.counted_accepted = position, accepted
        books.stand_at(position, accepted)

    def refill(self, name: str, position: int, accepted: int, refusals: Sequence[Refusal]) -> None:
        """Let a consumer that was empty go on after a position: up to there it got all from elsewhere, but for refusals."""
        self.letters.clear(name)
        books = self.books[name] = Books(counted=position, counted_accepted=accepted)
        refused = sum(self._set_aside(name, refusal) for refusal in refusals)
        books.resynced = accepted - refused
        books.stand_at(position, accepted)

    def _set_aside(self, name: str, refusal: Refusal) -> int:
        """Keep what a consumer cannot take as a dead letter; return how many samples."""
        self.open_books(name).dead_lettered += refusal.sample_count
        self.letters.add(name, refusal, self._clock.now_nanos())
        return refusal.sample_count

    def taken_after_all(self, letter: DeadLetter) -> None:
        """Count a dead letter as delivered."""
        books = self.open_books(letter.consumer)
        count = min(books.dead_lettered, self.letters.take(letter))
        books.dead_lettered -= count
        books.delivered += count

    def unbalanced(self) -> list[str]:
        """Return the consumers of whose samples it is not known what became of each."""
        return sorted(name for name, books in self.books.items() if not books.balance)

    async def confirm(self, source: Log, name: str, position: int, *, resynced: bool = False) -> Books:
        """Record durably that a consumer has dealt with everything up to `position`."""
        if not 0 <= position <= source.state.head_position:
            raise OutOfRangeError(
                f"position {position} does not exist; the newest is {source.state.head_position}",
                reason=Reason.POSITION_OUT_OF_RANGE,
                field="position",
            )
        accepted = await asyncio.to_thread(source.accepted_at, position)
        books = self.open_books(check_consumer(name))
        if position < books.counted:  # it goes back, and will get again what it got
            books = self.books[name] = Books(delivered=accepted, counted=position, counted_accepted=accepted)
        elif resynced:
            self.resync(name, position, accepted)
        else:
            self.brought(name, position, accepted)
        books.stand_at(position, accepted)
        books.confirmed_nanos = self._clock.now_nanos()
        try:
            await self.save(source)
        except OSError as err:
            raise UnavailableError("the position could not be stored", reason=Reason.LOG_UNFIT) from err
        return books

    def row(self, name: str, source: Log) -> status_pb2.Consumer:
        """Return a consumer's row of the ledger."""
        books = self.books[name]
        row = status_pb2.Consumer(
            name=name,
            position=books.position,
            delivered_sample_count=books.delivered,
            waiting_sample_count=source.state.accepted - books.counted_accepted,
            dead_lettered_sample_count=books.dead_lettered,
            resynced_sample_count=books.resynced,
            damaged_sample_count=books.damaged,
        )
        if books.position < source.state.head_position and books.confirmed_nanos:
            row.lag.FromTimedelta(timedelta(microseconds=(self._clock.now_nanos() - books.confirmed_nanos) // 1000))
        if condition := self.conditions.get(name):
            row.state, row.reason = condition.state, condition.reason
            row.since_time.FromNanoseconds(condition.since)
        return row

    def message(self, source: Log) -> status_pb2.Ledger:
        """Return the ledger."""
        return status_pb2.Ledger(
            accepted_sample_count=source.state.accepted,
            head_position=source.state.head_position,
            consumers=[self.row(name, source) for name in sorted(self.books)],
        )

    def slowest(self) -> int:
        """Return the position that every consumer has passed, durably."""
        return min((min(each.position, self._durable.get(name, 0)) for name, each in self.books.items()), default=0)


def _books(stored: Mapping[str, int]) -> Books:
    """Return stored books; those of an earlier version do not say what was delivered, and balance by what they say else."""
    books = Books(**stored)
    if "delivered" not in stored:
        books.counted, books.counted_accepted = books.position, books.accepted
        books.delivered = books.accepted - books.dead_lettered - books.resynced - books.damaged
    return books
