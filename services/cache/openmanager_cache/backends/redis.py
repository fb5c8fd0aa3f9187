"""Redis or Valkey through redis-py: no retries of its own, short deadlines, a pool that waits briefly."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from redis import exceptions
from redis.asyncio.sentinel import MasterNotFoundError

from openmanager.api.status.v1 import status_pb2
from openmanager.api.status.v1.status_pb2 import StorageState
from openmanager.config import Secret
from openmanager.errors import ConfigurationError, store_unavailable
from openmanager.runtime import telemetry
from openmanager.runtime.breaker import Breaker
from openmanager.runtime.clock import Clock
from openmanager.runtime.credential import Credential
from openmanager.runtime.status import Finding
from openmanager_cache.backends import EPOCH
from openmanager_cache.backends.deployment import Deployment, Limits, deployment

# Beside its deadline a large write gets time for its bytes, at a rate that any network reaches.
BYTES_PER_SECOND = 20 << 20
# Nothing is ever kept under this name: writing nothing there is refused wherever a write is, and changes nothing.
PROBE_KEY = "probe"
BUSY = "pool: all connections are busy"
REFUSED = "auth: the credentials are refused"
# What redis-py says when all of our connections, or all that the server allows, are busy; it has no class for that.
_BUSY = ("No connection available", "max number of clients reached")
_UNAVAILABLE = (exceptions.RedisError, exceptions.RedisClusterException, OSError, TimeoutError)
T = TypeVar("T")

Connect = Callable[[str], Deployment]


class RedisStore:
    """A `KeyValueStore` on Redis, however it is deployed: `connect` makes the client for a URL."""

    def __init__(self, connect: Connect, url: Credential, prefix: str, seconds: float, clock: Clock) -> None:
        self._connect = connect
        self._url = url
        self._client = connect(url.reveal())
        self._prefix = prefix
        self._seconds = seconds
        self._clock = clock
        jitter = random.Random()  # noqa: S311  (jitter)
        self.reads = Breaker("Redis", "reads", clock, jitter)
        self.writes = Breaker("Redis", "writes", clock, jitter)
        self.breakers: Sequence[Breaker] = (self.reads, self.writes)
        self.hits = 0
        self.misses = 0
        self._under_way: set[asyncio.Future[Any]] = set()

    async def set_many(self, values: Mapping[str, tuple[bytes, timedelta | None]]) -> None:
        """Write values in order, in one round trip."""
        size = sum(len(value) for value, _ in values.values())
        commands = [
            (self._prefix + key, value, round(ttl.total_seconds() * 1000) if ttl else None)
            for key, (value, ttl) in values.items()
        ]
        with telemetry.store_span("redis", "SET", batch_size=len(values)):
            await self._run(self.writes, lambda: self._client.set_many(commands), size)

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Read values in one round trip."""
        if not keys:
            return []
        names = [self._prefix + key for key in keys]
        with telemetry.store_span("redis", "MGET", batch_size=len(keys)):
            found = await self._run(self.reads, lambda: self._client.get_many(names))
        missed = found.count(None)
        self.misses += missed
        self.hits += len(found) - missed
        return found

    async def delete(self, key: str) -> bool:
        """Delete one key."""
        with telemetry.store_span("redis", "DEL"):
            return bool(await self._run(self.writes, lambda: self._client.delete(self._prefix + key)))

    async def epochs(self) -> list[str]:
        """Return the key of each master that is kept at it."""
        found = await self._run(self.reads, lambda: self._client.parts(self._prefix + EPOCH))
        return [name.removeprefix(self._prefix) for name in found]

    async def _run(self, breaker: Breaker, command: Callable[[], Awaitable[T]], size: int = 0) -> T:
        """Do what a command says unless the breaker is open; to its end, also when its caller gives up.

        A connection on which an answer is left must close: many callers who give up would make those who do not wait
        for new connections.
        """
        breaker.check()
        task = asyncio.ensure_future(self._answer(breaker, command, size))
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # a caller who gave up does not ask for it

    async def _answer(self, breaker: Breaker, command: Callable[[], Awaitable[T]], size: int) -> T:
        allowance, start = size / BYTES_PER_SECOND, self._clock.monotonic()
        try:
            async with asyncio.timeout(self._seconds + allowance):
                found = await command()
        except _UNAVAILABLE as err:
            self._failed(breaker, start, err)
            raise store_unavailable("Redis") from err
        breaker.answered(start, allowance)
        return found

    def _failed(self, breaker: Breaker, start: float, err: Exception) -> None:
        if (found := _trouble(err)) is None:
            return
        state, reason = found
        if reason == REFUSED:
            self._url.refused()
            self.reads.open(state, reason)
            self.writes.open(state, reason)
        else:
            breaker.failed(start, state, reason)

    async def look(self) -> Finding:
        """Ask for INFO and the number of keys, and whether a write would be taken."""
        if self._url.is_refused and not await self._reconnected():
            return Finding(state=status_pb2.STORAGE_STATE_DOWN, reason=REFUSED)
        try:
            infos, keys = await self._about()
            state, reason = await self._writable()
        except _UNAVAILABLE as err:
            return await self._in_trouble(err)
        info = infos[0]
        return Finding(
            state=state,
            reason=reason,
            engine="valkey" if "valkey_version" in info else "redis",
            version=str(info.get("valkey_version") or info.get("redis_version", "")),
            size_bytes=sum(int(each.get("used_memory", 0)) for each in infos),
            item_count=int(keys),
            hit_count=self.hits,
            miss_count=self.misses,
        )

    async def _about(self) -> tuple[Sequence[Mapping[str, Any]], int]:
        try:
            return await self._client.about()
        except exceptions.NoPermissionError:
            return [{}], 0  # our user may be kept from it

    async def _writable(self) -> tuple[StorageState.ValueType, str]:
        try:
            await self._client.write_nothing(self._prefix + PROBE_KEY)
        except exceptions.ResponseError as err:
            return _trouble(err) or (status_pb2.STORAGE_STATE_OK, "")
        return status_pb2.STORAGE_STATE_OK, ""

    async def _in_trouble(self, err: Exception) -> Finding:
        """Return what a probe says that failed; OSError and TimeoutError where nobody answered."""
        state, reason = _trouble(err) or (status_pb2.STORAGE_STATE_DOWN, "refuses")
        if reason == REFUSED:
            self._url.refused()
            await self._reconnected()
        elif state == status_pb2.STORAGE_STATE_HUNG:
            raise TimeoutError from err
        return Finding(state=state, reason=reason)

    async def _reconnected(self) -> bool:
        """Use the URL that its file holds now; say whether it is another one."""
        if not await self._url.renew():
            return False
        before, self._client = self._client, self._connect(self._url.reveal())
        await before.aclose()
        return True

    async def close(self) -> None:
        """Close the connections, when the last commands have ended."""
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await self._client.aclose()


def _trouble(err: Exception) -> tuple[StorageState.ValueType, str] | None:  # noqa: C901, PLR0911, PLR0912  (a table)
    """Return the state that an error tells of and why in words, None when it says nothing about the store."""
    match err:
        case exceptions.ConnectionError(__cause__=exceptions.RedisError() as cause):
            return _trouble(cause)  # what the server said to our greeting
        case exceptions.RedisClusterException(__cause__=Exception() as cause):
            return _trouble(cause)  # why no node could be asked
        case exceptions.RedisClusterException() if "not enabled" in str(err):
            return status_pb2.STORAGE_STATE_DOWN, "is no cluster"
        case exceptions.RedisClusterException() | exceptions.ClusterDownError():
            return status_pb2.STORAGE_STATE_DOWN, "cluster: not every slot is served"
        case exceptions.MovedError():
            return status_pb2.STORAGE_STATE_DOWN, "is one of a cluster"
        case MasterNotFoundError(__cause__=None):
            return status_pb2.STORAGE_STATE_DOWN, "Sentinel knows no master"
        case exceptions.AuthenticationError() | exceptions.AuthorizationError():
            return status_pb2.STORAGE_STATE_DOWN, REFUSED
        case exceptions.BusyLoadingError():
            return status_pb2.STORAGE_STATE_RECOVERING, "loading"
        case exceptions.ReadOnlyError():
            return status_pb2.STORAGE_STATE_READONLY, "is a replica"
        case exceptions.OutOfMemoryError():
            return status_pb2.STORAGE_STATE_READONLY, "memory full"
        case exceptions.ResponseError() if str(err).startswith("MISCONF"):
            return status_pb2.STORAGE_STATE_READONLY, "disk full"
        case exceptions.TimeoutError() | TimeoutError():
            return status_pb2.STORAGE_STATE_HUNG, "does not answer"
        case exceptions.MaxConnectionsError():
            return status_pb2.STORAGE_STATE_SLOW, BUSY
        case exceptions.ConnectionError() if any(text in str(err) for text in _BUSY):
            return status_pb2.STORAGE_STATE_SLOW, BUSY
        case exceptions.ConnectionError() | OSError():
            return status_pb2.STORAGE_STATE_DOWN, "cannot be reached"
        case _:
            return None


def open_redis(
    url: Secret, *, prefix: str, seconds: float, connect_seconds: float, connections: int, clock: Clock
) -> RedisStore:
    """Return a store on the Redis of a URL; nothing is connected yet. ConfigurationError for a malformed URL."""
    limits = Limits(seconds=seconds, connect_seconds=connect_seconds, connections=connections)
    try:
        return RedisStore(lambda url: deployment(url, limits), Credential(url, clock), prefix, seconds, clock)
    except (ValueError, TypeError, exceptions.RedisClusterException) as err:
        raise ConfigurationError(
            "REDIS_URL is not a URL of the form redis://, rediss://, unix://, redis+sentinel://host,host/master or "
            "redis+cluster://host,host"
        ) from err
