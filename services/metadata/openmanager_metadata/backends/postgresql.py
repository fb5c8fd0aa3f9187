"""PostgreSQL through asyncpg: a small pool, a deadline on everything, migrations at connect, and a calm reconnect."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources
from typing import Any, TypeVar

import asyncpg

from openmanager.api.status.v1 import status_pb2
from openmanager.errors import ConfigurationError, OpenManagerError, store_unavailable
from openmanager.runtime import telemetry
from openmanager.runtime.peer import backoff
from openmanager.runtime.status import Finding
from openmanager_metadata.config import MetadataConfig

LOCK = 7_265_001  # any number, the same in every version
MIGRATION_SECONDS = 30.0
STORE = "PostgreSQL"
T = TypeVar("T")

log = logging.getLogger(__name__)

# What a pooled connection must not outlive: a fail-over to a replica, a shutdown, a broken link.
_EXPIRING = (
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.PostgresConnectionError,
)
_AWAY = (
    *_EXPIRING,
    asyncpg.CannotConnectNowError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.InsufficientResourcesError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    OSError,
    TimeoutError,
)


class SchemaError(Exception):
    """The database was migrated by a newer version, or its history is not ours."""


class PostgresqlDatabase:
    """A `Database` on one PostgreSQL; `connecting` keeps it connected for the life of the context."""

    def __init__(self, config: MetadataConfig) -> None:
        self._config = config
        self._pool: asyncpg.Pool | None = None
        self._reason = "is not connected yet"
        self._readonly = False

    @contextlib.asynccontextmanager
    async def connecting(self) -> AsyncIterator[None]:
        """Connect in the background, as often as it takes."""
        task = asyncio.create_task(self._connect_until_done())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if self._pool is not None:
                self._pool.terminate()  # close() may wait for a server that is frozen

    async def _connect_until_done(self) -> None:
        attempt = 0
        while True:
            try:
                pool = await self._open_pool()
            except SchemaError as err:
                self._reason, self._readonly = str(err), True
                log.warning("the schema cannot be used: it %s", err)
            except _AWAY as err:
                self._reason = "refuses the credentials" if _is_refusal(err) else "cannot be reached"
                if attempt == 0:
                    log.warning("PostgreSQL %s", self._reason)
            else:
                self._pool, self._readonly = pool, False
                return
            seconds = 5.0 if self._readonly else backoff(attempt, random.random(), cap=2.0).total_seconds()  # noqa: S311
            attempt += 1
            await asyncio.sleep(seconds)

    async def _open_pool(self) -> asyncpg.Pool:
        config = self._config
        statement = config.statement_timeout.total_seconds()
        options: dict[str, Any] = {
            "timeout": config.connect_timeout.total_seconds(),
            "server_settings": {
                "application_name": "openmanager-metadata",
                "statement_timeout": str(int(statement * 1000)),
                "lock_timeout": "500",
                "idle_in_transaction_session_timeout": "5000",
                "timezone": "UTC",
            },
        }
        connection = await asyncpg.connect(
            config.database_url.reveal(), **{**options, "server_settings": {"timezone": "UTC"}}
        )
        try:
            async with asyncio.timeout(MIGRATION_SECONDS):
                await migrate(connection)
        finally:
            connection.terminate()
        return await asyncpg.create_pool(
            config.database_url.reveal(),
            min_size=min(2, config.connections),
            max_size=config.connections,
            max_inactive_connection_lifetime=60,
            command_timeout=statement,
            statement_cache_size=config.statement_cache,
            **options,
        )

    async def fetch(self, sql: str, *arguments: Any) -> list[Any]:
        """Run one statement."""
        with telemetry.store_span("postgresql", sql.split(None, 1)[0]):
            return await self._with_connection(lambda connection: connection.fetch(sql, *arguments))

    async def fetch_all(self, *statements: tuple[str, tuple[Any, ...]]) -> list[list[Any]]:
        """Run statements in one transaction."""

        async def run(connection: Any) -> list[list[Any]]:
            async with connection.transaction():
                return [await connection.fetch(sql, *arguments) for sql, arguments in statements]

        with telemetry.store_span("postgresql", "TRANSACTION", batch_size=len(statements)):
            return await self._with_connection(run)

    async def _with_connection(self, work: Callable[[Any], Awaitable[T]]) -> T:
        pool = self._pool
        if pool is None:
            raise store_unavailable(STORE)
        config = self._config
        try:
            async with asyncio.timeout(config.acquire_timeout.total_seconds() + config.connect_timeout.total_seconds()):
                connection = await pool.acquire()
            try:
                async with asyncio.timeout(config.statement_timeout.total_seconds() * 2):
                    return await work(connection)
            finally:
                await _release(pool, connection)
        except _EXPIRING as err:
            with contextlib.suppress(*_AWAY):
                await pool.expire_connections()
            raise store_unavailable(STORE) from err
        except _AWAY as err:
            raise store_unavailable(STORE) from err

    async def look(self) -> Finding:
        """Ask for the version, the size, and whether writes are taken."""
        if self._pool is None:
            if self._readonly:
                return Finding(state=status_pb2.STORAGE_STATE_READONLY, reason=self._reason)
            raise ConnectionError(self._reason)
        try:
            rows = await self.fetch(
                "SELECT current_setting('server_version') AS version, pg_database_size(current_database()) AS size,"
                " current_setting('transaction_read_only') = 'on' AS readonly,"
                " (SELECT count(*) FROM servers WHERE deleted_at IS NULL) AS servers"
            )
        except OpenManagerError as err:
            if isinstance(err.__cause__, TimeoutError):
                raise TimeoutError from err
            raise ConnectionError from err
        row = rows[0]
        return Finding(
            state=status_pb2.STORAGE_STATE_READONLY if row["readonly"] else status_pb2.STORAGE_STATE_OK,
            reason="takes no writes" if row["readonly"] else "",
            version=row["version"].split()[0],
            size_bytes=row["size"],
            item_count=row["servers"],
        )


async def _release(pool: asyncpg.Pool, connection: Any) -> None:
    """Give a connection back; one that does not let go in time is cut."""
    try:
        await pool.release(connection, timeout=0.5)
    except _AWAY:
        with contextlib.suppress(asyncpg.InterfaceError):
            connection.terminate()


def _is_refusal(err: BaseException) -> bool:
    return isinstance(err, asyncpg.InvalidAuthorizationSpecificationError | asyncpg.InvalidPasswordError)


def migrations() -> list[tuple[int, str, str]]:
    """Return the migrations in order: number, name, SQL."""
    folder = resources.files("openmanager_metadata").joinpath("migrations")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [(int(file.name[:4]), file.name, file.read_text(encoding="utf-8")) for file in files]


async def migrate(connection: Any) -> None:
    """Bring a database to this version's schema, in one transaction that excludes every other migration.

    SchemaError when it is of a newer version, or when a migration that was applied is not the one we know.
    """
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations (number integer PRIMARY KEY, name text NOT NULL,"
            " checksum text NOT NULL, applied_at timestamp NOT NULL DEFAULT now())"
        )
        applied = {
            row["number"]: row["checksum"]
            for row in await connection.fetch("SELECT number, checksum FROM schema_migrations")
        }
        known = migrations()
        if max(applied, default=0) > known[-1][0]:
            raise SchemaError("has the schema of a newer version")
        for number, name, sql in known:
            checksum = hashlib.sha256(sql.encode()).hexdigest()
            if applied.get(number, checksum) != checksum:
                raise SchemaError(f"has another migration {number} than this version")
            if number not in applied:
                await connection.execute(sql)
                await connection.execute(
                    "INSERT INTO schema_migrations (number, name, checksum) VALUES ($1, $2, $3)", number, name, checksum
                )


def open_database(config: MetadataConfig) -> PostgresqlDatabase:
    """Return the database of the configuration; nothing is connected yet."""
    if not config.database_url.reveal():
        raise ConfigurationError("metadata.database_url is not set: DATABASE_URL must name a PostgreSQL")
    if not config.database_url.reveal().startswith(("postgres://", "postgresql://")):
        raise ConfigurationError("DATABASE_URL is not a URL of the form postgresql://…")
    return PostgresqlDatabase(config)
