"""The port behind which an engine stands: a store that keeps raw samples beside our blocks, and may answer for them.

An engine is a consumer of the log and a way to read, not a promise of equal semantics: it declares what it is able to
do, and everything else is computed by us from its samples. Whoever speaks to one sees errors of `openmanager.errors` and
nothing else: UnavailableError (`STORE_UNAVAILABLE`) when it is down, refuses, or is not itself, RefusedCredentialsError
when it does not let us in, TimeoutError when it hangs, FailedPreconditionError (`ENGINE_CANNOT`) for what it is unable to do. Every call has a deadline of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from openmanager.errors import Reason, UnavailableError
from openmanager.frame import Frame
from openmanager_timeseries.port import InfoOf
from openmanager_timeseries.samples import Floats, Ints

# The series by which a store is known to be ours.
MARKER = "openmanager_marker"


class RefusedCredentialsError(UnavailableError):
    """An engine does not accept our credentials."""

    def __init__(self, engine: str) -> None:
        super().__init__(f"{engine} refuses the credentials", reason=Reason.STORE_UNAVAILABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an engine is able to do, and how true it is."""

    # The significant decimal digits that every value keeps; 17 gives each double back.
    digits: int
    # Of two writes of one sample the later one counts.
    overwrites: bool
    # −0.0 stays −0.0.
    signed_zero: bool
    # Samples of a range of time can be deleted; without it a series goes whole.
    ranged_delete: bool
    # One metric of a server can be deleted; without it all metrics of the server with the same attributes go.
    metric_delete: bool
    # Aggregations of half-open buckets that it computes as we do, by their names in the contract.
    aggregations: frozenset[str]
    # A write that was accepted may be lost in a crash for so long.
    durable_after: timedelta
    # A write that was accepted may stay invisible to queries for so long.
    visible_after: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """What an engine says of itself. `epoch` is the marker found in it, empty for none; `started` changes with its process."""

    version: str
    epoch: str
    started: str = ""
    size_bytes: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Samples that the engine will never take: why, in our words, how many, and from which servers."""

    reason: str
    sample_count: int
    servers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which samples: every metric key of every server, where it exists, in [start, end) nanoseconds."""

    servers: Sequence[str]
    metrics: Sequence[str]
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coded:
    """Samples or buckets as columns: K rows, names by their codes.

    `server_codes` and `metric_codes` are int64[K], indices into `servers` and `metrics`; `times` int64[K] nanoseconds, of
    buckets their starts; `values` float64[K], finite. The rows of a series are ascending in time, without duplicates.
    """

    servers: Sequence[str]
    server_codes: Ints
    metrics: Sequence[str]
    metric_codes: Ints
    times: Ints
    values: Floats


class Engine(Protocol):
    """A store of raw samples."""

    name: str
    capabilities: Capabilities

    async def check(self) -> EngineState:
        """Return what the engine says of itself; make what it needs to hold samples (a bucket) where that is missing."""
        ...

    async def mark(self, epoch: str) -> None:
        """Write the marker by which a store that was emptied or replaced is recognised: it says what `check` finds."""
        ...

    async def write(self, frames: Sequence[Frame], info_of: InfoOf) -> Sequence[Refused]:
        """Write the samples of frames, in order, once or again; return those that were refused for good."""
        ...

    async def read(self, wanted: Wanted) -> Coded:
        """Return samples."""
        ...

    async def read_buckets(self, wanted: Wanted, step: int, aggregation: str) -> Coded:
        """Return aggregates of `capabilities.aggregations` over buckets of `step` ns, aligned to epoch multiples.

        `wanted.start` and `wanted.end` are multiples of the step. A bucket without samples is left out.
        """
        ...

    async def delete(self, wanted: Wanted) -> None:
        """Delete samples; FailedPreconditionError (`ENGINE_CANNOT`), and nothing is deleted, when it is unable to."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
