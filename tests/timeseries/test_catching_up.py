"""A reader of the log that was away: it gets what waits in large batches, in order, while more comes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from openmanager_timeseries import consumer as consuming
from openmanager_timeseries.dead_letter import Refusal
from openmanager_timeseries.record import Record
from timeseries.delivery import arrived, running
from timeseries.shard import NOW, SECOND, opened

from openmanager.frame import Frame, encode

SERVERS, METRICS, BACKLOG = 20, 511, 150


class Away:
    """A consumer that remembers its batches; during the first some more frames come."""

    name = "influxdb"
    take_seconds = 5.0
    rewinds = 0

    def __init__(self, meanwhile) -> None:
        self.batches: list[list[int]] = []
        self._meanwhile = meanwhile

    async def take(self, records: Sequence[Record]) -> Sequence[Refusal]:
        if not self.batches:
            await self._meanwhile()
        self.batches.append([record.position for record in records])
        return ()

    def settled(self, position: int, accepted: int) -> tuple[int, int]:
        return position, accepted


def tick(at: int) -> bytes:
    values = np.random.default_rng(at).random((1, SERVERS, METRICS))
    servers, metrics = tuple(f"s{n:02}" for n in range(SERVERS)), tuple(f"m{n:03}" for n in range(METRICS))
    return encode(Frame(times=np.array([NOW + (at - 999) * SECOND]), servers=servers, metrics=metrics, values=values))


async def test_what_waits_is_taken_in_few_large_batches_in_order_with_what_comes_meanwhile(tmp_path: Path):
    async with opened(tmp_path, max_series=20_000) as history:
        await asyncio.gather(*(history.write(tick(at)) for at in range(BACKLOG)))

        async def meanwhile() -> None:
            for at in range(BACKLOG, BACKLOG + 5):
                await history.write(tick(at))

        taker = Away(meanwhile)
        async with running(history, taker):
            await arrived(history)
        assert [at for batch in taker.batches for at in batch] == list(range(1, BACKLOG + 6))
        frames_a_batch = consuming.BATCH_BYTES // len(tick(0))
        assert len(taker.batches) <= -(-(BACKLOG + 5) // frames_a_batch) + 2
        row = history.ledger.row("influxdb", history.log)
        assert (row.delivered_sample_count, row.waiting_sample_count) == (SERVERS * METRICS * (BACKLOG + 5), 0)
