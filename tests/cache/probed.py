"""A store of hot state as the cache service has it: probed in the background."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from conftest import wait_until
from openmanager_cache.backends.redis import RedisStore, open_redis

from openmanager.api.status.v1 import status_pb2
from openmanager.config import Secret
from openmanager.errors import UnavailableError
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.status import Storage

PROBE_SECONDS = 0.1
VALUE = {"key": (b"value", timedelta(minutes=1))}


def storage(store: RedisStore) -> Storage:
    return Storage(
        name="redis", role="hot state", engine="redis", check=store.look, clock=SystemClock(), breakers=store.breakers
    )


@contextlib.asynccontextmanager
async def opened(
    url: Secret, *, connections: int = 4, seconds: float = 0.15
) -> AsyncIterator[tuple[RedisStore, Storage]]:
    """A store as the cache service has it, probed more often."""
    store = open_redis(
        url,
        prefix="t:",
        seconds=seconds,
        connect_seconds=max(seconds, 0.2),
        connections=connections,
        clock=SystemClock(),
    )
    shown = storage(store)

    async def probe() -> None:
        while True:
            await shown.probe()
            await asyncio.sleep(PROBE_SECONDS)

    task = asyncio.create_task(probe())
    try:
        yield store, shown
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.close()


async def until(shown: Storage, state: int, reason: str = "") -> None:
    await until_one_of(shown, (state, reason))


async def until_one_of(shown: Storage, *told: tuple[int, str]) -> None:
    async def is_told() -> bool:
        return (shown.finding.state, shown.finding.reason) in told

    try:
        await wait_until(is_told, 8)
    except AssertionError:
        pytest.fail(f"it is {status_pb2.StorageState.Name(shown.finding.state)}: {shown.finding.reason}")


async def until_written(store: RedisStore) -> None:
    async def is_written() -> bool:
        with contextlib.suppress(UnavailableError):
            await store.set_many(VALUE)
            return True
        return False

    await wait_until(is_written, 8)
