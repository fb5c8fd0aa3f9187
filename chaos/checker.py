"""The checker: what a load was told against what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from chaos.journal import Kind
from chaos.load import METRICS, WRITERS, writer_of

# The times (int64[K], nanoseconds) and values (float64[K]) of each metric of a writer, as they were read.
Found = Mapping[str, tuple[np.ndarray, np.ndarray]]
MAX_EXAMPLES = 10


@dataclass(kw_only=True)
class Verdict:
    """What was found, in samples; everything but the first two should be 0."""

    acknowledged: int = 0
    unknown: int = 0
    lost: int = 0
    resurrected: int = 0  # refused, and there
    foreign: int = 0  # a value that nobody wrote there
    duplicated: int = 0
    halves: int = 0  # frames of which a part is there
    examples: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing was lost, made up, doubled or torn."""
        return not (self.lost or self.resurrected or self.foreign or self.duplicated or self.halves)

    def add(self, what: str, writer: int, metric: str, times: np.ndarray) -> None:
        """Count samples of a kind of defect."""
        if len(times):
            setattr(self, what, getattr(self, what) + len(times))
            if len(self.examples) < MAX_EXAMPLES:
                self.examples.append(f"{what}: writer {writer}, {metric} at {int(times[0])} ({len(times)} samples)")


def check(journal: np.ndarray, found: Sequence[Found]) -> Verdict:
    """Compare a journal with what is read of each writer."""
    verdict = Verdict()
    for writer in range(WRITERS):
        rows = journal[journal["writer"] == writer]
        _check_writer(verdict, writer, rows, found[writer])
    return verdict


def _check_writer(verdict: Verdict, writer: int, rows: np.ndarray, found: Found) -> None:
    invoked = rows[rows["kind"] == Kind.INVOKED]
    acknowledged = rows[rows["kind"] == Kind.OK]
    refused = rows[rows["kind"] == Kind.FAILED]
    verdict.acknowledged += len(acknowledged) * len(METRICS)
    verdict.unknown += (len(invoked) - len(acknowledged) - len(refused)) * len(METRICS)
    known = dict(zip(invoked["time"].tolist(), invoked["value"].tolist(), strict=True))
    whole: set[int] | None = None
    torn: set[int] = set()
    for metric in METRICS:
        times, values = found.get(metric, (np.empty(0, np.int64), np.empty(0)))
        verdict.add("duplicated", writer, metric, times[1:][np.diff(times) <= 0])
        expected = np.array([known.get(time, np.nan) for time in times.tolist()])
        strange = (expected != values) | (np.array([writer_of(value) for value in values.tolist()], int) != writer)
        verdict.add("foreign", writer, metric, times[strange])
        there = times[~strange]
        verdict.add("lost", writer, metric, np.setdiff1d(acknowledged["time"], there))
        verdict.add("resurrected", writer, metric, np.intersect1d(refused["time"], there))
        present = set(there.tolist())
        torn |= present ^ whole if whole is not None else set()
        whole = present
    # What was acknowledged and is not whole is lost already.
    torn -= set(acknowledged["time"].tolist())
    verdict.add("halves", writer, "all metrics", np.array(sorted(torn), np.int64))
