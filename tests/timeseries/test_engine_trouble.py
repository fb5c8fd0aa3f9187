"""An engine that is slow, or does not let us in: what is told, who answers instead, and when it is used again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from conftest import wait_until
from openmanager_timeseries.engine_link import LEAST_CALLS, Condition, EngineLink
from openmanager_timeseries.engine_reader import EngineReader
from openmanager_timeseries.engines.port import Coded, EngineState, Refused, RefusedCredentialsError, Wanted
from openmanager_timeseries.history import History
from timeseries.delivery import PickyEngine, arrived, running, written
from timeseries.shard import StillClock, asked, opened

from openmanager.api.status.v1 import status_pb2
from openmanager.frame import Frame
from openmanager.runtime.breaker import FAILURES


class SlowEngine(PickyEngine):
    """An engine whose every answer takes as long as it is told."""

    def __init__(self, clock: StillClock) -> None:
        super().__init__()
        self.refuses.clear()
        self.clock = clock
        self.seconds = 0.0
        self.locked = self.hangs = False

    async def check(self) -> EngineState:
        self.clock.seconds += self.seconds
        if self.locked:
            raise RefusedCredentialsError(self.name)
        return await super().check()

    async def write(self, frames: Sequence[Frame], info_of: object) -> Sequence[Refused]:
        self.clock.seconds += self.seconds
        return await super().write(frames, info_of)

    async def read(self, wanted: Wanted) -> Coded:
        if self.hangs:
            await asyncio.Event().wait()
        self.clock.seconds += self.seconds
        nothing = np.empty(0, np.int64)
        return Coded(
            servers=(), server_codes=nothing, metrics=(), metric_codes=nothing, times=nothing, values=np.empty(0)
        )


async def test_an_engine_that_is_slow_is_told_with_how_slow_and_left_alone_and_blocks_answer(tmp_path: Path):
    async with opened(tmp_path) as history:
        engine = SlowEngine(history.clock)
        link = EngineLink(engine, history, history.clock, tmp_path / "engine.json")
        history.engine = EngineReader(link, history, 20.0, history.clock)
        await link.look()
        async with running(history, link):
            engine.seconds = 1.5
            for _ in range(LEAST_CALLS):
                await written(history, ["a"])
                await arrived(history)
            await written(history, ["b"])

            async def is_slow() -> bool:
                row = history.ledger.row("influxdb", history.log)
                return row.state == status_pb2.STORAGE_STATE_SLOW

            await wait_until(is_slow)
            row = history.ledger.row("influxdb", history.log)
            assert (row.reason, row.waiting_sample_count) == ("answers slowly: p95 1,500 ms", 2)
            await history.seal()
            history.head.drop(-1)
            link._seen.clear()
            link._visible = history.log.state.head_position
            answer = await history.query_range(asked(-9, 1), 20)
            assert answer.degraded_reason == "influxdb answers slowly: p95 1,500 ms; read from blocks"
            await link.look()  # which is slow, too
            assert link.writes.is_open
            engine.seconds = 0.0
            history.clock.seconds += 2
            await link.look()
            await arrived(history)
            assert history.ledger.row("influxdb", history.log).state == status_pb2.STORAGE_STATE_OK
            assert (await history.query_range(asked(-9, 1), 20)).degraded_reason == ""


@asynccontextmanager
async def read_from(folder: Path) -> AsyncIterator[tuple[History, SlowEngine, EngineLink]]:
    """A history whose blocks, of one sample, an engine is asked for first."""
    async with opened(folder) as history:
        engine = SlowEngine(history.clock)
        link = EngineLink(engine, history, history.clock, folder / "engine.json")
        history.engine = EngineReader(link, history, 20.0, history.clock)
        await written(history, ["a"])
        await history.seal()
        history.head.drop(-1)
        await link.look()
        link._visible = history.log.state.head_position
        yield history, engine, link


async def test_an_engine_whose_answers_are_slow_is_not_asked_any_more(tmp_path: Path):
    async with read_from(tmp_path) as (history, engine, link):
        engine.seconds = 1.2
        for _ in range(LEAST_CALLS):
            assert not link.reads.is_open
            assert (await history.query_range(asked(-9, 1), 20)).degraded_reason == ""
        assert link.reads.is_open
        assert not link.writes.is_open
        answer = await history.query_range(asked(-9, 1), 20)
        assert answer.degraded_reason == "influxdb answers slowly: p95 1,200 ms; read from blocks"


async def test_an_engine_that_hangs_leaves_the_blocks_time_to_answer(tmp_path: Path):
    async with read_from(tmp_path) as (history, engine, link):
        engine.hangs = True
        for _ in range(FAILURES):  # callers in a hurry say nothing of the engine
            assert (await history.query_range(asked(-9, 1), 0.1)).degraded_reason
        assert not link.reads.is_open
        async with asyncio.timeout(1):
            found = await asyncio.gather(*(history.query_range(asked(-9, 1), 1.0) for _ in range(FAILURES)))
        for answer in found:
            assert answer.degraded_reason == "influxdb does not answer in time; read from blocks"
        assert link.reads.is_open


async def test_an_engine_that_refuses_the_credentials_says_so(tmp_path: Path):
    async with opened(tmp_path) as history:
        engine = SlowEngine(history.clock)
        link = EngineLink(engine, history, history.clock, tmp_path / "engine.json")
        engine.locked = True
        await link.look()
        assert link.condition is Condition.REFUSED
        assert str(link.condition) == "auth: the credentials are refused"
