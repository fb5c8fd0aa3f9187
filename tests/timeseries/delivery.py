"""A shard whose log is delivered to a consumer that is told what to do: an engine in memory, say."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import numpy as np
import pytest
from conftest import wait_until
from openmanager_timeseries import consumer as consuming
from openmanager_timeseries.consumer import Runner
from openmanager_timeseries.engines.port import Capabilities, EngineState, Refused
from openmanager_timeseries.history import History
from openmanager_timeseries.port import Consumer
from timeseries.shard import frame

from openmanager.errors import UnavailableError
from openmanager.frame import Frame, encode


@contextlib.asynccontextmanager
async def running(history: History, taker: Consumer) -> AsyncIterator[Runner]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consuming, "backoff", lambda *_, **__: timedelta(0))
        runner = Runner(
            consumer=taker,
            source=history.log,
            ledger=history.ledger,
            clock=history.clock,
            jitter=random.Random(1),
        )
        task = asyncio.create_task(runner.run())
        try:
            yield runner
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def written(history: History, servers: Sequence[str]) -> None:
    for time, server in enumerate(servers):
        await history.write(encode(frame(time - len(servers), {server: {"x": 1.0, "y": 2.0}})))


async def arrived(history: History, name: str = "influxdb") -> None:
    async def is_there() -> bool:
        return history.ledger.open_books(name).position == history.log.state.head_position

    await wait_until(is_there)


class PickyEngine:
    """An engine that holds samples in memory and refuses those of some servers."""

    name = "influxdb"
    capabilities = Capabilities(
        digits=17,
        overwrites=True,
        signed_zero=True,
        ranged_delete=True,
        metric_delete=True,
        aggregations=frozenset(),
        durable_after=timedelta(0),
        visible_after=timedelta(0),
    )

    def __init__(self) -> None:
        self.refuses = {"bad": "a field has another type"}
        self.held: dict[tuple[str, str, int], float] = {}
        self.epoch = ""
        self.started = "1"
        self.away = False

    async def check(self) -> EngineState:
        if self.away:
            raise UnavailableError("it is away")
        return EngineState(version="1", epoch=self.epoch, started=self.started)

    async def mark(self, epoch: str) -> None:
        self.epoch = epoch

    async def write(self, frames: Sequence[Frame], info_of: object) -> Sequence[Refused]:
        if self.away:
            raise UnavailableError("it is away")
        refused = []
        for each in frames:
            for row, server in enumerate(each.servers):
                values = each.values[:, row]
                if server in self.refuses:
                    count = int(np.count_nonzero(~np.isnan(values)))
                    refused.append(Refused(reason=self.refuses[server], sample_count=count, servers=(server,)))
                    continue
                for tick, column in np.argwhere(~np.isnan(values)).tolist():
                    self.held[server, each.metrics[column], int(each.times[tick])] = float(values[tick, column])
        return refused

    async def close(self) -> None:
        pass
