"""What a backfill has to do: which part of a range as buckets and which as samples, in units of work by time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from openmanager.config import show_duration
from openmanager.errors import FailedPreconditionError, InvalidArgumentError, Reason, invalid
from openmanager_simulator.fleet import GROUP

# A unit is some tenths of a second of work, and what it makes, so many buckets of each metric, some tens of MiB.
UNIT_SAMPLES = 16_000_000
UNIT_BUCKETS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A rollup tier: the width of its buckets, and for how long they are kept, in nanoseconds."""

    name: str
    width: int
    retention: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of the range in nanoseconds, [start, end), that is written as samples or as buckets."""

    start: int
    end: int
    raw: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Some servers in some time of one segment; `ends` where the whole fleet has that time with it."""

    start: int
    end: int
    raw: bool
    first_server: int
    server_count: int
    begins: bool
    ends: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Segments in the order of time, cut at multiples of `window` nanoseconds and into parts of `part` servers."""

    segments: tuple[Segment, ...]
    server_count: int
    window: int
    part: int

    def units(self) -> Iterator[Unit]:
        """Yield the units: by time, and of one time by server."""
        for segment in self.segments:
            start = segment.start
            while start < segment.end:
                end = min(segment.end, (start // self.window + 1) * self.window)
                yield from self._parts(segment, start, end)
                start = end

    def _parts(self, segment: Segment, start: int, end: int) -> Iterator[Unit]:
        for first in range(0, self.server_count, self.part):
            yield Unit(
                start=start,
                end=end,
                raw=segment.raw,
                first_server=first,
                server_count=min(self.part, self.server_count - first),
                begins=start == self.segments[0].start,
                ends=first + self.part >= self.server_count,
            )


def make_plan(
    *,
    start: int,
    end: int,
    now: int,
    tiers: Sequence[Tier],
    raw: bool,
    raw_retention: int,
    server_count: int,
    metric_count: int,
    interval: int,
) -> Plan:
    """Return what is to be done for [start, end) nanoseconds; what no tier would keep is left out.

    InvalidArgumentError naming the end of the range that cuts a bucket of the coarsest tier whose samples, which would
    be needed for its parts, are no longer kept.
    """
    if not tiers:
        raise FailedPreconditionError("there are no rollup tiers", reason=Reason.TIER_CANNOT)
    width = tiers[-1].width
    kept_from = now - max(tier.retention for tier in tiers)
    # So much later than now: they must still be kept when they are written.
    raw_from = now - raw_retention + width
    oldest = kept_from // width * width
    begin = start if start >= kept_from else oldest if start <= oldest else oldest + width
    if begin >= end:
        return Plan(segments=(), server_count=server_count, window=width, part=1)
    first, last = -(-begin // width) * width, end // width * width
    if begin % width and begin < raw_from:
        raise _cut("start_time", width)
    if last < end and max(begin, last) < raw_from:
        raise _cut("end_time", width)
    if first >= last:
        first = last = end
    cut = min(last, max(first, -(-raw_from // width) * width)) if raw else last
    found = ((begin, first, True), (first, cut, False), (cut, last, True), (last, end, True))
    segments = tuple(Segment(start=a, end=b, raw=as_raw) for a, b, as_raw in found if a < b)
    ticks = width / interval
    share = max(ticks * metric_count / UNIT_SAMPLES, min(ticks, width / tiers[0].width) / UNIT_BUCKETS)
    part = max(1, min(GROUP, server_count, int(1 / share)))
    windows = max(1, int(1 / share / part)) if part == server_count else 1
    return Plan(segments=segments, server_count=server_count, window=width * windows, part=part)


def _cut(field: str, width: int) -> InvalidArgumentError:
    told = show_duration(timedelta(microseconds=width // 1000))
    return invalid(field, f"must be a multiple of {told}: the samples that a part of {told} is made of are not kept")
