"""The ticks of a simulation, and the desk of its faults."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import wait_until
from openmanager_simulator.catalogue import load_catalogue
from openmanager_simulator.fault import FaultPattern, plan_fault
from openmanager_simulator.faults import FaultDesk
from openmanager_simulator.memory import available_bytes, check_fits
from openmanager_simulator.record_book import RecordBook
from openmanager_simulator.schedule import DAY, Schedule
from openmanager_simulator.simulation import Simulation
from openmanager_simulator.ticker import Settings, Ticker

from openmanager.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OpenManagerError,
    ResourceExhaustedError,
)
from openmanager.frame import Frame
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.peer import Peer

SETTINGS = Settings(server_count=3, interval_millis=100, seed=1)
SECOND = 10**9


class Store:
    """Keeps the frames that are written; refuses each with the next of `errors` first."""

    def __init__(self, *errors: OpenManagerError) -> None:
        self.frames: list[Frame] = []
        self.errors = list(errors)
        self.hold: asyncio.Event | None = None

    async def write(self, frame: Frame) -> int:
        if self.errors:
            raise self.errors.pop(0)
        self.frames.append(frame)
        return frame.values.size

    async def import_frames(self, frames: Iterator[Frame]) -> int:
        if self.hold is not None:
            await self.hold.wait()
        return sum([await self.write(frame) for frame in frames])


def make_ticker(store: Store, **changes) -> Ticker:
    catalogue = load_catalogue()

    def make(settings, fleet, faults) -> Simulation:
        return Simulation(
            fleet=fleet,
            catalogue=catalogue,
            seed=settings.seed,
            interval_nanos=settings.interval_millis * 10**6,
            faults=faults,
        )

    given_ = {
        "settings": SETTINGS,
        "catalogue": catalogue,
        "writer": store,
        "clock": SystemClock(),
        "jitter": random.Random(1),
        "buffer_frames": 10,
        "make": make,
    }
    return Ticker(**{**given_, **changes})


@pytest.fixture
async def store() -> Store:
    return Store()


@pytest.fixture
async def ticker(store: Store) -> AsyncIterator[Ticker]:
    made = make_ticker(store)
    delivering = asyncio.create_task(made.deliver())
    yield made
    await made.stop()
    delivering.cancel()


def has(store: Store, count: int):
    async def written() -> bool:
        return len(store.frames) >= count

    return written


async def test_ticks_follow_each_other_on_multiples_of_the_interval(ticker: Ticker, store: Store):
    await ticker.start(SETTINGS)
    await wait_until(has(store, 5))
    times = [int(frame.times[0]) for frame in store.frames[:5]]
    assert [time % (100 * 10**6) for time in times] == [0] * 5
    assert [after - before for before, after in itertools.pairwise(times)] == [100 * 10**6] * 4
    # Only the first tells of servers and metrics.
    assert [len(frame.server_infos) for frame in store.frames[:5]] == [3, 0, 0, 0, 0]


async def test_starting_and_stopping_at_once_leaves_one_state(ticker: Ticker, store: Store):
    for _ in range(5):
        await asyncio.gather(ticker.start(SETTINGS), ticker.stop(), ticker.start(SETTINGS), ticker.stop())
    assert not ticker.progress.running
    await asyncio.sleep(0)
    ticking = [task for task in asyncio.all_tasks() if "_tick_forever" in repr(task)]
    assert ticking == []
    await ticker.start(SETTINGS)
    with pytest.raises(FailedPreconditionError):
        await ticker.start(replace(SETTINGS, seed=2))
    await ticker.stop()
    await ticker.start(replace(SETTINGS, seed=2))
    assert ticker.settings.seed == 2


async def test_only_one_advances_and_nobody_starts_meanwhile(ticker: Ticker, store: Store):
    store.hold = asyncio.Event()
    first = asyncio.create_task(ticker.advance(5))
    await asyncio.sleep(0)
    with pytest.raises(FailedPreconditionError):
        await ticker.advance(5)
    with pytest.raises(FailedPreconditionError):
        await ticker.start(SETTINGS)
    await ticker.stop()
    store.hold.set()
    await first
    assert ticker.progress.tick_count == sum(len(frame.times) for frame in store.frames) == 5
    await ticker.advance(3)
    times = [int(time) for frame in store.frames for time in frame.times]
    assert times == list(range(times[0], times[0] + 8 * 100 * 10**6, 100 * 10**6))


async def test_a_stream_of_the_past_takes_nothing_from_the_ticks(ticker: Ticker, store: Store):
    streamed = [frame async for frame in ticker.frames_between(0 + DAY * 20_000, DAY * 20_000 + SECOND)]
    assert sum(len(frame.times) for frame in streamed) == 10
    assert len(streamed[0].server_infos) == 3
    await ticker.start(SETTINGS)
    await wait_until(has(store, 2))
    assert [len(frame.server_infos) for frame in store.frames[:2]] == [3, 0]


async def test_a_stream_goes_on_with_the_fleet_that_it_began_with(ticker: Ticker):
    whole = [frame async for frame in ticker.frames_between(DAY * 20_000, DAY * 20_000 + 60 * SECOND)]
    assert len(whole) > 1
    stream = ticker.frames_between(DAY * 20_000, DAY * 20_000 + 60 * SECOND)
    found = [await anext(stream)]
    await ticker.start(Settings(server_count=5, interval_millis=3_600_000, seed=2))
    found.extend([frame async for frame in stream])
    for one, other in zip(whole, found, strict=True):
        assert (one.servers, one.times.tolist()) == (other.servers, other.times.tolist())
        assert one.values.tobytes() == other.values.tobytes()
    assert ticker.interval_nanos == 3600 * SECOND
    await ticker.stop()


async def test_only_a_frame_that_would_be_refused_again_is_dropped():
    unknown, internal = OpenManagerError("?"), OpenManagerError("?")
    unknown.code, internal.code = 2, 13  # type: ignore[misc]
    store = Store(unknown, internal, InvalidArgumentError("frame: no"))
    ticker = make_ticker(store)
    delivering = asyncio.create_task(ticker.deliver())
    await ticker.start(SETTINGS)
    await wait_until(has(store, 2))
    await ticker.stop()
    delivering.cancel()
    assert ticker.progress.dropped_frame_count == 1


async def test_a_tick_that_cannot_be_made_is_told_and_the_next_one_is_made(ticker: Ticker, store: Store):
    values = ticker.simulation.values
    failures = [ValueError("?"), MemoryError()]

    def fail_twice(tick: int, count: int):
        if failures:
            raise failures.pop()
        return values(tick, count)

    ticker.simulation.values = fail_twice  # type: ignore[method-assign]
    await ticker.start(SETTINGS)
    await wait_until(has(store, 2))
    assert not failures


# ── the desk ───────────────────────────────────────────────────────────────────────────────────────────────────────


class At:
    """A clock that stands still."""

    def __init__(self, nanos: int) -> None:
        self.nanos = nanos

    def now_nanos(self) -> int:
        return self.nanos

    def monotonic(self) -> float:
        return 0.0


# Some time in the middle of a scheduled fault of the fleet of three.
SCHEDULED = next(iter(Schedule(SETTINGS.seed, 0, 3).between(20_700 * DAY, 20_800 * DAY)))
NOW = int(SCHEDULED["start"] + SCHEDULED["end"]) // 2


@pytest.fixture
def desk(ticker: Ticker) -> FaultDesk:
    replayed = plan_fault(
        id="scenario-0",
        pattern=FaultPattern.CPU_SPIKE,
        servers=("web-onpremise-01",),
        start_nanos=NOW - 60 * SECOND,
        seed=1,
        origin="scenario",
    )
    book = RecordBook(peer=Peer("gateway", "127.0.0.1:1"), replayed=[replayed], on_change=ticker.set_faults)
    return FaultDesk(ticker=ticker, book=book, clock=At(NOW), schedule=True)


async def test_scenario_and_schedule_are_listed_page_by_page_the_newest_first(desk: FaultDesk):
    whole, total = desk.page(NOW - 9 * DAY, NOW, 0, 1000)
    assert len(whole) == total > 4
    assert {fault.origin for fault in whole} == {"scenario", "scheduled"}
    starts = [fault.start_nanos for fault in whole]
    assert starts == sorted(starts, reverse=True)
    pages = [desk.page(NOW - 9 * DAY, NOW, first, 4)[0] for first in range(0, total, 4)]
    assert [fault for page in pages for fault in page] == whole


async def test_any_fault_can_be_cleared_while_it_lasts_whoever_made_it(desk: FaultDesk, ticker: Ticker):
    scheduled = Schedule(SETTINGS.seed, 0, 3).fault(SCHEDULED)
    for fault_id in ("scenario-0", scheduled.id):
        cleared = desk.clear(fault_id)
        assert cleared.end_nanos == NOW < cleared.planned_end_nanos
        with pytest.raises(FailedPreconditionError):
            desk.clear(fault_id)
    listed, _ = desk.page(NOW - 1, NOW, 0, 1000)
    assert [fault.end_nanos for fault in listed if fault.id in {"scenario-0", scheduled.id}] == [NOW, NOW]
    with pytest.raises(NotFoundError):
        desk.clear("fault-none")


async def test_a_fleet_that_the_memory_is_too_small_for_is_refused_and_the_old_one_stays():
    ticker = make_ticker(Store(), available=lambda: 8 << 30)
    with pytest.raises(ResourceExhaustedError) as failure:
        await ticker.start(replace(SETTINGS, server_count=100_000))
    assert (failure.value.field, failure.value.reason) == ("server_count", "OVERLOADED")
    assert (ticker.settings, ticker.progress.running) == (SETTINGS, False)
    check_fits(10_000, 511, 8 << 30)


def test_what_can_be_taken_is_what_the_machine_and_the_control_group_leave(tmp_path: Path):
    meminfo, group = tmp_path / "meminfo", tmp_path / "group"
    assert available_bytes(meminfo, group) == 1 << 62
    meminfo.write_text("MemTotal: 4096 kB\nMemAvailable: 2048 kB\n")
    assert available_bytes(meminfo, group) == 2 << 20
    group.mkdir()
    (group / "memory.current").write_text("700000\n")
    for limit, expected in (("max\n", 2 << 20), ("1000000\n", 300_000), ("500000\n", 0)):
        (group / "memory.max").write_text(limit)
        assert available_bytes(meminfo, group) == expected
