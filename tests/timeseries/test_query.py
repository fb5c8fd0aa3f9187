"""Questions at the ends of time."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from openmanager_timeseries.query import EARLIEST_NANOS, LATEST_NANOS
from timeseries.shard import END, GAUGE, HOUR, SECOND, ask, opened, rolled, ticks, write

from openmanager.errors import OutOfRangeError, ResourceExhaustedError

# As far as a Duration goes.
LONGEST = 315_576_000_000 * SECOND
STEPS = (HOUR, 400 * 86_400 * SECOND, 100 * 366 * 86_400 * SECOND, LATEST_NANOS, LONGEST)


async def test_a_step_of_any_length_is_answered_or_out_of_range(tmp_path: Path):
    async with opened(tmp_path) as history:
        await write(history, ticks(END - HOUR, 10), **{GAUGE.name: list(range(10))})
        await rolled(history)
        starts, ends = (EARLIEST_NANOS, 0, END - HOUR), (END, LATEST_NANOS)
        refused = set()
        for start, end, step, name in itertools.product(starts, ends, STEPS, ("MEAN", "INCREASE", "P95")):
            try:
                await ask(history, start, end, step, name)
            except OutOfRangeError as err:
                refused.add((step, err.field))
            except ResourceExhaustedError:
                assert step == HOUR
        assert refused == {(step, "step") for step in STEPS[1:]}
        with pytest.raises(OutOfRangeError):
            await ask(history, END - HOUR, END, LONGEST)
