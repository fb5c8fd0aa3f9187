"""The rows of all tables, copied in one snapshot and read into an empty database."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from openmanager_metadata.backends.migration import migrate
from openmanager_metadata.backends.tables import TABLES, check_files, dump, load
from test_database import url  # noqa: F401  (a fixture)

from openmanager.errors import DataLossError, FailedPreconditionError

ROWS = (
    "INSERT INTO servers (id, hostname, labels, set_by_people) VALUES ('b', E'a\\nline\\t\\\\', '{\"x\": \"ü\"}', '{role}')",
    "INSERT INTO servers (id, hostname) VALUES ('A', ''), ('a', 'x')",
    "INSERT INTO ai_interactions (query, response, confidence) VALUES ('why', 'disk full', 0.1), ('who', NULL, 'NaN')",
    "INSERT INTO interaction_erasures DEFAULT VALUES",
    "INSERT INTO users (name) VALUES ('ada')",
    "INSERT INTO sessions (user_id, refresh_hash, ends) SELECT id, '\\x00ff', now() FROM users",
    "UPDATE epoch SET beat = 7",
)


@pytest.fixture
async def filled(url: str) -> str:  # noqa: F811
    connection = await asyncpg.connect(url)
    await migrate(connection)
    for statement in ROWS:
        await connection.execute(statement)
    await connection.close()
    return url


@pytest.fixture
async def empty(url: str) -> AsyncIterator[str]:  # noqa: F811
    name = f"t_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(url)
    await admin.execute(f"CREATE DATABASE {name}")
    yield urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


async def fetched(url: str, statement: str) -> list[tuple]:  # noqa: F811
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()


async def test_every_table_that_the_migrations_make_is_copied(filled: str):
    made = {name for (name,) in await fetched(filled, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
    assert made == {*TABLES, "schema_migrations"}


async def test_what_is_loaded_is_what_was_there(filled: str, empty: str, tmp_path: Path):
    about = await dump(filled, tmp_path / "copy")
    assert about["tables"]["servers"]["row_count"] == 3
    assert check_files(tmp_path / "copy", about) == []
    await load(empty, tmp_path / "copy", about)
    for table in TABLES:
        statement = f"SELECT row_to_json(t)::text FROM {table} t ORDER BY 1"
        assert await fetched(empty, statement) == await fetched(filled, statement)
    # What is counted goes on, and what is generated is searched.
    assert await fetched(empty, "INSERT INTO interaction_erasures DEFAULT VALUES RETURNING id") == [(2,)]
    found = "SELECT query FROM ai_interactions WHERE words @@ plainto_tsquery('english', 'disks')"
    assert await fetched(empty, found) == [("why",)]


async def test_a_database_that_has_something_is_not_touched(filled: str, tmp_path: Path):
    about = await dump(filled, tmp_path / "copy")
    with pytest.raises(FailedPreconditionError, match="into an empty one"):
        await load(filled, tmp_path / "copy", about)


async def test_what_differs_is_refused_and_leaves_the_database_empty(filled: str, empty: str, tmp_path: Path):
    about = await dump(filled, tmp_path / "copy")
    file = tmp_path / "copy" / "servers.copy"
    file.write_bytes(file.read_bytes().replace(b"b\t", b"c\t", 1))
    assert check_files(tmp_path / "copy", about) == ["servers"]
    with pytest.raises(DataLossError, match="table servers"):
        await load(empty, tmp_path / "copy", about)
    assert await fetched(empty, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == []


async def test_a_copy_of_a_newer_version_is_refused(filled: str, empty: str, tmp_path: Path):
    about = await dump(filled, tmp_path / "copy")
    about["migrations"]["99"] = "x"
    with pytest.raises(FailedPreconditionError, match="newer version"):
        await load(empty, tmp_path / "copy", about)


async def test_a_database_that_is_not_ours_is_refused(empty: str, tmp_path: Path):
    with pytest.raises(FailedPreconditionError, match="none of our tables"):
        await dump(empty, tmp_path / "copy")
