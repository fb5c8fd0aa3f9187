"""Stores that survive a machine, as docs/stores.md has them set up: each process can be killed, and its place is taken."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos import valkeys
from chaos.mesh import wait_until
from chaos.proxy import Trouble
from chaos.replicated import Pair, replicated
from chaos.stores import VICTORIAMETRICS, Victoria
from chaos.valkeys import Valkey, Valkeys
from openmanager.runtime.supervisor import Supervisor

CLUSTER, SENTINEL = "cluster", "sentinel"
# How long the nodes of Redis wait for a master before they put another in its place.
SILENCE_MILLIS = 1_000
START_SECONDS = 30.0
# The engine is asked for what memory does not hold any more: of this load soon.
SMALL = {"OPENMANAGER_TIMESERIES_SEAL_INTERVAL": "20s", "OPENMANAGER_TIMESERIES_HEAD_SIZE": "1MiB"}


async def _nothing() -> None:
    """Do nothing: others see to it, or nothing is to be done."""


@dataclass(frozen=True, kw_only=True)
class Victim:
    """A process of a store that `service` stands on: how it is killed, and what is done about that."""

    name: str
    service: str
    kill: Callable[[], Awaitable[None]]
    # The service has to notice before anybody does anything.
    noticed: bool = False
    # Returns when another has taken its place, or it has been started again.
    replaced: Callable[[], Awaitable[None]] = _nothing
    # What is done when all is well: the process that was killed comes back.
    returned: Callable[[], Awaitable[None]] = _nothing


@dataclass(frozen=True)
class Doubled:
    """Running stores: `environment` leads a mesh to them, `victims` are all their processes, in the order to kill them."""

    environment: Mapping[str, str]
    victims: Sequence[Victim] = ()
    # What history is to be read from; empty: our own files.
    engine: str = ""


@contextlib.asynccontextmanager
async def doubled(folder: Path, redis: str) -> AsyncIterator[Doubled]:
    """Run a Redis Cluster or a Redis behind Sentinels, a PostgreSQL with a standby, and a VictoriaMetrics."""
    made = valkeys.cluster(SILENCE_MILLIS, replicas=True) if redis == CLUSTER else valkeys.sentinels(SILENCE_MILLIS)
    folder.mkdir(parents=True)
    async with made as servers, replicated() as pair, _victoria(folder) as victoria:
        await pair.synchronous()
        environment = {"REDIS_URL": servers.url, "DATABASE_URL": pair.url, **victoria.environment}
        victims = [*_of_redis(servers), *_of_postgresql(pair), _of_victoria(victoria)]
        yield Doubled(environment, victims, VICTORIAMETRICS)


@contextlib.asynccontextmanager
async def _victoria(folder: Path) -> AsyncIterator[Victoria]:
    place = folder / VICTORIAMETRICS
    place.mkdir()
    victoria = Victoria(place, folder, 1, "-dedup.minScrapeInterval=1ms")
    async with Supervisor([victoria.spec]) as children, victoria.proxy:
        await children.wait_ready()
        yield victoria.kept_by(children)


def _of_redis(servers: Valkeys) -> list[Victim]:
    """Return Sentinels and replicas, which are started again, and the masters that replicas take the place of."""
    half = len(servers.servers) // 2
    masters, replicas = servers.servers[:half], servers.servers[half:]
    beside = [("redis sentinel", each) for each in servers.sentinels[:1]]
    beside += [(f"redis replica {number}", each) for number, each in enumerate(replicas)]
    found = [
        Victim(name=name, service="cache", kill=_killed(each), replaced=_started(each, servers))
        for name, each in beside
    ]
    return found + [
        Victim(
            name=f"redis master {number}",
            service="cache",
            kill=_killed(master),
            replaced=_promoted(replica),
            returned=_started(master, servers),
        )
        for number, (master, replica) in enumerate(zip(masters, replicas, strict=True))
    ]


def _killed(server: Valkey) -> Callable[[], Awaitable[None]]:
    async def kill() -> None:
        server.kill()

    return kill


def _promoted(server: Valkey) -> Callable[[], Awaitable[None]]:
    async def is_master() -> bool:
        return bool((await server.ask("ROLE"))[0] == "master")

    return lambda: wait_until(is_master, START_SECONDS)


def _started(server: Valkey, servers: Valkeys) -> Callable[[], Awaitable[None]]:
    """Return what starts a server again, and waits until it follows a master again."""

    async def follows() -> bool:
        if server in servers.sentinels:
            return True
        role = await server.ask("ROLE")
        return bool(role[0] == "slave" and role[3] == "connected")

    async def start() -> None:
        await server.start()
        await wait_until(follows, START_SECONDS)

    return start


def _of_postgresql(pair: Pair) -> list[Victim]:
    """Return the standby, which is started again, and the primary, which an operator puts the standby in the place of."""

    async def kill_standby() -> None:
        pair.standby.kill()

    async def kill_primary() -> None:
        pair.primary.kill()

    async def start_standby() -> None:
        await pair.standby.start()
        await wait_until(pair.is_synchronous, START_SECONDS)

    return [
        Victim(name="postgresql standby", service="metadata", kill=kill_standby, replaced=start_standby),
        Victim(name="postgresql primary", service="metadata", kill=kill_primary, noticed=True, replaced=pair.promote),
    ]


def _of_victoria(victoria: Victoria) -> Victim:
    async def kill() -> None:
        await victoria.proxy.set(Trouble(down=True))
        victoria.kill()

    async def start() -> None:
        await victoria.ready_again()
        await victoria.proxy.set(Trouble())

    return Victim(name=VICTORIAMETRICS, service="timeseries", kill=kill, noticed=True, replaced=start)
