"""Real stores for a mesh, each behind a proxy: Valkey and PostgreSQL as `up` runs them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from redis.asyncio import Redis

from chaos.proxy import ChaosProxy, unix
from openmanager import embedded
from openmanager.datadir import DataDir
from openmanager.runtime.supervisor import Supervisor

REDIS, POSTGRESQL = "redis", "postgresql"
_CHILDREN = {REDIS: "valkey", POSTGRESQL: "postgresql"}


@dataclass(frozen=True)
class Stores:
    """Running stores. `environment` leads a mesh through the proxies."""

    environment: Mapping[str, str]
    proxies: Mapping[str, ChaosProxy]
    _children: Supervisor
    _redis: str

    def pid(self, name: str) -> int | None:
        """Return the process of a store, None while it has none."""
        return next((each.pid for each in self._children.children() if each.name == _CHILDREN[name]), None)

    async def empty_redis(self) -> None:
        """Delete everything in Redis, behind the back of the mesh."""
        async with Redis.from_url(self._redis) as redis:
            await redis.flushall()


@contextlib.asynccontextmanager
async def stores(folder: Path, seed: int) -> AsyncIterator[Stores]:
    """Run the stores in a folder, and a proxy for each on a port of its own."""
    with DataDir.open(folder) as data:
        valkey, postgresql = embedded.valkey(data), embedded.postgresql(data)
        async with Supervisor([valkey.spec, postgresql.spec]) as children:
            await children.wait_ready()
            sockets = {REDIS: data.runtime / "valkey.sock", POSTGRESQL: data.runtime / "pg" / ".s.PGSQL.5432"}
            async with contextlib.AsyncExitStack() as stack:
                proxies = {
                    name: await stack.enter_async_context(ChaosProxy(unix(str(path)), seed=seed))
                    for name, path in sockets.items()
                }
                user = urlsplit(postgresql.url.reveal()).netloc.rpartition("@")[0]
                password = data.credential("valkey").reveal()
                yield Stores(
                    environment={
                        "REDIS_URL": f"redis://:{password}@127.0.0.1:{proxies[REDIS].port}/0",
                        "DATABASE_URL": f"postgresql://{user}@127.0.0.1:{proxies[POSTGRESQL].port}/openmanager",
                    },
                    proxies=proxies,
                    _children=children,
                    _redis=valkey.url.reveal(),
                )
