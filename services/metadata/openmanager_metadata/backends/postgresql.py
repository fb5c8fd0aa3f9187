"""PostgreSQL through asyncpg: a small pool, a deadline on everything, migrations at connect, and a calm reconnect."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from importlib import resources
from typing import Any, TypeVar

import asyncpg

from openmanager.api.status.v1 import status_pb2
from openmanager.api.status.v1.status_pb2 import StorageState
from openmanager.errors import ConfigurationError, InvalidArgumentError, OpenManagerError, store_unavailable
from openmanager.runtime import telemetry
from openmanager.runtime.peer import backoff
from openmanager.runtime.status import Finding
from openmanager_metadata.backends import Statements, StrangerError
from openmanager_metadata.config import MetadataConfig
from openmanager_metadata.memory import Memory

LOCK = 7_265_001  # any number, the same in every version
MIGRATION_SECONDS = 30.0
# After a call that found the database away or hung, calls are refused at once for so long; probes go on.
OPEN_SECONDS = 2.0
STORE = "PostgreSQL"
T = TypeVar("T")

log = logging.getLogger(__name__)

# It is away, hung, or on its way down: nobody asks it for a moment, and what hangs on a connection is over.
_AWAY = (
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.InvalidAuthorizationSpecificationError,
    OSError,
    TimeoutError,
)
_REFUSALS = {
    asyncpg.InvalidAuthorizationSpecificationError: "refuses the credentials",
    asyncpg.InvalidCatalogNameError: "has no such database",
    asyncpg.InsufficientPrivilegeError: "does not let our user make its tables",
}
# The database came back without what we made in it: it is migrated again.
_LOST = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InvalidSchemaNameError,
    StrangerError,
)


class SchemaError(Exception):
    """The database was migrated by a newer version, or its history is not ours."""


class PostgresqlDatabase:
    """A `Database` on one PostgreSQL; `connecting` keeps it connected for the life of the context."""

    def __init__(self, config: MetadataConfig, memory: Memory | None = None) -> None:
        self._config = config
        self._memory = memory
        self._pool: asyncpg.Pool | None = None
        self._state: StorageState.ValueType = status_pb2.STORAGE_STATE_DOWN
        self._reason = "is not connected yet"
        self._lost = asyncio.Event()
        self._refused_until = 0.0
        self._stale = False

    @contextlib.asynccontextmanager
    async def connecting(self) -> AsyncIterator[None]:
        """Connect in the background, as often as it takes."""
        task = asyncio.create_task(self._keep_connected())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if self._pool is not None:
                self._pool.terminate()  # close() may wait for a server that is frozen

    async def _keep_connected(self) -> None:
        attempt = 0
        while True:
            try:
                self._pool = await self._open_pool()
            except Exception as err:  # noqa: BLE001  (whatever it is, the next attempt may fare better)
                state, reason = _why(err)
                if reason != self._reason:
                    log.warning("PostgreSQL %s (%s)", reason, type(err).__name__)
                self._state, self._reason = state, reason
                away = state == status_pb2.STORAGE_STATE_DOWN
                wait = backoff(attempt, random.random(), cap=2.0).total_seconds() if away else 5.0  # noqa: S311
                attempt += 1
                await asyncio.sleep(wait)
                continue
            attempt, self._refused_until = 0, 0.0
            self._lost.clear()
            await self._lost.wait()
            pool, self._pool = self._pool, None
            pool.terminate()

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
                if self._memory is not None:
                    await self._memory.give_back(connection)
        finally:
            connection.terminate()
        return await asyncpg.create_pool(
            config.database_url.reveal(),
            min_size=min(2, config.connections),
            max_size=config.connections,
            max_inactive_connection_lifetime=60,
            command_timeout=statement,
            statement_cache_size=config.statement_cache,
            init=self._memory.recognise if self._memory is not None else None,
            **options,
        )

    async def fetch(self, sql: str, *arguments: Any) -> list[Any]:
        """Run one statement."""
        return await self._fetch(sql, *arguments)

    async def transaction(self, work: Callable[[Statements], Awaitable[T]]) -> T:
        """Run what `work` asks for in one transaction."""

        async def run(connection: Any) -> T:
            async with connection.transaction():
                return await work(connection)

        with telemetry.store_span("postgresql", "TRANSACTION"):
            return await self._with_connection(run)

    async def _fetch(self, sql: str, *arguments: Any, probing: bool = False) -> list[Any]:
        with telemetry.store_span("postgresql", sql.split(None, 1)[0]):
            return await self._with_connection(lambda connection: connection.fetch(sql, *arguments), probing=probing)

    async def _with_connection(self, work: Callable[[Any], Awaitable[T]], *, probing: bool = False) -> T:
        """Do work on a connection, in the time the configuration gives it; only probes try while it is known away."""
        pool = self._pool
        if pool is None or (not probing and time.monotonic() < self._refused_until):
            raise store_unavailable(STORE)
        config = self._config
        with self._translated():
            if self._stale:
                # What was connected before a fail-over, a shutdown or a hang is not used again.
                self._stale = False
                await pool.expire_connections()
            connection = await self._acquire(pool)
            try:
                async with asyncio.timeout(config.statement_timeout.total_seconds()):
                    found = await work(connection)
            except TimeoutError:
                connection.terminate()  # its answer may still come: nobody else must read it
                raise
            finally:
                await _release(pool, connection)
        self._refused_until = 0.0
        return found

    async def _acquire(self, pool: asyncpg.Pool) -> Any:
        config = self._config
        try:
            async with asyncio.timeout(config.acquire_timeout.total_seconds() + config.connect_timeout.total_seconds()):
                return await pool.acquire()
        except TimeoutError as err:
            if pool.get_size() >= config.connections and not pool.get_idle_size():
                raise store_unavailable(STORE) from err  # all are busy, which is no reason to let go of them
            raise

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn whatever asyncpg raises into errors of ours."""
        try:
            yield
        except (asyncpg.DataError, asyncpg.UntranslatableCharacterError) as err:
            raise InvalidArgumentError("the request holds a value that PostgreSQL cannot store") from err
        except _LOST as err:
            log.warning("PostgreSQL has lost what was made in it (%s): it is given back", type(err).__name__)
            self._state, self._reason = status_pb2.STORAGE_STATE_EMPTY, "came back empty or old"
            self._lost.set()
            raise store_unavailable(STORE) from err
        except _AWAY as err:
            if isinstance(err, ValueError):  # asyncpg could not encode an argument
                raise InvalidArgumentError("the request holds a value that PostgreSQL cannot store") from err
            self._refused_until = time.monotonic() + OPEN_SECONDS
            self._stale = True
            raise store_unavailable(STORE) from err
        except asyncpg.PostgresError as err:
            # Busy (a lock, its own statement timeout, no slot) or in a state we do not know: the next call may fare better.
            self._stale = isinstance(err, asyncpg.ReadOnlySQLTransactionError)
            log.warning("PostgreSQL refused a statement: %s %s", type(err).__name__, getattr(err, "sqlstate", ""))
            raise store_unavailable(STORE) from err

    async def look(self) -> Finding:
        """Ask for the version, the size, and whether writes are taken."""
        if self._pool is None:
            return Finding(state=self._state, reason=self._reason)
        try:
            rows = await self._fetch(
                "SELECT current_setting('server_version') AS version, pg_database_size(current_database()) AS size,"
                " current_setting('transaction_read_only') = 'on' AS readonly,"
                " (SELECT count(*) FROM servers WHERE deleted_at IS NULL) AS servers",
                probing=True,
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
            warnings=self._memory.warnings if self._memory is not None else (),
        )


async def _release(pool: asyncpg.Pool, connection: Any) -> None:
    """Give a connection back; one that does not let go in time is cut."""
    try:
        await pool.release(connection, timeout=0.5)
    except _AWAY:
        with contextlib.suppress(asyncpg.InterfaceError):
            connection.terminate()


def _why(err: Exception) -> tuple[StorageState.ValueType, str]:
    """Return the state that a failed connect or migration means, and why in words."""
    if isinstance(err, SchemaError):
        return status_pb2.STORAGE_STATE_READONLY, str(err)
    for kind, reason in _REFUSALS.items():
        if isinstance(err, kind):
            return status_pb2.STORAGE_STATE_DOWN, reason
    if isinstance(err, _AWAY):
        return status_pb2.STORAGE_STATE_DOWN, "cannot be reached"
    return status_pb2.STORAGE_STATE_DOWN, f"cannot be prepared: {type(err).__name__}"


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


def open_database(config: MetadataConfig, memory: Memory) -> PostgresqlDatabase:
    """Return the database of the configuration; nothing is connected yet."""
    if not config.database_url.reveal():
        raise ConfigurationError("metadata.database_url is not set: DATABASE_URL must name a PostgreSQL")
    if not config.database_url.reveal().startswith(("postgres://", "postgresql://")):
        raise ConfigurationError("DATABASE_URL is not a URL of the form postgresql://…")
    return PostgresqlDatabase(config, memory)
