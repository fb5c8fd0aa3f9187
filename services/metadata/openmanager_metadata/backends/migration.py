"""The tables of this version, made in order, undone in the opposite one, and what says which of them a database has."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

import asyncpg

from openmanager.errors import FailedPreconditionError
from openmanager_metadata.backends import APPLICATION, MIGRATION_LOCK

# Beside each migration but the first, `NNNN_name.sql`: what undoes it.
_DOWN = ".down.sql"
_COLUMNS = """
SELECT relname AS table, array_agg(attname::text ORDER BY attnum) AS columns FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
GROUP BY relname ORDER BY relname
"""
_SERVING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1"


class SchemaError(Exception):
    """The database was migrated by a newer version, or its history is not ours."""


def migrations() -> list[tuple[int, str, str]]:
    """Return the migrations in order: number, name, SQL."""
    folder = resources.files("openmanager_metadata").joinpath("migrations")
    names = sorted(
        file.name for file in folder.iterdir() if file.name.endswith(".sql") and not file.name.endswith(_DOWN)
    )
    return [(int(name[:4]), name, folder.joinpath(name).read_text(encoding="utf-8")) for name in names]


def undoing(name: str) -> str:
    """Return the SQL that undoes a migration."""
    folder = resources.files("openmanager_metadata").joinpath("migrations")
    return folder.joinpath(name.removesuffix(".sql") + _DOWN).read_text(encoding="utf-8")


async def migrate(connection: Any, *, through: int | None = None) -> None:
    """Bring a database to this version's schema, in one transaction that excludes every other migration.

    With `through` to that of an earlier version, whose last migration it was. SchemaError when it is of a newer version, or when a migration that was applied is not the one we know.
    """
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations (number integer PRIMARY KEY, name text NOT NULL,"
            " checksum text NOT NULL, applied_at timestamp NOT NULL DEFAULT now())"
        )
        applied = await _applied(connection)
        _check(applied, through or 0)
        for number, name, sql in migrations():
            if through is not None and number > through:
                break
            if number not in applied:
                await connection.execute(sql)
                await connection.execute(
                    "INSERT INTO schema_migrations (number, name, checksum) VALUES ($1, $2, $3)",
                    number,
                    name,
                    _checksum(sql),
                )


async def is_current(connection: Any) -> bool:
    """Say whether a database has every migration of this version, as far as a role with few rights can see.

    SchemaError when it has others.
    """
    try:
        applied = await _applied(connection)
    except (asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError):
        return False
    _check(applied)
    return len(applied) == len(migrations())


async def version(connection: Any) -> int:
    """Return the last migration that a database has, 0 for none; SchemaError when it is not one of ours."""
    try:
        applied = await _applied(connection)
    except asyncpg.UndefinedTableError:
        return 0
    _check(applied)
    return max(applied, default=0)


async def go_back(connection: Any, number: int, *, discard: bool) -> list[str]:
    """Undo the migrations after `number`, as an earlier version needs it, and return what goes with them.

    Unless `discard`, nothing is changed. FailedPreconditionError while the service is connected, which would make the
    tables again; SchemaError when the database is of a newer version.
    """
    transaction = connection.transaction()
    await transaction.start()
    try:
        gone = await _undo(connection, number)
    except BaseException:
        await transaction.rollback()
        raise
    await (transaction.commit() if discard else transaction.rollback())
    return gone


async def _undo(connection: Any, number: int) -> list[str]:
    await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
    if await connection.fetchval(_SERVING, APPLICATION):
        raise FailedPreconditionError("the metadata service is connected to this database: end it first")
    applied = await _applied(connection)
    _check(applied)
    before = await _columns(connection)
    rows = {table: await connection.fetchval(f"SELECT count(*) FROM {table}") for table in before}  # noqa: S608
    for each, name, _ in reversed(migrations()):
        if each > number and each in applied:
            await connection.execute(undoing(name))
            await connection.execute("DELETE FROM schema_migrations WHERE number = $1", each)
    after = await _columns(connection)
    return [
        f"{table}: {rows[table]} rows" + (f", their {', '.join(gone)}" if table in after else "")
        for table, columns in before.items()
        if (gone := [each for each in columns if each not in after.get(table, ())])
    ]


async def _columns(connection: Any) -> dict[str, list[str]]:
    return {row["table"]: row["columns"] for row in await connection.fetch(_COLUMNS)}


async def _applied(connection: Any) -> dict[int, str]:
    rows = await connection.fetch("SELECT number, checksum FROM schema_migrations")
    return {row["number"]: row["checksum"] for row in rows}


def _check(applied: Mapping[int, str], through: int = 0) -> None:
    """Raise SchemaError unless everything that was applied is what this version would have applied."""
    known = {number: _checksum(sql) for number, _, sql in migrations()}
    if (newest := max((*applied, through))) > max(known):
        raise SchemaError(f"has the schema of a newer version: migration {newest}, this version knows {max(known)}")
    if other := [number for number in sorted(applied) if applied[number] != known[number]]:
        raise SchemaError(f"has another migration {other[0]} than this version")


def _checksum(sql: str) -> str:
    return hashlib.sha256(sql.encode()).hexdigest()
