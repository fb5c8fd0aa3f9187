"""Callers of Redis who give up, on the mesh's own Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from datetime import timedelta

from conftest import Mesh, secret
from openmanager_cache.backends.redis import open_redis
from redis.asyncio import Redis

from openmanager.config import Secret
from openmanager.runtime.clock import SystemClock

CONNECTIONS = 4
# Services of the mesh may connect meanwhile.
OTHERS = 8


async def test_commands_that_are_given_up_leave_their_connections_to_others(mesh: Mesh):
    url = secret(mesh, "cache", "REDIS_URL")
    store = open_redis(
        Secret(url),
        prefix=f"{uuid.uuid4().hex}:",
        seconds=2.0,
        connect_seconds=2.0,
        connections=CONNECTIONS,
        clock=SystemClock(),
    )
    keys = [str(at) for at in range(50)]
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        admin = await stack.enter_async_context(Redis.from_url(url))
        await store.set_many({key: (key.encode(), timedelta(minutes=1)) for key in keys})
        before = (await admin.info("stats"))["total_connections_received"]
        for at, key in enumerate(keys * 4):
            command = asyncio.create_task(store.get_many([key]))
            for _ in range(at % 5):
                await asyncio.sleep(0)
            command.cancel()
            assert await store.get_many([key]) == [key.encode()]
        made = (await admin.info("stats"))["total_connections_received"] - before
    assert made <= CONNECTIONS + OTHERS
