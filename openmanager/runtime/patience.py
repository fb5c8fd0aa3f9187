"""How long a stream is waited for."""

from __future__ import annotations

import asyncio
import math
from types import TracebackType

from openmanager.errors import DeadlineExceededError, OpenManagerError, Reason, ResourceExhaustedError
from openmanager.runtime.gate import Pass


class Patience:
    """Gives up a stream whose other side leaves it waiting; looks now and then, so that waiting costs nothing.

    A reader may leave a message for `write_seconds`: what waits for it must not fill memory. A sender may be silent for
    `idle_seconds` once each of its messages is answered; while one is not, it is we who are waited for. And who may not
    come in any more, by what they `held`, does not stay; but a message is sent whole, or how it ended would not be told.
    """

    def __init__(self, held: Pass, *, write_seconds: float, idle_seconds: float) -> None:
        self._held = held
        self._write_seconds = write_seconds
        self._idle_seconds = idle_seconds
        self._offered = self._silent = math.inf  # since when on the loop's clock
        self._listens = False
        self._unanswered = 0
        self._unread = False
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None
        self._now = asyncio.get_running_loop().time

    def offers(self) -> None:
        """Note that a message waits to be read."""
        self._offered = self._now()

    def is_read(self) -> None:
        """Note that it was taken; what `held` has come to is raised."""
        self._offered = math.inf
        if self._held.error is not None:
            raise self._held.error
        self._unanswered -= 1
        if self._listens and self._unanswered <= 0:
            self._silent = self._now()

    def listens(self) -> None:
        """Note that a message is waited for."""
        self._listens = True
        if self._unanswered <= 0:
            self._silent = self._now()

    def hears(self) -> None:
        """Note that it came, or that none will."""
        self._listens = False
        self._silent = math.inf
        self._unanswered += 1

    async def __aenter__(self) -> None:
        if self._held.error is not None:
            raise self._held.error
        await self._timeout.__aenter__()
        self._held.streams.add(self._look)
        self._look()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.streams.discard(self._look)
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as err:
            raise self._error() from err

    def _look(self) -> None:
        now = self._now()
        unread, idle = min(self._offered, now) + self._write_seconds, min(self._silent, now) + self._idle_seconds
        self._unread = unread <= now
        if self._timer is not None:
            self._timer.cancel()
        ended = self._held.error is not None and self._offered == math.inf
        if ended or min(unread, idle) <= now:
            self._held.streams.discard(self._look)  # a timeout that has begun to end the stream takes no other time
            self._timeout.reschedule(now)
        else:
            self._timer = asyncio.get_running_loop().call_at(min(unread, idle), self._look)

    def _error(self) -> OpenManagerError:
        if self._held.error is not None:
            return self._held.error
        if self._unread:
            return ResourceExhaustedError(
                f"the stream was not read for {self._write_seconds:g} s", reason=Reason.WATCH_TOO_SLOW
            )
        return DeadlineExceededError(f"nothing was sent for {self._idle_seconds:g} s", reason=Reason.STREAM_IDLE)
