"""Calls cancelled at every stage, through the gateway to Redis, PostgreSQL and history; every answer must be one's own.

A cancelled call may leave an answer behind on a connection to a store; whoever uses that connection next would take it
for theirs. So every call asks for a key of its own, and whatever comes back is compared with it.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import grpc
import numpy as np
from redis.asyncio import Redis

from openmanager.api.cache.v1 import cache_pb2
from openmanager.api.metadata.v1 import metadata_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.frame import Frame, encode_write_request
from openmanager.runtime.peer import CHANNEL_OPTIONS

KEYS = 64
# Each has a connection of its own.
CLIENTS = 4
WORKERS = 8
NAMESPACE = "cancelled"
DEADLINE_SECONDS = 5.0
# Of the calls, so many are left to end.
KEPT = 0.1
# A call is cancelled somewhere within the time that such a call took, and a little later.
BEYOND = 1.2
ENTRY = "/openmanager.api.cache.v1.EntryService"
SERVER = "/openmanager.api.metadata.v1.ServerService"
WRITE_FRAME = "/openmanager.api.gateway.v1.GatewayService/WriteFrame"
MILLI = 1_000_000
SERIES = "/openmanager.api.timeseries.v1.TimeseriesService"
TRANSACTIONS = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"


@dataclass
class Tally:
    """What became of the calls."""

    cancelled: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    foreign: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def lines(self) -> Iterator[str]:
        """Yield a table of the kinds of calls, and the sum."""
        yield f"{'call':24} {'cancelled':>10} {'answered':>10} {'failed':>8}"
        for name in sorted(self.cancelled | self.answered):
            failed = sum(count for what, count in self.failed.items() if what.startswith(f"{name} "))
            yield f"{name:24} {self.cancelled[name]:10,} {self.answered[name]:10,} {failed:8,}"
        yield f"{self.cancelled.total():,} cancelled in {self.seconds:.0f} s, {len(self.foreign)} foreign answers"
        yield from (f"{what}: {count}" for what, count in self.failed.items())
        yield from self.foreign[:10]


def value_of(key: int) -> bytes:
    """Return what is kept under a key."""
    return b"value of %d " % key * (1 + key % 50)


def server_of(key: int) -> str:
    """Return the server of a key."""
    return f"cancelled-{key}"


class _Call:
    """A kind of call: how it is made for a key, and whether an answer is that key's."""

    def __init__(self, channel: grpc.aio.Channel, path: str, make: Callable[[int], Any], reply: Any, own: Any) -> None:
        self.name = path.rpartition("/")[2]
        self._stream = path.startswith(SERIES)
        self._begin = (channel.unary_stream if self._stream else channel.unary_unary)(path)
        self._make, self._reply, self._own = make, reply, own
        self.usual = 0.002  # seconds that one took

    async def answer(self, key: int, cancel_after: float | None) -> bool | None:
        """Return whether the answer was the key's; None when the call was cancelled before there was one."""
        start = time.monotonic()
        call = self._begin(self._make(key).SerializeToString(), timeout=DEADLINE_SECONDS)
        timer = None
        if cancel_after is not None:
            timer = asyncio.get_running_loop().call_later(cancel_after, call.cancel)
        try:
            parts = [each async for each in call] if self._stream else [await call]
        except asyncio.CancelledError:
            if call.cancelled():
                return None
            raise
        except grpc.aio.AioRpcError as failure:
            if cancel_after is not None and failure.code() == grpc.StatusCode.CANCELLED:
                return None
            raise
        finally:
            if timer is not None:
                timer.cancel()
        self.usual += 0.05 * (min(time.monotonic() - start, 0.1) - self.usual)
        return all(self._own(self._reply.FromString(each), key) for each in parts)


def _calls(channel: grpc.aio.Channel) -> list[_Call]:
    def entry(key: int) -> dict[str, Any]:
        return {"namespace": NAMESPACE, "key": str(key)}

    def selector(key: int) -> Any:
        request = timeseries_pb2.QueryLatestRequest()
        request.selector.servers.append(server_of(key))
        return request

    def whole(key: int) -> Any:
        return metadata_pb2.BatchGetServersRequest(ids=[server_of(key), server_of((key + 1) % KEYS)])

    return [
        _Call(
            channel,
            f"{ENTRY}/GetEntry",
            lambda key: cache_pb2.GetEntryRequest(**entry(key)),
            cache_pb2.GetEntryResponse,
            lambda reply, key: reply.entry.value == value_of(key),
        ),
        _Call(
            channel,
            f"{ENTRY}/SetEntry",
            lambda key: cache_pb2.SetEntryRequest(**entry(key), value=value_of(key)),
            cache_pb2.SetEntryResponse,
            lambda reply, key: not reply.entry.key or reply.entry.key == str(key),
        ),
        _Call(
            channel,
            f"{SERVER}/GetServer",
            lambda key: metadata_pb2.GetServerRequest(id=server_of(key)),
            metadata_pb2.GetServerResponse,
            lambda reply, key: (reply.server.id, reply.server.role) == (server_of(key), f"role-{key}"),
        ),
        _Call(
            channel,
            f"{SERVER}/BatchGetServers",
            whole,
            metadata_pb2.BatchGetServersResponse,
            lambda reply, key: {each.id for each in reply.servers} == set(whole(key).ids),
        ),
        _Call(
            channel,
            f"{SERIES}/QueryLatest",
            selector,
            timeseries_pb2.QueryLatestResponse,
            lambda reply, key: not reply.HasField("frame") or list(reply.frame.values) == [key],
        ),
    ]


async def run(
    gateway: str, count: int, seed: int, tell: Callable[[int], None] = lambda _: None, seconds: float = math.inf
) -> Tally:
    """Cancel `count` calls in at most `seconds`; compare the answers of those that were quicker, or were left to end."""
    dice, tally, start = random.Random(seed), Tally(), time.monotonic()

    async def work(calls: list[_Call]) -> None:
        while (done := tally.cancelled.total()) < count and time.monotonic() < start + seconds:
            call, key = dice.choice(calls), dice.randrange(KEYS)
            after = None if dice.random() < KEPT else dice.uniform(0, BEYOND * call.usual)
            try:
                own = await call.answer(key, after)
            except grpc.aio.AioRpcError as failure:
                tally.failed[f"{call.name} {failure.code().name}"] += 1
                continue
            if own is None:
                tally.cancelled[call.name] += 1
            else:
                tally.answered[call.name] += 1
            if own is False:
                tally.foreign.append(f"{call.name} of {key} was not answered with its own")
            tell(done)

    async with AsyncExitStack() as stack:
        options = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
        opened = [grpc.aio.insecure_channel(gateway, options) for _ in range(CLIENTS)]
        channels = [await stack.enter_async_context(each) for each in opened]
        await _prepare(channels[0])
        await asyncio.gather(*(work(calls) for calls in map(_calls, channels) for _ in range(WORKERS)))
    tally.seconds = time.monotonic() - start
    return tally


@dataclass(frozen=True)
class Behind:
    """What the services hold of their stores: connections, and transactions that nobody ends."""

    redis: int
    postgresql: int
    transactions: int


async def behind(redis_url: str, database_url: str) -> Behind:
    """Return what the services hold of their stores now."""
    async with Redis.from_url(redis_url) as redis:
        clients = await redis.client_list()
    connection = await asyncpg.connect(database_url)
    try:
        return Behind(len(clients), await connection.fetchval(CONNECTIONS), await connection.fetchval(TRANSACTIONS))
    finally:
        await connection.close()


async def _prepare(channel: grpc.aio.Channel) -> None:
    """Keep something of its own under each key."""
    times = np.array([time.time_ns() // MILLI * MILLI])
    for key in range(KEYS):
        entry = cache_pb2.SetEntryRequest(namespace=NAMESPACE, key=str(key), value=value_of(key))
        await channel.unary_unary(f"{ENTRY}/SetEntry")(entry.SerializeToString(), timeout=DEADLINE_SECONDS)
        request = metadata_pb2.CreateServerRequest()
        request.server.id, request.server.role = server_of(key), f"role-{key}"
        await _created(channel, request)
        frame = Frame(times=times, servers=(server_of(key),), metrics=("key",), values=np.full((1, 1, 1), float(key)))
        await channel.unary_unary(WRITE_FRAME)(encode_write_request(frame), timeout=DEADLINE_SECONDS)


async def _created(channel: grpc.aio.Channel, request: metadata_pb2.CreateServerRequest) -> None:
    """Create a server, as soon as the database has started; it may be there from before."""
    while True:
        try:
            await channel.unary_unary(f"{SERVER}/CreateServer")(request.SerializeToString(), timeout=DEADLINE_SECONDS)
        except grpc.aio.AioRpcError as failure:
            if failure.code() == grpc.StatusCode.ALREADY_EXISTS:
                return
            await asyncio.sleep(0.1)
        else:
            return
