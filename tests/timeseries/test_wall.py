"""A clock that jumps: for a while no sample is refused and nothing is deleted for it."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path

import pytest
from openmanager_timeseries.keeper import Keeper
from openmanager_timeseries.wall import ADMISSION_SECONDS, RETENTION_SECONDS, Wall
from timeseries.shard import DAY, HOUR, NOW, SECOND, NoDisk, StillClock, opened, raw, write

YEAR = 365 * DAY
JUMPS = {"an hour forward": HOUR, "an hour back": -HOUR, "to 1970": -NOW, "years forward": 5 * YEAR}


def test_a_clock_that_runs_gives_one_answer():
    clock = StillClock()
    wall = Wall(clock)
    for _ in range(100):
        clock.nanos += 7 * SECOND
        assert wall.range(RETENTION_SECONDS) == (clock.nanos, clock.nanos)
    assert wall.warnings == ()


def test_a_clock_that_is_corrected_by_little_has_not_jumped():
    clock = StillClock()
    wall = Wall(clock)
    for _ in range(100):
        clock.jump += SECOND
        assert wall.range(RETENTION_SECONDS)[0] == clock.now_nanos()


@pytest.mark.parametrize("jump", JUMPS.values(), ids=JUMPS)
def test_a_jump_is_remembered_for_a_while(jump: int, caplog: pytest.LogCaptureFixture):
    clock = StillClock()
    wall = Wall(clock)
    clock.nanos += 3600 * SECOND
    wall.range(0)
    clock.jump = jump
    with caplog.at_level(logging.WARNING):
        both = sorted((clock.nanos, clock.nanos + jump))
        assert wall.range(ADMISSION_SECONDS) == tuple(both)
    assert "the clock jumped" in caplog.text
    assert wall.warnings[0].startswith("clock_jump: ")
    clock.nanos += round(ADMISSION_SECONDS + 1) * SECOND
    assert wall.range(ADMISSION_SECONDS) == (clock.now_nanos(),) * 2
    assert wall.warnings == ()
    assert wall.range(RETENTION_SECONDS) == tuple(sorted((clock.nanos, clock.now_nanos())))
    clock.nanos += round(RETENTION_SECONDS) * SECOND
    assert wall.range(RETENTION_SECONDS) == (clock.now_nanos(),) * 2


@pytest.mark.parametrize("jump", JUMPS.values(), ids=JUMPS)
async def test_samples_of_before_and_after_a_jump_are_taken(tmp_path: Path, jump: int):
    async with opened(tmp_path) as history:
        await write(history, [NOW], load=[1])
        history.clock.jump = jump
        await write(history, [NOW + SECOND], load=[2])
        assert await raw(history) == {("a", "load"): [(0, 1.0), (1, 2.0)]}
        await write(history, [NOW + jump + 2 * SECOND] if NOW + jump > 0 else [NOW + 2 * SECOND], load=[3])
        assert history.log.state.accepted == 3


async def test_after_a_while_a_clock_that_was_set_counts(tmp_path: Path):
    async with opened(tmp_path) as history:
        await write(history, [NOW], load=[1])
        history.clock.jump = -HOUR
        await write(history, [NOW + SECOND], load=[2])
        history.clock.nanos += round(ADMISSION_SECONDS + 1) * SECOND
        await write(history, [history.clock.nanos], load=[3])
        assert history.log.state.accepted == 2


async def test_retention_deletes_nothing_for_a_jump(tmp_path: Path):
    async with opened(tmp_path, raw_retention=timedelta(days=14)) as history:
        await write(history, [NOW], load=[1])
        await history.seal()
        keeper = Keeper(history, NoDisk())
        history.clock.jump = 5 * YEAR
        await write(history, [NOW + SECOND], load=[2])
        for _ in range(3):
            history.clock.nanos += 3600 * SECOND
            await keeper.roll_up()
            await keeper.expire()
        assert await raw(history) == {("a", "load"): [(0, 1.0), (1, 2.0)]}
