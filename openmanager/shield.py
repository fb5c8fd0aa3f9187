"""Work that goes to its end: files change in threads, which nobody stops when the caller goes away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")


async def shielded(work: Coroutine[Any, Any, T]) -> T:
    """Return what some work returns; when the caller is cancelled the work goes on, with all the locks that it holds."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            _left_alone.add(task)
            task.add_done_callback(_ended)
        raise


# The loop itself keeps no hold of a task.
_left_alone: set[asyncio.Future[Any]] = set()


def _ended(task: asyncio.Future[Any]) -> None:
    _left_alone.discard(task)
    with contextlib.suppress(asyncio.CancelledError):
        if (failure := task.exception()) is not None:
            log.warning("what nobody waits for any more failed: %s", type(failure).__name__)
