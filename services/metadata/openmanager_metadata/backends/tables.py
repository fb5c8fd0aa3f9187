"""The rows of every table, written to files in one snapshot, and read into an empty database.

The tables themselves are made by the migrations, as far as the database had them: a copy goes to any version of
PostgreSQL that we run on, and needs no program of the version that it came from.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import asyncpg

from openmanager.errors import (
    ConfigurationError,
    DataLossError,
    FailedPreconditionError,
    UnavailableError,
    store_unavailable,
)
from openmanager_metadata.backends.migration import SchemaError, migrate

# In the order in which they are filled: what refers to another comes after it.
TABLES = (
    "epoch",
    "servers",
    "policies",
    "requests",
    "users",
    "api_keys",
    "sessions",
    "audit_log",
    "audit_entries",
    "audit_tiles",
    "audit_checkpoints",
    "audit_subject_keys",
    "audit_holds",
    "ai_interactions",
    "interaction_requests",
    "interaction_erasures",
)
SUFFIX = ".copy"
CONNECT_SECONDS = 5.0
# Without a byte for so long the database hangs.
STALL_SECONDS = 60.0
_CHUNK = 1 << 20

_MIGRATIONS = "SELECT number, checksum FROM schema_migrations ORDER BY number"
# What is generated is computed again.
_COLUMNS = """
SELECT quote_ident(a.attname) AS name, a.attcollation <> 0 AS is_text, a.attidentity <> '' AS is_identity,
    array_position(i.indkey::smallint[], a.attnum) AS in_key
FROM pg_attribute a LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum
"""
_NEXT = "SELECT setval(pg_get_serial_sequence('{table}', '{name}'), greatest(1, coalesce(max({name}), 0) + 1), false) FROM {table}"
_STRANGE = "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()"
T = TypeVar("T")


async def dump(url: str, folder: Path) -> dict[str, Any]:
    """Write the rows of all tables to files, as of one moment, and return what `load` wants to know of them.

    UnavailableError when the database is away, FailedPreconditionError when it is not ours.
    """
    await asyncio.to_thread(folder.mkdir, parents=True)
    async with _connected(url) as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        try:
            applied = {str(row["number"]): row["checksum"] for row in await connection.fetch(_MIGRATIONS)}
        except asyncpg.UndefinedTableError as err:
            raise FailedPreconditionError("the database has none of our tables") from err
        tables = {}
        for table in TABLES:
            if await connection.fetchval("SELECT to_regclass($1)", table) is not None:
                with (folder / f"{table}{SUFFIX}").open("wb") as file:
                    tables[table] = await _read(connection, table, file.write)
        return {"migrations": applied, "tables": tables}


async def load(url: str, folder: Path, about: Mapping[str, Any]) -> None:
    """Fill an empty database with what `dump` wrote, all of it or nothing, and compare what it has then.

    FailedPreconditionError when it is not empty, or older than the copy; DataLossError when it holds something else.
    """
    async with _connected(url) as connection:
        if await connection.fetchval(_STRANGE):
            raise FailedPreconditionError("the database has tables already: a backup is restored into an empty one")
        async with connection.transaction():
            await _migrate(connection, about["migrations"])
            await connection.execute("SET LOCAL synchronous_commit = on; SET CONSTRAINTS ALL DEFERRED")
            for table in TABLES:
                if table in about["tables"]:
                    await _write(connection, table, folder / f"{table}{SUFFIX}")
            for table, expected in about["tables"].items():
                found = await _read(connection, table, lambda _: None)
                if found != expected:
                    raise DataLossError(f"the table {table} is not what was backed up")


def check_files(folder: Path, about: Mapping[str, Any]) -> list[str]:
    """Return the tables whose files are not what `dump` wrote (blocking)."""
    return [table for table, expected in about["tables"].items() if _of_file(folder / f"{table}{SUFFIX}") != expected]


def _of_file(path: Path) -> dict[str, Any]:
    seen = _Seen()
    try:
        with path.open("rb") as file:
            while data := file.read(_CHUNK):
                seen.take(data)
    except FileNotFoundError:
        return {}
    return seen.about()


class _Seen:
    """Counts and sums up the rows that pass: a row is a line, for COPY escapes what would be one in a value."""

    def __init__(self) -> None:
        self._rows = 0
        self._hash = hashlib.sha256()

    def take(self, data: bytes) -> None:
        """Look at what follows."""
        self._rows += data.count(b"\n")
        self._hash.update(data)

    def about(self) -> dict[str, Any]:
        """Return what all was."""
        return {"row_count": self._rows, "sha256": self._hash.hexdigest()}


async def _migrate(connection: Any, applied: Mapping[str, str]) -> None:
    """Make the tables as they were."""
    try:
        await migrate(connection, through=max(map(int, applied)))
    except SchemaError as err:
        raise FailedPreconditionError(f"the backup {err}") from err
    made = {str(row["number"]): row["checksum"] for row in await connection.fetch(_MIGRATIONS)}
    if made != applied:
        raise FailedPreconditionError("the backup has the schema of another version than this program's")


async def _read(connection: Any, table: str, write: Callable[[bytes], object]) -> dict[str, Any]:
    """Hand over the rows of a table, in the order of its key, as text that is the same for the same rows."""
    columns = await connection.fetch(_COLUMNS, table)
    names = ", ".join(row["name"] for row in columns)
    keys = sorted((row for row in columns if row["in_key"] is not None), key=lambda row: row["in_key"])
    order = ", ".join(f"{row['name']}{' COLLATE ' + chr(34) + 'C' + chr(34) if row['is_text'] else ''}" for row in keys)
    seen = _Seen()

    async def take(data: bytes) -> None:
        seen.take(data)
        await asyncio.to_thread(write, data)
        limit.reschedule(asyncio.get_running_loop().time() + STALL_SECONDS)

    async with asyncio.timeout(STALL_SECONDS) as limit:
        await connection.copy_from_query(f"SELECT {names} FROM {table} ORDER BY {order}", output=take, timeout=None)  # noqa: S608
    return seen.about()


async def _write(connection: Any, table: str, path: Path) -> None:
    """Let a table have the rows of a file, and no others."""
    columns = await connection.fetch(_COLUMNS, table)
    await connection.execute(f"DELETE FROM {table}")  # noqa: S608  (a migration may have put one in)

    async def parts() -> AsyncIterator[bytes]:
        with path.open("rb") as file:
            while data := await asyncio.to_thread(file.read, _CHUNK):
                limit.reschedule(asyncio.get_running_loop().time() + STALL_SECONDS)
                yield data

    names = [row["name"].strip('"') for row in columns]
    async with asyncio.timeout(STALL_SECONDS) as limit:
        await connection.copy_to_table(table, source=parts(), columns=names, timeout=None)
    for row in columns:
        if row["is_identity"]:
            await connection.execute(_NEXT.format(table=table, name=row["name"]))


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Any]:
    """Yield a connection of our own; UnavailableError when there is none, or it is lost."""
    try:
        connection = await asyncpg.connect(
            url,
            timeout=CONNECT_SECONDS,
            server_settings={"application_name": "openmanager-backup", "timezone": "UTC", "statement_timeout": "0"},
        )
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as err:
        raise store_unavailable("PostgreSQL") from err
    except ValueError as err:  # asyncpg's own words repeat what may be the password
        raise ConfigurationError("the URL of the database cannot be read") from err
    try:
        yield connection
    except TimeoutError as err:
        raise store_unavailable("PostgreSQL") from err
    except (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError) as err:
        raise UnavailableError("the connection to PostgreSQL was lost") from err
    except asyncpg.InsufficientPrivilegeError as err:
        raise FailedPreconditionError("PostgreSQL does not let our user do this") from err
    finally:
        connection.terminate()
