"""PostgreSQL through asyncpg: a small pool, a deadline on everything, migrations at connect, and a calm reconnect."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import asyncpg

from openmanager.api.status.v1 import status_pb2
from openmanager.api.status.v1.status_pb2 import StorageState
from openmanager.errors import (
    ConfigurationError,
    InvalidArgumentError,
    OpenManagerError,
    UnavailableError,
    store_unavailable,
)
from openmanager.runtime import telemetry
from openmanager.runtime.breaker import Breaker
from openmanager.runtime.clock import Clock, SystemClock
from openmanager.runtime.credential import Credential
from openmanager.runtime.peer import backoff
from openmanager.runtime.status import Finding
from openmanager_metadata.backends import APPLICATION, Statements, StrangerError
from openmanager_metadata.backends.hosts import Hosts
from openmanager_metadata.backends.migration import SchemaError, is_current, migrate
from openmanager_metadata.backends.privileges import grant, role_of
from openmanager_metadata.config import MetadataConfig
from openmanager_metadata.memory import Memory

MIGRATION_SECONDS = 30.0
UPKEEP_SECONDS = 600.0
FIRST_ATTEMPT_SECONDS = 2.0
# A server that is starting up is asked that often.
STARTING_SECONDS = 0.5
# A connection that is given back, or is not used any more, has so long to come to an end.
RELEASE_SECONDS = 0.5
STORE = "PostgreSQL"
T = TypeVar("T")

log = logging.getLogger(__name__)
# It tells each failed connect of its own, with a traceback; the status and the breaker say it once.
logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)

# It is away, hung, or on its way down: what hangs on a connection is over.
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


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    """A connection that the pool may close by itself, where nobody would take note of an error."""

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  (it is asyncpg's)
        """Close it, or cut it when it does not close in time."""
        with contextlib.suppress(*_AWAY):  # which has cut it
            await super().close(timeout=RELEASE_SECONDS if timeout is None else timeout)

    async def reset(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  (it is asyncpg's)
        """Reset it; what a caller who gave up has left of a transaction is ended first, which is no error of anybody."""
        if self.is_in_transaction():
            await self.execute("ROLLBACK", timeout=timeout)
        await super().reset(timeout=timeout)

    def get_reset_query(self) -> str:
        """Return nothing: no setting and no lock of ours outlasts its transaction, and asking costs a round trip each time."""
        return ""


class _BusyError(Exception):
    """All of our connections are busy."""


# What an error tells of the database, and why in words: the first that fits. Anything else says nothing about it.
_TROUBLES: tuple[tuple[type[BaseException], StorageState.ValueType, str], ...] = (
    (
        asyncpg.InvalidAuthorizationSpecificationError,
        status_pb2.STORAGE_STATE_DOWN,
        "auth: the credentials are refused",
    ),
    (asyncpg.CannotConnectNowError, status_pb2.STORAGE_STATE_RECOVERING, "loading: is starting up"),
    (asyncpg.TooManyConnectionsError, status_pb2.STORAGE_STATE_SLOW, "pool: it takes no more connections"),
    (_BusyError, status_pb2.STORAGE_STATE_SLOW, "pool: all connections are busy"),
    (asyncpg.TargetServerAttributeNotMatched, status_pb2.STORAGE_STATE_DOWN, "no host takes writes"),
    (asyncpg.DiskFullError, status_pb2.STORAGE_STATE_READONLY, "disk full"),
    (asyncpg.ReadOnlySQLTransactionError, status_pb2.STORAGE_STATE_READONLY, "takes no writes"),
    (asyncpg.QueryCanceledError, status_pb2.STORAGE_STATE_HUNG, "does not answer"),
    (TimeoutError, status_pb2.STORAGE_STATE_HUNG, "does not answer"),
    *((kind, status_pb2.STORAGE_STATE_DOWN, "cannot be reached") for kind in _AWAY),
)
_REFUSALS = {
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


class PostgresqlDatabase:
    """A `Database` on one PostgreSQL; `connecting` keeps it connected for the life of the context."""

    def __init__(self, config: MetadataConfig, memory: Memory | None = None, clock: Clock | None = None) -> None:
        self._config = config
        self._memory = memory
        self._clock = clock or SystemClock()
        self._url = Credential(config.database_url, self._clock)
        self._hosts = Hosts()
        jitter = random.Random()  # noqa: S311  (jitter)
        self.reads = Breaker(STORE, "reads", self._clock, jitter)
        self.writes = Breaker(STORE, "writes", self._clock, jitter)
        self.breakers = (self.reads, self.writes)
        self._pool: asyncpg.Pool | None = None
        self._state: StorageState.ValueType = status_pb2.STORAGE_STATE_DOWN
        self._reason = "is not connected yet"
        # The pool is of no use any more: the database has lost our tables, or refuses what we connect with.
        self._lost = asyncio.Event()
        self._stale = False
        self._tried = asyncio.Event()
        self._releases: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def connecting(self) -> AsyncIterator[None]:
        """Connect in the background, as often as it takes; the first attempt may be waited for a little.

        Who serves before would say of a database that is well that it does not answer.
        """
        task = asyncio.create_task(self._keep_connected())
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_ATTEMPT_SECONDS):
                    await self._tried.wait()
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
                self._tried.set()
            except Exception as err:  # noqa: BLE001  (whatever it is, the next attempt may fare better)
                self._tried.set()
                self._found(err)
                await self._wait(attempt)
                attempt += 1
                continue
            attempt = 0
            self._lost.clear()
            await self._lost.wait()
            pool, self._pool = self._pool, None
            pool.terminate()
            await self._wait(attempt)

    def _found(self, err: Exception) -> None:
        """Take note of why there is no connection."""
        state, reason = _why(err)
        if isinstance(err, asyncpg.InvalidAuthorizationSpecificationError):
            self._url.refused()
        if reason != self._reason:
            log.warning("PostgreSQL %s (%s)", reason, type(err).__name__)
        self._state, self._reason = state, reason

    async def _wait(self, attempt: int) -> None:
        """Return when it is time to connect again: soon, unless people have to do something first."""
        await self._url.wait()
        match self._state:
            case status_pb2.STORAGE_STATE_READONLY:
                seconds = 5.0
            case status_pb2.STORAGE_STATE_RECOVERING:
                seconds = STARTING_SECONDS
            case _:
                seconds = backoff(attempt, random.random(), cap=2.0).total_seconds()  # noqa: S311  (jitter)
        await asyncio.sleep(seconds)

    async def _open_pool(self) -> asyncpg.Pool:
        config = self._config
        connection = await self._connect_known()
        try:
            async with asyncio.timeout(MIGRATION_SECONDS):
                await self._prepare(connection)
                if self._memory is not None:
                    await self._memory.give_back(connection)
        finally:
            connection.terminate()
        return await asyncpg.create_pool(
            self._url.reveal(),
            min_size=min(2, config.connections),
            max_size=config.connections,
            max_inactive_connection_lifetime=60,
            connect=self._hosts.connect,
            connection_class=_Connection,
            check=self._memory.recognise if self._memory is not None else None,
            command_timeout=config.statement_timeout.total_seconds(),
            **self._options({} if self._is_pooled else self._limits),
        )

    @property
    def _is_pooled(self) -> bool:
        """Whether there is a PgBouncer before the database, which takes no settings of a connection."""
        return self._config.statement_cache == 0

    @property
    def _limits(self) -> dict[str, str]:
        """The settings that keep the database from waiting for us, and us for it; milliseconds."""
        statement = int(self._config.statement_timeout.total_seconds() * 1000)
        waiting = {"lock_timeout": f"{statement // 2}", "idle_in_transaction_session_timeout": "5000"}
        return {"statement_timeout": f"{statement}", **waiting}

    def _options(self, settings: dict[str, str]) -> dict[str, Any]:
        return {
            "timeout": self._config.connect_timeout.total_seconds(),
            "statement_cache_size": self._config.statement_cache,
            "server_settings": {"application_name": APPLICATION, "timezone": "UTC", **settings},
        }

    async def _connect_known(self) -> asyncpg.Connection:
        """Connect to the database that we know where one of the hosts has it, else to what there is."""
        if self._memory is not None:
            with contextlib.suppress(StrangerError):
                return await self._hosts.connect(self._url.reveal(), check=self._memory.recognise, **self._options({}))
        return await self._hosts.connect(self._url.reveal(), **self._options({}))

    async def _prepare(self, connection: Any) -> None:
        """Bring the tables to this version: with the role that owns them where there is one, which is else not needed."""
        owner = self._config.migration_url.renewed()
        if not owner.reveal():
            await migrate(connection)
        elif not await is_current(connection):
            migrating = await self._hosts.connect(owner.reveal(), **self._options({}))
            try:
                await migrate(migrating)
                await grant(migrating, role_of(self._url.reveal()))
            finally:
                migrating.terminate()

    async def fetch(self, sql: str, *arguments: Any, seconds: float | None = None) -> list[Any]:
        """Run one statement."""
        verb = sql.split(None, 1)[0]
        breaker = self.reads if verb == "SELECT" else self.writes

        async def run(connection: Any) -> list[Any]:
            found: list[Any] = await connection.fetch(sql, *arguments)
            return found

        with telemetry.store_span("postgresql", verb):
            return await self._guarded(breaker, self._limited(run) if self._is_pooled else run, seconds)

    async def transaction(self, work: Callable[[Statements], Awaitable[T]], *, writes: bool = True) -> T:
        """Run what `work` asks for in one transaction."""
        with telemetry.store_span("postgresql", "TRANSACTION"):
            return await self._guarded(self.writes if writes else self.reads, self._limited(work))

    def _limited(self, work: Callable[[Any], Awaitable[T]]) -> Callable[[Any], Awaitable[T]]:
        """Return work as one transaction, which brings its limits along where a connection cannot have any."""
        limits = "; ".join(f"SET LOCAL {name} = '{value}'" for name, value in self._limits.items())

        async def run(connection: Any) -> T:
            async with connection.transaction():
                if self._is_pooled:
                    await connection.execute(limits)
                return await work(connection)

        return run

    async def upkeep(self, *statements: str) -> None:
        """Run statements on a connection of their own, which has the time they need."""
        if self._pool is None:
            raise store_unavailable(STORE)
        with self._translated():
            async with asyncio.timeout(UPKEEP_SECONDS):
                connection = await self._hosts.connect(self._url.reveal(), **self._options({}))
                try:
                    for statement in statements:
                        try:
                            await connection.execute(statement)
                        except asyncpg.InsufficientPrivilegeError:
                            log.warning("PostgreSQL does not let our user look after its tables: %s", statement)
                finally:
                    connection.terminate()

    async def _guarded(self, breaker: Breaker, work: Callable[[Any], Awaitable[T]], seconds: float | None = None) -> T:
        """Do work on a connection, unless the breaker is open."""
        breaker.check()
        start = self._clock.monotonic()
        try:
            found = await self._with_connection(work, seconds)
        except OpenManagerError as err:
            if (trouble := _trouble(err.__cause__)) is not None:
                breaker.failed(start, *trouble)
            raise
        breaker.answered(start)
        return found

    async def _with_connection(self, work: Callable[[Any], Awaitable[T]], seconds: float | None = None) -> T:
        """Do work on a connection, in the time the configuration gives it, or in less."""
        pool = self._pool
        if pool is None:
            raise store_unavailable(STORE)
        config = self._config
        with self._translated():
            if self._stale:
                # What was connected before a failover, a shutdown or a hang is not used again.
                self._stale = False
                await pool.expire_connections()
            seconds = seconds or config.statement_timeout.total_seconds()
            connection = await self._acquire(pool, seconds)
            try:
                async with asyncio.timeout(seconds):
                    return await work(connection)
            except TimeoutError:
                connection.terminate()  # its answer may still come: nobody else must read it
                raise
            finally:
                await self._release(pool, connection)

    async def _release(self, pool: asyncpg.Pool, connection: Any) -> None:
        """Give a connection back, also when the caller gives up meanwhile."""
        task = asyncio.create_task(_given_back(pool, connection))
        self._releases.add(task)  # the loop alone would not keep it
        task.add_done_callback(self._releases.discard)
        await asyncio.shield(task)

    async def _acquire(self, pool: asyncpg.Pool, most: float) -> Any:
        config = self._config
        seconds = config.acquire_timeout.total_seconds()
        busy = pool.get_size() >= config.connections and not pool.get_idle_size()
        try:
            async with asyncio.timeout(
                min(most, seconds if busy else seconds + config.connect_timeout.total_seconds())
            ):
                return await pool.acquire()
        except TimeoutError as err:
            if busy:
                raise _BusyError from err  # which is no reason to let go of them
            raise

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn whatever asyncpg raises into errors of ours."""
        try:
            yield
        except (asyncpg.DataError, asyncpg.UntranslatableCharacterError) as err:
            raise InvalidArgumentError("the request holds a value that PostgreSQL cannot store") from err
        except _LOST as err:
            log.warning("PostgreSQL is another, or not as it was (%s): what it lacks is given back", type(err).__name__)
            what = "failed over or came back old" if isinstance(err, StrangerError) else "came back empty"
            self._state, self._reason = status_pb2.STORAGE_STATE_EMPTY, what
            self._lost.set()
            raise store_unavailable(STORE) from err
        except _AWAY as err:
            if isinstance(err, ValueError):  # asyncpg could not encode an argument
                raise InvalidArgumentError("the request holds a value that PostgreSQL cannot store") from err
            self._stale = True
            if isinstance(err, asyncpg.InvalidAuthorizationSpecificationError):
                self._found(err)
                self._lost.set()
            raise store_unavailable(STORE) from err
        except _BusyError as err:
            raise store_unavailable(STORE) from err
        except asyncpg.PostgresError as err:
            # Busy (a lock, its own statement timeout, no slot) or in a state we do not know: the next call may fare better.
            self._stale |= isinstance(err, asyncpg.ReadOnlySQLTransactionError)
            log.warning("PostgreSQL refused a statement: %s %s", type(err).__name__, getattr(err, "sqlstate", ""))
            raise store_unavailable(STORE) from err

    async def look(self) -> Finding:
        """Ask for the version, the size, and whether writes are taken and the tables are still of this version."""
        if self._pool is None or self._lost.is_set():
            return Finding(state=self._state, reason=self._reason)
        try:
            (row,) = await self._with_connection(_about)
            if self.writes.is_open:
                await self._try_to_write()
        except SchemaError as err:
            # Another metadata service is of a newer version: what this one writes does not belong in its tables.
            self._found(err)
            self._lost.set()
            return Finding(state=self._state, reason=self._reason)
        except OpenManagerError as err:
            state, reason = _trouble(err.__cause__) or (status_pb2.STORAGE_STATE_DOWN, "cannot be reached")
            if state == status_pb2.STORAGE_STATE_HUNG:
                raise TimeoutError from err
            return Finding(state=state, reason=reason)
        self._stale |= row["readonly"]  # a connection made anew may lead to the server that takes writes by now
        return Finding(
            state=status_pb2.STORAGE_STATE_READONLY if row["readonly"] else status_pb2.STORAGE_STATE_OK,
            reason="takes no writes" if row["readonly"] else "",
            version=row["version"].split()[0],
            size_bytes=row["size"],
            item_count=row["servers"],
            warnings=self._memory.warnings if self._memory is not None else (),
        )

    async def _try_to_write(self) -> None:
        """Write what is there already: whether the disk is full shows in no other way."""
        try:
            await self._with_connection(lambda connection: connection.execute(_WRITE))
        except UnavailableError as err:
            if _trouble(err.__cause__) is not None:  # our user may be kept from that table
                raise


_WRITE = "UPDATE schema_migrations SET name = name WHERE number = 1"
_ABOUT = """
SELECT current_setting('server_version') AS version, pg_database_size(current_database()) AS size,
    current_setting('transaction_read_only') = 'on' AS readonly,
    (SELECT count(*) FROM servers WHERE deleted_at IS NULL) AS servers
"""


async def _about(connection: Any) -> list[Any]:
    await is_current(connection)
    found: list[Any] = await connection.fetch(_ABOUT)
    return found


async def _given_back(pool: asyncpg.Pool, connection: Any) -> None:
    """Give a connection back; one that does not let go in time is cut.

    Nothing may cancel the pool while it does so: it goes on by itself, and nobody takes note of an error then.
    """
    try:
        await pool.release(connection, timeout=RELEASE_SECONDS)
    except _AWAY:
        with contextlib.suppress(asyncpg.InterfaceError):
            connection.terminate()


def _trouble(err: BaseException | None) -> tuple[StorageState.ValueType, str] | None:
    """Return the state that an error tells of and why in words, None when it says nothing about the database."""
    return next(((state, reason) for kind, state, reason in _TROUBLES if isinstance(err, kind)), None)


def _why(err: Exception) -> tuple[StorageState.ValueType, str]:
    """Return the state that a failed connect or migration means, and why in words."""
    if isinstance(err, SchemaError):
        return status_pb2.STORAGE_STATE_READONLY, str(err)
    for kind, reason in _REFUSALS.items():
        if isinstance(err, kind):
            return status_pb2.STORAGE_STATE_DOWN, reason
    return _trouble(err) or (status_pb2.STORAGE_STATE_DOWN, f"cannot be prepared: {type(err).__name__}")


def open_database(config: MetadataConfig, memory: Memory, clock: Clock) -> PostgresqlDatabase:
    """Return the database of the configuration; nothing is connected yet."""
    if not config.database_url.reveal():
        raise ConfigurationError("metadata.database_url is not set: DATABASE_URL must name a PostgreSQL")
    if not config.database_url.reveal().startswith(("postgres://", "postgresql://")):
        raise ConfigurationError("DATABASE_URL is not a URL of the form postgresql://…")
    return PostgresqlDatabase(config, memory, clock)
