"""How stores are: looked at now and then while they are well, at once when somebody asks, or a call of them fails."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest
from conftest import wait_until

from openmanager.api.status.v1 import status_pb2
from openmanager.api.status.v1.status_pb2 import StorageState
from openmanager.runtime import status
from openmanager.runtime.breaker import Breaker
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.status import Finding, StatusReporter, Storage

OK, SLOW, DOWN, HUNG = (
    status_pb2.STORAGE_STATE_OK,
    status_pb2.STORAGE_STATE_SLOW,
    status_pb2.STORAGE_STATE_DOWN,
    status_pb2.STORAGE_STATE_HUNG,
)
CLOCK = SystemClock()


@pytest.fixture(autouse=True)
def long_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody look at a store that rests without a reason."""
    monkeypatch.setattr(status, "REST_INTERVAL_SECONDS", 1e6)


@contextlib.asynccontextmanager
async def reporting(store: Storage) -> AsyncIterator[StatusReporter]:
    async def rests() -> bool:
        return store.resting

    reporter = StatusReporter(service="cache", address="", version="", clock=store.clock, storages=[store])
    async with reporter.probing():
        await wait_until(rests, 5)
        yield reporter


async def told(reporter: StatusReporter) -> StorageState.ValueType:
    reply = await reporter.GetStatus(status_pb2.GetStatusRequest(), None)
    return reply.status.storages[0].state


async def test_whoever_asks_for_a_store_that_rests_is_told_how_it_is_now():
    away = False

    async def look() -> Finding:
        if away:
            raise ConnectionRefusedError
        return Finding()

    store = Storage(name="redis", role="", engine="", check=look, clock=CLOCK)
    async with reporting(store) as reporter:
        assert store.finding.state == OK
        away = True
        assert await told(reporter) == DOWN


async def test_a_store_that_rests_and_does_not_tell_at_once_answers_slowly_and_then_hangs(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(status, "SLOW_SECONDS", 0.02)
    monkeypatch.setattr(status, "PROBE_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(status, "PROBE_INTERVAL_SECONDS", 0.05)
    hangs = asyncio.Event()

    async def look() -> Finding:
        if hangs.is_set():
            await asyncio.Event().wait()
        return Finding()

    store = Storage(name="redis", role="", engine="", check=look, clock=CLOCK)
    async with reporting(store) as reporter:
        hangs.set()
        assert await told(reporter) == SLOW
        assert await store.bell.wait_until(lambda: store.finding.state == HUNG, 5)
        assert await told(reporter) == HUNG


async def test_a_call_that_fails_has_a_store_that_rests_looked_at_at_once():
    breaker, away = Breaker("Redis", "reads", CLOCK, random.Random(1)), False

    async def look() -> Finding:
        if away:
            raise ConnectionRefusedError
        return Finding()

    store = Storage(name="redis", role="", engine="", check=look, clock=CLOCK, breakers=(breaker,))
    async with reporting(store):
        away = True
        breaker.failed(CLOCK.monotonic(), DOWN, "cannot be reached")
        assert await store.bell.wait_until(lambda: breaker.is_open, 5)
        assert store.finding.state == DOWN
