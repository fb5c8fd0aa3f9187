"""The wall clock as far as it can be trusted: what it would say now, had it not jumped.

A clock that is set by hours loses nobody a sample: for a while admission takes what any of the clocks before and after
would have taken. Retention, which cannot be undone, waits for a day.
"""

from __future__ import annotations

import logging
from collections import deque

from openmanager.runtime.clock import Clock

# Less than that is a clock being corrected.
JUMP_NANOS = 10 * 10**9
ADMISSION_SECONDS = 600.0
RETENTION_SECONDS = 86_400.0

log = logging.getLogger(__name__)


class Wall:
    """Sees jumps of the wall clock against the monotonic one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset = self._look()
        # What lay between the clocks before each jump, and until when it was so, in monotonic seconds.
        self._before: deque[tuple[float, int]] = deque()

    def _look(self) -> int:
        return self._clock.now_nanos() - int(self._clock.monotonic() * 1e9)

    def range(self, seconds: float) -> tuple[int, int]:
        """Return the earliest and the latest of what the clocks of so many seconds ago say that it is now, nanoseconds."""
        moment = self._clock.monotonic()
        offset = self._look()
        if abs(offset - self._offset) > JUMP_NANOS:
            log.warning("the clock jumped by %.0f s", (offset - self._offset) / 1e9)
            self._before.append((moment, self._offset))
        self._offset = offset
        while self._before and self._before[0][0] < moment - RETENTION_SECONDS:
            self._before.popleft()
        now = int(moment * 1e9)
        offsets = [offset, *(earlier for until, earlier in self._before if until >= moment - seconds)]
        return now + min(offsets), now + max(offsets)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What an operator should know: that the clock jumped not long ago."""
        earliest, latest = self.range(ADMISSION_SECONDS)
        if latest - earliest <= JUMP_NANOS:
            return ()
        return (f"clock_jump: the clock jumped by {(latest - earliest) / 1e9:.0f} s not long ago",)
