"""Machines of Redis that die: another takes its place, and hot state is there again, whole, with nobody doing anything."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
from client.mesh import frame_of, local_mesh, servers_known
from conftest import wait_until
from openmanager_cache.backends.redis import RedisStore
from openmanager_cache.mirror import Mirror
from probed import opened, until, until_one_of

from chaos import valkeys
from chaos.valkeys import SHORT_MILLIS, Valkeys
from openmanager.api.server.v1 import server_pb2
from openmanager.api.status.v1 import status_pb2
from openmanager.client import Client, StorageState
from openmanager.config import Secret
from openmanager.errors import UnavailableError
from openmanager.hot import HotFleet, make_server
from openmanager.runtime.status import Storage

MINUTE = timedelta(minutes=1)
FLEET = 40
# Several servers at once, on a machine that is busy.
PATIENT_SECONDS = 0.5


@dataclass
class Hot:
    """A fleet, its mirror, and the store that it is mirrored to."""

    fleet: HotFleet
    mirror: Mirror
    store: RedisStore
    shown: Storage

    def change(self, *names: str) -> None:
        """Have servers tick."""
        self.fleet.learn_metrics(("cpu_usage",))
        self.fleet.put([make_server(server_pb2.Server(id=name), ("cpu_usage",), np.ones(1)) for name in names])
        self.mirror.changed("")

    async def until_whole(self) -> None:
        """Return when the store holds every server of the fleet, and the last write."""

        async def is_whole() -> bool:
            with contextlib.suppress(UnavailableError):
                found = await self.store.get_many([f"server:{server.message.id}" for server in self.fleet])
                epochs = await self.store.get_many(await self.store.epochs())
                return None not in found and len(set(epochs)) == 1
            return False

        await wait_until(is_whole, 20)


@contextlib.asynccontextmanager
async def mirrored(servers: Valkeys) -> AsyncIterator[Hot]:
    """Mirror a fleet to servers, as the cache service does."""
    async with opened(Secret(servers.url), seconds=PATIENT_SECONDS) as (store, shown):
        fleet = HotFleet()
        mirror = Mirror(fleet=fleet, store=store, server_ttl=MINUTE, list_ttl=MINUTE)
        hot = Hot(fleet, mirror, store, shown)
        task = asyncio.create_task(mirror.run())
        try:
            hot.change(*names())
            await hot.until_whole()
            yield hot
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def names() -> Sequence[str]:
    return [f"s{number}" for number in range(FLEET)]


async def is_promoted(server: valkeys.Valkey) -> bool:
    said = await server.ask("ROLE")
    return said[0] == "master"


async def test_a_replica_that_was_behind_is_filled_again_when_sentinels_promote_it():
    async with valkeys.sentinels(SHORT_MILLIS) as servers, mirrored(servers) as hot:
        master, replica = servers.servers
        replica.send(signal.SIGSTOP)
        await master.ask("CLIENT", "KILL", "TYPE", "REPLICA")
        hot.change("late")
        await hot.until_whole()
        master.kill()
        replica.send(signal.SIGCONT)
        await until(hot.shown, status_pb2.STORAGE_STATE_DOWN, "cannot be reached")
        await wait_until(lambda: is_promoted(replica))
        assert await replica.ask("EXISTS", "t:server:late") == 0
        hot.change("s0")  # one server ticks: what it finds says that the others are to be written too
        await until(hot.shown, status_pb2.STORAGE_STATE_OK)
        await hot.until_whole()
        assert await replica.ask("EXISTS", "t:server:late") == 1
        assert len(await hot.mirror.load()) == FLEET + 1


async def test_a_master_that_hung_is_not_written_to_when_it_is_back():
    async with valkeys.sentinels(SHORT_MILLIS) as servers, mirrored(servers) as hot:
        master, replica = servers.servers
        master.send(signal.SIGSTOP)
        await until(hot.shown, status_pb2.STORAGE_STATE_HUNG, "does not answer")
        await wait_until(lambda: is_promoted(replica))
        await until(hot.shown, status_pb2.STORAGE_STATE_OK)
        master.send(signal.SIGCONT)
        hot.change("new")
        await hot.until_whole()
        assert await replica.ask("EXISTS", "t:server:new") == 1

        async def follows() -> bool:
            return not await is_promoted(master) and await master.ask("EXISTS", "t:server:new") == 1

        await wait_until(follows)


async def test_a_master_of_a_cluster_is_replaced_and_what_its_replica_lacked_written_again():
    async with valkeys.cluster(SHORT_MILLIS, replicas=True) as servers, mirrored(servers) as hot:
        master = servers.servers[0]
        masters_key = await key_at(servers, hot, 0)
        replica = servers.servers[3]
        replica.send(signal.SIGSTOP)
        await master.ask("CLIENT", "KILL", "TYPE", "REPLICA")
        hot.change(masters_key)
        await hot.until_whole()
        master.kill()
        replica.send(signal.SIGCONT)
        await until_one_of(
            hot.shown,
            (status_pb2.STORAGE_STATE_DOWN, "cannot be reached"),
            (status_pb2.STORAGE_STATE_DOWN, "cluster: not every slot is served"),
        )
        await wait_until(lambda: is_promoted(replica))
        hot.change("s0")
        await until(hot.shown, status_pb2.STORAGE_STATE_OK)
        await hot.until_whole()
        assert len(await hot.mirror.load()) == FLEET + 1


async def test_a_master_of_a_cluster_without_a_replica_is_done_without_and_filled_when_it_is_back():
    async with valkeys.cluster(SHORT_MILLIS) as servers, mirrored(servers) as hot:
        lost = servers.servers[1]
        lost.kill()
        hot.change("s0")
        await until(hot.shown, status_pb2.STORAGE_STATE_DOWN, "cannot be reached")
        assert hot.mirror.failing
        await lost.start()
        await until(hot.shown, status_pb2.STORAGE_STATE_OK)
        await hot.until_whole()
        assert len(await hot.mirror.load()) == FLEET


async def test_hot_state_is_read_on_while_a_master_is_away(tmp_path: Path):
    async with contextlib.AsyncExitStack() as stack:
        servers = await stack.enter_async_context(valkeys.sentinels(SHORT_MILLIS))
        mesh = await stack.enter_async_context(local_mesh(tmp_path, {("cache", "redis_url"): servers.url}))
        client = await stack.enter_async_context(Client(mesh.gateway))
        await client.write_frame(frame_of(3, 5))
        await servers_known(client, 3)
        await wait_until(lambda: redis_is(client, StorageState.OK))
        totals, away = set[int](), 0
        servers.servers[0].kill()
        while not await redis_is(client, StorageState.DOWN):
            totals.add((await client.fleet_summary()).total)
            await asyncio.sleep(0.02)
        while not await redis_is(client, StorageState.OK):
            totals.add((await client.fleet_summary()).total)
            away += 1
            await asyncio.sleep(0.02)
        assert totals == {3}
        assert away > 0


async def redis_is(client: Client, state: StorageState) -> bool:
    board = await client.storage_status()
    return [each.state for service in board.services for each in service.storages if each.name == "redis"] == [state]


async def key_at(servers: Valkeys, hot: Hot, at: int) -> str:
    """Return the name of a server that is not known yet and would be kept at a master."""
    for number in range(1000):
        name = f"late{number}"
        slot = await servers.servers[at].ask("CLUSTER", "KEYSLOT", f"t:server:{name}")
        if slot * 3 // valkeys.SLOTS == at:
            return name
    raise AssertionError("no such name")
