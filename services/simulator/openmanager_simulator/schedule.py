"""The faults that come by themselves: 2–9 a day for each group of twenty servers, drawn for 64 days at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmanager_simulator.fault import DURATIONS, SECOND, Fault, FaultPattern, Hit, hits, plan_fault
from openmanager_simulator.fleet import GROUP, make_server
from openmanager_simulator.noise import generator
from openmanager_simulator.season import LAST_DAY

DAY = 86_400 * SECOND
ERA_DAYS = 64
_ERA = ERA_DAYS * DAY
# Hosts were started in 2020 and later; what happened before is not counted.
_FIRST_ERA = 18_262 // ERA_DAYS
_FEWEST, _MOST = 2, 9
_PATTERNS = tuple(FaultPattern)
_KEPT = 16
_SHORTEST = np.asarray([DURATIONS[pattern][0] for pattern in _PATTERNS]) * 60.0
_LONGEST = np.asarray([DURATIONS[pattern][1] for pattern in _PATTERNS]) * 60.0
_LATENCY = _PATTERNS.index(FaultPattern.NETWORK_LATENCY)
_LEAK = _PATTERNS.index(FaultPattern.MEMORY_LEAK)
_CASCADE = _PATTERNS.index(FaultPattern.CASCADE_FAILURE)


# One entry a fault: server (its index in any fleet), day since the epoch and number in it, times in nanoseconds.
_FAULT = np.dtype(
    [
        ("server", np.int64),
        ("day", np.int64),
        ("number", np.int64),
        ("pattern", np.int64),
        ("start", np.int64),
        ("end", np.int64),
        ("severity", np.float64),
        ("seed", np.int64),
    ]
)
Drawn = NDArray[np.void]


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """What is left of faults that are over.

    `trouble`: float64[S], seconds of network trouble, weighted by severity. `restart`: int64[S], when processes were
    restarted last, 0 for never.
    """

    trouble: NDArray[np.float64]
    restart: NDArray[np.int64]

    @classmethod
    def nothing(cls, servers: int) -> Past:
        """Return what is left of no faults."""
        return cls(np.zeros(servers), np.zeros(servers, np.int64))


def draw(seed: int, group: int, era: int) -> Drawn:
    """Return the faults of a group that begin in an era: an array of _FAULT, by day."""
    random = generator("schedule", seed, group, era)
    counts = random.integers(_FEWEST, _MOST + 1, ERA_DAYS)
    found = np.zeros((ERA_DAYS, _MOST), _FAULT)
    found["day"] = np.arange(ERA_DAYS)[:, None] + era * ERA_DAYS
    found["number"] = np.arange(_MOST)
    found["pattern"] = random.integers(len(_PATTERNS), size=found.shape)
    found["server"] = group * GROUP + random.integers(GROUP, size=found.shape)
    found["start"] = found["day"] * DAY + random.integers(DAY // SECOND, size=found.shape) * SECOND
    shortest, longest = _SHORTEST[found["pattern"]], _LONGEST[found["pattern"]]
    found["end"] = found["start"] + np.floor(shortest + random.random(found.shape) * (longest - shortest)) * SECOND
    found["severity"] = np.rint((0.3 + 0.7 * random.random(found.shape)) * 100.0) / 100.0
    found["seed"] = random.integers(1 << 62, size=found.shape)
    return found[found["number"] < counts[:, None]]


class Schedule:
    """The scheduled faults of servers `first` … `first + count − 1`, without those in `cleared` (ids)."""

    def __init__(self, seed: int, first: int, count: int, cleared: frozenset[str] = frozenset()) -> None:
        self._seed = seed
        self._first, self._count = first, count
        self._cleared = [key for each in cleared if (key := self._parse(each)) is not None]
        self._eras: OrderedDict[int, Drawn] = OrderedDict()
        self._sums: tuple[int, Past] = (_FIRST_ERA, Past.nothing(count))
        self._lock = threading.RLock()

    def _era(self, era: int) -> Drawn:
        with self._lock:
            found = self._eras.get(era)
            if found is None:
                groups = range(self._first // GROUP, (self._first + self._count - 1) // GROUP + 1)
                found = np.concatenate([draw(self._seed, group, era) for group in groups])
                ours = (found["server"] >= self._first) & (found["server"] < self._first + self._count)
                ours |= found["pattern"] == _CASCADE  # it may spread to ours
                for group, day, number in self._cleared:
                    ours &= (found["server"] // GROUP != group) | (found["day"] != day) | (found["number"] != number)
                found = found[ours]
                self._eras[era] = found
                while len(self._eras) > _KEPT:
                    self._eras.popitem(last=False)
            return found

    def _parse(self, fault_id: str) -> tuple[int, int, int] | None:
        """Return group, day and number of an id, None when it is none of this schedule."""
        name, *parts = fault_id.split("-")
        numeric = all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts)
        if name != "scheduled" or len(parts) != 4 or not numeric or int(parts[0]) != self._seed:
            return None
        return int(parts[1]), int(parts[2]), int(parts[3])

    def between(self, start: int, end: int) -> Drawn:
        """Return what reaches into [start, end) nanoseconds, the newest first; a cascade if its root's group is ours."""
        first = (start - DAY) // _ERA  # nothing lasts a day
        found = np.concatenate([self._era(era) for era in range(first, (end - 1) // _ERA + 1)])
        found = found[(found["start"] < end) & (found["end"] > start)]
        return found[np.lexsort((found["number"], found["server"], -found["start"]))]

    def fault(self, row: np.void) -> Fault:
        """Return one of them whole."""
        server = int(row["server"])
        return plan_fault(
            id=f"scheduled-{self._seed}-{server // GROUP}-{row['day']}-{row['number']}",
            pattern=_PATTERNS[int(row["pattern"])],
            servers=(make_server(server).id,),
            start_nanos=int(row["start"]),
            end_nanos=int(row["end"]),
            severity=float(row["severity"]),
            seed=int(row["seed"]),
            origin="scheduled",
        )

    def find(self, fault_id: str) -> Fault | None:
        """Return the fault of an id, None when it is not of this schedule."""
        key = self._parse(fault_id)
        if key is None or not self._first <= key[0] * GROUP < self._first + self._count or key[1] > LAST_DAY:
            return None
        drawn = self._era(key[1] // ERA_DAYS)
        chosen = (drawn["server"] // GROUP == key[0]) & (drawn["day"] == key[1]) & (drawn["number"] == key[2])
        return self.fault(drawn[chosen][0]) if chosen.any() else None

    def hits(self, start: int, end: int) -> list[Hit]:
        """Return what servers feel at some time in [start, end] nanoseconds."""
        found = [hit for row in self.between(start, end + 1) for hit in hits(self.fault(row))]
        return [hit for hit in found if hit.start_nanos <= end]

    def past(self, time: int) -> Past:
        """Return what is left at a time of faults that were over by then."""
        era = time // _ERA
        found = self._sum_before(era - 1)
        for each in (era - 1, era):
            if each >= _FIRST_ERA:
                found = self._add(found, self._era(each), time)
        return found

    def _sum_before(self, era: int) -> Past:
        """Return what is left of the faults that began before an era, all of which were over a day after it began."""
        with self._lock:
            at, found = self._sums
            if era < at:
                at, found = _FIRST_ERA, Past.nothing(self._count)
            for each in range(at, era):
                found = self._add(found, self._era(each), (each + 2) * _ERA)
            if era >= _FIRST_ERA:
                self._sums = (era, found)
            return found

    def _add(self, past: Past, drawn: Drawn, time: int) -> Past:
        over = drawn[drawn["end"] <= time]
        slow, leak = over[over["pattern"] == _LATENCY], over[over["pattern"] == _LEAK]
        trouble, restart = past.trouble.copy(), past.restart.copy()
        seconds = (slow["end"] - slow["start"]) / float(SECOND)
        np.add.at(trouble, slow["server"] - self._first, seconds * slow["severity"])
        np.maximum.at(restart, leak["server"] - self._first, leak["end"])
        return Past(trouble, restart)
