"""Questions to the history: what can be asked, what may be asked, and what an answer is."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from openmanager.errors import (
    CancelledCallError,
    DeadlineExceededError,
    OutOfRangeError,
    Reason,
    ResourceExhaustedError,
    invalid,
)
from openmanager.frame import NANOS_PER_MILLI
from openmanager.runtime.clock import Clock
from openmanager_timeseries.samples import Floats, Ints, Ragged

BUDGET_SECONDS = 30.0
# How far before the range a counter's sample before is looked for, at least.
LOOKBACK_NANOS = 300 * 10**9
EARLIEST_NANOS = -9_214_560_000 * 10**9  # 1678-01-01, inside int64 nanoseconds
GROWTH = frozenset({"RATE", "INCREASE"})
_FIRST, _LAST = -(2**63), 2**63 - 1
LATEST_NANOS = 9_214_646_400 * 10**9  # 2262-01-01


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeQuery:
    """What is asked: times and step in nanoseconds, step 0 for raw samples, names as in the contract."""

    servers: Sequence[str]
    server_filter: str
    metrics: Sequence[str]
    start: int
    end: int
    step: int
    aggregation: str
    group_by: str

    @property
    def lookback(self) -> int:
        """How far before the range a counter's sample before is looked for, in nanoseconds."""
        return max(LOOKBACK_NANOS, self.step) if self.step and self.aggregation in GROWTH else 0


class SeriesName(NamedTuple):
    """Whose values these are."""

    server: str
    metric: str
    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a range that one tier answered: times in nanoseconds, `width` of its buckets, 0 for raw."""

    source: str
    tier: str
    start: int
    end: int
    width: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer: `starts` and `values` float64[N, B] for buckets, `raw` for raw samples; `names` for each row."""

    names: Sequence[SeriesName]
    parts: Sequence[Part]
    starts: Ints
    values: Floats | None
    raw: Ragged | None
    # Why something is missing; empty when nothing is.
    partial_reason: str = ""
    # Why another store than the first choice answered; empty when none did.
    degraded_reason: str = ""
    rank_error: float = 0.0

    def degraded(self, why: str) -> Answer:
        """Return the answer marked as that of another store than the first choice."""
        return replace(self, degraded_reason=why)


class Stop:
    """Tells a computation in a thread that nobody waits for it any more."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._end = clock.monotonic() + seconds
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Give up."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise when the answer is no longer wanted."""
        if self._cancelled.is_set():
            raise CancelledCallError("the query was cancelled")
        if self._clock.monotonic() > self._end:
            raise DeadlineExceededError("the query took longer than it may; ask for less")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one query may ask for."""

    max_series: int
    max_buckets: int


def check(query: RangeQuery, limits: Limits) -> None:
    """Raise InvalidArgumentError, OutOfRangeError or ResourceExhaustedError for what may not be asked."""
    for name, time in (("start_time", query.start), ("end_time", query.end)):
        if not EARLIEST_NANOS <= time <= LATEST_NANOS:
            raise OutOfRangeError(f"{name} is outside the years 1678–2262", field=name)
    if query.end <= query.start:
        raise invalid("end_time", "must be after start_time")
    if query.step < 0 or query.step % NANOS_PER_MILLI:
        raise invalid("step", "must be a whole number of milliseconds, not negative")
    if query.step == 0 and query.group_by != "SERVER":
        raise invalid("group_by", "needs a step")
    if query.step:
        # The first bucket begins before the range, the last one ends after it.
        if not (query.start // query.step * query.step - query.lookback >= _FIRST and query.end + query.step <= _LAST):
            raise OutOfRangeError("step has buckets that reach beyond the years 1678–2262", field="step")
        count = (query.end - query.start) // query.step + 1
        if count > limits.max_buckets:
            raise ResourceExhaustedError(
                f"the range has {count} buckets; at most {limits.max_buckets} can be answered: widen the step",
                reason=Reason.TOO_MANY_BUCKETS,
            )
