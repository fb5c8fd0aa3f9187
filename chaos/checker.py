"""The checker: what a load was told and shown against what is there.

What a write was told decides what may be there of it:

- ok: it was acknowledged, so all of it is there, with its value, once. Of several values for one time the one that was
  acknowledged last is.
- fail: it was refused, so nothing of it is there, now or ever.
- indeterminate: the answer never came (a deadline, a lost connection). It is there as a whole or not at all, and it may
  have come to the log late: then it stands even in the place of a value that was written after it.

What a read showed has to be true of the moment when it was asked, unless the answer is marked as degraded or partial:

- Whatever is shown was written by that writer with that time, the metrics of a frame agree, nothing refused is shown,
  and what was shown once is there at the end: nobody is shown what can still be lost. No mark excuses any of this.
- Hot reads are at most STALE_SECONDS behind what was acknowledged, and never go back behind what was shown before.
- A range holds all that was acknowledged before it was asked for: history knows a sample before its writer does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from chaos.journal import Kind
from chaos.load import METRICS, WRITERS

# The times (int64[K], nanoseconds) and values (float64[K]) of each metric of a writer, as they were read.
Found = Mapping[str, tuple[np.ndarray, np.ndarray]]
MAX_EXAMPLES = 2  # of a kind
# Within so many seconds a peer that hangs is found out: until then its last state passes for the present.
STALE_SECONDS = 3.0
_NEWEST = (Kind.READ, Kind.LISTED, Kind.LATEST)
_SHOWN = (*_NEWEST, Kind.RANGED)


@dataclass(kw_only=True)
class Verdict:
    """What was found; everything but the first three should be 0."""

    acknowledged: int = 0  # samples, as all that follow but those of reads and of the books
    unknown: int = 0
    shown: int = 0  # answers that showed something
    lost: int = 0
    resurrected: int = 0  # refused, and there
    foreign: int = 0  # a value that nobody wrote there
    duplicated: int = 0
    halves: int = 0  # frames of which a part is there
    reverted: int = 0  # an older value in the place of one that was acknowledged later
    # In answers during the run:
    untrue: int = 0  # a value that nobody wrote there, or that was refused
    torn: int = 0  # the metrics of a frame disagree
    stale: int = 0  # without what was acknowledged before, and without a mark
    backwards: int = 0  # older than what was shown before, without a mark
    vanished: int = 0  # shown, and not there at the end
    # In the books of the log, and in the inventory:
    unbalanced: int = 0  # consumers whose parts are not the whole
    behind: int = 0  # consumers that do not come to the head
    damaged: int = 0  # samples
    dead_lettered: int = 0  # samples
    unregistered: int = 0  # servers
    examples: list[str] = field(default_factory=list)

    @property
    def defects(self) -> dict[str, int]:
        """What should be 0 and is not."""
        counts = {each.name: getattr(self, each.name) for each in fields(self)[3:-1]}
        return {name: count for name, count in counts.items() if count}

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.defects

    def summary(self) -> str:
        """Return what was counted, in a line."""
        return ", ".join(f"{each.name.replace('_', ' ')} {getattr(self, each.name):,}" for each in fields(self)[3:-1])

    def add(self, what: str, where: str, times: np.ndarray) -> None:
        """Count what has a defect, at some times."""
        if len(times):
            self.count(what, len(times), f"{where} at {int(times[0])} ({len(times)})")

    def count(self, what: str, count: int, example: str) -> None:
        """Count defects."""
        setattr(self, what, getattr(self, what) + count)
        known = sum(each.startswith(f"{what}: ") for each in self.examples)
        if count and known < MAX_EXAMPLES:
            self.examples.append(f"{what}: {example}")


class Writes:
    """The frames of one writer, in the order in which they were sent, and what became of each until a moment."""

    def __init__(self, rows: np.ndarray, until: float = np.inf) -> None:
        sent = rows[rows["kind"] == Kind.INVOKED]
        self.times, self.values = sent["time"], sent["value"]
        self.kinds = np.full(len(sent), Kind.UNKNOWN, np.uint8)
        self.answered = np.full(len(sent), np.inf)
        told = rows[(rows["kind"] == Kind.OK) | (rows["kind"] == Kind.FAILED)]
        at = self.find(told["time"], told["value"])
        self.kinds[at], self.answered[at] = told["kind"], told["at"]
        self.kinds[(self.kinds == Kind.OK) & (self.answered > until)] = Kind.UNKNOWN

    def find(self, times: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return which frame each sample is of, −1 for none: int64[K]."""
        if not len(self.values):
            return np.full(len(values), -1)
        at = np.clip(np.searchsorted(self.values, values), 0, len(self.values) - 1)
        same = (self.values[at] == values) & (self.times[at] == times)
        return np.where(same, at, -1)

    def standing(self, before: float = np.inf) -> np.ndarray:
        """Return the frames that were acknowledged before a moment, of those of one time the last."""
        at = np.flatnonzero((self.kinds == Kind.OK) & (self.answered < before))
        last = np.append(np.diff(self.times[at]) > 0, True)[: len(at)]
        chosen: np.ndarray = at[last]
        return chosen

    def outdated(self, found: np.ndarray, before: float = np.inf) -> np.ndarray:
        """Say of frames that were found which of them a later one of their time, acknowledged before, should stand for."""
        standing = self.standing(before)
        place = np.searchsorted(self.times[standing], self.times[found])
        known = np.append(standing, -1)[place]
        same = (known >= 0) & (self.times[known] == self.times[found])
        chosen: np.ndarray = same & (found < known) & (self.kinds[found] == Kind.OK)
        return chosen


def check(journal: np.ndarray, found: Sequence[Found], until: float = np.inf) -> Verdict:
    """Compare a journal with what is read of each writer; what was answered after `until` may be missing."""
    verdict = Verdict()
    for writer in range(WRITERS):
        rows = journal[journal["writer"] == writer]
        writes = Writes(rows, until)
        _check_history(verdict, f"writer {writer}", writes, found[writer])
        shown = rows[np.isin(rows["kind"], _SHOWN) & (rows["at"] + rows["seconds"] < until) & (rows["time"] > 0)]
        verdict.shown += len(np.unique(shown["at"]))
        for kind in _SHOWN:
            some = shown[shown["kind"] == kind]
            _check_shown(verdict, f"writer {writer}, {kind.name}", writes, some, found[writer])
            if kind in _NEWEST:
                _check_newest(verdict, f"writer {writer}, {kind.name}", writes, some)
        _check_ranges(verdict, f"writer {writer}, RANGE", writes, rows, until)
    return verdict


def _check_history(verdict: Verdict, who: str, writes: Writes, found: Found) -> None:
    verdict.acknowledged += int((writes.kinds == Kind.OK).sum()) * len(METRICS)
    verdict.unknown += int((writes.kinds == Kind.UNKNOWN).sum()) * len(METRICS)
    standing = writes.standing()
    whole: np.ndarray | None = None
    torn = np.empty(0, np.int64)
    for metric in METRICS:
        where = f"{who}, {metric}"
        times, values = found.get(metric, (np.empty(0, np.int64), np.empty(0)))
        verdict.add("duplicated", where, times[1:][np.diff(times) <= 0])
        frames = writes.find(times, values)
        verdict.add("foreign", where, times[frames < 0])
        frames = frames[frames >= 0]
        verdict.add("resurrected", where, writes.times[frames[writes.kinds[frames] == Kind.FAILED]])
        verdict.add("lost", where, np.setdiff1d(writes.times[standing], writes.times[frames]))
        verdict.add("reverted", where, writes.times[frames[writes.outdated(frames)]])
        torn = np.union1d(torn, np.setxor1d(frames, whole)) if whole is not None else torn
        whole = frames
    # What was acknowledged and is not whole is lost or reverted already.
    verdict.add("halves", f"{who}, all metrics", writes.times[torn[writes.kinds[torn] != Kind.OK]])


# ── what was shown ───────────────────────────────────────────────────────────────────────────────────────────────────


def _check_shown(verdict: Verdict, who: str, writes: Writes, shown: np.ndarray, found: Found) -> None:
    """Check what holds of every sample that was ever shown."""
    values = shown[~np.isnan(shown["value"])]
    frames = writes.find(values["time"], values["value"])
    bad = (frames < 0) | (writes.kinds[frames] == Kind.FAILED) if len(writes.kinds) else frames < 0
    verdict.add("untrue", who, values["time"][bad])
    _, first, count = np.unique(shown[["at", "time"]], return_index=True, return_counts=True)
    torn = (count > 1) | np.isnan(shown["value"][first])
    verdict.add("torn", who, shown["time"][first[torn]])
    there = found.get(METRICS[0], (np.empty(0, np.int64),))[0]
    verdict.add("vanished", who, np.setdiff1d(values["time"][~bad], there))


def _check_newest(verdict: Verdict, who: str, writes: Writes, shown: np.ndarray) -> None:
    """Check that what was shown as the newest is new."""
    unmarked = shown[~shown["degraded"]]
    acknowledged = writes.standing()
    age = _outdated_for(writes.answered[acknowledged], writes.times[acknowledged], unmarked)
    stale = age > STALE_SECONDS
    verdict.add("stale", f"{who}, for up to {age.max(initial=0.0):.1f} s", unmarked["time"][stale])
    back = _outdated_for(shown["at"] + shown["seconds"], shown["time"], unmarked) > 0
    verdict.add("backwards", who, unmarked["time"][back])


def _outdated_for(moments: np.ndarray, times: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Return for how many seconds something newer than what was shown had been there: `times` since `moments`."""
    order = np.argsort(moments)
    newest = np.maximum.accumulate(times[order])
    since = np.append(moments[order], np.inf)[np.searchsorted(newest, shown["time"], side="right")]
    age: np.ndarray = shown["at"] - since
    return age


def _check_ranges(verdict: Verdict, who: str, writes: Writes, rows: np.ndarray, until: float) -> None:
    """Check that ranges hold all that was acknowledged before they were asked for."""
    ranged = rows[rows["kind"] == Kind.RANGED]
    for row in rows[(rows["kind"] == Kind.RANGE) & ~rows["degraded"] & (rows["at"] < until)]:
        shown = ranged[ranged["at"] == row["at"]]
        known = writes.standing(row["at"])
        end = row["time"] + int(row["value"] * 1e9)
        known = known[(writes.times[known] >= row["time"]) & (writes.times[known] < end)]
        frames = writes.find(shown["time"], shown["value"])
        frames = frames[frames >= 0]
        verdict.add("stale", who, np.setdiff1d(writes.times[known], shown["time"]))
        verdict.add("stale", who, writes.times[frames[writes.outdated(frames, row["at"])]])
