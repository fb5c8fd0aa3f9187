"""The disk budget: said from 80 % on, kept from 90 % on, and what is held or still needed never pays for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from openmanager_timeseries.budget import Budget
from openmanager_timeseries.history import History
from openmanager_timeseries.retention import Hold, Policy, Selector
from timeseries.shard import DAY, END, HOUR, NOW, SECOND, NoDisk, ask, grid, imported, opened, rolled, ticks, write

from openmanager import durable

MIDNIGHT = END // DAY * DAY


class Volume:
    """A volume of 1,000,000 bytes."""

    def __init__(self, used: int) -> None:
        self.used = used

    def free_bytes(self) -> tuple[int, int]:
        return 1_000_000 - self.used, 1_000_000


async def fill(history: History, days: int = 10) -> None:
    """Write a block of samples that do not compress each day, oldest first, and roll them up."""
    for day in range(days, 0, -1):
        values = np.random.default_rng(day).normal(size=2000).tolist()
        await write(history, ticks(MIDNIGHT - day * DAY, 2000, 40 * SECOND), load=values, requests=values)
        await rolled(history)


def used(history: History) -> int:
    stores = [store for files in history.roller.tiers for store in (files.buckets, files.sketches)]
    return sum(store.size_bytes for store in (history.blocks, *stores))


def set_budget(history: History, share: float) -> int:
    """Let what is there be a share of the budget; return the budget."""
    object.__setattr__(history.config, "disk_budget", int(used(history) / share))
    return history.config.disk_budget


def days(history: History) -> list[int]:
    """Return how many days old the blocks that have rows are."""
    return [(MIDNIGHT - file.about.min_time) // DAY for file in history.blocks.files if file.about.row_count]


async def kept(history: History, disk=None) -> Budget:
    budget = Budget(history, disk or NoDisk())
    await budget.keep()
    return budget


async def test_below_80_percent_nothing_is_said_and_nothing_done(tmp_path: Path):
    async with opened(tmp_path) as history:
        await fill(history, 3)
        limit = set_budget(history, 0.79)
        budget = await kept(history)
        assert (history.usage.limit, history.usage.used, history.usage.plan) == (limit, used(history), "")
        assert (budget.warnings, days(history)) == ([], [3, 2, 1])


async def test_from_80_percent_on_it_is_said(tmp_path: Path):
    async with opened(tmp_path) as history:
        await fill(history, 3)
        set_budget(history, 0.85)
        budget = await kept(history)
        assert budget.warnings == ["85% of the disk budget is used: at 90% the oldest blocks go before their retention"]
        assert days(history) == [3, 2, 1]


async def test_from_90_percent_on_the_oldest_blocks_go_until_85(tmp_path: Path):
    async with opened(tmp_path) as history:
        await fill(history)
        limit, before = set_budget(history, 0.95), used(history)
        tiers = [(files.buckets.files, files.sketches.files) for files in history.roller.tiers]
        await kept(history)
        left = days(history)
        assert left == list(range(len(left), 0, -1))
        assert 0.85 * limit - max(file.size_bytes for file in history.blocks.files) < used(history) <= 0.85 * limit
        assert tiers == [(files.buckets.files, files.sketches.files) for files in history.roller.tiers]
        deleted = history.retention.deleted["raw"]
        assert (deleted.rows, deleted.bytes) == (4000 * (10 - len(left)), before - used(history))
        assert history.usage.used == used(history)
        history.head.drop(-1)
        found = await ask(history, MIDNIGHT - 10 * DAY, NOW, 0)
        assert "has only buckets of 5m and 1h" in found.partial_reason
        state = (tmp_path / "retention.json").read_bytes()
        await kept(history)
        assert (days(history), (tmp_path / "retention.json").read_bytes()) == (left, state)
    async with opened(tmp_path) as history:
        assert (days(history), history.retention.deleted["raw"]) == (left, deleted)


async def test_what_the_tiers_still_need_does_not_go(tmp_path: Path):
    async with opened(tmp_path) as history:
        await fill(history, 5)
        await write(history, ticks(MIDNIGHT - 5 * DAY + SECOND, 5), load=[1.0] * 5)
        await history.seal()
        set_budget(history, 2.0)
        await kept(history)
        assert sorted(days(history)) == [4, 5]
        assert "no block may go before its retention any more" in history.usage.plan


async def test_the_newest_block_stays_though_its_samples_are_the_oldest(tmp_path: Path):
    """What it says of the log must not be forgotten: its samples would be back after a restart."""
    async with opened(tmp_path) as history:
        await fill(history, 3)
        await write(history, ticks(MIDNIGHT - 9 * DAY, 5), load=[1.0] * 5)
        await rolled(history)
        last = history.blocks.last
        set_budget(history, 3.0)
        await kept(history)
        assert (days(history), history.blocks.last) == ([9], last)
    async with opened(tmp_path) as history:
        assert (days(history), history.head.first_position) == ([9], last + 1)


async def test_what_is_held_stays_and_what_is_beside_it_goes(tmp_path: Path):
    async with opened(tmp_path) as history:
        await fill(history, 4)
        held = Hold(
            name="x",
            selector=Selector(metrics=("load",)),
            start=MIDNIGHT - 4 * DAY,
            end=MIDNIGHT - 3 * DAY + 12 * HOUR,
        )
        history.retention.adopt(Policy(holds=(held,)))
        set_budget(history, 2.0)
        budget = await kept(history)
        rows = {(MIDNIGHT - file.about.min_time) // DAY: file.about.row_count for file in history.blocks.files}
        assert rows == {4: 2000, 3: 1080, 1: 4000}
        names = [file.path.name for file in history.blocks.files]
        reads = []
        plain = history.retention.expire
        history.retention.expire = lambda *arguments: reads.append(arguments) or plain(*arguments)
        await budget.keep()
        assert ([file.path.name for file in history.blocks.files], reads) == (names, [])
        history.retention.adopt(Policy())
        await budget.keep()
        assert days(history) == [1]


async def test_nothing_goes_early_while_nobody_knows_what_is_held(tmp_path: Path):
    async with opened(tmp_path) as history:
        await fill(history, 3)
        history.retention.certain = False
        set_budget(history, 2.0)
        await kept(history)
        assert days(history) == [3, 2, 1]
        assert "while the legal holds are not known" in history.usage.plan


async def test_tiers_alone_may_use_up_the_budget_and_it_is_said(tmp_path: Path):
    async with opened(tmp_path) as history:
        await imported(history, "5m", grid(ticks(END - 20 * DAY, 2000, 300 * SECOND), 30, 2.0))
        set_budget(history, 1.5)
        await kept(history)
        assert history.roller.tiers[0].buckets.row_count == 2000
        assert history.usage.plan.startswith("150% of the disk budget is used: no block may go")


async def test_without_a_budget_a_full_volume_is_said_and_nothing_done(tmp_path: Path):
    async with opened(tmp_path) as history:
        await fill(history, 3)
        for share, said in ((790_000, ""), (800_000, "80% of the volume is used"), (990_000, "99% of the volume")):
            await kept(history, Volume(share))
            assert (history.usage.limit, history.usage.used) == (1_000_000, share)
            assert history.usage.plan.startswith(said)
            assert bool(history.usage.plan) == bool(said)
        assert "shorten a retention, or set timeseries.disk_budget" in history.usage.plan
        assert days(history) == [3, 2, 1]


async def test_when_it_will_be_full_is_told_by_the_pace_of_the_last_day(tmp_path: Path):
    async with opened(tmp_path) as history:
        volume = Volume(100_000)
        budget = Budget(history, volume)

        async def after(hours: float, more: int) -> int:
            history.clock.nanos += int(hours * HOUR)
            volume.used += more
            await budget.keep()
            return history.usage.full_nanos

        await budget.keep()
        assert history.usage.full_nanos == 0
        assert await after(0.5, 10_000) == 0  # too early to tell
        full = await after(0.5, 10_000)
        assert full == pytest.approx(history.clock.nanos + 44 * HOUR, abs=SECOND)
        assert await after(1, -30_000) == 0  # it shrinks
        assert await after(1, 11_000) == 0  # so slowly that what is kept reaches its age before
        for _ in range(30):
            full = await after(1, 5_000)
        assert full == pytest.approx(history.clock.nanos + (1_000_000 - volume.used) / 5_000 * HOUR, rel=1e-3)
        full = await after(0.1, 1_000_000)
        assert full == history.clock.nanos


async def test_a_disk_that_does_not_take_the_counts_does_not_stop_deletion(tmp_path: Path, monkeypatch):
    async with opened(tmp_path) as history:
        await fill(history, 5)
        set_budget(history, 1.0)

        def full(*_, **__):
            raise OSError(28, "no space")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(durable, "replace", full)
            with pytest.raises(OSError, match="no space"):
                await kept(history)
        assert len(days(history)) < 5
        assert history.usage.used == used(history)
