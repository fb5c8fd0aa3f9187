"""What can be made of a fault's name: of a store, of a service, of several at once."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from chaos import history_files
from chaos.proxy import Trouble, Way
from chaos.world import World


@contextlib.asynccontextmanager
async def made(world: World, parts: Sequence[str], fault: str, options: Mapping[str, Any]) -> AsyncIterator[None]:
    """Let something happen to parts, all at the same time, for as long as the block runs."""
    async with contextlib.AsyncExitStack() as stack:
        for name in parts:
            await stack.enter_async_context(one(world, name, fault, options))
        yield


def one(
    world: World, name: str, fault: str, options: Mapping[str, Any]
) -> contextlib.AbstractAsyncContextManager[None]:
    """Return the fault of one part: something of the wire, of its files, or what its class can do to it."""
    part = world.part(name)
    if fault == "trouble":
        silent = frozenset(map(Way, options.get("silent", ())))
        return part.trouble(Trouble(**{**options, "silent": silent}))
    if fault == "absent at start":
        return absent_at_start(world, name, **options)
    if fault == "clock jumped":
        return world.clock_jumped(**options)
    if fault in history_files.CHANGES:
        change = history_files.CHANGES[fault]
        return part.restarted_with(lambda: change(part.folder))
    made_: contextlib.AbstractAsyncContextManager[None] = getattr(part, fault.replace(" ", "_"))(**options)
    return made_


@contextlib.asynccontextmanager
async def absent_at_start(world: World, store: str, user: str) -> AsyncIterator[None]:
    """Let a service start while a store that it uses is not there."""
    async with world.part(store).proxy.while_(Trouble(down=True)):
        await world.services[user].restart()
        yield
