"""How Redis is deployed: one server, the master that Sentinels name, or a cluster; and the URL that says which.

::

    redis://[[user]:password@]host[:6379][/db]                             one server; rediss:// with TLS; unix:///path
    redis+sentinel://[…@]host[:26379][,host…]/master[/db]                  the master of that name
    redis+cluster://[…@]host[:6379][,host…]                                a cluster that some of its nodes are named of

With `rediss+sentinel` and `rediss+cluster` every connection is encrypted. Options are redis-py's (`?ssl_ca_certs=…`); for
Sentinels with a password of their own `sentinel_username` and `sentinel_password`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import redis.asyncio as redis_async
from redis import exceptions
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import Connection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

POOL_WAIT_SECONDS = 0.1
# No command may take longer: a batch of 4 MiB, say.
NODE_SECONDS = 0.35
REDIS_PORT, SENTINEL_PORT = 6379, 26379
# A master that has none of so many keys has next to no slots.
MOST_KEYS = 1000

# What a cluster says, or does not say, when it is no longer as it was.
_GONE = (
    *(exceptions.ConnectionError, exceptions.TimeoutError, OSError),
    *(exceptions.ClusterDownError, exceptions.RedisClusterException),
)

Client = redis_async.Redis | RedisCluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one command, and connecting, may take, and how many connections there may be (to each node)."""

    seconds: float
    connect_seconds: float
    connections: int

    def options(self) -> dict[str, Any]:
        """Return them as redis-py's options."""
        return {
            "socket_timeout": max(self.seconds, 1.0),
            "socket_connect_timeout": self.connect_seconds,
            "retry": Retry(NoBackoff(), 0),
            "health_check_interval": 15,
            "client_name": "openmanager-cache",
        }

    def pool(self) -> dict[str, Any]:
        """Return them as those of a pool that waits for a connection."""
        return self.options() | {"max_connections": self.connections, "timeout": POOL_WAIT_SECONDS}


class Deployment(Protocol):
    """What differs between one server and several; every name is a whole key."""

    async def set_many(self, values: Sequence[tuple[str, bytes, int | None]]) -> None:
        """Write names and values, each with its time to live in ms, None for ever; in order at each server."""
        ...

    async def get_many(self, names: Sequence[str]) -> list[bytes | None]:
        """Return values by name."""
        ...

    async def delete(self, name: str) -> int:
        """Delete a key; return how many there were."""
        ...

    async def parts(self, prefix: str) -> list[str]:
        """Return a key under a prefix for each part of the store that may be lost alone, kept in that part."""
        ...

    async def write_nothing(self, name: str) -> None:
        """Raise what a write at any server that takes them would; nothing is ever kept under the name."""
        ...

    async def about(self) -> tuple[Sequence[Mapping[str, Any]], int]:
        """Return what each server that takes writes says of itself, and how many keys there are."""
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...


class Server:
    """One server: the one of a URL, or whichever one is the master now."""

    def __init__(self, client: redis_async.Redis, sentinel: Sentinel | None = None) -> None:
        self._client = client
        self._sentinel = sentinel

    async def set_many(self, values: Sequence[tuple[str, bytes, int | None]]) -> None:
        """Write in one pipeline without a transaction."""
        await _set_many(self._client, values)

    async def get_many(self, names: Sequence[str]) -> list[bytes | None]:
        """Read with one MGET."""
        found: list[Any] = await self._client.mget(names)
        return found

    async def delete(self, name: str) -> int:
        """Delete a key."""
        return int(await self._client.delete(name))

    async def parts(self, prefix: str) -> list[str]:
        """Return one key: it is there whole, or not at all."""
        return [prefix]

    async def write_nothing(self, name: str) -> None:
        """Write an empty text into nothing."""
        await self._client.setrange(name, 0, "")

    async def about(self) -> tuple[Sequence[Mapping[str, Any]], int]:
        """Return its INFO and its number of keys."""
        return [await self._client.info()], int(await self._client.dbsize())

    async def aclose(self) -> None:
        """Close the pool, and the connections to Sentinels."""
        await self._client.aclose(close_connection_pool=True)  # a pool that it was given it would leave
        if self._sentinel is not None:
            await self._sentinel.aclose()


class _FirstIsKey:
    """What redis-py asks which arguments of a command are keys: of all of ours the first.

    Its own would fetch the server's 240 commands whenever a node is gone: 80 ms of ours.
    """

    async def initialize(self, node: ClusterNode) -> None:
        """Nothing has to be learnt."""

    async def get_keys(self, *command: Any) -> Sequence[Any]:
        """Return the keys of a command."""
        return command[1:2]


class Cluster:
    """A Redis Cluster: every key is at the node that has its slot, and nodes are asked at the same time."""

    def __init__(self, client: RedisCluster, connections: int) -> None:
        self._client = client
        client.commands_parser = _FirstIsKey()  # type: ignore[assignment]
        # A node's pool of connections refuses, where ours waits.
        self._free = asyncio.Semaphore(connections)

    async def set_many(self, values: Sequence[tuple[str, bytes, int | None]]) -> None:
        """Write in one pipeline for each node."""
        async with self._connection():
            await _set_many(self._client, values)

    async def get_many(self, names: Sequence[str]) -> list[bytes | None]:
        """Read in one pipeline for each node: MGET takes keys of one slot only."""
        async with self._connection():
            pipeline = self._client.pipeline()
            for name in names:
                pipeline.get(name)
            return list(await pipeline.execute())

    async def delete(self, name: str) -> int:
        """Delete a key."""
        async with self._connection():
            return int(await self._client.delete(name))

    async def parts(self, prefix: str) -> list[str]:
        """Return a key for each master, the first of `prefix:0`, `prefix:1` … that it has."""
        await self._client.initialize()
        masters = len(self._client.get_primaries())
        found: dict[str, str] = {}
        for number in range(MOST_KEYS):
            key = f"{prefix}:{number}"
            if (node := self._client.get_node_from_key(key)) is not None:
                found.setdefault(node.name, key)
            if len(found) == masters:
                break
        return sorted(found.values())

    async def write_nothing(self, name: str) -> None:
        """Write an empty text into nothing at every master."""
        async with self._forgetting():
            pipeline = self._client.pipeline()
            for each in await self.parts(name):
                pipeline.setrange(each, 0, "")
            await pipeline.execute()

    async def about(self) -> tuple[Sequence[Mapping[str, Any]], int]:
        """Return INFO of every master, and the number of keys of all."""
        async with self._connection(), self._forgetting():
            await self._client.initialize()
            masters = self._client.get_primaries()
            said = await asyncio.gather(*(self._client.info(target_nodes=master) for master in masters))
            counts = await asyncio.gather(*(self._client.dbsize(target_nodes=master) for master in masters))
            return said, sum(counts)

    async def aclose(self) -> None:
        """Close the connections to all nodes."""
        await self._client.aclose()
        # When it means to look for its nodes anew, it has left open what it had.
        for nodes in ("nodes_cache", "startup_nodes"):
            await self._client.nodes_manager.aclose(nodes)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(POOL_WAIT_SECONDS):
                await self._free.acquire()
        except TimeoutError as err:
            raise exceptions.MaxConnectionsError from err
        try:
            yield
        finally:
            self._free.release()

    @contextlib.asynccontextmanager
    async def _forgetting(self) -> AsyncIterator[None]:
        """Forget who has which slots when a probe fails: of a pipeline that fails, or is given up, redis-py does not."""
        try:
            yield
        except (*_GONE, asyncio.CancelledError):
            await self._client.aclose()
            raise


async def _set_many(client: Client, values: Sequence[tuple[str, bytes, int | None]]) -> None:
    pipeline = client.pipeline(transaction=False)
    for name, value, ttl in values:
        pipeline.set(name, value, px=ttl)
    await pipeline.execute()


class _Sentinels(Sentinel):
    """Sentinels that are asked at the same time: one that hangs, or has died with the master, hides no other.

    All connections that are made meanwhile share the answer, and a caller who gives up does not end the question.
    """

    _asked: asyncio.Task[tuple[str, int]] | None = None

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        if self._asked is None or self._asked.done():
            self._asked = asyncio.create_task(self._discover(service_name))
            self._asked.add_done_callback(_seen)
        return await asyncio.shield(self._asked)

    async def _discover(self, service_name: str) -> tuple[str, int]:
        asked = [asyncio.create_task(self._ask(sentinel, service_name)) for sentinel in self.sentinels]
        failure: Exception | None = None
        try:
            for answer in asyncio.as_completed(asked):
                try:
                    return await answer
                except (exceptions.RedisError, OSError) as err:
                    failure = err
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        raise MasterNotFoundError from failure

    async def _ask(self, sentinel: redis_async.Redis, name: str) -> tuple[str, int]:
        masters: Any = await sentinel.sentinel_masters()
        state = masters.get(name)
        if state is None or not self.check_master_state(state, name):
            raise MasterNotFoundError
        return state["ip"], state["port"]


def _seen(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()  # callers who gave up do not ask for it


class _MasterPool(SentinelConnectionPool, redis_async.BlockingConnectionPool):
    """Connections to the master, which are waited for when all are busy."""


def deployment(url: str, limits: Limits) -> Deployment:
    """Return what a URL says; nothing is connected yet.

    ValueError, TypeError or RedisClusterException when it is malformed; they may repeat what is in it.
    """
    scheme, _, rest = url.partition("://")
    plain, _, kind = scheme.partition("+")
    match kind:
        case "":
            return Server(_server(url, limits))
        case "sentinel":
            return _sentinel(*_several(plain, rest, SENTINEL_PORT), limits)
        case "cluster":
            return _cluster(*_several(plain, rest, REDIS_PORT), limits)
        case _:
            raise ValueError("an unknown scheme")


def _server(url: str, limits: Limits) -> redis_async.Redis:
    return _client(redis_async.BlockingConnectionPool.from_url(url, **limits.pool()))


def _sentinel(hosts: list[tuple[str, int]], path: str, options: dict[str, Any], limits: Limits) -> Server:
    name, _, database = path.partition("/")
    if not name or not (database or "0").isdecimal():
        raise ValueError("no name of a master")
    ours = {key.removeprefix("sentinel_"): options.pop(key) for key in list(options) if key.startswith("sentinel_")}
    common = limits.options() | {key: value for key, value in options.items() if key.startswith("ssl")}
    sentinel = _Sentinels(hosts, sentinel_kwargs=common | ours)  # type: ignore[no-untyped-call]
    more = limits.pool() | {"db": int(database or 0)} | options
    pool = _MasterPool(name, sentinel, **more)  # type: ignore[no-untyped-call]
    return Server(_client(pool), sentinel)


def _client(pool: redis_async.ConnectionPool) -> redis_async.Redis:
    pool.connection_class(**pool.connection_kwargs)  # an option that does not exist is an error now, not at every call
    return redis_async.Redis.from_pool(pool)


def _cluster(hosts: list[tuple[str, int]], path: str, options: dict[str, Any], limits: Limits) -> Cluster:
    if path not in {"", "0"}:
        raise ValueError("a cluster has one database")
    # So that a probe that looks for the nodes, and asks one that hangs, asks another before its time is over.
    silence = max(limits.seconds, NODE_SECONDS)
    client = RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in hosts],
        # Those of the URL, by name: nodes may come back at other addresses.
        dynamic_startup_nodes=False,
        **limits.options() | {"max_connections": limits.connections, "socket_timeout": silence} | options,
    )
    return Cluster(client, limits.connections)


def _several(scheme: str, rest: str, port: int) -> tuple[list[tuple[str, int]], str, dict[str, Any]]:
    """Return the hosts of a URL with several, its path, and its options as redis-py understands them."""
    end = min((at for at in map(rest.find, "/?") if at >= 0), default=len(rest))
    user, at, names = rest[:end].rpartition("@")
    hosts = []
    for each in names.split(","):
        found = urlsplit(f"//{each}")
        if not found.hostname:
            raise ValueError("a host is missing")
        hosts.append((found.hostname, found.port or port))
    path, _, query = rest[end:].partition("?")
    options = dict(parse_url(f"{scheme}://{user}{at}host?{query}"))
    del options["host"]
    if options.pop("connection_class", Connection) is not Connection:
        options["ssl"] = True
    return hosts, path.strip("/"), options
