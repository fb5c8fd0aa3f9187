"""The log through crashes, power losses and failing disks, judged by a checker that is itself put to the test.

A trial is several lives of one log. In each life writers, a consumer and the keeper of the log are at work on a disk
that fails or dies at a random call; the next life finds what a killed process or a power loss leaves behind. The
checker knows what was acknowledged and what any reader was ever shown.
"""

import asyncio
import contextlib
import errno
import random
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from openmanager_timeseries import log as log_module
from openmanager_timeseries import record as record_module
from openmanager_timeseries.disk import PosixDisk
from openmanager_timeseries.ledger import Ledger
from openmanager_timeseries.log import Cursor, Log, LogOptions
from openmanager_timeseries.record import Record
from timeseries.faulty_disk import Crash, FaultyDisk, TickingClock

from openmanager.errors import ResourceExhaustedError, UnavailableError
from openmanager.runtime.clock import SystemClock

OPTIONS = LogOptions(segment_size=1500, ballast_size=600, reserve=100)
CONSUMER = "reader"


@dataclass
class Checker:
    """What is known outside the log, and what it did that it must not."""

    attempted: dict[bytes, int] = field(default_factory=dict)
    acknowledged: dict[int, bytes] = field(default_factory=dict)
    shown: dict[int, bytes] = field(default_factory=dict)
    deleted_through: int = 0
    holes: bool = False
    violations: list[str] = field(default_factory=list)

    def attempt(self, rng):
        payload = b"%d:" % len(self.attempted) + rng.randbytes(rng.choice((0, 10, 100, 100, 900)))
        self.attempted[payload] = rng.randint(1, 9)
        return payload

    def acknowledge(self, record, payload):
        if record.payload != payload:
            self.violations.append(f"{record.position} acknowledges another frame")
        self._keep(self.acknowledged, record)

    def show(self, records):
        for record in records:
            if self.attempted.get(record.payload) != record.samples:
                self.violations.append(f"{record.position} holds what nobody wrote")
            self._keep(self.shown, record)

    def _keep(self, known, record):
        for each in (self.acknowledged, self.shown):
            if each.get(record.position, record.payload) != record.payload:
                self.violations.append(f"{record.position} was given out twice")
        known[record.position] = record.payload

    async def look(self, source, ledger):
        """Read all that is there after a start."""
        durable = ledger.books[CONSUMER].position if CONSUMER in ledger.books else 0
        for position in self.acknowledged.keys() | self.shown.keys():
            if durable < position <= self.deleted_through:
                self.violations.append(f"the consumer is at {durable} and {position} is deleted")
        cursor, records = Cursor(source.first_position), []
        while cursor.position <= source.state.head_position:
            records += await source.read(cursor)
        self.show(records)
        self._compare(records)
        self.holes |= bool(records) and records[0].position > source.first_position
        self._add_up(records)
        head = (source.state.head_position, source.state.accepted)
        if records and (records[-1].position, records[-1].accepted) != head:
            self.violations.append("the head is not the newest record")
        if (cursor.damaged or source.state.damaged_regions) and not self.holes:
            self.violations.append("damage is reported where none is")
        self.balance(source, ledger)

    def _compare(self, records):
        found = {record.position: record.payload for record in records}
        if len(set(found.values())) < len(records) or list(found) != sorted(found):
            self.violations.append("a frame is there twice, or out of order")
        for kind in ("acknowledged", "shown"):
            for position, payload in getattr(self, kind).items():
                if position > self.deleted_through and found.get(position) != payload:
                    self.violations.append(f"{position} was {kind} and is lost")

    def _add_up(self, records):
        for older, newer in pairwise(records):
            step = newer.accepted - older.accepted - newer.samples
            # A batch that was never acknowledged may come back without its beginning: that cannot be told from damage.
            if step > 0 and newer.position > older.position + 1:
                self.holes = True
            elif step:
                self.violations.append(f"the running total is wrong at {newer.position}")

    def balance(self, source, ledger):
        for row in ledger.message(source).consumers:
            parts = (
                row.delivered_sample_count,
                row.waiting_sample_count,
                row.dead_lettered_sample_count,
                row.resynced_sample_count,
                row.damaged_sample_count,
            )
            if min(parts) < 0 or sum(parts) != source.state.accepted or any(parts[2:4]):
                self.violations.append(f"the ledger is {parts} of {source.state.accepted}")
            if row.damaged_sample_count and not self.holes:
                self.violations.append("the ledger counts damage where none is")


class Life:
    """One life of a log."""

    def __init__(self, source, ledger, checker, rng, disk):
        self._source = source
        self._ledger = ledger
        self._checker = checker
        self._rng = rng
        self._disk = disk

    async def run(self):
        """Work until all is written or the disk is dead."""
        writers = asyncio.gather(*(self._write(self._rng.randint(1, 15)) for _ in range(3)))
        others = [asyncio.create_task(each) for each in (self._consume(), self._keep())]
        tasks = {writers, self._source._committer, *others}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in (writers, *others):
            task.cancel()
        results = await asyncio.gather(writers, *others, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, asyncio.CancelledError):
                self._checker.violations.append(f"unexpected: {result!r}")

    async def _write(self, count):
        for _ in range(count):
            payload = self._checker.attempt(self._rng)
            with contextlib.suppress(UnavailableError, ResourceExhaustedError):
                record = await self._source.append(payload, self._checker.attempted[payload])
                self._checker.acknowledge(record, payload)
            if self._rng.random() < 0.3:
                self._disk.capacity = 1 << 40
                await asyncio.sleep(0.001)

    async def _consume(self):
        books = self._ledger.open_books(CONSUMER)
        cursor = Cursor(books.position + 1, accepted=books.accepted)
        while True:
            before = cursor.accepted
            records = await self._source.read(cursor, self._rng.choice((1, 500, 5000)))
            self._checker.show(records)
            if not records:
                await self._source.wait_beyond(cursor.position - 1)
                continue
            self._ledger.took(CONSUMER, records, before)
            books.stand_at(records[-1].position, records[-1].accepted)
            self._checker.balance(self._source, self._ledger)

    async def _keep(self):
        steps = [self._save, self._trim]
        if getattr(self._source, "trims_first", False):
            self._ledger._durable = {CONSUMER: 1 << 60}
            steps.reverse()
        pause = self._rng.choice((0.0005, 0.002, 1))
        while True:
            await asyncio.sleep(pause)
            with contextlib.suppress(OSError):
                for step in steps:
                    await step()

    async def _save(self):
        await self._ledger.save(self._source)

    async def _trim(self):
        def trim():
            try:
                self._source.delete_through(self._ledger.slowest(), 1 << 62)
            finally:
                self._checker.deleted_through = max(self._checker.deleted_through, self._source.first_position - 1)

        # What will go is noted first: nothing can be noted once the disk is dead.
        before = self._checker.deleted_through
        through = self._ledger.slowest()
        going = [segment.last for segment in self._source.oldest_segments()[:-1] if segment.last <= through]
        self._checker.deleted_through = max([before, *going])
        await asyncio.to_thread(trim)


def plan(disk, rng):
    """Choose what goes wrong in a life."""
    chance = rng.random()
    if chance < 0.25:
        disk.fail("sync", errno.EIO, nth=rng.randint(2, 12), times=rng.choice((1, 1, 3)))
    elif chance < 0.32:
        disk.fail("append", rng.choice((errno.EIO, errno.ENOSPC)), nth=rng.randint(2, 12))
    elif chance < 0.45:
        disk.fail("sync", errno.EIO, nth=rng.randint(2, 12))
        disk.fail(rng.choice(("truncate", "remove", "close", "create", "sync_names")), errno.EIO)
    elif chance < 0.55:
        disk.capacity = disk.used() + rng.randint(500, 4000)
    if rng.random() < 0.7:
        kind, most = rng.choice((("any", 150), ("any", 60), ("sync", 15), ("sync", 6)))
        disk.fail(kind, Crash, nth=rng.randint(1, most))


async def trial(seed, kind=Log):
    """Return what the checker has to say after some lives."""
    rng = random.Random(seed)
    clock = TickingClock()
    checker = Checker()
    disk = FaultyDisk(seed=seed)
    for life in range(5):
        last = life == 4
        if not last:
            plan(disk, rng)
        source = None
        with contextlib.suppress(Crash):
            ledger = Ledger(disk, clock)
            source = await kind.open(disk, OPTIONS, clock, floor=ledger.floor.position, accepted=ledger.floor.accepted)
            await checker.look(source, ledger)
            if not last:
                await Life(source, ledger, checker, rng, disk).run()
            if not disk.dead:
                async with asyncio.timeout(10):
                    await source.close()
        if source is not None:
            source._committer.cancel()
            await asyncio.gather(source._committer, return_exceptions=True)
            source._thread.shutdown()
        disk = disk.power_loss() if rng.random() < 0.5 else disk.kill()
    return checker.violations + disk.violations


@pytest.mark.parametrize("part", range(4))
async def test_acknowledged_frames_survive_and_nothing_else_is_shown(part):
    for seed in range(1000 * part, 1000 * part + 40):
        assert (seed, await trial(seed)) == (seed, [])


# ── the checker finds what it is there for ─────────────────────────────────────────────────────────────────────────


class Without:
    """Another object, some of whose methods do nothing."""

    def __init__(self, inner, *methods):
        self._inner = inner
        self._methods = methods

    def __getattr__(self, name):
        return (lambda *_: None) if name in self._methods else getattr(self._inner, name)


class AcknowledgesBeforeSync(Log):
    def _segment_for(self, size):
        segment, file = super()._segment_for(size)
        return segment, Without(file, "sync")


class GivesPositionsOutAgain(Log):
    def _recover(self, floor, accepted):
        super()._recover(floor, accepted)
        self._next = max(1, self._next - 1)


class ShowsHalfABatch(Log):
    def _append(self, batch):
        first = batch[0]
        record = Record(self._next, 0, self.state.accepted + first.samples, first.samples, first.trace, first.payload)
        self._tail.append(record)
        self.state.head_position = record.position
        time.sleep(0.003)
        try:
            return super()._append(batch)
        finally:
            self._tail.remove(record)


class LosesTheNameOfASegment(Log):
    def _segment_for(self, size):
        whole, self._disk = self._disk, Without(self._disk, "sync")
        try:
            return super()._segment_for(size)
        finally:
            self._disk = whole


class SyncsAgainAfterAnError(Log):
    def _segment_for(self, size):
        segment, file = super()._segment_for(size)

        class Again(Without):
            def sync(self):
                try:
                    file.sync()
                except OSError:
                    file.sync()

        return segment, Again(file)


class GoesOnInAFileThatFailed(Log):
    def _failed(self, err):
        return UnavailableError(str(err))


class ShowsWhatAKilledProcessDidNotSync(Log):
    def _make_durable(self, segment):
        pass


class BelievesWhatWasGivenUp(Log):
    """Reads a segment to its end, past the border of the next one."""

    def _find_segments(self):
        super()._find_segments()
        for segment in self.segments:
            segment.last = log_module.MAX_POSITION

    def _failed(self, err):
        if self._file is not None:
            self._file = Without(self._file, "truncate")
        return super()._failed(err)


class TrimsBeforeItCommits(Log):
    trims_first = True


class WritesAFrameTwice(Log):
    def _append(self, batch):
        return super()._append([*batch, batch[0]])[: len(batch)]


class DropsAFrameOfABatch(Log):
    def _append(self, batch):
        records = super()._append(batch[: max(1, len(batch) - 1)])
        return [*records, *records[-1:]][: len(batch)]


class ForgetsTheTotal(Log):
    def _recover(self, floor, accepted):
        super()._recover(floor, accepted)
        self.state.accepted = 0


class ServesATornTail(Log):
    pass


@pytest.mark.parametrize(
    "broken",
    [
        AcknowledgesBeforeSync,
        GivesPositionsOutAgain,
        ShowsHalfABatch,
        LosesTheNameOfASegment,
        SyncsAgainAfterAnError,
        GoesOnInAFileThatFailed,
        ShowsWhatAKilledProcessDidNotSync,
        BelievesWhatWasGivenUp,
        TrimsBeforeItCommits,
        WritesAFrameTwice,
        DropsAFrameOfABatch,
        ForgetsTheTotal,
        ServesATornTail,
    ],
)
async def test_the_checker_finds_a_planted_defect(broken, monkeypatch):
    if broken is ServesATornTail:
        monkeypatch.setattr(record_module, "_checksum", lambda header, _: struct.unpack_from("<I", header, 4)[0])
    for seed in range(300):
        if await trial(seed, broken):
            return
    pytest.fail("300 trials found nothing")


# ── a real process on a real disk ──────────────────────────────────────────────────────────────────────────────────

CHILD = """
import asyncio, os, random, sys
from pathlib import Path
from openmanager.runtime.clock import SystemClock
from openmanager_timeseries.disk import PosixDisk
from openmanager_timeseries.log import Log, LogOptions

async def main():
    folder, life = Path(sys.argv[1]), sys.argv[2]
    rng = random.Random(life)
    source = await Log.open(PosixDisk(folder), LogOptions(segment_size=20000, ballast_size=0, reserve=0), SystemClock())
    async def write(writer):
        n = 0
        while True:
            n += 1
            payload = f"{life}.{writer}.{n}." + "x" * rng.randint(0, 2000)
            record = await source.append(payload.encode(), len(payload) % 7)
            os.write(1, f"{record.position} {payload}\\n".encode())
    await asyncio.gather(*(write(writer) for writer in range(8)))

asyncio.run(main())
"""


def run_and_kill(folder, name, lines):
    """Let a process write, kill it after it has acknowledged some frames, and return those by their positions."""
    with subprocess.Popen([sys.executable, "-c", CHILD, folder, name], stdout=subprocess.PIPE) as child:
        printed = [child.stdout.readline() for _ in range(lines)]
        child.kill()
        printed += child.stdout.readlines()
    whole = [line.split() for line in printed if line.endswith(b"\n")]
    assert len(whole) >= lines
    acknowledged = {int(position): payload for position, payload in whole}
    assert len(acknowledged) == len(whole)
    return acknowledged


@pytest.mark.parametrize("part", range(4))
async def test_a_killed_process_has_kept_every_frame_that_it_acknowledged(tmp_path, part):
    rng = random.Random(part)
    acknowledged = {}
    for life in range(5):
        more = await asyncio.to_thread(run_and_kill, tmp_path, f"{part}-{life}", rng.randint(1, 120))
        assert not acknowledged.keys() & more.keys()
        acknowledged |= more
        source = await Log.open(PosixDisk(tmp_path), LogOptions(ballast_size=0, reserve=0), SystemClock())
        cursor, found = Cursor(1, accepted=0), []
        while records := await source.read(cursor):
            found += records
        await source.close()
        by_position = {record.position: record.payload for record in found}
        assert {position: by_position.get(position) for position in acknowledged} == acknowledged
        assert len({record.payload for record in found}) == len(found)
        assert [record.position for record in found] == sorted(by_position)
        assert cursor.damaged == 0
