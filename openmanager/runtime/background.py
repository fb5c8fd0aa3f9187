"""Work that goes on beside what a server serves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def working(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run work for the life of the context.

    Work that fails ends the context with an ExceptionGroup, and so the server: whoever supervises it starts it anew,
    while one that went on without would serve what gets older, and nobody would know why.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_told(each)) for each in work]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def _told(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:
        log.critical("%s failed: the server ends", work.__qualname__, exc_info=True)  # type: ignore[attr-defined]
        raise
