"""The two clocks, to be injected: one for what time it is, one for how long something took."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    """Tells the time and measures durations."""

    def now_nanos(self) -> int:
        """Return nanoseconds since the epoch; may jump."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back; for durations."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_nanos(self) -> int:
        """Return nanoseconds since the epoch."""
        return time.time_ns()

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return time.monotonic()


def to_datetime(nanos: int) -> datetime:
    """Return the aware datetime of nanoseconds since the epoch, truncated to microseconds."""
    return _EPOCH + timedelta(microseconds=nanos // 1000)


def show_time(nanos: int) -> str:
    """Return nanoseconds since the epoch as RFC 3339, truncated to milliseconds."""
    return to_datetime(nanos).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def until_next(seconds: float) -> float:
    """Return the seconds until the monotonic clock shows a multiple of `seconds`.

    Whoever does something now and then does it at such a moment: a process with nothing else to do is woken once for all.
    """
    return seconds - time.monotonic() % seconds
