"""What the mirror of hot state keeps in a store."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import numpy as np
import pytest
from conftest import wait_until
from openmanager_cache import mirror
from openmanager_cache.backends.memory import MemoryStore
from openmanager_cache.mirror import Mirror

from openmanager.api.server.v1 import server_pb2
from openmanager.hot import HotFleet, make_server
from openmanager.runtime.clock import SystemClock

MINUTE = timedelta(minutes=1)


class BusyStore(MemoryStore):
    """A store that says when it was written to."""

    def written(self) -> None:
        """Take note of it."""

    async def set_many(self, values) -> None:
        await super().set_many(values)
        self.written()
        await asyncio.sleep(0)


async def test_what_does_not_change_is_written_anew_while_others_change(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mirror, "REWRITE_SECONDS", 0.2)
    fleet, store = HotFleet(), BusyStore(SystemClock(), 1 << 20)
    kept = Mirror(fleet=fleet, store=store, server_ttl=MINUTE, list_ttl=MINUTE)

    def change(name: str) -> None:
        fleet.learn_metrics((name,))
        fleet.put([make_server(server_pb2.Server(id=name), (name,), np.ones(1))])
        kept.changed("")

    store.written = lambda: change("busy")  # so that there is always something to write
    change("quiet")
    quiet = ["server:quiet", f"metrics:{fleet.get('quiet').message.metric_set}"]

    async def is_written() -> bool:
        return None not in await store.get_many(quiet)

    task = asyncio.create_task(kept.run())
    try:
        await wait_until(is_written)
        for key in quiet:
            await store.delete(key)  # as if its time was over
        await wait_until(is_written)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
