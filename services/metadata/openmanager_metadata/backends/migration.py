"""The tables of this version, made in order, and what says which of them a database has."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Any

import asyncpg

from openmanager_metadata.backends import MIGRATION_LOCK


class SchemaError(Exception):
    """The database was migrated by a newer version, or its history is not ours."""


def migrations() -> list[tuple[int, str, str]]:
    """Return the migrations in order: number, name, SQL."""
    folder = resources.files("openmanager_metadata").joinpath("migrations")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [(int(file.name[:4]), file.name, file.read_text(encoding="utf-8")) for file in files]


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
        applied = {
            row["number"]: row["checksum"]
            for row in await connection.fetch("SELECT number, checksum FROM schema_migrations")
        }
        known = migrations()
        if max((*applied, through or 0)) > known[-1][0]:
            raise SchemaError("has the schema of a newer version")
        for number, name, sql in known:
            if through is not None and number > through:
                break
            checksum = hashlib.sha256(sql.encode()).hexdigest()
            if applied.get(number, checksum) != checksum:
                raise SchemaError(f"has another migration {number} than this version")
            if number not in applied:
                await connection.execute(sql)
                await connection.execute(
                    "INSERT INTO schema_migrations (number, name, checksum) VALUES ($1, $2, $3)", number, name, checksum
                )


async def is_current(connection: Any) -> bool:
    """Say whether a database has every migration of this version, as far as a role with few rights can see."""
    try:
        rows = await connection.fetch("SELECT number, checksum FROM schema_migrations")
    except (asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError):
        return False
    applied = {row["number"]: row["checksum"] for row in rows}
    return all(applied.get(number) == hashlib.sha256(sql.encode()).hexdigest() for number, _, sql in migrations())
