import asyncio
import contextlib
import errno
import random
import subprocess
import sys
import threading
from itertools import pairwise

import pytest
from openmanager_timeseries import log as log_module
from openmanager_timeseries.disk import PosixDisk
from openmanager_timeseries.log import BALLAST, Cursor, Log, LogOptions, segment_name
from openmanager_timeseries.record import MAX_RECORD_BYTES, RECORD_OVERHEAD, SEGMENT_HEADER, Damage, scan
from timeseries.faulty_disk import FaultyDisk, TickingClock

from openmanager.errors import OutOfRangeError, Reason, ResourceExhaustedError, UnavailableError

SMALL = LogOptions(segment_size=1000, ballast_size=0, reserve=0)


@pytest.fixture
def clock():
    return TickingClock()


@pytest.fixture(params=["posix", "faulty"])
def disk(request, tmp_path):
    """Both disks, which shows that the double does as the real one does."""
    return PosixDisk(tmp_path / "above" / "log") if request.param == "posix" else FaultyDisk()


@contextlib.asynccontextmanager
async def opened(disk, clock, options=SMALL, **remembered):
    source = await Log.open(disk, options, clock, **remembered)
    try:
        yield source
    finally:
        await source.close()


async def write(source, count, *, size=100):
    """Append one frame after the other, each of 3 samples."""
    return [await source.append(b"%d:" % n + bytes(size), 3) for n in range(count)]


async def read_all(source, cursor=None, max_bytes=10_000):
    cursor = cursor or Cursor(source.first_position)
    found = []
    while cursor.position <= source.state.head_position:
        found += await source.read(cursor, max_bytes)
    return found


def content(disk):
    return {name: disk.read(name, 0, size) for name, size in disk.sizes().items()}


def overwrite(disk, name, content):
    file = disk.create(name)
    file.append([content])
    file.sync()
    file.close()
    disk.sync()


def segments(disk):
    return sorted(name for name in disk.sizes() if name.endswith(".log"))


# ── the disk ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_disk_appends_reads_cuts_and_forgets(disk):
    file = disk.create("a")
    file.append([b"one", b"", memoryview(b"two")])
    file.append([b"%d," % n for n in range(3000)])
    file.sync()
    assert disk.read("a", 2, 5) == b"etwo0"
    assert disk.read("a", disk.sizes()["a"] - 5, 100) == b"2999,"
    file.truncate(4)
    file.append([b"x"])
    file.close()
    disk.sync("a")
    assert disk.read("a", 0, 100) == b"onetx"
    disk.create("a").close()
    assert disk.sizes() == {"a": 0}
    disk.replace("b", b"old")
    disk.replace("b", b"new")
    assert disk.read("b", 0, 10) == b"new"
    disk.remove("a")
    disk.remove("a")
    disk.sync()
    assert list(disk.sizes()) == ["b"]
    with pytest.raises(FileNotFoundError):
        disk.read("a", 0, 1)
    free, total = disk.free_bytes()
    assert 0 < free <= total


def test_the_double_keeps_what_was_synced_and_only_parts_of_the_rest():
    seen = set()
    for seed in range(200):
        disk = FaultyDisk(seed=seed)
        file = disk.create("a")
        file.append([b"s" * 700])
        file.sync()
        if seed % 2:
            disk.sync()
        file.append([b"u" * 1500])
        found = disk.power_loss().content()
        if seed % 2:
            assert found["a"][:700] == b"s" * 700
            assert set(found["a"][700:]) <= set(b"u\0")
            seen |= {len(found["a"]) in {700, 2200}, b"\0" in found["a"]}
        else:
            seen.add(len(found))
    assert seen == {False, True}


def test_the_double_loses_pages_at_a_failed_sync_and_lets_the_next_one_succeed():
    disk = FaultyDisk(seed=4)
    file = disk.create("a")
    disk.sync()
    disk.fail("sync", errno.EIO)
    file.append([b"x" * 5000])
    with pytest.raises(OSError, match="error"):
        file.sync()
    file.sync()
    assert disk.violations == ["a descriptor was synced again after an error"]
    assert disk.read("a", 0, 5000) == b"x" * 5000
    assert disk.power_loss().content()["a"] != b"x" * 5000


# ── appending ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_is_appended_is_read_in_order_now_and_after_a_restart(disk, clock):
    async with opened(disk, clock) as source:
        written = await write(source, 50)
        assert [record.position for record in written] == list(range(1, 51))
        assert [record.accepted for record in written] == list(range(3, 151, 3))
        assert await read_all(source) == written
    async with opened(disk, clock) as source:
        assert (source.state.head_position, source.state.accepted) == (50, 150)
        assert await read_all(source) == written
        assert (await source.append(b"more", 1)).position == 51
    assert len(segments(disk)) > 5


async def test_a_frame_keeps_its_trace_and_time(disk, clock):
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    async with opened(disk, clock) as source:
        record = await source.append(b"x", 1, trace)
    async with opened(disk, clock) as source:
        assert await read_all(source) == [record]
    assert record.trace_parent == trace
    assert 10**18 < record.receive_nanos <= clock.nanos


async def test_a_segment_holds_no_more_than_its_size_except_for_one_large_frame(disk, clock):
    async with opened(disk, clock) as source:
        written = await write(source, 20, size=300) + [await source.append(bytes(5000), 1)] + await write(source, 3)
        assert await read_all(source) == written
    sizes = sorted(disk.sizes().values())
    assert sizes[-1] == SEGMENT_HEADER.size + RECORD_OVERHEAD + 5000
    assert sizes[-2] <= 1000


async def test_frames_that_arrive_while_the_disk_syncs_share_the_next_sync(clock):
    disk = FaultyDisk()
    async with opened(disk, clock, LogOptions(ballast_size=0, reserve=0)) as source:
        await source.append(b"begins the segment", 1)
        disk.gate = threading.Event()
        before = disk.syncs
        frames = [asyncio.create_task(source.append(b"%d" % n, 1)) for n in range(500)]
        await asyncio.sleep(0)
        disk.gate.set()
        records = await asyncio.gather(*frames)
        assert [record.payload for record in records] == [b"%d" % n for n in range(500)]
        assert disk.syncs - before <= 2
        before = disk.syncs
        await write(source, 5)
        assert disk.syncs - before == 5


async def test_nothing_is_acknowledged_or_shown_before_its_sync_has_returned(clock):
    disk = FaultyDisk()
    async with opened(disk, clock) as source:
        await source.append(b"1", 1)
        disk.gate = threading.Event()
        waiting = asyncio.create_task(source.append(b"2", 1))
        watching = asyncio.create_task(source.wait_beyond(1))
        for _ in range(20):
            await asyncio.sleep(0.001)
            assert not waiting.done()
            assert not watching.done()
            assert source.state.head_position == 1
            assert await source.read(Cursor(2)) == []
        disk.gate.set()
        assert (await waiting).position == 2
        await watching


async def test_a_reader_that_waits_is_woken_by_a_frame(disk, clock):
    async with opened(disk, clock) as source:
        watching = [asyncio.create_task(source.wait_beyond(0)) for _ in range(10)]
        await source.append(b"1", 1)
        async with asyncio.timeout(5):
            await asyncio.gather(*watching)
            await source.wait_beyond(0)


async def test_a_frame_whose_writer_went_away_is_there_once_or_not_at_all(clock):
    disk = FaultyDisk()
    async with opened(disk, clock) as source:
        tasks = [asyncio.create_task(source.append(b"%d" % n, 1)) for n in range(50)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await source.append(b"last", 1)
        found = [record.payload for record in await read_all(source)]
        assert len(found) == len(set(found))
        assert {record.payload for record in results[1::2]} <= set(found)


async def test_committed_records_are_handed_over_before_they_are_acknowledged(disk, clock):
    async with opened(disk, clock) as source:
        seen = []
        source.on_commit = seen.extend
        written = await write(source, 5)
        assert seen == written


async def test_a_failing_listener_holds_up_nobody(clock):
    async with opened(FaultyDisk(), clock) as source:
        source.on_commit = lambda _: 1 // 0
        watching = asyncio.create_task(source.wait_beyond(1))
        async with asyncio.timeout(5):
            written = await write(source, 3)
            await watching
        assert await read_all(source) == written


async def test_closing_writes_what_is_pending_and_refuses_what_comes_after(disk, clock):
    source = await Log.open(disk, SMALL, clock)
    tasks = [asyncio.create_task(source.append(b"%d" % n, 1)) for n in range(100)]
    await asyncio.sleep(0)
    await source.close()
    async with asyncio.timeout(5):
        written = await asyncio.gather(*tasks)
        with pytest.raises(UnavailableError) as refused:
            await source.append(b"late", 1)
    assert refused.value.reason == Reason.SHUTTING_DOWN
    async with opened(disk, clock) as source:
        assert await read_all(source) == written


async def test_a_log_may_be_closed_twice(disk, clock):
    async with opened(disk, clock) as source:
        await source.append(b"x", 1)
        await source.close()


async def test_a_frame_that_could_not_be_read_again_is_refused(disk, clock):
    async with opened(disk, clock, LogOptions(ballast_size=0, reserve=0)) as source:
        with pytest.raises(ResourceExhaustedError) as refused:
            await source.append(bytes(MAX_RECORD_BYTES + 1), 1)
        assert refused.value.reason == Reason.MESSAGE_TOO_LARGE
        largest = await source.append(bytes(MAX_RECORD_BYTES), 1)
    async with opened(disk, clock) as source:
        assert await read_all(source) == [largest]


async def test_writers_are_refused_while_too_much_is_pending(clock, monkeypatch):
    monkeypatch.setattr(log_module, "MAX_PENDING_BYTES", 1000)
    disk = FaultyDisk()
    async with opened(disk, clock) as source:
        disk.gate = threading.Event()
        results = asyncio.gather(*(source.append(bytes(300), 1) for _ in range(10)), return_exceptions=True)
        await asyncio.sleep(0)
        disk.gate.set()
        refused = [result for result in await results if isinstance(result, ResourceExhaustedError)]
        assert {(each.reason, each.retry_after is not None) for each in refused} == {(Reason.OVERLOADED, True)}
        assert len(refused) == 10 - len(await read_all(source))
        assert await source.append(bytes(300), 1)


async def test_a_batch_that_cannot_be_encoded_leaves_the_log_usable(clock):
    async with opened(FaultyDisk(), clock) as source:
        first = await source.append(b"1", 1)
        async with asyncio.timeout(5):
            with pytest.raises(UnavailableError):
                await source.append(b"x", -1)
            second = await source.append(b"2", 1)
        assert await read_all(source) == [first, second]


# ── a full disk ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_too_little_free_space_refuses_gives_the_ballast_back_and_accepts_again(clock):
    disk = FaultyDisk(capacity=100_000)
    options = LogOptions(segment_size=2000, ballast_size=10_000, reserve=5_000)
    async with opened(disk, clock, options) as source:
        assert disk.sizes()[BALLAST] == 10_000
        written = await write(source, 10)
        disk.capacity = disk.used() + 4_000
        with pytest.raises(ResourceExhaustedError) as refused:
            await source.append(b"x", 1)
        assert refused.value.reason == Reason.LOG_FULL
        assert refused.value.retry_after.total_seconds() <= 1
        assert BALLAST not in disk.sizes()
        assert source.state.full
        disk.capacity = 100_000
        written.append(await source.append(b"y", 1))
        assert not source.state.full
        source.delete_through(0, 0)
        assert disk.sizes()[BALLAST] == 10_000
        assert await read_all(source) == written


async def test_enospc_in_the_middle_of_a_batch_refuses_it_whole(clock):
    disk = FaultyDisk()
    async with opened(disk, clock, LogOptions(ballast_size=500, reserve=0)) as source:
        written = await write(source, 3)
        disk.capacity = disk.used() + 150
        results = await asyncio.gather(*(source.append(bytes(100), 1) for _ in range(4)), return_exceptions=True)
        assert {type(result) for result in results} == {ResourceExhaustedError}
        assert BALLAST not in disk.sizes()
        assert await read_all(source) == written
        disk.capacity = 1 << 30
        written += await write(source, 3)
        assert await read_all(source) == written
    async with opened(disk, clock) as source:
        assert await read_all(source) == written
        assert source.state.accepted == 18


@pytest.mark.parametrize("kind", ["append", "sync", "create", "sync_names", "free_bytes"])
async def test_a_disk_that_reports_no_space_anywhere_is_full(clock, kind):
    disk = FaultyDisk()
    async with opened(disk, clock) as source:
        written = await write(source, 2)
        while disk.sizes()[segments(disk)[-1]] + 400 < 1000:
            written += await write(source, 1)
        disk.fail(kind, errno.EDQUOT, times=2)
        for _ in range(2):
            with pytest.raises(ResourceExhaustedError) as refused:
                await source.append(bytes(400), 1)
            assert refused.value.reason == Reason.LOG_FULL
        written.append(await source.append(bytes(400), 1))
        assert await read_all(source) == written
    async with opened(disk.power_loss(), clock) as source:
        assert await read_all(source) == written


async def test_deletion_works_on_a_full_disk_and_makes_room(clock):
    disk = FaultyDisk()
    async with opened(disk, clock, LogOptions(segment_size=2000, ballast_size=3000, reserve=0)) as source:
        await write(source, 100)
        disk.capacity = disk.used()
        with pytest.raises(ResourceExhaustedError):
            await source.append(bytes(300), 1)
        disk.replace("positions.json", b"durable")
        assert source.delete_through(60, clock.now_nanos()) > 3
        record = await source.append(bytes(300), 1)
        assert (await read_all(source))[-1] == record


@pytest.mark.parametrize("size", [1, 1000, (1 << 20) + 5, (2 << 20)])
async def test_a_ballast_of_any_size_is_laid_down_once(disk, clock, size):
    async with opened(disk, clock, LogOptions(ballast_size=size, reserve=0)):
        assert disk.sizes()[BALLAST] == size
    if isinstance(disk, FaultyDisk):
        before = disk.names[BALLAST]
        async with opened(disk, clock, LogOptions(ballast_size=size, reserve=0)) as source:
            source.delete_through(0, 0)
        assert disk.names[BALLAST] is before


async def test_a_ballast_that_does_not_fit_leaves_neither_a_part_nor_a_descriptor(clock):
    disk = FaultyDisk()
    async with opened(disk, clock, LogOptions(ballast_size=5000, reserve=0)) as source:
        disk.remove(BALLAST)
        disk.fail("append", errno.EDQUOT)
        source.delete_through(0, 0)
        assert BALLAST not in disk.sizes()
        assert all(file.closed for file in disk.opened)


FULL = """
import asyncio, resource, sys
from pathlib import Path
from openmanager.errors import ResourceExhaustedError
from openmanager.runtime.clock import SystemClock
from openmanager_timeseries.disk import PosixDisk
from openmanager_timeseries.log import Cursor, Log, LogOptions

async def main():
    source = await Log.open(PosixDisk(Path(sys.argv[1])), LogOptions(ballast_size=4096, reserve=0), SystemClock())
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
    taken = []
    try:
        while True:
            taken.append(await source.append(b"%d" % len(taken) + bytes(700), 1))
    except ResourceExhaustedError as full:
        print(full.reason, (Path(sys.argv[1]) / "ballast").exists())
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    taken.append(await source.append(b"again", 1))
    found, cursor = [], Cursor(1)
    while records := await source.read(cursor):
        found += records
    print(found == taken, len(taken) > 20)
    await source.close()

asyncio.run(main())
"""


async def test_a_real_file_that_may_not_grow_is_cut_off_and_the_log_goes_on(tmp_path, clock):
    command = [sys.executable, "-c", FULL, tmp_path / "log"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["LOG_FULL", "False", "True", "True"]
    async with opened(PosixDisk(tmp_path / "log"), clock) as source:
        assert (await read_all(source))[-1].payload == b"again"


# ── I/O errors ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_failed_sync_abandons_the_segment_for_good(clock):
    disk = FaultyDisk(seed=1)
    async with opened(disk, clock, LogOptions(ballast_size=0, reserve=0)) as source:
        written = await write(source, 3)
        disk.fail("sync", errno.EIO)
        with pytest.raises(UnavailableError) as refused:
            await source.append(b"lost", 1)
        assert refused.value.reason == Reason.LOG_UNFIT
        assert source.state.failure == "io"
        assert disk.opened[0].closed
        written += await write(source, 3)
        assert source.state.failure == ""
        assert len(segments(disk)) == 2
        assert await read_all(source) == written
    assert disk.violations == []
    async with opened(disk.power_loss(), clock) as source:
        assert await read_all(source) == written
        assert source.state.accepted == 18


@pytest.mark.parametrize(
    "kind", ["append", "sync", "truncate", "close", "create", "sync_names", "free_bytes", "remove"]
)
@pytest.mark.parametrize("nth", [1, 2, 3])
async def test_an_error_of_any_call_is_answered_and_does_not_stop_the_log(clock, kind, nth):
    """Every second append fails as well, so that the calls that tidy up after an error fail too."""
    disk = FaultyDisk(seed=nth)
    async with opened(disk, clock) as source:
        written = await write(source, 2)
        disk.fail(kind, errno.EIO, nth=nth, times=2)
        disk.fail("sync", errno.EIO, nth=2)
        async with asyncio.timeout(10):
            for _ in range(30):
                with contextlib.suppress(UnavailableError):
                    written.append(await source.append(bytes(300), 1))
        assert len(written) >= 25
        assert await read_all(source) == written
    for after in (disk.kill(), disk.power_loss()):
        async with opened(after, clock) as source:
            found = await read_all(source)
            assert [record for record in written if record not in found] == []
            steps = [newer.accepted - older.accepted - newer.samples for older, newer in pairwise(found)]
            assert set(steps) == {0}
    assert disk.violations == []


async def test_a_refused_batch_that_could_not_be_cut_off_does_not_come_back_once_others_follow(clock):
    disk = FaultyDisk()
    async with opened(disk, clock, LogOptions(ballast_size=0, reserve=0)) as source:
        written = await write(source, 3)
        disk.fail("sync", errno.EIO)
        disk.fail("truncate", errno.EIO)
        with pytest.raises(UnavailableError):
            await source.append(b"refused", 1000)
        written += await write(source, 3)
    assert any(b"refused" in raw for raw in content(disk).values())
    async with opened(disk, clock) as source:
        assert await read_all(source) == written
        assert source.state.accepted == 18
        assert source.accepted_at(3) == 9


async def test_pages_that_the_disk_cannot_read_are_damage_and_the_rest_is_served(clock):
    disk = FaultyDisk()
    async with opened(disk, clock, LogOptions(ballast_size=0, reserve=0)) as source:
        written = await write(source, 200)

    class BadSector(FaultyDisk):
        def read(self, name, offset, size):
            if name.endswith(".log") and offset <= 9000 < offset + size:
                raise OSError(errno.EIO, "bad sector")
            return super().read(name, offset, size)

    async with opened(BadSector(content(disk)), clock) as source:
        cursor = Cursor(1, accepted=0)
        found = await read_all(source, cursor)
        lost = [record for record in written if record not in found]
        assert 0 < len(lost) < 60
        assert cursor.damaged == 3 * len(lost)
        assert (await source.append(b"more", 1)).position == 201


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE])
async def test_want_of_descriptors_is_not_taken_for_damage(clock, error):
    disk = FaultyDisk()
    async with opened(disk, clock) as source:
        written = await write(source, 10)
    async with opened(disk, clock) as source:
        cursor = Cursor(1, accepted=0)
        disk.fail("read", error)
        with pytest.raises(OSError, match="files"):
            await source.read(cursor)
        assert await read_all(source, cursor) == written
        assert cursor.damaged == 0


# ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(6))
async def test_cursors_read_every_record_once_and_in_order_while_appends_go_on(clock, monkeypatch, seed):
    """The tail is small, so that readers go from the files to memory and back, and start anywhere."""
    rng = random.Random(seed)
    monkeypatch.setattr(log_module, "TAIL_BYTES", rng.choice((0, 300, 3000)))
    total = 400
    async with opened(FaultyDisk(), clock, LogOptions(segment_size=2000, ballast_size=0, reserve=0)) as source:

        async def follow(seed):
            rng = random.Random(seed)
            start = rng.randint(1, 50)
            await source.wait_beyond(start - 1)
            cursor, found = Cursor(start), []
            while cursor.position <= total:
                if not (records := await source.read(cursor, rng.choice((1, 100, 700, 10_000)))):
                    await source.wait_beyond(cursor.position - 1)
                found += records
                if rng.random() < 0.2:
                    await asyncio.sleep(rng.random() / 200)
            return start, found

        async with asyncio.timeout(20):
            readers = [asyncio.create_task(follow(seed)) for seed in range(4)]
            written = []
            while len(written) < total:
                burst = min(rng.randint(1, 30), total - len(written))
                written += await asyncio.gather(
                    *(source.append(rng.randbytes(rng.randint(0, 200)), 2) for _ in range(burst))
                )
            for reader in readers:
                start, found = await reader
                assert found == written[start - 1 :]


@pytest.mark.parametrize("max_bytes", [1, 99, 250, 10_000])
async def test_a_read_returns_at_least_one_record_and_about_as_much_as_was_asked_for(disk, clock, max_bytes):
    async with opened(disk, clock) as source:
        await write(source, 10, size=98)
        cursor = Cursor(1)
        assert len(await source.read(cursor, max_bytes)) == min(10, max(1, max_bytes // 100))
    async with opened(disk, clock) as source:
        cursor = Cursor(3)
        assert 1 <= len(await source.read(cursor, max_bytes)) <= max(1, max_bytes // 100)


async def test_reading_begins_only_where_something_is_kept(disk, clock):
    async with opened(disk, clock) as source:
        assert source.first_position == 1
        source.check_kept(1)
        await write(source, 60)
        source.delete_through(30, clock.now_nanos())
        first = source.first_position
        assert 20 < first <= 31
        source.check_kept(first)
        source.check_kept(61)
        with pytest.raises(OutOfRangeError) as compacted:
            source.check_kept(first - 1)
        assert compacted.value.reason == Reason.HISTORY_COMPACTED
        with pytest.raises(OutOfRangeError) as unknown:
            source.check_kept(62)
        assert unknown.value.reason == Reason.POSITION_OUT_OF_RANGE


async def test_a_watcher_of_the_newest_is_not_refused_when_nothing_is_kept(disk, clock):
    async with opened(disk, clock, floor=70, accepted=700) as source:
        source.check_kept(71)
        cursor = Cursor(71, accepted=700)
        assert await source.read(cursor) == []
        watching = asyncio.create_task(source.wait_beyond(70))
        record = await source.append(b"x", 5)
        await watching
        assert await source.read(cursor) == [record]
        assert cursor.damaged == 0


async def test_the_running_total_is_known_at_every_position(disk, clock):
    async with opened(disk, clock, accepted=1000) as source:
        await write(source, 60)
        assert [source.accepted_at(position) for position in range(61)] == [1000 + 3 * n for n in range(61)]
    async with opened(disk, clock) as source:
        assert [source.accepted_at(position) for position in range(61)] == [1000 + 3 * n for n in range(61)]


async def test_the_running_total_of_an_old_position_takes_one_segment_to_read(clock):
    disk = FaultyDisk()
    async with opened(disk, clock) as source:
        await write(source, 200)
    async with opened(disk, clock) as source:
        before = disk.calls
        assert source.accepted_at(100) == 300
        assert disk.calls - before == 1


async def test_the_running_total_may_be_asked_for_while_frames_arrive(clock):
    async with opened(FaultyDisk(), clock, LogOptions(ballast_size=0, reserve=0)) as source:
        await asyncio.gather(*(source.append(b"x", 1) for _ in range(20_000)))

        def ask():
            return [source.accepted_at(position) for position in range(1, 20_000, 199)]

        asking = asyncio.create_task(asyncio.to_thread(ask))
        while not asking.done():
            await asyncio.gather(*(source.append(b"x", 1) for _ in range(100)))
        assert await asking == list(range(1, 20_000, 199))


# ── deleting ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_deletion_takes_whole_segments_that_are_passed_and_old_enough(disk, clock):
    async with opened(disk, clock) as source:
        written = await write(source, 60)
        middle = written[29].receive_nanos
        assert source.delete_through(0, clock.now_nanos()) == 0
        assert source.delete_through(60, 0) == 0
        source.delete_through(60, middle)
        assert 20 < source.first_position <= 31
        source.delete_through(60, clock.now_nanos())
        kept = await read_all(source)
        assert 0 < len(kept) < 10
        assert kept == written[-len(kept) :]
        assert len(segments(disk)) == 1
        assert source.size_bytes() == disk.sizes()[segments(disk)[0]]
    async with opened(disk, clock) as source:
        assert await read_all(source) == kept


async def test_a_segment_is_as_young_as_its_newest_frame_also_after_a_restart(disk, clock):
    options = LogOptions(segment_size=10_000, ballast_size=0, reserve=0)
    async with opened(disk, clock, options) as source:
        old = await source.append(b"old", 1)
        clock.nanos += 10**15
        young = await source.append(b"young", 1)
    async with opened(disk, clock, options) as source:
        clock.nanos += 10**15
        youngest = await source.append(b"youngest", 1)
    async with opened(disk, clock, options) as source:
        source.delete_through(3, old.receive_nanos + 10**14)
        assert await read_all(source) == [old, young, youngest]
        source.delete_through(3, youngest.receive_nanos)
        assert await read_all(source) == [youngest]


async def test_a_cursor_whose_segment_is_deleted_goes_on_with_the_next(disk, clock):
    async with opened(disk, clock) as source:
        await write(source, 60)
    async with opened(disk, clock) as source:
        cursor = Cursor(1, accepted=0)
        first = await source.read(cursor, 200)
        source.delete_through(40, clock.now_nanos())
        rest = await read_all(source, cursor)
        assert rest[0].position == source.first_position
        assert rest[-1].position == 60
        assert cursor.damaged == 3 * (60 - len(first) - len(rest))


async def test_a_deletion_that_fails_is_done_again(clock):
    disk = FaultyDisk()
    async with opened(disk, clock) as source:
        written = await write(source, 60)
        disk.fail("remove", errno.EIO, nth=3)
        with pytest.raises(OSError, match="error"):
            source.delete_through(60, clock.now_nanos())
        found = await read_all(source)
        assert found == written[-len(found) :]
        source.delete_through(60, clock.now_nanos())
        assert len(segments(disk)) == 1


# ── a damaged folder ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def written(clock):
    """A log of 60 frames in several segments: its files and its records."""
    disk = FaultyDisk()
    async with opened(disk, clock) as source:
        records = await write(source, 60)
    return content(disk), records


async def reopened(files, clock, **remembered):
    """Open a folder with these files; return what is read, the samples that were lost, and the next position."""
    async with opened(FaultyDisk(files), clock, **remembered) as source:
        cursor = Cursor(1, accepted=0)
        found = await read_all(source, cursor)
        more = await source.append(b"more", 1)
        assert await read_all(source, cursor) == [more]
        assert source.delete_through(more.position, clock.now_nanos()) >= 0
        return found, cursor.damaged, more.position


def names(files):
    return sorted(name for name in files if name.endswith(".log"))


async def test_a_missing_segment_is_a_loss_that_is_counted(written, clock):
    files, records = written
    gone = names(files)[2]
    held = {item.position for item, _ in scan(files.pop(gone), SEGMENT_HEADER.size, int(gone[:20]) - 1)}
    found, damaged, position = await reopened(files, clock)
    assert found == [record for record in records if record.position not in held]
    assert (damaged, position) == (3 * len(held), 61)


async def test_positions_go_on_above_the_floor_when_the_newest_segments_are_lost(written, clock):
    files, records = written
    for name in names(files)[3:]:
        del files[name]
    found, damaged, position = await reopened(files, clock, floor=60, accepted=180)
    assert found == records[: len(found)]
    assert damaged == 3 * (60 - len(found))
    assert position > 60


async def test_a_floor_that_is_a_little_old_still_keeps_positions_from_being_given_out_again(written, clock):
    files, _ = written
    for name in names(files)[-2:]:
        del files[name]
    _, _, position = await reopened(files, clock, floor=55, accepted=165)
    assert position > 60


async def test_an_empty_folder_goes_on_above_the_floor(clock):
    found, damaged, position = await reopened({}, clock, floor=60, accepted=180)
    assert (found, damaged) == ([], 180)
    assert position > 60


@pytest.mark.parametrize("size", [0, 7, SEGMENT_HEADER.size])
async def test_a_segment_without_records_is_nothing(written, clock, size):
    files, records = written
    files[segment_name(61)] = files[names(files)[0]][:size]
    assert await reopened(files, clock) == (records, 0, 61)


async def test_damaged_segment_headers_lose_nothing(written, clock):
    files, records = written
    for name in names(files):
        files[name] = bytes(SEGMENT_HEADER.size) + files[name][SEGMENT_HEADER.size :]
    assert await reopened(files, clock) == (records, 0, 61)


@pytest.mark.parametrize("which", [0, 2, -2, -1])
@pytest.mark.parametrize(
    "name", [segment_name(4), segment_name(30), segment_name(61), segment_name(9000)], ids=lambda name: name[-8:]
)
async def test_a_copied_segment_changes_nothing_wherever_a_reader_begins(written, clock, which, name):
    files, records = written
    assert name not in files
    files[name] = files[names(files)[which]]
    async with opened(FaultyDisk(files), clock) as source:
        for start in range(1, 61):
            cursor = Cursor(start, accepted=3 * (start - 1))
            assert await read_all(source, cursor) == records[start - 1 :]
            assert source.accepted_at(start) == 3 * start
            assert cursor.damaged == 0
        assert (await source.append(b"x", 1)).position > 60
    assert (await reopened(files, clock))[:2] == (records, 0)


async def test_a_copy_of_the_newest_segment_that_was_made_earlier_hides_nothing(written, clock):
    files, records = written
    newest = files[names(files)[-1]]
    files[segment_name(5000)] = newest[: len(newest) - 150]
    found, damaged, position = await reopened(files, clock)
    assert (found, damaged) == (records, 0)
    assert position > 5000


async def test_a_renamed_segment_is_read_in_its_place_and_not_overwritten(written, clock):
    files, records = written
    files[segment_name(61)] = files.pop(names(files)[-1])
    disk = FaultyDisk(files)
    async with opened(disk, clock) as source:
        assert await read_all(source) == records
        more = await source.append(b"more", 1)
        assert await read_all(source) == [*records, more]


GARBAGE = {
    segment_name(30): b"not a segment at all, only a name " * 9,
    segment_name(33): bytes(400),
    segment_name(60): random.Random(5).randbytes(5000),
    "5.log": b"x" * 100,
    "²³.log": b"x" * 100,
    "99999999999999999999.log": b"x" * 100,
    "00000000000000000000.log": b"x" * 100,
    "-0000000000000000005.log": b"x" * 100,
    segment_name(30) + ".77.damaged": b"x",
    "positions.json.new": b"{",
    ".log": b"",
    "lost+found": b"",
    "a b\n.log": b"x" * 1000,
}


async def test_files_that_are_no_segments_hide_nothing(written, clock):
    files, records = written
    assert not files.keys() & GARBAGE.keys()
    for start in range(1, 61, 7):
        async with opened(FaultyDisk(files | GARBAGE), clock) as source:
            assert await read_all(source, Cursor(start)) == records[start - 1 :]
    found, damaged, position = await reopened(files | GARBAGE, clock)
    assert (found, damaged) == (records, 0)
    assert position > 60


async def test_a_folder_of_garbage_alone_can_be_written_to(clock):
    found, damaged, position = await reopened(GARBAGE, clock)
    assert (found, damaged) == ([], 0)
    assert position > 60


async def test_garbage_that_is_newest_by_name_does_not_stop_the_log(written, clock):
    files, records = written
    found, _, position = await reopened(files | {segment_name(3 * 10**18): b"x" * 999}, clock)
    assert found == records
    assert position > 3 * 10**18


async def test_damage_is_set_aside_counted_once_and_the_rest_is_read(written, clock, tmp_path):
    files, records = written
    name = names(files)[1]
    bad = bytearray(files[name])
    at = SEGMENT_HEADER.size + 2 * (len(records[20].payload) + RECORD_OVERHEAD) + 9
    bad[at] ^= 1
    disk = PosixDisk(tmp_path)
    for each, raw in (files | {name: bytes(bad)}).items():
        overwrite(disk, each, raw)
    for _ in range(2):
        async with opened(disk, clock) as source:
            for _ in range(3):
                cursor = Cursor(1, accepted=0)
                found = await read_all(source, cursor)
                assert len(found) == 59
                assert cursor.damaged == 3
            assert source.state.damaged_regions == 1
    aside = [each for each in disk.sizes() if each.endswith(".damaged")]
    assert len(aside) == 1
    offset = int(aside[0].split(".")[2])
    assert disk.read(aside[0], 0, 10_000) == bytes(bad)[offset:][: disk.sizes()[aside[0]]]
    assert offset <= at < offset + disk.sizes()[aside[0]]


async def test_damage_on_a_full_disk_is_passed_over_and_counted_once(written, clock):
    files, _ = written
    name = names(files)[1]
    files[name] = files[name][:300] + b"??????" + files[name][306:]
    disk = FaultyDisk(files, capacity=0)
    async with opened(disk, clock) as source:
        for _ in range(3):
            assert len(await read_all(source)) == 59
        assert source.state.damaged_regions == 1


async def test_a_damaged_first_record_does_not_falsify_the_running_total(written, clock):
    files, _ = written
    for name in names(files)[:3]:
        files[name] = files[name][:20] + b"????" + files[name][24:]
    async with opened(FaultyDisk(files), clock) as source:
        second = int(names(files)[1][:20])
        assert source.accepted_at(second + 1) == 3 * (second + 1)
        assert source.accepted_at(0) == 3
        assert source.accepted_at(second) in {3 * (second - 1), 3 * second}


@pytest.mark.parametrize("tail", [b"\0" * 700, b"\xff" * 700, bytes(range(256)) * 3], ids=["zeros", "ones", "bytes"])
async def test_a_torn_tail_is_passed_over_never_counted_and_its_positions_are_not_given_out(written, clock, tail):
    files, records = written
    files[names(files)[-1]] += tail
    for _ in range(2):
        found, damaged, position = await reopened(files, clock)
        assert (found, damaged) == (records, 0)
        assert position > 60 + len(tail) // RECORD_OVERHEAD
    async with opened(FaultyDisk(files), clock) as source:
        assert source.state.torn_bytes == len(tail)
        assert source.state.damaged_regions == 0


async def test_a_tail_of_a_whole_segment_of_zeros_is_passed_over(written, clock):
    files, records = written
    files[names(files)[-1]] += bytes(16 << 20)
    assert (await reopened(files, clock))[:2] == (records, 0)


async def test_every_start_begins_a_new_segment(disk, clock):
    for count in range(1, 4):
        async with opened(disk, clock) as source:
            await write(source, 1)
        assert len(segments(disk)) == count
    async with opened(disk, clock):
        pass
    assert len(segments(disk)) == 3


MUTATIONS = 1000


def mutate(files, rng):
    """Damage one segment: change, zero, cut off or take out some bytes, or bring others to a wrong place.

    Return its name and where each of its bytes was before, −1 for one that was changed or brought in.
    """
    name = rng.choice(names(files))
    raw = bytearray(files[name])
    origin = list(range(len(raw)))

    def put(start, end, new):
        raw[start:end] = new
        origin[start:end] = [-1] * len(new)

    def somewhere(size):
        other = files[rng.choice(names(files))]
        at = rng.randrange(len(other))
        return other[at : at + size]

    def place():
        start = rng.randrange(SEGMENT_HEADER.size, max(SEGMENT_HEADER.size, len(raw)) + 1)
        return start, min(len(raw), start + rng.choice((1, 8, 64, 200, 600, 3000)))

    start, end = place()
    match rng.randrange(5):
        case 0:
            put(start, end, somewhere(end - start))
        case 1:
            put(start, start, somewhere(end - start))
        case _:
            for _ in range(rng.choice((1, 1, 2, 3))):
                flipped = bytes(byte ^ 1 << rng.randrange(8) for byte in raw[start : start + 1])
                changes = (
                    (start, start + 1, flipped),
                    (start, end, b""),
                    (start, end, bytes(end - start)),
                    (start, len(raw), b""),
                    (start, len(raw), bytes(len(raw) - start)),
                )
                put(*rng.choice(changes))
                start, end = place()
    files[name] = bytes(raw)
    return name, origin


@pytest.mark.parametrize("part", range(4))
async def test_a_log_with_any_damage_is_opened_and_what_is_intact_is_read(tmp_path, clock, part):
    """The log is a real one; every mutation of it is opened and read. `accepted` and `floor` are remembered."""
    rng = random.Random(part)
    options = LogOptions(segment_size=5000, ballast_size=0, reserve=0)
    disk = PosixDisk(tmp_path / "log")
    written = []
    async with opened(disk, clock, options) as source:
        while len(written) < 90:
            frames = [b"%d:" % len(written) + rng.randbytes(rng.choice((0, 5, 60, 60, 700))) for _ in range(6)]
            written += await asyncio.gather(*(source.append(frame, rng.randint(0, 9)) for frame in frames))
        written += await write(source, 40, size=60)
    original = content(disk)
    homes = {
        item.position: (name, range(after - RECORD_OVERHEAD - len(item.payload), after))
        for name, raw in original.items()
        for item, after in scan(raw, SEGMENT_HEADER.size, int(name[:20]) - 1)
    }
    assert len(homes) == len(written)
    for number in range(MUTATIONS // 4):
        files = dict(original)
        mutated, origin = mutate(files, rng)
        about = f"part {part}, mutation {number}"
        remembered = {"floor": written[-1].position, "accepted": written[-1].accepted}
        async with opened(FaultyDisk(files), clock, options, **remembered) as source:
            cursor = Cursor(1, accepted=0)
            found = await read_all(source, cursor)
            positions = [record.position for record in found]
            assert positions == sorted(set(positions)), about
            assert [record for record in found if record != written[record.position - 1]] == [], about
            now = {before: at for at, before in enumerate(origin)}
            intact = {
                position
                for position, (name, home) in homes.items()
                if name != mutated or origin[(at := now.get(home.start, -1)) : at + len(home)] == list(home)
            }
            assert intact - set(positions) == set(), about
            more = await source.append(b"more", 4)
            assert more.position > written[-1].position, about
            assert await read_all(source, cursor) == [more], about
            read = sum(record.samples for record in found)
            assert read + cursor.damaged == written[-1].accepted, about


def test_scanning_does_not_depend_on_where_damage_is_met():
    """Damage at the very end and at the very beginning, and nothing but damage."""
    assert [item for item, _ in scan(b"?", 0, 0)] == [Damage(0, 1)]
    assert list(scan(b"", 0, 0)) == []
