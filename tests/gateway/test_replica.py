"""The gateway's copy of hot state says how good it is."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta

import numpy as np
import pytest
from conftest import Mesh, wait_until
from openmanager_gateway.replica import AHEAD_SECONDS, Replica

from chaos.checker import STALE_SECONDS
from chaos.proxy import ChaosProxy, Trouble, Way, tcp
from openmanager.api.cache.v1 import cache_pb2
from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.api.server.v1 import server_pb2
from openmanager.errors import NotFoundError, UnavailableError
from openmanager.frame import Frame, encode, length_delimited
from openmanager.hot import HotFleet
from openmanager.hot_service import HotService
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.peer import Peer

SECOND = 10**9


class StillClock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def now_nanos(self) -> int:
        return int(self.seconds * SECOND)

    def monotonic(self) -> float:
        return self.seconds


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


class Head:
    """A time-series service whose newest sample of a server is of a time."""

    def __init__(self, nanos: int) -> None:
        self.nanos = nanos

    async def server_stream(self, path, request, *, seconds):
        frame = Frame(
            times=np.array([self.nanos]),
            servers=("a",),
            metrics=("cpu_usage",),
            values=np.full((1, 1, 1), self.nanos / SECOND),
        )
        yield length_delimited(2, encode(frame))


def told(nanos: int, kind=server_pb2.WATCH_KIND_SNAPSHOT) -> cache_pb2.WatchServersResponse:
    """What the cache says of a server whose newest sample is of a time."""
    message = cache_pb2.WatchServersResponse(kind=kind, resume_token="1-1")
    server = message.servers.add(id="a", cpu_usage=nanos / SECOND)
    server.sample_time.FromNanoseconds(nanos)
    return message


def shown(replica: Replica) -> float:
    return replica.fleet.get("a").message.cpu_usage


async def test_what_the_head_has_told_is_not_taken_back_by_a_cache_that_is_not_so_far_yet():
    clock = StillClock()
    replica = Replica(
        cache=None, timeseries=Head(5 * SECOND), clock=clock, jitter=random.Random(1), head_interval=timedelta(1)
    )
    await replica._read_head()
    assert shown(replica) == 5.0
    replica._take(told(4 * SECOND), [])
    assert shown(replica) == 5.0
    replica._take(told(6 * SECOND, server_pb2.WATCH_KIND_DELTA), None)
    assert shown(replica) == 6.0
    # From then on the cache alone says what is newest, and it may have been emptied.
    replica._take(told(2 * SECOND, server_pb2.WATCH_KIND_DELTA), None)
    assert shown(replica) == 2.0


async def test_a_cache_that_never_comes_as_far_is_believed_in_the_end():
    clock = StillClock()
    replica = Replica(
        cache=None, timeseries=Head(5 * SECOND), clock=clock, jitter=random.Random(1), head_interval=timedelta(1)
    )
    await replica._read_head()
    clock.seconds += AHEAD_SECONDS
    replica._take(told(4 * SECOND), [])
    assert shown(replica) == 4.0


async def test_a_head_that_has_just_begun_to_read_the_log_again_takes_nothing_back():
    replica = Replica(
        cache=None, timeseries=Head(3 * SECOND), clock=StillClock(), jitter=random.Random(1), head_interval=timedelta(1)
    )
    replica._take(told(4 * SECOND), [])
    replica._following = False
    await replica._read_head()
    assert shown(replica) == 4.0
