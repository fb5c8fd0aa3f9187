"""How each pair of a rule and a subject is, as arrays: judged together, a time at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
IDLE, PENDING, FIRING = 0, 1, 2
# A sample that is further ahead than the log takes others is of an import, and is nobody's present.
AHEAD_NANOS = 900 * 10**9
_FIRST = 1024
_KEPT = ("state", "value", "since", "clear_since", "seen", "heard")


@dataclass(frozen=True, slots=True)
class Judged:
    """K different slots, int64[K]: whether their conditions hold, whether they are well, bool[K]; their values float64[K].

    Between the two, as a hysteresis has it, a slot stays as it is. What is missing must not be among them.
    """

    slots: Ints
    over: Bools
    well: Bools
    values: Floats

    def only(self, chosen: Bools) -> Judged:
        """Return the chosen ones, all of them as they are."""
        if chosen.all():
            return self
        return Judged(self.slots[chosen], self.over[chosen], self.well[chosen], self.values[chosen])


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Slots that went from one state to another, int64[K] each."""

    pending: Ints
    firing: Ints
    dropped: Ints  # pending ones whose condition no longer holds; those that begin anew are among `pending` too
    resolved: Ints

    def __bool__(self) -> bool:
        return any(len(each) for each in (self.pending, self.firing, self.dropped, self.resolved))


NOTHING = Moved(**dict.fromkeys(("pending", "firing", "dropped", "resolved"), np.empty(0, np.int64)))


class Slots:
    """The states of slots; times in nanoseconds.

    state int8, since (when the condition began to hold), clear_since (when it ceased to, 0 while it holds), seen (the time
    of the newest sample), heard (when that came), value; and of its rule hold, clear, stale: the times that decide.
    """

    def __init__(self) -> None:
        self.count = 0
        self.state = np.zeros(_FIRST, np.int8)
        self.value = np.full(_FIRST, np.nan)
        self.since, self.clear_since, self.seen, self.heard, self.hold, self.clear, self.stale = np.zeros(
            (7, _FIRST), np.int64
        )

    def add(self, *, hold: int, clear: int, stale: int) -> int:
        """Return a new slot of a rule with such times."""
        slot = self.count
        if slot == len(self.state):
            self._grow()
        self.count += 1
        self.hold[slot], self.clear[slot], self.stale[slot] = hold, clear, stale
        return slot

    def _grow(self) -> None:
        for name in (*_KEPT, "hold", "clear", "stale"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros_like(old)]))

    def document(self, slot: int) -> dict[str, Any]:
        """Return how a slot is, for `restore`."""
        return {name: getattr(self, name)[slot].item() for name in _KEPT}

    def restore(self, slot: int, stored: Mapping[str, Any]) -> None:
        """Undo `document`; LookupError, TypeError or ValueError when it is none."""
        for name in _KEPT:
            getattr(self, name)[slot] = stored[name]

    def _put_back(self, slots: Ints, time: int) -> None:
        """Have slots go on from a time: a clock that was ahead and was put back must not hide what is measured now."""
        for times in (self.seen, self.since, self.clear_since):
            times[slots] = np.minimum(times[slots], time - 1)

    def observe(self, judged: Judged, time: int, heard: int | Ints) -> Moved:
        """Take what was measured at a time and came at `heard`; what is older than the newest sample of a slot is left out."""
        slots, over = judged.slots, judged.over
        ahead = self.seen[slots] > heard + AHEAD_NANOS
        if ahead.any():
            self._put_back(slots[ahead], time)
        live = np.flatnonzero((over | (self.state[slots] != IDLE)) & (self.seen[slots] < time))
        seen = self.seen[slots]
        if not len(live):
            self.seen[slots] = np.maximum(seen, time)
            return NOTHING
        # A condition that nobody saw hold has not held.
        gap = (time - seen[live]) > self.stale[slots[live]]
        self.seen[slots] = np.maximum(seen, time)
        heard = np.broadcast_to(heard, seen.shape)[live]
        slots, over, well = slots[live], over[live], judged.well[live]
        self.value[slots], self.heard[slots] = judged.values[live], heard
        state, since = self.state[slots], self.since[slots]
        idle, pending, firing = state == IDLE, state == PENDING, state == FIRING

        begins = idle | (pending & gap)
        since = np.where(over & begins, time, since)
        holds = over & ~firing
        fires = holds & (time - since >= self.hold[slots])
        starts = holds & begins & ~fires
        drops = pending & (~over | gap)

        clear_since = self.clear_since[slots]
        is_well = firing & well
        clear_since = np.where(is_well, np.where((clear_since == 0) | gap, time, clear_since), 0)
        resolves = is_well & (time - clear_since >= self.clear[slots])

        ends = (drops & ~over) | resolves
        state = np.where(fires, FIRING, np.where(starts, PENDING, np.where(ends, IDLE, state)))
        self.state[slots], self.since[slots] = state, since
        self.clear_since[slots] = np.where(resolves, 0, clear_since)
        return Moved(pending=slots[starts], firing=slots[fires], dropped=slots[drops], resolved=slots[resolves])
