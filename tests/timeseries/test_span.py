"""Sets of time, and which tier answers which part of a range, against one moment after the other."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from openmanager_timeseries import span
from openmanager_timeseries.coverage import Offer, cover

LONGEST = 60
ranges = st.lists(st.tuples(st.integers(0, LONGEST), st.integers(0, LONGEST)), max_size=8)
spans = ranges.map(lambda found: span.union(tuple(sorted(each)) for each in found))


def moments(found: span.Spans) -> set[int]:
    return {at for start, end in found for at in range(start, end)}


def canonical(found: span.Spans) -> bool:
    edges = [edge for part in found for edge in part]
    return edges == sorted(set(edges))


@given(spans, spans, st.integers(1, 9))
@settings(max_examples=300)
def test_sets_of_time_are_those_of_their_moments(some, others, width: int):
    assert moments(span.union((*some, *others))) == moments(some) | moments(others)
    assert moments(span.intersection(some, others)) == moments(some) & moments(others)
    assert moments(span.difference(some, others)) == moments(some) - moments(others)
    assert moments(span.clip(some, 7, 31)) == moments(some) & set(range(7, 31))
    whole = {
        at
        for at in range(LONGEST)
        if all(each in moments(some) for each in range(at // width * width, at // width * width + width))
    }
    assert moments(span.inward(some, width)) == whole
    touched = {at // width for at in moments(some)}
    assert moments(span.outward(some, width)) == {
        at for bucket in touched for at in range(bucket * width, (bucket + 1) * width)
    }
    times = np.arange(-3, LONGEST + 3)
    assert set(times[span.inside(times, some)].tolist()) == moments(some)
    for found in (span.union((*some, *others)), span.intersection(some, others), span.difference(some, others)):
        assert canonical(found)
    assert span.length(some) == len(moments(some))


@given(st.integers(0, 50), st.integers(1, 60), spans, spans, st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=300)
def test_every_moment_is_answered_once_by_the_coarsest_tier_that_may(start, length, dirty, dirtier, hour, minute, raw):
    wanted = (start, start + length)
    offers = [
        Offer(width=12, kept_from=hour, dirty=dirtier),
        Offer(width=4, kept_from=minute, dirty=dirty),
        Offer(width=0, kept_from=raw),
    ]
    found = cover(wanted, offers)
    seen: set[int] = set()
    for part in (*found.parts, found.lost):
        assert not moments(part) & seen
        seen |= moments(part)
    assert seen == set(range(*wanted))
    rest = set(range(*wanted))
    for offer, part, doubtful in zip(offers, found.parts, found.doubtful, strict=True):
        width = offer.width or 1
        expected, doubted = set(), set()
        for at in rest:
            bucket = range(at // width * width, at // width * width + width)
            if at < offer.kept_from or not all(each in rest and each >= offer.kept_from for each in bucket):
                continue
            is_dirty = bool(offer.width) and any(each in moments(offer.dirty) for each in bucket)
            (doubted if is_dirty else expected).add(at)
        assert moments(part) == expected
        assert moments(doubtful) == doubted
        rest -= expected
    assert moments(found.lost) == rest
