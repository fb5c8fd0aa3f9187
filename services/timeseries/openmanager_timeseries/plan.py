"""What a query reads: a plan, what an engine may lend to it, and the spans of time in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from openmanager_timeseries import span
from openmanager_timeseries.catalog import Selection
from openmanager_timeseries.coverage import Coverage
from openmanager_timeseries.head import Generation
from openmanager_timeseries.query import RangeQuery
from openmanager_timeseries.retention import Match
from openmanager_timeseries.roller import TierFiles
from openmanager_timeseries.samples import Bools, Floats, Ints, Long, Ragged
from openmanager_timeseries.sealed import Sealed
from openmanager_timeseries.span import Span, Spans


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is read for a query. `tiers` are those that may answer, coarsest first; `coverage` has raw as its last."""

    query: RangeQuery
    selection: Selection
    tiers: Sequence[TierFiles]
    files: Sequence[Sequence[Sealed]]
    coverage: Coverage
    generations: tuple[Generation, ...]
    blocks: tuple[Sealed, ...]
    delta: Bools
    counters: Bools
    sketched: bool
    partial_reason: str
    # How many files of its stores had been damaged so far: of the blocks, and of all.
    damages: tuple[int, int]

    @property
    def raw(self) -> Spans:
        """The part that raw samples answer."""
        return self.coverage.parts[0 if self.sketched else -1]


@dataclass(frozen=True, slots=True)
class Pushed:
    """Buckets of a span that an engine has computed: the times of `buckets` are their starts."""

    span: Span
    buckets: Long


@dataclass(frozen=True, slots=True, kw_only=True)
class Borrowed:
    """What an engine answered instead of the blocks: raw samples, and buckets where it computed them itself."""

    engine: str
    samples: Sequence[Long]
    pushed: Pushed | None = None


class RawSource(Protocol):
    """Another place than the blocks for raw samples: it is asked first, and the blocks answer when it cannot."""

    async def read(self, plan: Plan, first_position: int, seconds: float) -> tuple[Borrowed | None, str]:
        """Return what it has of a plan, or None and why not; the head holds everything from a position on.

        None without a reason says that blocks are the place to ask. It leaves them time enough to answer within `seconds`.
        """
        ...

    async def delete(self, match: Match, start: int, end: int) -> None:
        """Delete series; an OpenManagerError, and nothing is deleted, when it cannot be done now."""
        ...


def fill_in(values: Floats, starts: Ints, step: int, pushed: Pushed) -> None:
    """Put the buckets that an engine has computed into their places; no sample of ours lies in their span."""
    found = pushed.buckets
    values[found.rows, (found.times - starts[0]) // step] = found.values


def asked_part(plan: Plan, spans: Spans) -> Spans:
    """Return spans without what is only looked back at."""
    return span.clip(spans, plan.query.start, plan.query.end)


def hulls(spans: Spans, data: Spans) -> Spans:
    """Return one range around what is wanted of some data; nothing when there is none."""
    meeting = span.intersection(spans, data)
    return ((meeting[0][0], meeting[-1][1]),) if meeting else ()


def within(samples: Ragged, spans: Spans) -> Ragged:
    """Return the samples that are in the spans."""
    if not len(samples.times):
        return samples
    keep = span.inside(samples.times, spans)
    if keep.all():
        return samples
    kept = np.concatenate(([0], np.cumsum(keep)))
    return Ragged(kept[samples.offsets], samples.times[keep], samples.values[keep])
