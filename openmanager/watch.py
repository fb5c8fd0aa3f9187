"""What every watch needs: a bell that wakes who waits for a change, and tokens to go on with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from openmanager.errors import OutOfRangeError, Reason

# Changes are counted from 1; nobody counts that far, and Python refuses to read thousands of digits.
MAX_DIGITS = 20


class Bell:
    """Wakes all who wait for a change."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake them."""
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def wait_until(self, is_so: Callable[[], bool], seconds: float) -> bool:
        """Return True once something is so, looking at every ring, or False after some seconds."""
        try:
            async with asyncio.timeout(seconds):
                while not is_so():
                    await self._event.wait()
        except TimeoutError:
            return False
        return True


def token_of(epoch: str, change: int) -> str:
    """Return the token that a watch goes on with after a change; `epoch` tells one life of what is watched from another."""
    return f"{epoch}-{change}"


def change_of(token: str, epoch: str, *, oldest: int, newest: int) -> int | None:
    """Return the change that a token names, None for an empty one.

    OutOfRangeError for one of another life, of what was forgotten, or of what has not been.
    """
    if not token:
        return None
    life, _, change = token.partition("-")
    is_number = change.isascii() and change.isdigit() and len(change) < MAX_DIGITS
    if life != epoch or not is_number or not oldest <= int(change) <= newest:
        raise compacted()
    return int(change)


def compacted() -> OutOfRangeError:
    """Return what is said to who has missed more than is kept."""
    return OutOfRangeError(
        "the resume token is too old: watch again without one",
        reason=Reason.HISTORY_COMPACTED,
        field="resume_token",
    )
