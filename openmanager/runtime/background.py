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
    while one that went on without would serve what gets older, and nobody would know why. What fails in the context
    itself is raised as it is.
    """
    own: Exception | None = None
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each, name=each.__qualname__) for each in work]  # type: ignore[attr-defined]
        for task in tasks:
            task.add_done_callback(_tell)
        try:
            yield
        except Exception as err:  # noqa: BLE001  (raised below, where the group cannot wrap it)
            own = err
        finally:
            for task in tasks:
                task.cancel()
    if own is not None:
        raise own


def _tell(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (failure := task.exception()) is not None:
        log.critical("%s failed: the server ends", task.get_name(), exc_info=failure)
