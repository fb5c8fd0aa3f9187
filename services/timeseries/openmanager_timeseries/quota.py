"""What one caller may take of what others need too: queries under way at once, new series a minute."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta

from openmanager.errors import Reason, ResourceExhaustedError
from openmanager.runtime.clock import Clock

MINUTE_SECONDS = 60.0
RETRY_AFTER = timedelta(seconds=1)


class QuerySlots:
    """Queries under way. Callers are not told apart yet: they share what one of them may have."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Hold a slot; ResourceExhaustedError when all are taken: whoever waited would only make it worse."""
        if self._taken >= self._limit:
            raise ResourceExhaustedError(
                f"more than {self._limit} queries are under way",
                reason=Reason.TOO_MANY_QUERIES,
                retry_after=RETRY_AFTER,
            )
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


class NewSeries:
    """New series that may come in each minute, from producers whose names nobody has planned."""

    def __init__(self, limit: int, clock: Clock) -> None:
        self._limit = limit
        self._clock = clock
        self._since = clock.monotonic()
        self._taken = 0

    @property
    def left(self) -> int:
        """How many may still come in this minute."""
        now = self._clock.monotonic()
        if now - self._since >= MINUTE_SECONDS:
            self._since, self._taken = now, 0
        return max(0, self._limit - self._taken)

    def take(self, count: int) -> None:
        """Take note that some have come."""
        self._taken += count
