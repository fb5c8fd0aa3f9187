"""Redis in trouble, as a real server says it: what is told, what is spared it, and when it is used again."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from probed import VALUE, opened, until, until_one_of, until_written
from redis.asyncio import Redis

from openmanager import embedded
from openmanager.api.status.v1 import status_pb2
from openmanager.config import Secret
from openmanager.datadir import DataDir
from openmanager.errors import UnavailableError
from openmanager.runtime import credential
from openmanager.runtime.supervisor import Supervisor

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[str]:
    """The URL of a Valkey of our own."""
    with tempfile.TemporaryDirectory(prefix="openmanager-test-") as folder, DataDir.open(Path(folder)) as data:
        valkey = embedded.valkey(data)
        async with Supervisor([valkey.spec]) as children:
            await children.wait_ready()
            yield valkey.url.reveal()


@contextlib.asynccontextmanager
async def people(url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(url) as admin:
        yield admin


@pytest.mark.parametrize(
    ("trouble", "healed", "reason"),
    [
        (("maxmemory", "1"), ("maxmemory", "0"), "memory full"),
        (("replicaof", "127.0.0.1 1"), ("replicaof", "no one"), "is a replica"),
    ],
    ids=["memory full", "replica"],
)
async def test_a_server_that_takes_no_writes_is_read_and_written_again_when_it_does(
    server: str, trouble: tuple[str, str], healed: tuple[str, str], reason: str
):
    async def set_to(admin: Redis, name: str, value: str) -> None:
        await (admin.replicaof(*value.split()) if name == "replicaof" else admin.config_set(name, value))

    async with people(server) as admin, opened(Secret(server)) as (store, shown):
        await until_written(store)
        try:
            await set_to(admin, *trouble)
            await until(shown, status_pb2.STORAGE_STATE_READONLY, reason)
            with pytest.raises(UnavailableError):
                await store.set_many(VALUE)
            assert store.writes.is_open
            assert await store.get_many(["key"]) == [b"value"]
        finally:
            await set_to(admin, *healed)
        await until(shown, status_pb2.STORAGE_STATE_OK)
        await until_written(store)
        assert await admin.exists("t:probe") == 0


async def test_refused_credentials_are_not_tried_in_a_hurry_and_those_of_a_new_file_at_once(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(credential, "REFUSED_SECONDS", 60.0)
    file = tmp_path / "url"
    file.write_text(server)
    async with people(server) as admin, opened(Secret(server, file)) as (store, shown):
        await until_written(store)
        old = (await admin.config_get("requirepass"))["requirepass"]
        await admin.config_set("requirepass", "another")
        try:
            await admin.client_kill_filter(_type="normal", skipme=True)
            await until(shown, status_pb2.STORAGE_STATE_DOWN, "auth: the credentials are refused")
            tried = await _refusals(admin)
            for _ in range(20):
                with pytest.raises(UnavailableError, match="Redis does not answer"):
                    await store.get_many(["key"])
                await shown.probe()
            assert await _refusals(admin) == tried <= 3
            start = time.monotonic()
            file.write_text(server.replace(old, "another"))
            await until(shown, status_pb2.STORAGE_STATE_OK)
            await until_written(store)
            assert time.monotonic() - start < 5
        finally:
            await admin.config_set("requirepass", old)


async def _refusals(admin: Redis) -> int:
    """Return how often credentials were refused."""
    return int((await admin.info("stats"))["acl_access_denied_auth"])


async def test_connections_that_are_all_busy_are_waited_for_a_moment(server: str):
    async with people(server) as admin, opened(Secret(server), connections=1) as (store, shown):
        await until_written(store)
        held = await store._client._client.connection_pool.get_connection()
        start = time.monotonic()
        with pytest.raises(UnavailableError):
            await store.get_many(["key"])
        assert time.monotonic() - start < 0.4
        await until(shown, status_pb2.STORAGE_STATE_SLOW, "pool: all connections are busy")
        await store._client._client.connection_pool.release(held)
        await until(shown, status_pb2.STORAGE_STATE_OK)
        assert await store.get_many(["key"]) == [b"value"]

        try:
            await admin.config_set("maxclients", 1)
            await admin.client_kill_filter(_type="normal", skipme=True)
            # It says why and hangs up; whether the reason is read depends on who is faster.
            busy = (status_pb2.STORAGE_STATE_SLOW, "pool: all connections are busy")
            await until_one_of(shown, busy, (status_pb2.STORAGE_STATE_DOWN, "cannot be reached"))
        finally:
            await admin.config_set("maxclients", 1000)
        await until(shown, status_pb2.STORAGE_STATE_OK)


async def test_a_server_that_loads_its_data_is_recovering_and_used_when_it_has():
    loading = True

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = b"-LOADING Valkey is loading the dataset in memory\r\n" if loading else b"+OK\r\n"
        with contextlib.suppress(OSError):
            while await reader.read(4096):
                writer.write(answer)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with listening, opened(Secret(url)) as (store, shown):
        await until(shown, status_pb2.STORAGE_STATE_RECOVERING, "loading")
        assert store.reads.is_open
        assert store.writes.is_open
        with pytest.raises(UnavailableError):
            await store.get_many(["key"])
