"""Assembly of the cache service."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.errors import OpenManagerError
from openmanager.hot_service import HotService
from openmanager.log_follower import LogFollower
from openmanager.runtime.background import working
from openmanager.runtime.clock import until_next
from openmanager.runtime.module import Runtime, Service
from openmanager.runtime.status import Storage
from openmanager.shard import Shard
from openmanager_cache.backends import KeyValueStore
from openmanager_cache.backends.memory import MemoryStore
from openmanager_cache.backends.redis import open_redis
from openmanager_cache.config import CacheConfig
from openmanager_cache.entry import Entries
from openmanager_cache.fleet import Fleet
from openmanager_cache.follower import follower
from openmanager_cache.inventory import InventoryFollower
from openmanager_cache.mirror import Mirror
from openmanager_cache.service import EntryService

PACKAGE = "openmanager.api.cache.v1"
OFFLINE_CHECK_SECONDS = 1.0
MEMORY_STORE_BYTES = 64 << 20


class CacheModule:
    """The module `cache`."""

    name = "cache"
    config = CacheConfig

    @contextlib.asynccontextmanager
    async def open(self, runtime: Runtime) -> AsyncIterator[Service]:
        """Follow the log and the inventory, mirror hot state to Redis, and serve it."""
        config: CacheConfig = runtime.section(CacheConfig)
        store = _open_store(config, runtime)
        fleet = Fleet(runtime.clock)
        mirror = Mirror(fleet=fleet.hot, store=store, server_ttl=config.server_ttl, list_ttl=config.list_ttl)
        async with runtime.peer("timeseries") as timeseries, runtime.peer("metadata") as metadata:
            log = follower(
                peer=timeseries,
                fleet=fleet,
                clock=runtime.clock,
                jitter=random.Random(),  # noqa: S311  (jitter)
                on_change=mirror.changed,
            )
            inventory = InventoryFollower(peer=metadata, fleet=fleet, interval=config.inventory_interval)
            state = _State(fleet=fleet, follower=log, mirror=mirror, runtime=runtime)
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(store.close)
                work = state.warm_up(), log.run(), mirror.run(), inventory.run(), state.mark_offline()
                await stack.enter_async_context(working(*work))
                yield Service(
                    servicers={
                        f"{PACKAGE}.CacheService": HotService(fleet.hot, state.describe, state.known),
                        f"{PACKAGE}.EntryService": EntryService(Entries(store), runtime.clock),
                    },
                    storages=[
                        Storage(
                            name="redis",
                            role="hot state",
                            engine="redis",
                            check=store.look,
                            clock=runtime.clock,
                            breakers=store.breakers,
                        )
                    ],
                )


def _open_store(config: CacheConfig, runtime: Runtime) -> KeyValueStore:
    if not config.redis_url.reveal():
        return MemoryStore(runtime.clock, MEMORY_STORE_BYTES)
    return open_redis(
        config.redis_url,
        prefix=_prefix(config.redis_prefix, runtime.shard),
        seconds=config.redis_timeout.total_seconds(),
        connect_seconds=config.redis_connect_timeout.total_seconds(),
        connections=config.redis_connections,
        clock=runtime.clock,
    )


def _prefix(prefix: str, shard: Shard) -> str:
    """Return what the keys of a shard begin with: what other shards, or other numbers of them, wrote is not ours."""
    return prefix if shard.count == 1 else f"{prefix}{shard.index}of{shard.count}:"


class _State:
    """What ties the parts together: warm-up, the silence of servers, and what is said of the answers."""

    def __init__(self, *, fleet: Fleet, follower: LogFollower, mirror: Mirror, runtime: Runtime) -> None:
        self._fleet = fleet
        self._follower = follower
        self._mirror = mirror
        self._clock = runtime.clock
        self._as_of_nanos = runtime.clock.now_nanos()
        self._source = "redis"

    async def warm_up(self) -> None:
        """Serve what Redis still holds until the log is followed."""
        with contextlib.suppress(OpenManagerError):
            stored = await self._mirror.load()
            if not self._follower.view.position:
                self._fleet.restore(stored)

    async def mark_offline(self) -> None:
        """Mark silent servers for ever; only while the log is followed, for else the silence is ours."""
        while True:
            await asyncio.sleep(until_next(OFFLINE_CHECK_SECONDS))
            if self._follower.view.following and self._fleet.mark_offline():
                self._mirror.changed("")

    def known(self) -> bool:
        """Say whether the log was ever read."""
        return self._follower.view.position > 0 or self._follower.view.following

    def describe(self) -> provenance_pb2.Provenance:
        """Return the provenance of an answer given now."""
        now = self._clock.now_nanos()
        if self._follower.view.following:
            self._as_of_nanos, self._source = now, "cache"
        about = provenance_pb2.Provenance(source=self._source)
        about.as_of_time.FromNanoseconds(self._as_of_nanos)
        about.staleness.FromNanoseconds(now - self._as_of_nanos if now > self._as_of_nanos else 0)
        if not self._follower.view.following:
            about.degraded, about.reason = True, "the log is out of reach"
        elif self._mirror.failing:
            about.degraded, about.reason = True, "Redis is out of reach"
        return about


module = CacheModule()
