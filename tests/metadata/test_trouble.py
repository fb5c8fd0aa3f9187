"""PostgreSQL in trouble, as a real server says it: what is told, what is spared it, and when it is used again."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import time
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

import asyncpg
import pytest
from conftest import Mesh, secret, wait_until
from openmanager_metadata.backends.postgresql import PostgresqlDatabase
from openmanager_metadata.config import MetadataConfig

from chaos.proxy import NONE, ChaosProxy, Trouble, Way, unix
from openmanager.api.status.v1 import status_pb2
from openmanager.config import Secret
from openmanager.errors import UnavailableError
from openmanager.runtime import credential
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.status import Storage

PROBE_SECONDS = 0.1
WRITE = "INSERT INTO servers (id, hostname) VALUES ($1, 'x') ON CONFLICT (id) DO UPDATE SET hostname = 'x'"
SILENT = Trouble(silent=frozenset(Way))
READ = "SELECT count(*) AS count FROM servers"


@pytest.fixture
async def people(mesh: Mesh) -> AsyncIterator[asyncpg.Connection]:
    """A connection of somebody who may do everything, to a database that a user of our own owns."""
    whole = secret(mesh, "metadata", "DATABASE_URL")
    name = f"t_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(whole)
    await admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'first'")
    await admin.execute(f"CREATE DATABASE {name} OWNER {name}")
    inside = await asyncpg.connect(urlunsplit(urlsplit(whole)._replace(path=f"/{name}")))
    try:
        yield inside
    finally:
        await inside.close()
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.execute(f"DROP ROLE {name}")
        await admin.close()


async def name_of(people: asyncpg.Connection) -> str:
    return str(await people.fetchval("SELECT current_database()"))


async def url_of(mesh: Mesh, people: asyncpg.Connection, password: str = "first") -> str:
    parts = urlsplit(secret(mesh, "metadata", "DATABASE_URL"))
    name = await name_of(people)
    return urlunsplit(parts._replace(netloc=f"{name}:{password}@{parts.netloc.rpartition('@')[2]}", path=f"/{name}"))


@contextlib.asynccontextmanager
async def opened(url: Secret, connections: int = 2) -> AsyncIterator[tuple[PostgresqlDatabase, Storage]]:
    """A database as the metadata service has it, probed more often."""
    database = PostgresqlDatabase(
        MetadataConfig(database_url=url, connections=connections, statement_timeout=timedelta(milliseconds=500))
    )
    shown = Storage(
        name="postgresql",
        role="metadata",
        engine="postgresql",
        check=database.look,
        clock=SystemClock(),
        breakers=database.breakers,
    )

    async def probe() -> None:
        while True:
            await shown.probe()
            await asyncio.sleep(PROBE_SECONDS)

    async with database.connecting():
        task = asyncio.create_task(probe())
        try:
            await until(shown, status_pb2.STORAGE_STATE_OK)
            yield database, shown
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(shown: Storage, state: int, reason: str = "") -> None:
    async def is_told() -> bool:
        return (shown.finding.state, shown.finding.reason) == (state, reason)

    try:
        await wait_until(is_told, 8)
    except AssertionError:
        pytest.fail(f"it is {status_pb2.StorageState.Name(shown.finding.state)}: {shown.finding.reason}")


async def cut(people: asyncpg.Connection) -> None:
    """End every connection but this one."""
    await people.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


async def until_written(database: PostgresqlDatabase) -> None:
    async def is_written() -> bool:
        with contextlib.suppress(UnavailableError):
            await database.fetch(WRITE, "a")
            return True
        return False

    await wait_until(is_written, 8)


async def test_a_database_that_is_well_is_used_from_the_first_moment_on(mesh: Mesh, people: asyncpg.Connection):
    database = PostgresqlDatabase(MetadataConfig(database_url=Secret(await url_of(mesh, people))))
    async with database.connecting():
        assert (await database.fetch(READ))[0]["count"] == 0


async def test_a_database_that_hangs_holds_up_a_start_only_for_a_moment():
    with socket.create_server(("127.0.0.1", 0)) as hung:
        url = Secret(f"postgresql://somebody:x@127.0.0.1:{hung.getsockname()[1]}/any")
        start = time.monotonic()
        async with PostgresqlDatabase(MetadataConfig(database_url=url)).connecting():
            assert time.monotonic() - start <= 2.5


async def test_a_database_that_takes_no_writes_is_read_and_written_again_when_it_does(
    mesh: Mesh, people: asyncpg.Connection
):
    name = await name_of(people)
    async with opened(Secret(await url_of(mesh, people))) as (database, shown):
        await until_written(database)
        await people.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await cut(people)
        await until(shown, status_pb2.STORAGE_STATE_READONLY, "takes no writes")
        with pytest.raises(UnavailableError):
            await database.fetch(WRITE, "b")
        assert database.writes.is_open
        assert (await database.fetch(READ))[0]["count"] == 1
        await people.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        start = time.monotonic()
        await until(shown, status_pb2.STORAGE_STATE_OK)
        await until_written(database)
        assert time.monotonic() - start < 5


async def test_a_full_disk_is_told_and_not_written_to_again_and_again(mesh: Mesh, people: asyncpg.Connection):
    async with opened(Secret(await url_of(mesh, people))) as (database, shown):
        await until_written(database)
        await people.execute(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'no space' USING ERRCODE = '53100'; END $$"
        )
        for table in ("servers", "schema_migrations"):
            await people.execute(
                f"CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON {table} EXECUTE FUNCTION full_disk()"
            )
        for _ in range(5):
            with pytest.raises(UnavailableError):
                await database.fetch(WRITE, "b")
        await until(shown, status_pb2.STORAGE_STATE_READONLY, "disk full")
        for _ in range(4):
            await shown.probe()
        assert database.writes.is_open
        assert (await database.fetch(READ))[0]["count"] == 1
        for table in ("servers", "schema_migrations"):
            await people.execute(f"DROP TRIGGER full_disk ON {table}")
        await until(shown, status_pb2.STORAGE_STATE_OK)
        await until_written(database)


async def test_a_refused_password_is_not_tried_in_a_hurry_and_that_of_a_new_file_at_once(
    mesh: Mesh, people: asyncpg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(credential, "REFUSED_SECONDS", 60.0)
    name = await name_of(people)
    file = tmp_path / "url"
    file.write_text(await url_of(mesh, people))
    async with opened(Secret(file.read_text(), file)) as (database, shown):
        await until_written(database)
        await people.execute(f"ALTER ROLE {name} PASSWORD 'second'")
        await cut(people)
        await until(shown, status_pb2.STORAGE_STATE_DOWN, "auth: the credentials are refused")
        tries, looks, renew = [], [], database._url.renew

        async def counted() -> bool:
            looks.append(1)
            return await renew()

        async def is_looked_for() -> bool:
            return len(looks) > 5

        monkeypatch.setattr(asyncpg, "connect", lambda *_, **__: tries.append(1))
        monkeypatch.setattr(credential, "LOOK_SECONDS", 0.01)
        monkeypatch.setattr(database._url, "renew", counted)
        await wait_until(is_looked_for)
        with pytest.raises(UnavailableError, match="PostgreSQL does not answer"):
            await database.fetch(READ)
        assert tries == []
        monkeypatch.undo()
        start = time.monotonic()
        file.write_text(await url_of(mesh, people, "second"))
        await until(shown, status_pb2.STORAGE_STATE_OK)
        await until_written(database)
        assert time.monotonic() - start < 5


async def test_connections_that_are_all_busy_are_waited_for_a_moment(mesh: Mesh, people: asyncpg.Connection):
    async with opened(Secret(await url_of(mesh, people))) as (database, shown):
        await until_written(database)
        pool = database._pool
        assert pool is not None
        held = [await pool.acquire() for _ in range(2)]
        start = time.monotonic()
        with pytest.raises(UnavailableError):
            await database.fetch(READ)
        assert time.monotonic() - start < 0.2
        await until(shown, status_pb2.STORAGE_STATE_SLOW, "pool: all connections are busy")
        for each in held:
            await pool.release(each)
        await until(shown, status_pb2.STORAGE_STATE_OK)
        await until_written(database)


async def test_a_database_that_takes_no_more_connections_is_busy(mesh: Mesh, people: asyncpg.Connection):
    name = await name_of(people)
    url = await url_of(mesh, people)
    async with opened(Secret(url)) as (database, shown):
        await people.execute(f"ALTER ROLE {name} CONNECTION LIMIT 0")
        await cut(people)
        await until(shown, status_pb2.STORAGE_STATE_SLOW, "pool: it takes no more connections")
        await people.execute(f"ALTER ROLE {name} CONNECTION LIMIT -1")
        await until(shown, status_pb2.STORAGE_STATE_OK)
        await until_written(database)


async def test_a_database_that_starts_up_is_recovering():
    """A server that answers every greeting as PostgreSQL does while it starts."""
    fields = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(b"E" + (len(fields) + 4).to_bytes(4) + fields)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    database = PostgresqlDatabase(
        MetadataConfig(database_url=Secret(f"postgresql://a:b@127.0.0.1:{port}/c?sslmode=disable"))
    )
    async with listening, database.connecting():

        async def is_recovering() -> bool:
            found = await database.look()
            return (found.state, found.reason) == (status_pb2.STORAGE_STATE_RECOVERING, "loading: is starting up")

        await wait_until(is_recovering)


@contextlib.asynccontextmanager
async def proxied(mesh: Mesh, people: asyncpg.Connection) -> AsyncIterator[tuple[ChaosProxy, Secret]]:
    """A way to the database that can go silent, and the URL that leads there."""
    parts = urlsplit(await url_of(mesh, people))
    asked = parse_qs(parts.query)
    socket_of = f"{asked['host'][0]}/.s.PGSQL.{asked['port'][0]}"
    async with ChaosProxy(unix(socket_of)) as proxy:
        netloc = f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}"
        yield proxy, Secret(urlunsplit(parts._replace(netloc=netloc, query="")))


@contextlib.asynccontextmanager
async def nothing_is_logged() -> AsyncIterator[None]:
    """Fail for what the loop says of tasks whose errors nobody has asked for."""
    loop, said = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: said.append(context))
    try:
        yield
        gc.collect()
        assert said == []
    finally:
        loop.set_exception_handler(None)


async def test_a_caller_who_gives_up_while_a_connection_is_given_back_costs_neither_it_nor_a_line_in_the_log(
    mesh: Mesh, people: asyncpg.Connection
):
    async with proxied(mesh, people) as (proxy, url), nothing_is_logged():
        database = PostgresqlDatabase(MetadataConfig(database_url=url, connections=1))
        async with database.connecting():
            pool, begun = database._pool, asyncio.Event()

            async def work(connection: asyncpg.Connection) -> None:
                await connection.execute("BEGIN")  # which is to be ended when the connection is given back
                await proxy.set(SILENT)
                begun.set()

            for _ in range(2):  # with the one connection there is
                begun.clear()
                caller = asyncio.create_task(database._with_connection(work))
                await begun.wait()
                await wait_until(is_giving_back)
                caller.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await caller
                await wait_until(lambda: is_free(pool))
                await proxy.set(NONE)
                assert (await database.fetch(READ))[0]["count"] == 0


async def is_giving_back() -> bool:
    return any(
        getattr(each.get_coro(), "__qualname__", "") == "PoolConnectionHolder.release" for each in asyncio.all_tasks()
    )


async def is_free(pool: asyncpg.Pool) -> bool:
    """Whether nobody holds a connection."""
    return pool._queue.full()


async def test_a_caller_who_gives_up_twice_in_a_transaction_costs_no_line_in_the_log(
    mesh: Mesh, people: asyncpg.Connection
):
    database = PostgresqlDatabase(MetadataConfig(database_url=Secret(await url_of(mesh, people)), connections=1))
    async with database.connecting(), nothing_is_logged():
        begun = asyncio.Event()

        async def work(connection: asyncpg.Connection) -> None:
            begun.set()
            await connection.fetch("SELECT pg_sleep(9)")

        caller = asyncio.create_task(database.transaction(work))
        await begun.wait()
        for _ in range(2):  # the second time the transaction is being ended
            for _ in range(3):
                await asyncio.sleep(0)
            caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert database._pool is not None
        await wait_until(lambda: is_free(database._pool))
        assert (await database.fetch(READ))[0]["count"] == 0


async def test_a_connection_of_before_that_does_not_close_is_cut_without_a_line_in_the_log(
    mesh: Mesh, people: asyncpg.Connection
):
    async with proxied(mesh, people) as (proxy, url), nothing_is_logged():
        database = PostgresqlDatabase(MetadataConfig(database_url=url, connections=1))
        async with database.connecting():
            await database.fetch(READ)
            old = database._pool._holders[0]._con
            await proxy.set(SILENT)
            database._stale = True
            with pytest.raises(UnavailableError):
                await database.fetch(READ)

            async def is_cut() -> bool:
                return old._protocol is None and old._transport.is_closing()

            await wait_until(is_cut)
            await proxy.set(NONE)
            await until_written(database)
