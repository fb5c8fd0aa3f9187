"""When a breaker opens, and who closes it."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from openmanager.api.status.v1 import status_pb2
from openmanager.runtime import breaker as breaking
from openmanager.runtime.breaker import Breaker, NotAskedError
from openmanager.runtime.status import REST_SECONDS, Finding, Storage

OK, SLOW, DOWN, HUNG, READONLY = (
    status_pb2.STORAGE_STATE_OK,
    status_pb2.STORAGE_STATE_SLOW,
    status_pb2.STORAGE_STATE_DOWN,
    status_pb2.STORAGE_STATE_HUNG,
    status_pb2.STORAGE_STATE_READONLY,
)


@dataclass
class SetClock:
    """A clock that is set by hand."""

    now: float = 100.0

    def now_nanos(self) -> int:
        return int(self.now * 10**9)

    def monotonic(self) -> float:
        return self.now


class Called:
    """A breaker, and calls that take as long as they are told."""

    def __init__(self, operation: breaking.Operation = "reads") -> None:
        self.clock = SetClock()
        self.breaker = Breaker("Redis", operation, self.clock, random.Random(1))

    def answered(self, seconds: float = 0.0, allowance: float = 0.0) -> None:
        start = self.clock.now
        self.clock.now += seconds
        self.breaker.answered(start, allowance)

    def failed(self, times: int = 1) -> None:
        for _ in range(times):
            self.breaker.failed(self.clock.now, DOWN, "cannot be reached")

    def probed(self, *states: int) -> bool:
        """Probe once a second; say whether it is closed afterwards."""
        for state in states:
            self.clock.now += 1.0
            self.breaker.probed(state, "why")
        return not self.breaker.is_open

    def open_seconds(self) -> float:
        """Return how long it stays open when every other probe is good."""
        start = self.clock.now
        while self.breaker.is_open:
            self.clock.now += 0.05
            self.breaker.probed(SLOW)
            self.breaker.probed(OK)
        return self.clock.now - start


@pytest.fixture
def called() -> Called:
    return Called()


def test_five_failures_in_a_row_open_it_and_four_do_not(called: Called):
    called.failed(4)
    called.answered()
    called.failed(4)
    called.breaker.check()
    called.failed()
    with pytest.raises(NotAskedError, match="Redis does not answer") as refused:
        called.breaker.check()
    assert (refused.value.state, refused.value.why) == (DOWN, "cannot be reached")


def test_half_of_twenty_calls_that_are_slow_open_it_and_say_how_slow(called: Called):
    for _ in range(10):
        called.answered(0.01)
    for _ in range(9):
        called.answered(0.7)
    assert not called.breaker.is_open
    called.answered(0.8)
    assert called.breaker.is_open
    assert (called.breaker.state, called.breaker.reason) == (SLOW, "answers slowly: p95 700 ms")


def test_calls_that_fail_now_and_then_open_it_when_they_are_half(called: Called):
    for _ in range(9):
        called.answered()
        called.failed()
    assert not called.breaker.is_open
    called.answered()
    called.failed()
    assert called.breaker.is_open


def test_what_was_longer_ago_than_ten_seconds_does_not_count(called: Called):
    for _ in range(10):
        called.answered()
    for _ in range(9):
        called.answered(0.6)
    called.clock.now += 10.0
    called.answered(0.6)
    assert not called.breaker.is_open


def test_a_large_call_has_time_for_its_size(called: Called):
    for _ in range(30):
        called.answered(0.9, allowance=0.5)
    assert not called.breaker.is_open


def test_a_good_probe_closes_it_when_its_time_is_over(called: Called):
    called.failed(5)
    assert called.probed(DOWN, DOWN, DOWN, OK)
    called.breaker.check()


@pytest.mark.parametrize("state", [DOWN, HUNG, SLOW, READONLY])
def test_no_other_probe_closes_it_and_neither_do_calls_that_were_under_way(state: int):
    called = Called("writes")
    called.failed(5)
    assert not called.probed(state, state, state)
    called.answered()
    assert called.breaker.is_open


def test_a_probe_that_is_refused_opens_it_and_one_that_hangs_the_second_time(called: Called):
    assert not called.probed(DOWN)
    hung = Called()
    assert hung.probed(HUNG)
    hung.answered()
    assert hung.probed(HUNG)
    assert not hung.probed(HUNG)


def test_a_store_that_takes_no_writes_is_read():
    reads, writes = Called("reads"), Called("writes")
    assert reads.probed(READONLY)
    assert not writes.probed(READONLY)


def test_it_is_open_for_longer_each_time_it_flaps_up_to_a_limit(called: Called):
    found = []
    for _ in range(8):
        called.failed(5)
        found.append(called.open_seconds())
    for seconds, expected in zip(found, (1, 2, 4, 8, 16, 30, 30, 30), strict=True):
        assert expected * 0.8 <= seconds <= expected * 1.2 + 0.1
    assert called.breaker.flapping
    called.failed(5)
    assert called.breaker.reason == "cannot be reached, flapping"
    # Two good probes in a row are more than luck.
    assert called.probed(OK, OK)
    called.clock.now += breaking.CALM_SECONDS
    assert not called.breaker.flapping
    called.failed(5)
    assert called.open_seconds() <= 1.3


async def test_the_probe_of_a_store_tells_its_breakers_and_they_why_calls_are_kept_from_it():
    called, found = Called("writes"), Finding()

    async def look() -> Finding:
        return found

    store = Storage(name="redis", role="", engine="", check=look, clock=called.clock, breakers=(called.breaker,))
    await store.probe()
    assert store.finding.state == OK
    called.breaker.open(READONLY, "disk full")
    await store.probe()
    assert (store.finding.state, store.finding.reason) == (READONLY, "disk full")
    await store.probe()
    assert (store.finding.state, called.breaker.is_open) == (OK, False)
    found = Finding(state=READONLY, reason="is a replica")
    await store.probe()
    assert called.breaker.is_open


async def test_a_store_that_is_well_rests_unless_a_call_of_it_fails_or_somebody_asks(called: Called):
    found = Finding(state=OK)

    async def look() -> Finding:
        return found

    store = Storage(name="redis", role="", engine="", check=look, clock=called.clock, breakers=(called.breaker,))
    assert not store.rests()
    await store.probe()
    called.answered()
    assert store.rests()
    called.failed()
    assert not store.rests()
    called.clock.now += REST_SECONDS
    assert store.rests()
    store.stir()
    assert not store.rests()
    called.clock.now += REST_SECONDS
    found = Finding(state=HUNG)
    await store.probe()
    assert (store.finding.state, store.rests()) == (OK, False)  # what was found once has to be looked at again soon


def test_a_breaker_knows_when_calls_begin_and_are_answered(called: Called):
    assert not called.breaker.called.is_set()
    called.breaker.check()
    assert called.breaker.called.is_set()
    assert called.breaker.answered_at < called.breaker.called_at
    called.answered()
    assert called.breaker.answered_at >= called.breaker.called_at
