"""The books of a whole shard: they balance at every moment, whatever happens, and do not where a count is wrong."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import zlib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import wait_until
from openmanager_timeseries.disk import PosixDisk
from openmanager_timeseries.engine_link import EngineLink
from openmanager_timeseries.history import History
from openmanager_timeseries.ledger import POSITIONS, Ledger
from openmanager_timeseries.log import Cursor
from openmanager_timeseries.module import _storages
from timeseries.delivery import PickyEngine, arrived, running
from timeseries.shard import StillClock, frame, opened

from openmanager.cli.log import ledger_table
from openmanager.client import codec
from openmanager.config import Size
from openmanager.frame import encode
from openmanager.runtime.status import Storage


def check(history: History) -> None:
    ledger = history.ledger.message(history.log)
    for each in ledger.consumers:
        found = (
            each.delivered_sample_count,
            each.waiting_sample_count,
            each.dead_lettered_sample_count,
            each.resynced_sample_count,
            each.damaged_sample_count,
        )
        assert min(found) >= 0, each.name
        assert sum(found) == ledger.accepted_sample_count, each.name
    assert history.ledger.unbalanced() == []


class Life:
    """A shard with an engine in memory, and what may happen to it."""

    def __init__(self, history: History, link: EngineLink, dice: random.Random) -> None:
        self.history, self.link, self.dice = history, link, dice
        self.engine = link.engine
        self.ticks = 0

    async def write(self) -> None:
        for _ in range(self.dice.randint(1, 4)):
            self.ticks += 1
            server = self.dice.choice(("a", "b", "bad", "worse"))
            values = {f"m{at}": float(at) for at in range(self.dice.randint(1, 5))}
            await self.history.write(encode(frame(-self.ticks, {server: values, "good": {"x": 1.0}})))

    async def refuse(self) -> None:
        self.engine.refuses = {name: "no" for name in ("bad", "worse") if self.dice.random() < 0.5}

    async def away(self) -> None:
        self.engine.away = self.dice.random() < 0.5

    async def restart(self) -> None:
        self.engine.started = str(self.dice.random())
        await self.look()

    async def empty(self) -> None:
        self.engine.epoch = ""
        await self.look()

    async def look(self) -> None:
        self.history.clock.seconds += 2
        await self.link.look()

    async def settle(self) -> None:
        self.history.clock.seconds += 30

    async def retry(self) -> None:
        ledger = self.history.ledger
        for letter in ledger.letters.of("influxdb"):
            try:
                reason = await self.link.take_again(letter.refusal, lambda _: None)
            except Exception:  # noqa: BLE001  (it is away)
                continue
            if not reason:
                ledger.taken_after_all(letter)

    async def seal(self) -> None:
        await self.history.seal()

    async def cut_loose(self) -> None:
        await self.history.seal()
        await asyncio.to_thread(
            self.history.log.delete_through, self.history.ledger.open_books("blocks").position, 1 << 62
        )

    async def save(self) -> None:
        await self.history.ledger.save(self.history.log)

    async def step(self) -> None:
        steps = (
            *(self.write,) * 5,
            *(self.look,) * 3,
            *(self.retry, self.save) * 2,
            *(self.refuse, self.away, self.restart, self.empty, self.settle, self.seal, self.cut_loose),
        )
        await self.dice.choice(steps)()


@pytest.mark.parametrize("seed", range(4))
async def test_they_balance_at_every_moment_whatever_happens(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
):
    dice = random.Random(seed)
    later = replace(PickyEngine.capabilities, durable_after=timedelta(seconds=dice.choice((0, 60))))
    monkeypatch.setattr(PickyEngine, "capabilities", later)
    engine, folder = PickyEngine(), tmp_path / "0"
    for life in range(2):
        async with opened(folder, segment_size=Size(1000)) as history:
            check(history)
            link = EngineLink(engine, history, history.clock, folder / "engine.json")
            async with running(history, link):
                lived = Life(history, link, dice)
                for _ in range(25):
                    await lived.step()
                    check(history)
                    for _ in range(dice.randint(0, 6)):
                        await asyncio.sleep(0)
                        check(history)
            # As a crash leaves it: what is on disk now, and not what closing would write.
            shutil.copytree(folder, tmp_path / str(life + 1))
        folder = tmp_path / str(life + 1)
    engine.away = False
    async with opened(folder, segment_size=Size(1000)) as history:
        link = EngineLink(engine, history, history.clock, folder / "engine.json")
        await link.look()
        history.clock.seconds += 100
        await link.look()
        async with running(history, link):

            async def is_through() -> bool:
                check(history)
                row = history.ledger.row("influxdb", history.log)
                return row.waiting_sample_count == 0

            await wait_until(is_through)


@pytest.mark.parametrize("count", ["delivered", "dead_lettered", "resynced", "damaged", "counted_accepted"])
async def test_a_wrong_count_shows(tmp_path: Path, count: str):
    async with opened(tmp_path) as history:
        for at in range(3):
            await history.write(encode(frame(at - 9, {"a": {"x": 1.0}})))
        engine = PickyEngine()
        link = EngineLink(engine, history, history.clock, tmp_path / "engine.json")
        await link.look()
        async with running(history, link):
            await arrived(history)
        assert history.ledger.unbalanced() == []
        assert (await _log_storage(history).check()).warnings == ()
        marks = _marks(history)
        assert set(marks.values()) == {"✓"}
        books = history.ledger.books["influxdb"]
        setattr(books, count, getattr(books, count) + 1)
        assert history.ledger.unbalanced() == ["influxdb"]
        assert _marks(history) == {**marks, "influxdb": "✗"}
        warnings = (await _log_storage(history).check()).warnings
        assert warnings == ("the books of influxdb do not balance: see `openmanager log`",)


def _log_storage(history: History) -> Storage:
    """Return the log as the status shows it."""
    return next(each for each in _storages(history, None, SimpleNamespace(clock=history.clock)) if each.name == "log")


def _marks(history: History) -> dict[str, str]:
    """Return what `openmanager log` shows of each consumer's balance."""
    table = ledger_table(codec.ledger(history.ledger.message(history.log)))
    names, marks = table.columns[0].cells, table.columns[-1].cells
    return {str(name): str(mark) for name, mark in zip(names, marks, strict=True)}


async def test_a_frame_that_is_skipped_or_counted_twice_shows(tmp_path: Path):
    async with opened(tmp_path) as history:
        for at in range(4):
            await history.write(encode(frame(at - 9, {"a": {"x": 1.0}})))
        records = await history.log.read(Cursor(1, accepted=0))
        ledger = history.ledger
        ledger.took("skips", records[:1], 0)
        ledger.took("skips", records[2:], records[1].accepted)
        assert ledger.unbalanced() == ["skips"]
        ledger.took("repeats", records[:2], 0)
        ledger.took("repeats", records[:3], 0)
        assert ledger.unbalanced() == ["skips"]


@pytest.mark.parametrize("lost", ["positions", "blocks", "newest segment", "both"])
async def test_they_balance_when_what_they_are_about_is_lost(tmp_path: Path, lost: str):
    async with opened(tmp_path, segment_size=Size(1000)) as history:
        for at in range(30):
            await history.write(encode(frame(at - 99, {"a": {"x": 1.0}, "b": {"y": 2.0, "z": 3.0}})))
            if at in {9, 19}:
                await history.seal()
    if lost in {"positions", "both"}:
        (tmp_path / "log" / POSITIONS).unlink()
    if lost in {"blocks", "both"}:
        shutil.rmtree(tmp_path / "blocks")
    if lost == "newest segment":
        max((tmp_path / "log").glob("*.log")).unlink()
    for _ in range(2):
        async with opened(tmp_path, segment_size=Size(1000)) as history:
            check(history)
            await history.write(encode(frame(-9, {"a": {"x": 1.0}})))
            check(history)
            await history.seal()
            check(history)


async def test_damage_is_counted_once_however_often_it_is_met(tmp_path: Path):
    async with opened(tmp_path) as history:
        for at in range(9):
            await history.write(encode(frame(at - 99, {"a": {"x": 1.0}})))
    (segment,) = (tmp_path / "log").glob("*.log")
    raw = bytearray(segment.read_bytes())
    raw[len(raw) // 2] ^= 1
    segment.write_bytes(raw)
    for _ in range(3):
        async with opened(tmp_path) as history:
            check(history)
            await history.write(encode(frame(-9, {"a": {"x": 1.0}})))
            row = history.ledger.row("head", history.log)
            assert row.waiting_sample_count == 0
    assert row.delivered_sample_count == 12


async def test_books_of_an_earlier_version_balance(tmp_path: Path):
    body = json.dumps(
        {
            "head_position": 9,
            "accepted": 90,
            "consumers": {"influxdb": {"position": 5, "accepted": 50, "dead_lettered": 4, "counted": 7, "damaged": 1}},
        }
    ).encode()
    disk = PosixDisk(tmp_path)
    disk.replace(POSITIONS, body + b"\n%08x" % zlib.crc32(body))
    books = Ledger(disk, StillClock()).books["influxdb"]
    assert (books.delivered, books.counted, books.counted_accepted) == (45, 5, 50)
    assert books.balance
