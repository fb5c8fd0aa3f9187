"""A copy of history that is taken while it changes, and the checksums of what it holds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from openmanager_timeseries import checksum, duplicate
from openmanager_timeseries.checksum import checksums, differences
from openmanager_timeseries.duplicate import copy_files, copy_log
from openmanager_timeseries.history import History
from openmanager_timeseries.keeper import Keeper
from openmanager_timeseries.sealed import Name
from shard import NOW, SECOND, NoDisk, opened, raw, rolled, ticks, write

from openmanager import durable
from openmanager.errors import FailedPreconditionError, UnavailableError

START = -3000
WRITTEN, MOST = 7, 40


async def add(history: History, number: int) -> None:
    """Write the sample of a number: at its time, with its value."""
    await write(history, ticks(NOW + (START + 10 * number) * SECOND, 1), load=[number])


def copied(source: Path, target: Path) -> None:
    copy_log(source, target, copy_files(source, target))


@pytest.fixture
async def changing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A history that moves on before every single step of a copy: it is written to, sealed, rolled up, merged, trimmed."""
    loop = asyncio.get_running_loop()
    async with opened(tmp_path / "source", segment_size=1500) as history:
        upkeep = Keeper(history, NoDisk())
        numbers: list[int] = []

        async def change() -> None:
            numbers.append(len(numbers))
            await add(history, numbers[-1])
            if len(numbers) % 3 == 0:
                await rolled(history)
                await upkeep.merge_files()
            await history.ledger.save(history.log)
            if len(numbers) % 4 == 0:  # what was written since the copy began is kept longer than that takes
                history.log.delete_through(min(history.ledger.slowest(), WRITTEN), 1 << 62)

        def before(step):
            def changed(*arguments):
                if len(numbers) < MOST:  # every change makes more to copy
                    asyncio.run_coroutine_threadsafe(change(), loop).result(20)
                return step(*arguments)

            return changed

        for _ in range(WRITTEN):
            await change()
        for step in ("_link", "_copy", "_link_below"):
            monkeypatch.setattr(duplicate, step, before(getattr(duplicate, step)))
        yield numbers


async def test_a_copy_of_a_history_that_changes_has_all_that_was_acknowledged_before(changing, tmp_path: Path):
    numbers = changing
    known = len(numbers)
    await asyncio.to_thread(copied, tmp_path / "source", tmp_path / "copy")
    assert len(numbers) > known + 10
    # Nothing counts as delivered that is not there.
    positions = durable.load(tmp_path / "copy" / "log" / "positions.json")["consumers"]
    sealed = [Name.parse(path.name).last for path in (tmp_path / "copy" / "blocks").iterdir()]
    assert 0 < positions["blocks"]["position"] <= max(sealed)
    async with opened(tmp_path / "copy", segment_size=1500) as copy:
        found = dict((await raw(copy))["a", "load"])
        expected = {START + 10 * number: float(number) for number in numbers}
        assert found == {at: value for at, value in expected.items() if at in found}
        assert set(found) >= {START + 10 * number for number in numbers[:known]}
        # What is there ends somewhere, and has no holes.
        assert sorted(found) == [START + 10 * number for number in numbers[: len(found)]]
        assert copy.ledger.unbalanced() == []
        assert copy.log.state.damaged_regions == 0
        assert {name for name, books in copy.ledger.books.items() if books.damaged} == set()
        assert max(books.position for books in copy.ledger.books.values()) <= copy.log.state.head_position
        # Not one of the million positions is passed over that are where something is newer than the log.
        end = copy.log.state.head_position
        await add(copy, MOST)
        assert copy.log.state.head_position == end + 1


async def test_deletions_that_go_on_and_on_are_not_copied_by_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    contents = iter(range(1000))
    monkeypatch.setattr(duplicate, "_content", lambda _: str(next(contents)).encode())
    async with opened(tmp_path / "source") as history:
        await add(history, 1)
        with pytest.raises(UnavailableError, match="change faster"):
            copied(tmp_path / "source", tmp_path / "copy")


async def test_a_log_that_is_deleted_meanwhile_is_not_copied_with_a_hole(tmp_path: Path):
    async with opened(tmp_path / "source", segment_size=1500) as history:
        await add(history, 1)
        newest = copy_files(tmp_path / "source", tmp_path / "copy")
        for number in range(2, 20):
            await add(history, number)
        await history.seal()
        assert history.log.delete_through(15, 1 << 62) > 0
        with pytest.raises(UnavailableError, match="deleted faster"):
            copy_log(tmp_path / "source", tmp_path / "copy", newest)


def test_a_folder_without_history_is_refused(tmp_path: Path):
    with pytest.raises(FailedPreconditionError, match="holds no history"):
        copied(tmp_path, tmp_path / "copy")


async def test_checksums_know_no_files(tmp_path: Path):
    async with opened(tmp_path / "source") as history:
        for number in range(4):
            await add(history, number)
            await history.seal()
        several = checksums(tmp_path / "source")
        files = history.blocks.files
        history.blocks.replace(files, history.blocks.merge(files))
        history.blocks.delete_replaced(-1.0)
        merged = checksums(tmp_path / "source")
        assert len(files) == 4
        assert differences(several.table, merged.table) == []
        assert merged.table.to_pylist()[0]["row_count"] == 4


async def test_what_was_computed_of_files_is_kept_as_long_as_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read = []
    real = checksum._of_file
    monkeypatch.setattr(checksum, "_of_file", lambda tier, path, kind: read.append(path) or real(tier, path, kind))
    cache = tmp_path / "cache"
    async with opened(tmp_path / "source") as history:
        for number in range(2):
            await add(history, number)
            await history.seal()
        first, second = checksums(tmp_path / "source", cache), checksums(tmp_path / "source", cache)
        assert (len(read), first.table) == (2, second.table)
        for path in cache.iterdir():
            path.write_bytes(b"damaged")
        assert checksums(tmp_path / "source", cache).table == first.table
        assert len(read) == 4
        history.blocks.replace(history.blocks.files[:1], None)
        history.blocks.delete_replaced(-1.0)
        checksums(tmp_path / "source", cache)
        assert len(list(cache.iterdir())) == 1


async def test_a_sample_that_is_another_is_found_in_the_log_and_in_blocks(tmp_path: Path):
    tables = []
    for name, value in (("one", 1.0), ("same", 1.0), ("other", np.nextafter(1.0, 2.0))):
        async with opened(tmp_path / name) as history:
            await write(history, ticks(NOW, 2), ("a", "b"), load=[1.0, value])
            in_log = checksums(tmp_path / name).table
            await history.seal()
            tables.append((in_log, checksums(tmp_path / name).table))
    (log, sealed), same, (other_log, other_sealed) = tables
    assert (differences(log, same[0]), differences(sealed, same[1])) == ([], [])
    assert differences(log, other_log) == ["log a load", "log b load"]
    assert differences(sealed, other_sealed) == ["raw a load", "raw b load"]


async def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    async with opened(tmp_path / "source") as history:
        await add(history, 1)
        await history.seal()
        path = history.blocks.files[0].path
    path.write_bytes(b"no parquet")
    assert checksums(tmp_path / "source").damaged == (path.name,)
