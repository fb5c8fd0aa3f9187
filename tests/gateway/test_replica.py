"""The gateway's copy of hot state says how good it is."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta

import pytest
from conftest import Mesh, wait_until
from openmanager_gateway.replica import Replica

from chaos.checker import STALE_SECONDS
from chaos.proxy import ChaosProxy, Trouble, Way, tcp
from openmanager.api.cache.v1 import cache_pb2
from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.errors import NotFoundError, UnavailableError
from openmanager.hot import HotFleet
from openmanager.hot_service import HotService
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.peer import Peer


async def test_answers_are_marked_when_the_cache_hangs_and_not_any_more_when_it_is_back(mesh: Mesh):
    host, _, port = mesh.address("cache").partition(":")
    async with (
        ChaosProxy(tcp(host, int(port))) as proxy,
        Peer("cache", f"127.0.0.1:{proxy.port}") as cache,
        Peer("timeseries", mesh.address("timeseries")) as timeseries,
    ):
        replica = Replica(
            cache=cache,
            timeseries=timeseries,
            clock=SystemClock(),
            jitter=random.Random(1),
            head_interval=timedelta(seconds=1),
        )

        async def is_marked() -> bool:
            return replica.describe().degraded

        async def is_fresh() -> bool:
            return not replica.describe().degraded

        task = asyncio.create_task(replica.run())
        try:
            await wait_until(is_fresh)
            async with proxy.while_(Trouble(silent=frozenset(Way))):
                await wait_until(is_marked, STALE_SECONDS)
            await wait_until(is_fresh)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(("partial", "error"), [(True, UnavailableError), (False, NotFoundError)])
async def test_only_a_copy_that_is_whole_says_that_there_is_no_such_server(*, partial: bool, error: type[Exception]):
    service = HotService(HotFleet(), lambda: provenance_pb2.Provenance(partial=partial), lambda: True)
    with pytest.raises(error):
        await service.GetServer(cache_pb2.GetServerRequest(id="a").SerializeToString(), None)
