import asyncio
import contextlib
import errno
import json
import random
import threading
import zlib

import pytest
from openmanager_timeseries.disk import PosixDisk
from openmanager_timeseries.ledger import POSITIONS, Ledger, check_consumer
from openmanager_timeseries.log import Cursor, Log, LogOptions
from openmanager_timeseries.record import RECORD_OVERHEAD, SEGMENT_HEADER
from timeseries.faulty_disk import Crash, FaultyDisk, TickingClock

from openmanager.errors import InvalidArgumentError, OutOfRangeError, Reason, UnavailableError

OPTIONS = LogOptions(segment_size=1000, ballast_size=0, reserve=0)


@pytest.fixture
def clock():
    return TickingClock()


@pytest.fixture(params=["posix", "faulty"])
def disk(request, tmp_path):
    return PosixDisk(tmp_path / "log") if request.param == "posix" else FaultyDisk()


@contextlib.asynccontextmanager
async def opened(disk, clock):
    """Open the books and the log that they are about."""
    ledger = Ledger(disk, clock)
    source = await Log.open(disk, OPTIONS, clock, floor=ledger.floor.position, accepted=ledger.floor.accepted)
    try:
        yield ledger, source
    finally:
        await source.close()


async def write(source, count, *, samples=3):
    return [await source.append(b"%d:" % n + bytes(100), samples) for n in range(count)]


async def deliver(ledger, source, name, max_bytes=1 << 20):
    """Take what there is for a consumer, as the service does."""
    books = ledger.open_books(name)
    cursor = Cursor(books.position + 1, accepted=books.accepted)
    before = cursor.accepted
    while records := await source.read(cursor, max_bytes):
        ledger.took(name, records, before)
        before = records[-1].accepted
        books.stand_at(records[-1].position, before)
        balanced(ledger, source)


def row(ledger, source, name):
    """Return delivered, waiting, dead-lettered, re-synced and damaged samples."""
    found = ledger.row(name, source)
    return (
        found.delivered_sample_count,
        found.waiting_sample_count,
        found.dead_lettered_sample_count,
        found.resynced_sample_count,
        found.damaged_sample_count,
    )


def balanced(ledger, source):
    message = ledger.message(source)
    assert message.accepted_sample_count == source.state.accepted
    for name in ledger.books:
        assert min(row(ledger, source, name)) >= 0
        assert sum(row(ledger, source, name)) == message.accepted_sample_count
    assert ledger.unbalanced() == []


async def test_a_confirmed_position_is_durable_and_its_samples_are_delivered(clock):
    disk = FaultyDisk()
    async with opened(disk, clock) as (ledger, source):
        await write(source, 30)
        books = await ledger.confirm(source, "engine", 20)
        assert (books.position, books.accepted) == (20, 60)
        assert row(ledger, source, "engine") == (60, 30, 0, 0, 0)
    async with opened(disk.power_loss(), clock) as (ledger, source):
        assert (ledger.books["engine"].position, ledger.slowest()) == (20, 20)
        assert row(ledger, source, "engine") == (60, 30, 0, 0, 0)
        await write(source, 1)
        assert row(ledger, source, "engine") == (60, 33, 0, 0, 0)


async def test_the_ledger_lists_every_consumer_by_name(disk, clock):
    async with opened(disk, clock) as (ledger, source):
        await write(source, 5)
        for position, name in enumerate(("b", "c", "a")):
            await ledger.confirm(source, name, position + 3)
        message = ledger.message(source)
        assert (message.head_position, message.accepted_sample_count) == (5, 15)
        assert [(each.name, each.position) for each in message.consumers] == [("a", 5), ("b", 3), ("c", 4)]
        lags = [each.lag.ToTimedelta().total_seconds() for each in message.consumers]
        assert lags[0] == 0
        assert min(lags[1:]) > 0
        assert ledger.slowest() == 3


@pytest.mark.parametrize("position", [-1, 6, 1 << 62])
async def test_a_position_that_does_not_exist_is_refused_and_changes_nothing(disk, clock, position):
    async with opened(disk, clock) as (ledger, source):
        await write(source, 5)
        with pytest.raises(OutOfRangeError) as refused:
            await ledger.confirm(source, "engine", position)
        assert (refused.value.reason, refused.value.field) == (Reason.POSITION_OUT_OF_RANGE, "position")
        assert ledger.books == {}


@pytest.mark.parametrize("name", ["", "A", "1a", "a b", "a" * 64, "ä", "a\n"])
async def test_a_name_that_is_none_is_refused_and_changes_nothing(disk, clock, name):
    with pytest.raises(InvalidArgumentError):
        check_consumer(name)
    async with opened(disk, clock) as (ledger, source):
        await write(source, 1)
        with pytest.raises(InvalidArgumentError):
            await ledger.confirm(source, name, 1)
        assert ledger.books == {}


async def test_a_consumer_that_goes_back_gets_again_what_it_got(disk, clock):
    async with opened(disk, clock) as (ledger, source):
        await write(source, 30)
        await ledger.confirm(source, "engine", 20, resynced=True)
        assert row(ledger, source, "engine") == (0, 30, 0, 60, 0)
        await ledger.confirm(source, "engine", 30)
        assert row(ledger, source, "engine") == (30, 0, 0, 60, 0)
        await ledger.confirm(source, "engine", 5)
        assert row(ledger, source, "engine") == (15, 75, 0, 0, 0)
        await ledger.confirm(source, "engine", 0)
        assert row(ledger, source, "engine") == (0, 90, 0, 0, 0)


async def test_a_consumer_that_goes_back_and_calls_it_a_resync_has_no_negative_samples(disk, clock):
    async with opened(disk, clock) as (ledger, source):
        await write(source, 30)
        await ledger.confirm(source, "engine", 30, resynced=True)
        await ledger.confirm(source, "engine", 10, resynced=True)
        balanced(ledger, source)
        assert row(ledger, source, "engine") == (30, 60, 0, 0, 0)


async def test_lost_samples_are_counted_as_damaged_also_after_a_restart(clock):
    disk = FaultyDisk()
    async with opened(disk, clock) as (ledger, source):
        await write(source, 30)
        await ledger.confirm(source, "engine", 2)
    files = disk.content()
    name = min(files)
    at = SEGMENT_HEADER.size + 3 * (RECORD_OVERHEAD + 102) + 70
    files[name] = files[name][:at] + b"?" + files[name][at + 1 :]
    damaged = FaultyDisk(files)
    for _ in range(2):
        async with opened(damaged, clock) as (ledger, source):
            await deliver(ledger, source, "engine")
            assert row(ledger, source, "engine") == (87, 0, 0, 0, 3)
            await ledger.save(source)


async def test_the_books_balance_when_the_newest_segments_are_lost(clock):
    disk = FaultyDisk()
    async with opened(disk, clock) as (ledger, source):
        await write(source, 30)
        await ledger.confirm(source, "slow", 3)
        await ledger.confirm(source, "fast", 30)
    files = disk.content()
    for name in sorted(name for name in files if name.endswith(".log"))[1:]:
        del files[name]
    async with opened(FaultyDisk(files), clock) as (ledger, source):
        balanced(ledger, source)
        await deliver(ledger, source, "slow")
        balanced(ledger, source)
        assert row(ledger, source, "fast") == (90, 0, 0, 0, 0)
        more = await write(source, 1)
        for name in ("slow", "fast"):
            await deliver(ledger, source, name)
            assert ledger.books[name].position == more[0].position
        kept = ledger.books["slow"].delivered
        assert row(ledger, source, "slow") == (kept, 0, 0, 0, 93 - kept)
        assert row(ledger, source, "fast") == (93, 0, 0, 0, 0)


@pytest.mark.parametrize("seed", range(20))
async def test_the_books_balance_at_every_moment_across_restarts(clock, seed):
    rng = random.Random(seed)
    disk = FaultyDisk(seed=seed)
    names = ("a", "b", "c")
    for _ in range(4):
        async with opened(disk, clock) as (ledger, source):
            for name in names:
                ledger.open_books(name)
            balanced(ledger, source)
            for _ in range(25):
                name = rng.choice(names)
                match rng.randrange(5):
                    case 0:
                        await write(source, rng.randint(1, 5), samples=rng.randint(0, 9))
                    case 1:
                        await deliver(ledger, source, name, rng.choice((1, 1000)))
                    case 2:
                        position = rng.randint(0, source.state.head_position)
                        await ledger.confirm(source, name, position, resynced=rng.random() < 0.4)
                    case 3:
                        await ledger.save(source)
                        source.delete_through(ledger.slowest(), clock.now_nanos())
                    case _:
                        books = ledger.open_books(name)
                        count = rng.randint(0, books.delivered)
                        books.dead_lettered, books.delivered = books.dead_lettered + count, books.delivered - count
                balanced(ledger, source)
            head, accepted = source.state.head_position, source.state.accepted
        disk = rng.choice((disk.kill, disk.power_loss))()
        async with opened(disk, clock) as (ledger, source):
            assert (source.state.head_position, source.state.accepted) == (head, accepted)


async def test_what_is_not_saved_is_delivered_again(clock):
    disk = FaultyDisk()
    async with opened(disk, clock) as (ledger, source):
        await write(source, 10)
        await deliver(ledger, source, "engine")
        assert row(ledger, source, "engine") == (30, 0, 0, 0, 0)
        assert ledger.slowest() == 0
    async with opened(disk.kill(), clock) as (ledger, source):
        assert ledger.open_books("engine").position == 0


async def test_only_durable_positions_allow_deletion(clock):
    disk = FaultyDisk()
    async with opened(disk, clock) as (ledger, source):
        await write(source, 30)
        books = ledger.open_books("engine")
        books.position, books.accepted = 10, 30
        disk.gate = threading.Event()
        saving = asyncio.create_task(ledger.save(source))
        await asyncio.sleep(0.01)
        books.position, books.accepted = 30, 90
        assert ledger.slowest() == 0
        disk.gate.set()
        await saving
        assert ledger.slowest() == 10
        ledger.open_books("newcomer")
        assert ledger.slowest() == 0


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("step", ["create", "append", "sync", "rename"])
async def test_a_position_that_cannot_be_stored_is_not_confirmed(clock, step, error):
    disk = FaultyDisk()
    async with opened(disk, clock) as (ledger, source):
        await write(source, 30)
        await ledger.confirm(source, "engine", 10)
        disk.fail(step, error)
        with pytest.raises(UnavailableError):
            await ledger.confirm(source, "engine", 20)
        assert ledger.slowest() == 10
        assert f"{POSITIONS}.new" not in disk.sizes() or step == "rename"
        balanced(ledger, source)
        await ledger.confirm(source, "engine", 20)
        assert ledger.slowest() == 20
    assert Ledger(disk.power_loss(), clock).books["engine"].position == 20


@pytest.mark.parametrize("after", [FaultyDisk.kill, FaultyDisk.power_loss])
async def test_positions_are_the_old_or_the_new_ones_wherever_saving_ends(clock, after):
    found = []
    for nth in range(1, 8):
        disk = FaultyDisk(seed=nth)
        async with opened(disk, clock) as (ledger, source):
            await write(source, 3)
            await ledger.confirm(source, "engine", 1)
            disk.fail("any", Crash, nth=nth)
            with contextlib.suppress(Crash):
                await ledger.confirm(source, "engine", 2)
            next_disk = after(disk)
            disk.dead = False
            disk.faults.clear()
        found.append(Ledger(next_disk, clock).books["engine"].position)
    assert (found[0], found[-1]) == (1, 2)
    assert found == sorted(found)


async def test_missing_positions_begin_anew_and_lose_nothing(clock):
    disk = FaultyDisk()
    async with opened(disk, clock) as (ledger, source):
        await write(source, 30)
        await ledger.confirm(source, "engine", 30)
        source.delete_through(15, clock.now_nanos())
    disk.remove(POSITIONS)
    async with opened(disk, clock) as (ledger, source):
        assert ledger.books == {}
        ledger.open_books("engine")
        assert (source.state.head_position, source.state.accepted) == (30, 90)
        balanced(ledger, source)


@pytest.fixture
async def saved(clock):
    disk = FaultyDisk()
    async with opened(disk, clock) as (ledger, source):
        await write(source, 30)
        for name in ("a", "b", "c"):
            await ledger.confirm(source, name, 20)
    return disk.content()[POSITIONS]


async def test_damaged_positions_are_found_set_aside_and_prevent_nothing(saved, clock):
    rng = random.Random(1)
    for number in range(400):
        raw = bytearray(saved)
        start = rng.randrange(len(raw))
        end = start + rng.choice((1, 1, 5, 100))
        match number % 5:
            case 0:
                raw[start] ^= 1 << rng.randrange(8)
            case 1:
                del raw[start:]
            case 2:
                del raw[start:end]
            case 3:
                raw[start:end] = bytes(end - start)
            case _:
                raw[start:start] = rng.randbytes(end - start)
        assert raw != saved
        disk = FaultyDisk({POSITIONS: bytes(raw)})
        ledger = Ledger(disk, clock)
        assert (ledger.books, ledger.floor.position, ledger.slowest()) == ({}, 0, 0)
        assert disk.content()[f"{POSITIONS}.damaged"] == bytes(raw)


@pytest.mark.parametrize("raw", [b"", b"\n", b"{}", b"no number\nxyz", b"\xff\n\xff", b"{}\n-1", b"{}\n" + b"9" * 5000])
async def test_positions_that_are_none_prevent_nothing(clock, raw):
    disk = FaultyDisk({POSITIONS: raw})
    async with opened(disk, clock) as (ledger, source):
        await write(source, 1)
        await ledger.confirm(source, "engine", 1)
    assert Ledger(disk, clock).books["engine"].position == 1


@pytest.mark.parametrize(
    "stored",
    [
        {},
        [],
        7,
        {"head_position": 1, "accepted": 1, "consumers": []},
        {"head_position": 1, "accepted": 1, "consumers": {"a": {"position": 1, "from_the_future": 2}}},
        {"head_position": 1, "accepted": 1, "consumers": {"a": 3}},
        {"head_position": 1, "consumers": {}},
    ],
)
async def test_whole_positions_of_another_shape_prevent_nothing(clock, stored):
    body = json.dumps(stored).encode()
    ledger = Ledger(FaultyDisk({POSITIONS: body + b"\n%08x" % zlib.crc32(body)}), clock)
    assert (ledger.books, ledger.floor.position) == ({}, 0)


async def test_damaged_positions_on_a_full_or_failing_disk_prevent_nothing(saved, clock):
    disk = FaultyDisk({POSITIONS: saved[:-1] + b"?"}, capacity=0)
    assert Ledger(disk, clock).books == {}
    disk = FaultyDisk({POSITIONS: saved})
    disk.fail("read", errno.EIO)
    assert Ledger(disk, clock).books == {}


async def test_the_floor_is_what_was_newest_when_the_books_were_saved(saved, clock):
    floor = Ledger(FaultyDisk({POSITIONS: saved}), clock).floor
    assert (floor.position, floor.accepted) == (30, 90)
