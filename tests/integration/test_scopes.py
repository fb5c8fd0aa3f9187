"""Rights over some servers only: in lists, sums, queries, watches, exports and the log's own stream, and for writers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from conftest import Mesh

from openmanager.client import Client
from openmanager.client.inventory import model
from openmanager.client.people import Grant
from openmanager.errors import InvalidArgumentError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from openmanager.frame import ServerInfo

MINE, BEYOND = "scoped-web-1", "scoped-database-1"
METRIC = "scoped_metric"
SECONDS = 20


async def write(client: Client, server: str, role: str = "", value: float = 1.0) -> None:
    now = time.time_ns() // 10**9 * 10**9
    infos = (ServerInfo(id=server, role=role),) if role else ()
    await client.write(times=[now], servers=[server], metrics=[METRIC], values=[[[value]]], server_infos=infos)


@pytest.fixture
async def admin(mesh: Mesh) -> AsyncIterator[Client]:
    async with Client(mesh.gateway) as client:
        await write(client, MINE, "scoped-web")
        await write(client, BEYOND, "scoped-database")
        async with asyncio.timeout(SECONDS):
            while {each.id async for each in client.inventory.list("role : scoped")} < {MINE, BEYOND}:
                await asyncio.sleep(0.1)
        yield client


async def with_key(admin: Client, mesh: Mesh, role: str, server_filter: str) -> Client:
    _, secret = await admin.keys.create("a test", [Grant(role, server_filter)])
    return Client(mesh.gateway, credential=secret)


@pytest.fixture
async def viewer(admin: Client, mesh: Mesh) -> AsyncIterator[Client]:
    async with await with_key(admin, mesh, "viewer", "role = scoped-web") as client:
        yield client


def since() -> datetime:
    return datetime.now(UTC) - timedelta(hours=1)


async def test_what_is_beyond_is_in_no_list_and_no_sum(admin: Client, viewer: Client):
    assert {each.id async for each in viewer.list_servers()} == {MINE}
    assert {each.id async for each in viewer.list_servers(f"id = {BEYOND} OR id = {MINE}")} == {MINE}
    assert {each.id async for each in viewer.inventory.list()} == {MINE}
    assert (await viewer.fleet_summary()).total == 1
    assert (await admin.fleet_summary()).total >= 5
    found = await viewer.inventory.batch_get([MINE, BEYOND])
    assert ([each.id for each in found[0]], list(found[1])) == ([MINE], [BEYOND])


async def test_what_is_beyond_is_not_there(viewer: Client):
    for get in (viewer.get_server, viewer.inventory.get):
        assert (await get(MINE)).id == MINE
        with pytest.raises(NotFoundError):
            await get(BEYOND)


async def test_history_is_of_what_one_may_reach_however_it_is_asked_for(admin: Client, viewer: Client):
    for servers, text in (((), ""), ((MINE, BEYOND), ""), ((), f"id = {BEYOND} OR id = {MINE}"), ((), "role : scoped")):
        found = await viewer.query_range([METRIC], servers=servers, where=text, start=since())
        assert {name.server for name in found.series} == {MINE}
    assert {
        name.server for name in (await viewer.query_range([METRIC], servers=[BEYOND], start=since())).series
    } == set()
    assert {name.server for name in (await admin.query_range([METRIC], start=since())).series} >= {MINE, BEYOND}
    with pytest.raises(InvalidArgumentError):
        await viewer.query_range([METRIC], where=f"id = x) OR (id = {BEYOND}", start=since())
    assert {each.server async for each in viewer.list_series(METRIC)} == {MINE}
    latest = await viewer.query_latest([METRIC])
    assert {server for frame in latest.frames for server in frame.servers} == {MINE}
    rows = [server async for chunk in viewer.export_series(METRIC, start=since()) for server in
            chunk.table().column("server").to_pylist()]  # fmt: skip
    assert set(rows) == {MINE}


async def test_watches_and_the_log_tell_of_what_one_may_reach(admin: Client, viewer: Client):
    seen: set[str] = set()

    async def watch() -> None:
        async with aclosing(viewer.watch_servers()) as events:
            async for event in events:
                seen.update(each.id for each in event.servers)
                if MINE in seen and ends.is_set():
                    return

    async def log() -> None:
        async with aclosing(viewer.watch_frames()) as records:
            async for record in records:
                if record.frame is not None:
                    seen.update(record.frame.servers)
                    assert record.frame.values.shape[1] == len(record.frame.servers)
                    if 7.5 in record.frame.values:
                        ends.set()
                        return

    ends = asyncio.Event()
    async with asyncio.timeout(SECONDS):
        tasks = [asyncio.create_task(watch()), asyncio.create_task(log())]
        while not ends.is_set():
            now = time.time_ns() // 10**9 * 10**9
            values = np.array([[[7.5], [8.5]]])
            await admin.write(times=[now], servers=[MINE, BEYOND], metrics=[METRIC], values=values)
            await asyncio.sleep(0.2)
        await admin.write(times=[now + 10**9], servers=[MINE], metrics=[METRIC], values=[[[9.0]]])
        await asyncio.gather(*tasks)
    assert seen == {MINE}


async def test_a_writer_writes_of_its_own_servers_and_cannot_move_others_to_itself(admin: Client, mesh: Mesh):
    async with await with_key(admin, mesh, "service", "role = scoped-web OR role = agent") as agent:
        await write(agent, MINE)
        await write(agent, "scoped-agent-1", "agent")  # nobody knows it yet
        for server, role in ((BEYOND, ""), (BEYOND, "scoped-web"), (MINE, "scoped-database"), ("scoped-unknown", "")):
            with pytest.raises(PermissionDeniedError):
                await write(agent, server, role)
        with pytest.raises(PermissionDeniedError):
            await agent.inventory.update(MINE, role="x")  # its role does not allow that at all


async def test_an_operator_changes_what_is_in_reach_and_puts_nothing_beyond_it(admin: Client, mesh: Mesh):
    async with await with_key(admin, mesh, "operator", "role = scoped-web") as operator:
        assert (await operator.inventory.update(MINE, location="r1")).location == "r1"
        with pytest.raises(PermissionDeniedError):
            await operator.inventory.update(MINE, role="scoped-database")
        with pytest.raises(NotFoundError):
            await operator.inventory.update(BEYOND, location="r1")
        with pytest.raises(NotFoundError):
            await operator.inventory.delete(BEYOND)
        with pytest.raises(PermissionDeniedError):
            await operator.inventory.create(model.InventoryServer(id="scoped-new", role="scoped-database"))
        with pytest.raises(PermissionDeniedError):
            await operator.simulation.stop()  # which is all servers'


async def test_a_key_that_is_revoked_opens_nothing_any_more(admin: Client, mesh: Mesh):
    key, secret = await admin.keys.create("a test", [Grant("viewer")])
    await admin.keys.delete(key.id)
    async with Client(mesh.gateway, credential=secret) as late:
        with pytest.raises(UnauthenticatedError):
            await late.fleet_summary()
