"""The time of the samples: how far apart they are, and where in the day and the week they fall."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

DAY_SECONDS = 86400.0
HOUR_SECONDS = 3600.0
SLOT_SECONDS = 900.0
SLOTS, HOURS = 96, 168

_REMEMBERED = 9
_LEAST_DAY = 48.0
_FIRST_INTERVAL = 300.0
_THURSDAY_HOURS = 72  # 1970-01-01 was a Thursday; the week begins on Monday


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One tick in time.

    interval: seconds from sample to sample as they mostly come; steps: intervals since the tick before, at least 1;
    slot and next_slot: quarters of an hour of the day whose curve is read, with the weight of the second; hour: of the week.
    """

    interval: float
    steps: float
    slot: int
    next_slot: int
    next_weight: float
    hour: int

    def samples(self, seconds: float) -> float:
        """Return how many samples this time holds."""
        return seconds / self.interval

    @property
    def day(self) -> float:
        """How many samples a day holds; 48 at the least, so that days of few samples are not believed too soon."""
        return max(self.samples(DAY_SECONDS), _LEAST_DAY)


class Clock:
    """Follows the stamps; the interval is the median of the last few, so that it follows a change and no gap."""

    STATE: ClassVar[tuple[str, ...]] = ("first_millis", "last_millis", "recent")

    def __init__(self) -> None:
        self.first_millis = np.full(1, -1, dtype=np.int64)
        self.last_millis = np.full(1, -1, dtype=np.int64)
        self.recent: NDArray[np.float64] = np.zeros(0)

    def tick(self, time_unix_millis: int) -> Moment:
        """Take the next stamp. Raises ValueError where it is not after the last."""
        passed = self._pass(time_unix_millis)
        interval = float(sorted(self.recent)[len(self.recent) // 2]) if len(self.recent) else _FIRST_INTERVAL
        place = time_unix_millis / 1000 % DAY_SECONDS / SLOT_SECONDS
        slot = int(place)
        beside = place - slot - 0.5 if interval < SLOT_SECONDS else 0.0
        return Moment(
            interval=interval,
            steps=max(passed / interval, 1.0),
            slot=slot,
            next_slot=(slot + (1 if beside > 0 else -1)) % SLOTS,
            next_weight=abs(beside),
            hour=int(time_unix_millis // 3_600_000 + _THURSDAY_HOURS) % HOURS,
        )

    def step_back(self, time_unix_millis: int) -> int:
        """Go on one interval before a stamp that is not after the last; return by how many milliseconds that is back."""
        interval = float(np.median(self.recent)) if len(self.recent) else _FIRST_INTERVAL
        back = int(self.last_millis[0]) - time_unix_millis + round(interval * 1000)
        self.first_millis -= back
        self.last_millis -= back
        return back

    def _pass(self, time_unix_millis: int) -> float:
        last = int(self.last_millis[0])
        if last < 0:
            self.first_millis[0] = self.last_millis[0] = time_unix_millis
            return 0.0
        if time_unix_millis <= last:
            raise ValueError(f"ticks come in order: {time_unix_millis} is not after {last}")
        passed = (time_unix_millis - last) / 1000
        self.last_millis[0] = time_unix_millis
        self.recent = np.append(self.recent[-_REMEMBERED + 1 :], passed)
        return passed
