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
# A metric that comes seldom is waited for: half as long again as the shorter of the last two times from sample to sample,
# so that one gap is not taken for a habit; up to a day.
LATE, _MAX_PACE = 1.5, 86_400 * 10**9
_KEPT = ("state", "value", "since", "clear_since", "seen", "heard")
# Files from before have none of these.
_ADDED = ("pace", "interval", "last", "last_nanos", "beat")


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
    of the newest sample), heard (when that came), interval (from the one before to it, 0 where that is no longer than stale), pace (the shorter of it and the one
    before), value; last and last_nanos (the
    newest sample of what is judged by its growth, NaN and 0 for none); beat (up to when the log was listened to when its
    subject sent something, 0 for never); and of its rule hold, clear, stale, absent: the times that decide.
    """

    def __init__(self) -> None:
        self.count = 0
        self.state = np.zeros(_FIRST, np.int8)
        self.value = np.full(_FIRST, np.nan)
        self.last = np.full(_FIRST, np.nan)
        self.since, self.clear_since, self.seen, self.heard, self.hold, self.clear, self.stale = np.zeros(
            (7, _FIRST), np.int64
        )
        self._has_seldom = False  # whether any interval was longer than stale: most fleets have none such
        self.pace, self.interval, self.last_nanos, self.beat, self.absent = np.zeros((5, _FIRST), np.int64)

    def add(self, *, hold: int, clear: int, stale: int, absent: int = 0) -> int:
        """Return a new slot of a rule with such times."""
        slot = self.count
        if slot == len(self.state):
            self._grow()
        self.count += 1
        self.hold[slot], self.clear[slot], self.stale[slot], self.absent[slot] = hold, clear, stale, absent
        self.last[slot] = np.nan
        return slot

    def _grow(self) -> None:
        for name in (*_KEPT, *_ADDED, "hold", "clear", "stale", "absent"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros_like(old)]))

    def document(self, slots: Ints) -> dict[str, NDArray[Any]]:
        """Return how slots int64[K] are, as columns; `restore` takes a row of them."""
        return {name: getattr(self, name)[slots] for name in (*_KEPT, *_ADDED)}

    def restore(self, slot: int, stored: Mapping[str, Any]) -> None:
        """Undo `document`; LookupError, TypeError or ValueError when it is none."""
        for name in _KEPT:
            getattr(self, name)[slot] = stored[name]
        for name in _ADDED:
            if stored.get(name) is not None:  # NaN is stored as null
                getattr(self, name)[slot] = stored[name]
        self._has_seldom |= bool(self.interval[slot])

    def patience(self, slots: Ints) -> Ints:
        """Return after how long without a sample nobody knows any more, int64[K]."""
        if not self._has_seldom:
            return self.stale[slots]
        return np.maximum(self.stale[slots], (LATE * self.pace[slots]).astype(np.int64))

    def growth(self, slots: Ints, values: Floats, time: int, heard: int) -> Floats:
        """Return by how much values float64[K] grew in a second since the last of their slots, and note them.

        NaN for the first, and for one that is not newer. What is smaller than before is of a counter that began anew at 0.
        """
        before, then = self.last[slots], self.last_nanos[slots]
        # A clock was ahead, and is put back.
        before = np.where(then > heard + AHEAD_NANOS, np.nan, before)
        is_new = ~np.isnan(values) & ((then < time) | np.isnan(before))
        passed = np.where(then < time, (time - then) / 1e9, np.nan)
        grown = np.where(values < before, values, values - before) / passed
        self.last[slots[is_new]], self.last_nanos[slots[is_new]] = values[is_new], time
        return np.where(is_new & ~np.isnan(before), grown, np.nan)

    def _put_back(self, slots: Ints, time: int) -> None:
        """Have slots go on from a time: a clock that was ahead and was put back must not hide what is measured now."""
        for times in (self.seen, self.since, self.clear_since):
            times[slots] = np.minimum(times[slots], time - 1)

    def _note(self, slots: Ints, seen: Ints, time: int) -> None:
        passed = time - seen
        is_seldom = (passed > self.stale[slots]) & (seen > 0)
        if self._has_seldom or is_seldom.any():
            self._has_seldom = True
            before, is_next = self.interval[slots], passed > 0
            passed = np.where(is_seldom, np.minimum(passed, _MAX_PACE), 0)
            self.pace[slots] = np.where(is_next, np.minimum(before, passed), self.pace[slots])
            self.interval[slots] = np.where(is_next, passed, before)
        self.seen[slots] = np.maximum(seen, time)

    def observe(self, judged: Judged, time: int, heard: int | Ints) -> Moved:
        """Take what was measured at a time and came at `heard`; what is older than the newest sample of a slot is left out."""
        slots, over = judged.slots, judged.over
        ahead = self.seen[slots] > heard + AHEAD_NANOS
        if ahead.any():
            self._put_back(slots[ahead], time)
        live = np.flatnonzero((over | (self.state[slots] != IDLE)) & (self.seen[slots] < time))
        seen = self.seen[slots]
        if not len(live):
            self._note(slots, seen, time)
            return NOTHING
        # A condition that nobody saw hold has not held.
        gap = (time - seen[live]) > self.patience(slots[live])
        self._note(slots, seen, time)
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


def rows(columns: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Return columns of `count` entries each, as `Slots.document` makes them, by row; ValueError for another length."""
    lists = [each.tolist() if isinstance(each, np.ndarray) else each for each in columns.values()]
    if any(len(each) != count for each in lists):
        raise ValueError("the columns are not of the alerts")
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]
