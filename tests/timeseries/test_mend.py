"""Damage: whatever happens to a file, the start works, and an answer is right or says that something is missing."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from openmanager_timeseries.deletion import delete_series
from openmanager_timeseries.history import History
from openmanager_timeseries.keeper import Keeper
from timeseries.shard import (
    DAY,
    END,
    HOUR,
    MINUTE,
    SECOND,
    NoDisk,
    ask,
    decimals,
    grid,
    imported,
    opened,
    rolled,
    ticks,
    write,
)

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
