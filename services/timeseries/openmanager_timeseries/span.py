"""Spans: sets of time as disjoint, ascending, half-open ranges [start, end) of nanoseconds that do not touch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from openmanager_timeseries.samples import Bools, Ints

Span = tuple[int, int]
Spans = tuple[Span, ...]

# Times that are no farther apart belong to one span of data.
GAP_NANOS = 600 * 10**9
MAX_DATA_SPANS = 256


def union(spans: Iterable[Span]) -> Spans:
    """Return the time that is in any of the ranges, which may overlap and be in any order."""
    out: list[Span] = []
    for start, end in sorted(spans):
        if end <= start:
            continue
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return tuple(out)


def intersection(some: Spans, others: Spans) -> Spans:
    """Return the time that is in both."""
    out: list[Span] = []
    at = 0
    for start, end in some:
        while at < len(others) and others[at][1] <= start:
            at += 1
        for low, high in others[at:]:
            if low >= end:
                break
            out.append((max(start, low), min(end, high)))
    return tuple(out)


def difference(some: Spans, others: Spans) -> Spans:
    """Return the time that is in the first and not in the others."""
    out: list[Span] = []
    at = 0
    for whole_start, end in some:
        start = whole_start
        while at < len(others) and others[at][1] <= start:
            at += 1
        for low, high in others[at:]:
            if low >= end:
                break
            if low > start:
                out.append((start, low))
            start = max(start, high)
        if start < end:
            out.append((start, end))
    return tuple(out)


def clip(spans: Spans, start: int, end: int) -> Spans:
    """Return the time that is in [start, end)."""
    return intersection(spans, ((start, end),)) if end > start else ()


def inward(spans: Spans, width: int) -> Spans:
    """Return the whole buckets of `width` that lie in the spans."""
    return union((-(-start // width) * width, end // width * width) for start, end in spans)


def outward(spans: Spans, width: int) -> Spans:
    """Return the buckets of `width` that the spans touch."""
    return union((start // width * width, -(-end // width) * width) for start, end in spans)


def length(spans: Spans) -> int:
    """Return how much time it is."""
    return sum(end - start for start, end in spans)


def inside(times: Ints, spans: Spans) -> Bools:
    """Say which of some times, in any order, are in the spans: bool[K]."""
    edges = np.asarray(spans, np.int64).ravel()
    within: Bools = np.searchsorted(edges, times, side="right") % 2 == 1
    return within
