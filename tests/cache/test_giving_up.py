"""Callers of Redis who give up, on the mesh's own Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import uuid
from datetime import timedelta

from conftest import Mesh, secret, wait_until
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


async def test_a_command_that_fails_after_its_caller_gave_up_costs_no_line_in_the_log():
    loop, said = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: said.append(context))
    try:
        with socket.create_server(("127.0.0.1", 0)) as hung:
            store = open_redis(
                Secret(f"redis://127.0.0.1:{hung.getsockname()[1]}/0"),
                prefix="",
                seconds=0.2,
                connect_seconds=0.2,
                connections=1,
                clock=SystemClock(),
            )
            caller = asyncio.create_task(store.get_many(["a"]))

            async def is_under_way() -> bool:
                return bool(store._under_way)

            async def is_over() -> bool:
                return not store._under_way

            await wait_until(is_under_way)
            caller.cancel()
            await asyncio.wait([caller])
            await wait_until(is_over)
            await store.close()
        del caller  # it holds the command
        gc.collect()
        assert said == []
    finally:
        loop.set_exception_handler(None)
