"""A shard of history with an engine beside its blocks: delivered to, read from, filled again, done without."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from openmanager_timeseries.consumer import Runner
from openmanager_timeseries.disk import PosixDisk
from openmanager_timeseries.engine_link import EngineLink
from openmanager_timeseries.engine_reader import EngineReader
from openmanager_timeseries.history import History
from openmanager_timeseries.opening import open_history
from openmanager_timeseries.query import Answer, RangeQuery
from timeseries.shard import config

from engines.stores import Store
from openmanager.frame import Frame, encode
from openmanager.runtime.clock import SystemClock

SECOND = 10**9
MINUTE = 60 * SECOND


class Shard:
    """A shard with an engine, and what it was told."""

    def __init__(self, history: History, link: EngineLink, prefix: str) -> None:
        self.history, self.link, self.prefix = history, link, prefix
        self.start = (time.time_ns() // MINUTE - 120) * MINUTE
        self.values = np.round(np.random.default_rng(3).normal(50, 9, (3600 // 10, 2, 2)), 2)

    async def write(self, first: int, last: int) -> None:
        times = self.start + np.arange(first, last, dtype=np.int64) * 10 * SECOND
        made = Frame(
            times=times,
            servers=(f"{self.prefix}-a", f"{self.prefix}-b"),
            metrics=("load", "used{disk=sd a,x=1}"),
            values=self.values[first:last],
        )
        await self.history.write(encode(made))

    async def ask(self, first: int, last: int, **changes) -> Answer:
        asked = RangeQuery(
            servers=(),
            server_filter="",
            metrics=(),
            start=self.start + first * 10 * SECOND,
            end=self.start + last * 10 * SECOND,
            step=0,
            aggregation="MEAN",
            group_by="SERVER",
        )
        return await self.history.query_range(replace(asked, **changes), 20)

    def expected(self, first: int, last: int) -> list[float]:
        return self.values[first:last].transpose(1, 2, 0).ravel().tolist()


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 50.0) -> None:
    end = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.3)


@contextlib.asynccontextmanager
async def shard(folder: Path, store: Store, prefix: str) -> AsyncIterator[Shard]:
    """A shard whose head forgets what is sealed, so that history is asked for."""
    clock = SystemClock()
    async with open_history(replace(config(folder), tiers=""), PosixDisk(folder / "log"), clock) as history:
        link = EngineLink(store.engine(), history, clock, folder / "engine.json")
        history.engine = EngineReader(link, history.catalog, 20.0, clock)
        runner = Runner(consumer=link, source=history.log, ledger=history.ledger, clock=clock, jitter=random.Random(1))
        tasks = [asyncio.create_task(link.watch()), asyncio.create_task(runner.run())]
        try:
            yield Shard(history, link, prefix)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await link.engine.close()


async def sealed(of: Shard, store: Store) -> None:
    """Let the head hold nothing, and the engine show everything."""
    await of.history.seal()
    of.history.head.drop(-1)
    last = of.history.log.state.head_position

    async def delivered() -> bool:
        await store.settle()
        return (of.link.ready and bool(of.link._seen) and of.link._seen[-1][1] == last) or of.link.visible >= last

    await until(delivered)
    await store.settle()
    of.link._seen.clear()  # the store was made to show it before its time
    of.link._visible = last


async def test_what_no_head_holds_is_read_from_the_engine(tmp_path: Path, store: Store, prefix: str):
    async with shard(tmp_path, store, prefix) as of:
        for first in range(0, 360, 60):
            await of.write(first, first + 60)
        await sealed(of, store)
        answer = await of.ask(10, 350)
        assert {part.source for part in answer.parts} == {store.name}
        assert answer.degraded_reason == ""
        np.testing.assert_allclose(answer.raw.values, of.expected(10, 350), rtol=1e-11)
        await of.write(0, 1)  # an overwrite of one tick, which the head holds now
        answer = await of.ask(0, 350)
        assert {part.source for part in answer.parts} == {f"head+{store.name}"}
        np.testing.assert_allclose(answer.raw.values, of.expected(0, 350), rtol=1e-11)


async def test_buckets_are_the_same_wherever_they_are_computed(tmp_path: Path, store: Store, prefix: str):
    async with shard(tmp_path, store, prefix) as of:
        await of.write(0, 180)
        await of.write(180, 360)
        await sealed(of, store)
        engine = of.history.engine
        for aggregation in ("MEAN", "MIN", "MAX", "SUM", "COUNT", "FIRST", "LAST", "P90", "STDDEV"):
            of.history.engine = engine
            found = await of.ask(3, 340, step=MINUTE, aggregation=aggregation)
            of.history.engine = None
            ours = await of.ask(3, 340, step=MINUTE, aggregation=aggregation)
            assert {part.source for part in found.parts} == {store.name}
            assert {part.source for part in ours.parts} == {"blocks"}
            np.testing.assert_allclose(found.values, ours.values, rtol=1e-9, err_msg=aggregation)


async def test_a_hung_engine_is_done_without_and_said(tmp_path: Path, store: Store, prefix: str):
    if store.server is None:
        pytest.skip("the store is not ours to stop")
    async with shard(tmp_path, store, prefix) as of:
        await of.write(0, 60)
        await sealed(of, store)
        of.history.engine._seconds = 0.5
        with store.server.hung():
            answer = await of.ask(0, 60)
            assert answer.raw.values.tolist() == of.expected(0, 60)
            assert {part.source for part in answer.parts} == {"blocks"}
            assert answer.degraded_reason.startswith(store.name)
        of.history.engine._seconds = 20.0

        async def back() -> bool:
            return {part.source for part in (await of.ask(0, 60)).parts} == {store.name}

        await until(back)


async def test_an_emptied_engine_is_recognised_and_filled_from_the_blocks(tmp_path: Path, store: Store, prefix: str):
    async with shard(tmp_path, store, prefix) as of:
        for first in range(0, 360, 90):
            await of.write(first, first + 90)
            await of.history.seal()
        await sealed(of, store)
        await store.empty()

        epoch = of.link._epoch

        async def whole() -> bool:
            await store.settle()
            return of.link.ready and of.link._epoch != epoch

        await until(whole)
        of.link._visible = of.history.log.state.head_position
        answer = await of.ask(0, 360)
        assert {part.source for part in answer.parts} == {store.name}
        np.testing.assert_allclose(answer.raw.values, of.expected(0, 360), rtol=1e-11)


async def test_an_engine_that_joins_later_gets_all_there_is(tmp_path: Path, store: Store, prefix: str):
    async with open_history(config(tmp_path), PosixDisk(tmp_path / "log"), SystemClock()) as history:
        of = Shard(history, None, prefix)
        await of.write(0, 120)
        await history.seal()
        await of.write(120, 150)
    async with shard(tmp_path, store, prefix) as of:

        async def whole() -> bool:
            await store.settle()
            books = of.history.ledger.books.get(store.name)
            row = of.history.ledger.row(store.name, of.history.log) if books else None
            return of.link.ready and bool(of.link._seen) and row is not None

        await until(whole)
        await sealed(of, store)
        answer = await of.ask(0, 150)
        assert {part.source for part in answer.parts} == {store.name}
        np.testing.assert_allclose(answer.raw.values, of.expected(0, 150), rtol=1e-11)


async def test_positions_are_believed_when_nothing_can_be_lost_any_more(tmp_path: Path, store: Store, prefix: str):
    async with shard(tmp_path, store, prefix) as of:
        await of.write(0, 30)
        await sealed(of, store)
        books = of.history.ledger.books[store.name]
        window = of.link.engine.capabilities.durable_after.total_seconds()

        async def confirmed() -> bool:
            return books.position == of.history.log.state.head_position

        if window:
            await of.write(30, 60)

            async def written() -> bool:
                return bool(of.link._unsettled)

            await until(written)
            assert not await confirmed()
            if store.server is None:
                return
            before = of.link.found.started
            store.server.stop()  # a killed store has lost what it had not written out
            store.server.start()

            async def again() -> bool:
                await store.settle()
                return of.link.found.started != before and of.link.ready and bool(of.link._unsettled)

            await until(again)
            await store.settle()
            of.link._visible = of.history.log.state.head_position
            answer = await of.ask(0, 60)
            np.testing.assert_allclose(answer.raw.values, of.expected(0, 60), rtol=1e-11)
        else:
            await until(confirmed)
