"""What a backfill has to do, in units."""

from __future__ import annotations

import itertools

import pytest
from openmanager_simulator.plan import UNIT_BUCKETS, UNIT_SAMPLES, Plan, Tier, make_plan

from openmanager.errors import FailedPreconditionError

SECOND = 10**9
HOUR = 3600 * SECOND
DAY = 24 * HOUR
NOW = 20_000 * DAY + 1234 * SECOND
TIERS = (
    Tier(name="5m", width=300 * SECOND, retention=90 * DAY),
    Tier(name="1h", width=HOUR, retention=1825 * DAY),
)


def plan(start: int, end: int, **changes) -> Plan:
    given = {
        "now": NOW,
        "tiers": TIERS,
        "raw": False,
        "raw_retention": 14 * DAY,
        "server_count": 20,
        "metric_count": 511,
        "interval": 10 * SECOND,
    }
    return make_plan(start=start, end=end, **{**given, **changes})


@pytest.mark.parametrize("server_count", [1, 3, 20, 1000])
@pytest.mark.parametrize("interval", [SECOND // 10, SECOND, 10 * SECOND, 600 * SECOND, HOUR])
@pytest.mark.parametrize("raw", [False, True])
def test_units_cover_the_range_once_in_order_and_are_small(server_count: int, interval: int, raw: bool):  # noqa: FBT001
    start, end = (NOW - 2 * DAY) // HOUR * HOUR, NOW
    made = plan(start, end, server_count=server_count, interval=interval, raw=raw, raw_retention=DAY)
    at = start
    for _, group in itertools.groupby(made.units(), key=lambda unit: unit.start):
        window = list(group)
        assert {unit.start for unit in window} == {at}
        at = window[-1].end
        assert [unit.ends for unit in window] == [False] * (len(window) - 1) + [True]
        assert [unit.begins for unit in window] == [unit.start == start for unit in window]
        assert sum(unit.server_count for unit in window) == server_count
        for unit in window:
            assert unit.end == end or unit.end % HOUR == 0
            length = unit.end - unit.start
            one_hour_of_one = length <= HOUR and unit.server_count == 1
            samples = length / interval * unit.server_count * 511
            buckets = min(length / interval, length / TIERS[0].width) * unit.server_count
            assert one_hour_of_one or samples <= UNIT_SAMPLES * 1.01
            assert one_hour_of_one or buckets <= UNIT_BUCKETS
    assert at == end


def test_what_no_tier_keeps_is_left_out():
    made = plan(NOW - 9000 * DAY, NOW // HOUR * HOUR)
    assert made.segments[0].start == (NOW - 1825 * DAY) // HOUR * HOUR
    assert plan(NOW - 9000 * DAY, NOW - 8000 * DAY).segments == ()


def test_samples_begin_where_a_bucket_does_while_they_are_surely_kept():
    end = NOW // HOUR * HOUR
    made = plan(end - 30 * DAY, end, raw=True)
    assert [segment.raw for segment in made.segments] == [False, True]
    cut = made.segments[1].start
    assert cut % HOUR == 0
    assert HOUR <= cut - (NOW - 14 * DAY) < 2 * HOUR


def test_without_tiers_there_is_nothing_to_write_to():
    with pytest.raises(FailedPreconditionError) as caught:
        plan(NOW - DAY, NOW, tiers=())
    assert caught.value.reason == "TIER_CANNOT"
