"""Damage: whatever happens to a file, the start works, and an answer is right or says that something is missing."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from openmanager_timeseries.deletion import delete_series
from openmanager_timeseries.history import History
from openmanager_timeseries.keeper import Keeper
from openmanager_timeseries.query import RangeQuery, Stop
from timeseries.shard import (
    DAY,
    END,
    HOUR,
    MINUTE,
    SECOND,
    NoDisk,
    ask,
    asked,
    decimals,
    grid,
    imported,
    opened,
    rolled,
    ticks,
    write,
)

from openmanager import durable

START = END - 4 * HOUR
QUESTIONS = [
    (START, END, 0, "MEAN", {}),
    (START, END, 5 * MINUTE, "COUNT", {}),
    (START, END, HOUR, "SUM", {}),
    (START + 7 * MINUTE, END - 7 * MINUTE, HOUR, "MAX", {"group_by": "ALL"}),
    (START, END, HOUR, "INCREASE", {"metrics": ("requests",)}),
    (START, END, HOUR, "P90", {"metrics": ("load",)}),
    (END - 30 * DAY, END - 29 * DAY, HOUR, "SUM", {}),
]
Answers = list[tuple[list, list, str]]


async def fill(history: History) -> None:
    """Write blocks, two of which are merged, with late samples, deleted ones, tiers, sketches and imported buckets."""
    await imported(history, "1h", grid(ticks(END - 30 * DAY, 24, HOUR), 360, 2.5))
    for at in range(6):
        grown = np.cumsum(np.random.default_rng(at).integers(0, 5, 120)).astype(float).tolist()
        times = ticks(START + at * 2400 * SECOND, 120, 20 * SECOND)
        await write(history, times, ("a", "b"), load=decimals(120, at), requests=grown)
        await rolled(history)
    await write(history, ticks(START + SECOND, 90, 20 * SECOND), ("b",), load=decimals(90, 7))
    await delete_series(history, history.catalog.select(("a",), "", ("load",)), START, START + 17 * MINUTE, dry=False)
    await rolled(history)
    await Keeper(history, NoDisk()).merge_files()


async def answers(history: History) -> Answers:
    found: Answers = []
    for start, end, step, aggregation, changes in QUESTIONS:
        answer = await ask(history, start, end, step, aggregation, **changes)
        names = [(name.server, name.metric, name.group) for name in answer.names]
        raw = answer.raw
        values = (
            [raw.rows.tolist(), raw.times.tolist(), raw.values.tolist()]
            if raw is not None
            else np.round(np.nan_to_num(answer.values, nan=-1.0), 6).tolist()
        )
        found.append((names, values, answer.partial_reason))
    return found


def right_or_partial(found: Answers, expected: Answers) -> None:
    for question, mine, right in zip(QUESTIONS, found, expected, strict=True):
        assert mine[2] or mine[:2] == right[:2], question


def truncated(chance: random.Random, content: bytes) -> bytes:
    return content[: chance.randrange(len(content))]


def flipped(chance: random.Random, content: bytes) -> bytes:
    at = chance.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]


def files_of(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.is_file())


async def made(folder: Path) -> Answers:
    async with opened(folder, sketch_metrics="load") as history:
        await fill(history)
        history.head.drop(-1)
        expected = await answers(history)
        assert {each[2] for each in expected} == {""}
    return expected


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Answers]:
    """A folder, and what it answers."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, asyncio.run(made(folder))


async def damage(
    whole: tuple[Path, Answers],
    folder: Path,
    seed: int,
    how: Callable[[random.Random, bytes], bytes],
    pattern: str,
    *,
    logged: bool,
) -> None:
    chance = random.Random(seed)
    shutil.copytree(whole[0], folder)
    files = files_of(folder, pattern)
    victim = files[chance.randrange(len(files))]
    while_open = chance.random() < 0.5 and victim.suffix == ".parquet" and victim.parent != folder
    if not logged:
        for path in files_of(folder, "log/*.log"):
            path.unlink()
    try:
        if not while_open:
            victim.write_bytes(how(chance, victim.read_bytes()))
        async with opened(folder, sketch_metrics="load") as history:
            if while_open:
                victim.write_bytes(how(chance, victim.read_bytes()))
            keeper = Keeper(history, NoDisk())
            right_or_partial(await answers(history), whole[1])
            await keeper.mend()
            await rolled(history)
            await keeper.mend()
            mended = await answers(history)
            right_or_partial(mended, whole[1])
            if logged and victim.parent.name == "blocks":
                assert {each[2] for each in mended} == {""}
            await keeper.merge_files()
            right_or_partial(await answers(history), whole[1])
        async with opened(folder, sketch_metrics="load") as history:
            right_or_partial(await answers(history), whole[1])
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("how", [truncated, flipped])
@pytest.mark.parametrize("pattern", ["blocks/*.parquet", "tiers/*/*.parquet", "sketches/*/*.parquet", "*.*"])
@pytest.mark.parametrize("logged", [True, False])
async def test_a_damaged_file_gives_no_wrong_answer(whole, tmp_path: Path, how, pattern: str, logged: bool):  # noqa: FBT001
    for seed in range(7):
        await damage(whole, tmp_path / str(seed), seed, how, pattern, logged=logged)


async def blocks_of(history: History, count: int = 3) -> list[Path]:
    for at in range(count):
        await write(history, ticks(START + at * HOUR, 60), load=decimals(60, at))
        await write(history, ticks(START + at * HOUR + 30 * MINUTE, 60), load=decimals(60, at))
        await rolled(history)
    return [file.path for file in history.blocks.files]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4:300] = bytes(296)
    path.write_bytes(content)


async def count(history: History) -> tuple[int, str]:
    answer = await ask(history, START, END, 0)
    return len(answer.raw.values), answer.partial_reason


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("record", [0, 1])
async def test_a_block_is_not_made_anew_of_a_log_that_has_lost_a_frame_of_it(tmp_path: Path, at: int, record: int):
    async with opened(tmp_path) as history:
        paths = await blocks_of(history)
    cut(paths[at])
    (segment,) = files_of(tmp_path, "log/*.log")
    content = bytearray(segment.read_bytes())
    names = [place for place in range(len(content)) if content.startswith(b"load", place)]
    assert len(names) >= 6
    content[names[len(names) // 6 * (2 * at + record)]] ^= 0xFF
    segment.write_bytes(content)
    async with opened(tmp_path) as history:
        await Keeper(history, NoDisk()).mend()
        found, reason = await count(history)
        assert (found, bool(reason)) == (240, True)
        assert history.blocks.quarantined


async def test_a_block_is_found_again_though_the_catalogue_was_lost_with_it(tmp_path: Path):
    async with opened(tmp_path) as history:
        paths = await blocks_of(history, 1)
    cut(paths[0])
    (tmp_path / "catalog.parquet").unlink()
    for path in files_of(tmp_path, "tiers/*/*.parquet"):
        path.unlink()
    async with opened(tmp_path) as history:
        await Keeper(history, NoDisk()).mend()
        assert await count(history) == (120, "")


async def test_what_could_not_be_mended_for_want_of_room_is_mended_later(tmp_path: Path, monkeypatch):
    async with opened(tmp_path) as history:
        paths = await blocks_of(history)
    for path in paths[:2]:
        cut(path)
    async with opened(tmp_path) as history:
        keeper = Keeper(history, NoDisk())

        def full(*_, **__):
            raise OSError(28, "no space")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(durable, "sync", full)
            with pytest.raises(OSError, match="no space"):
                await keeper.mend()
        await keeper.mend()
        assert await count(history) == (360, "")
        assert history.blocks.quarantined == []


async def test_a_query_that_meets_damage_that_is_mended_meanwhile_says_so(tmp_path: Path):
    async with opened(tmp_path) as history:
        paths = await blocks_of(history)
        history.head.drop(-1)
        planned = history._planner.plan(question())
        spoil(paths[1])
        assert await count(history) == (240, "a block is damaged and was set aside")
        await Keeper(history, NoDisk()).mend()
        assert await count(history) == (360, "")
        answer = history._planner.compute(planned, Stop(history.clock, 10))
        assert (len(answer.raw.values), bool(answer.partial_reason)) == (240, True)


def question() -> RangeQuery:
    return replace(asked(0, 0), start=START, end=END)


@pytest.mark.parametrize("store", ["buckets", "sketches"])
async def test_a_tier_s_file_that_is_made_again_is_damaged_no_more(tmp_path: Path, store: str):
    async with opened(tmp_path, sketch_metrics="load") as history:
        await blocks_of(history)
        await Keeper(history, NoDisk()).roll_up()
        files = getattr(history.roller.tiers[1], store)
        for file in files.files:
            spoil(file.path)
        if store == "sketches":
            history.retention.defaults["raw"] = 60 * SECOND
        aggregation = "P50" if store == "sketches" else "SUM"
        damaged = await ask(history, START, END, HOUR, aggregation)
        assert "a file of a tier is damaged" in damaged.partial_reason
        history.retention.defaults["raw"] = 14 * DAY
        keeper = Keeper(history, NoDisk())
        await keeper.mend()
        await rolled(history)
        await keeper.mend()
        assert files.quarantined == []
        found = await ask(history, START, START + 3 * HOUR, HOUR, "COUNT")
        assert (found.values.tolist(), found.partial_reason, found.parts[0].tier) == ([[120.0] * 3], "", "1h")


async def test_buckets_that_nothing_can_make_again_are_missed_for_as_long_as_they_are_away(tmp_path: Path):
    async with opened(tmp_path) as history:
        await imported(history, "1h", grid(ticks(END - 30 * DAY, 24, HOUR), 360, 2.5))
        spoil(history.roller.tiers[1].buckets.files[0].path)
        for _ in range(2):
            found = await ask(history, END - 30 * DAY, END - 29 * DAY, HOUR, "SUM")
            assert "a file of a tier is damaged" in found.partial_reason
            await Keeper(history, NoDisk()).mend()
            await rolled(history)
    async with opened(tmp_path) as history:
        await Keeper(history, NoDisk()).mend()
        found = await ask(history, END - 30 * DAY, END - 29 * DAY, HOUR, "SUM")
        assert "a file of a tier is damaged" in found.partial_reason
