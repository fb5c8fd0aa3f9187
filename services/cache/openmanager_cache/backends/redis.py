"""Redis or Valkey through redis-py: no retries of its own, short deadlines, a pool that waits briefly."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import redis.asyncio as redis_async
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from openmanager.api.status.v1 import status_pb2
from openmanager.config import Secret
from openmanager.errors import ConfigurationError, store_unavailable
from openmanager.runtime import telemetry
from openmanager.runtime.status import Finding

POOL_WAIT_SECONDS = 0.1
# Beside its deadline a large write gets time for its bytes, at a rate that any network reaches.
BYTES_PER_SECOND = 20 << 20
T = TypeVar("T")


class RedisStore:
    """A `KeyValueStore` on one Redis."""

    def __init__(self, client: redis_async.Redis, prefix: str, seconds: float) -> None:
        self._client = client
        self._prefix = prefix
        self._seconds = seconds
        self.hits = 0
        self.misses = 0

    async def set_many(self, values: Mapping[str, tuple[bytes, timedelta | None]]) -> None:
        """Write values in one pipeline without a transaction."""
        size = sum(len(value) for value, _ in values.values())
        pipeline = self._client.pipeline(transaction=False)
        for key, (value, ttl) in values.items():
            pipeline.set(self._prefix + key, value, px=round(ttl.total_seconds() * 1000) if ttl else None)
        with telemetry.store_span("redis", "SET", batch_size=len(values)):
            await self._run(pipeline.execute(), size)

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Read values with one MGET."""
        if not keys:
            return []
        with telemetry.store_span("redis", "MGET", batch_size=len(keys)):
            command: Awaitable[Any] = self._client.mget([self._prefix + key for key in keys])
            found: list[bytes | None] = await self._run(command)
        missed = found.count(None)
        self.misses += missed
        self.hits += len(found) - missed
        return found

    async def delete(self, key: str) -> bool:
        """Delete one key."""
        with telemetry.store_span("redis", "DEL"):
            return bool(await self._run(self._client.delete(self._prefix + key)))

    async def _run(self, command: Awaitable[T], size: int = 0) -> T:
        try:
            async with asyncio.timeout(self._seconds + size / BYTES_PER_SECOND):
                return await command
        except (RedisError, OSError, TimeoutError) as err:
            raise store_unavailable("Redis") from err

    async def look(self) -> Finding:
        """Ask for INFO and the number of keys."""
        try:
            info: Any = await self._client.info()
            keys = await self._client.dbsize()
        except redis_async.BusyLoadingError:
            return Finding(state=status_pb2.STORAGE_STATE_RECOVERING, reason="is loading")
        except redis_async.TimeoutError as err:
            raise TimeoutError from err
        except (redis_async.AuthenticationError, redis_async.ConnectionError) as err:
            raise ConnectionError from err
        except RedisError:
            return Finding(state=status_pb2.STORAGE_STATE_DOWN, reason="refuses")
        readonly = info.get("role") == "slave"
        is_valkey = "valkey_version" in info
        return Finding(
            state=status_pb2.STORAGE_STATE_READONLY if readonly else status_pb2.STORAGE_STATE_OK,
            reason="is a replica" if readonly else "",
            engine="valkey" if is_valkey else "redis",
            version=str(info.get("valkey_version") or info.get("redis_version", "")),
            size_bytes=int(info.get("used_memory", 0)),
            item_count=int(keys),
            hit_count=self.hits,
            miss_count=self.misses,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def open_redis(url: Secret, *, prefix: str, seconds: float, connect_seconds: float, connections: int) -> RedisStore:
    """Return a store on the Redis of a URL; nothing is connected yet. ConfigurationError for a malformed URL."""
    try:
        pool = redis_async.BlockingConnectionPool.from_url(
            url.reveal(),
            max_connections=connections,
            timeout=POOL_WAIT_SECONDS,
            socket_timeout=max(seconds, 1.0),
            socket_connect_timeout=connect_seconds,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=15,
            client_name="openmanager-cache",
        )
    except ValueError as err:
        raise ConfigurationError("REDIS_URL is not a URL of the form redis://, rediss:// or unix://") from err
    return RedisStore(redis_async.Redis(connection_pool=pool), prefix, seconds)
