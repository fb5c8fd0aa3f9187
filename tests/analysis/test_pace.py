"""What is looked at when there is too little time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from alerting import Desk, Hook, StillClock
from openmanager_analysis.collector import Names, Span
from openmanager_analysis.pace import MOST_STRIDE, Pace
from openmanager_analysis.watcher import Watcher

from openmanager.runtime.clock import SystemClock

SECOND = 10**9


def looked(pace: Pace, seconds: float, spans: int, first: int = 0) -> int:
    """How many of some spans are looked at, each for so long."""
    count = 0
    for number in range(first, first + spans):
        if pace.is_due(number):
            pace.took(seconds)
            count += 1
    return count


def test_what_fits_in_its_time_is_looked_at_whole():
    pace = Pace(10)
    assert looked(pace, 7.5, 1_000) == 1_000
    assert (pace.stride, pace.skipped_count, pace.warning) == (1, 0, "")


@pytest.mark.parametrize(("seconds", "stride"), [(9, 2), (15, 2), (17, 4), (60, 8), (1e6, MOST_STRIDE)])
def test_what_does_not_is_thinned_until_it_does_and_every_span_is_looked_at_or_counted(seconds: float, stride: int):
    pace = Pace(10)
    count = looked(pace, seconds, 2_000)
    assert pace.stride == stride
    assert count + pace.skipped_count == 2_000
    assert f"one of {stride} spans" in pace.warning
    assert f"{pace.skipped_count:,} were not" in pace.warning


def test_when_it_is_quick_again_everything_is_looked_at():
    pace = Pace(10)
    looked(pace, 100, 2_000)
    looked(pace, 0.1, 4_000, first=2_000)
    skipped = pace.skipped_count
    assert looked(pace, 0.1, 100, first=6_000) == 100
    assert (pace.stride, pace.skipped_count, pace.warning) == (1, skipped, "")


def test_one_long_look_changes_nothing():
    pace = Pace(10)
    looked(pace, 1, 50)
    pace.took(30)
    assert looked(pace, 1, 50) == 50


async def test_the_status_says_what_is_left_out(tmp_path: Path):
    watcher = Watcher(
        timeseries=None,  # type: ignore[arg-type]
        clock=SystemClock(),
        path=tmp_path / "state",
        interval_nanos=SECOND,
        save_seconds=60,
        names=Names(most=10),
        alerts=Desk(tmp_path, Hook(), StillClock()).keeper,
    )
    seen = []
    watcher._lookout.look = lambda millis, values: seen.append(millis) or []  # type: ignore[method-assign]
    looked(watcher._pace, 1.5, 20)
    skipped = watcher._pace.skipped_count
    for number in range(20, 24):
        await watcher._look(Span(time_millis=1000 * number, values=np.empty(0)))

    assert seen == [20_000, 22_000]
    (warning,) = (await watcher.find()).warnings
    assert "one of 2 spans is looked at" in warning
    assert f"{skipped + 2} were not" in warning
