"""The way of the tables forward, back to an earlier version's, and forward again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from click.testing import CliRunner
from conftest import wait_until
from openmanager_metadata.backends.migration import SchemaError, go_back, is_current, migrate, migrations, version
from openmanager_metadata.backends.tables import TABLES
from test_database import answers, connected, session, url
from test_privileges import app

from openmanager.api.status.v1 import status_pb2
from openmanager.cli.schema import schema
from openmanager.errors import ConfigurationError, FailedPreconditionError

__all__ = ["app", "url"]

HASH = r"'\x" + 32 * "ab" + "'"
# A row or more for every table.
ROWS = (
    "INSERT INTO servers (id, hostname, labels) VALUES ('a', 'ä', '{\"x\": 1}'), ('b', '', '{}')",
    "INSERT INTO policies (kind, id, document) VALUES ('thresholds', 'default', '{}')",
    "INSERT INTO requests (request_id, body_hash) VALUES ('r', '\\x01')",
    (
        "INSERT INTO ai_interactions (session_id, query, response, confidence, user_rating, subject, labels)"
        " VALUES ('s', 'why', 'the disk is full', 0.1, 5, 'ada', '{\"x\": 1}'), ('s', 'who', NULL, 'NaN', NULL, '', '{}')"
    ),
    "INSERT INTO interaction_requests SELECT 'r', '\\x01', id FROM ai_interactions LIMIT 1",
    "INSERT INTO interaction_erasures DEFAULT VALUES",
    "INSERT INTO users (name) VALUES ('ada')",
    "INSERT INTO sessions (user_id, refresh_hash, ends) SELECT id, '\\x00ff', now() FROM users",
    (
        "INSERT INTO api_keys (id, description, grants, secret_hash, ends, creator)"
        " VALUES ('k', '', '[]', '\\x01', now(), 'ada')"
    ),
    f"INSERT INTO audit_entries VALUES (1, '\\x01', {HASH}, 1, 3, 'ada', '', 'a.b', 'o', 0, '', '', '', 0)",
    f"INSERT INTO audit_tiles VALUES (0, {HASH})",
    f"INSERT INTO audit_checkpoints VALUES (1, {HASH}, 1, {HASH}, '\\x01', '\\x01')",
    f"INSERT INTO audit_subject_keys VALUES ({HASH[:35]}', 'ada', {HASH})",
    "INSERT INTO audit_holds VALUES ('h', NULL, 0, 1, 'law')",
)
SHAPE = (
    (
        "SELECT attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull, attstorage, attgenerated,"
        " pg_get_expr(adbin, adrelid) FROM pg_attribute JOIN pg_class c ON attrelid = c.oid"
        " LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)"
        " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0 AND NOT attisdropped"
    ),
    "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace",
    "SELECT pg_get_functiondef(oid), proacl::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
)


async def shape(connection: asyncpg.Connection) -> list[list[str]]:
    """Return what a schema is: columns, indexes, constraints, functions, in whatever order they were made."""
    return [sorted(str(tuple(row)) for row in await connection.fetch(each)) for each in SHAPE]


async def rows(connection: asyncpg.Connection, columns: dict[str, list[str]]) -> dict[str, list[str]]:
    found = {}
    for table, names in columns.items():
        rows = await connection.fetch(
            f"SELECT row_to_json(t)::text AS text FROM (SELECT {', '.join(names)} FROM {table}) t"
        )
        found[table] = sorted(row["text"] for row in rows)
    return found


async def columns(connection: asyncpg.Connection) -> dict[str, list[str]]:
    found = await connection.fetch(
        "SELECT table_name, array_agg(column_name::text) AS names FROM information_schema.columns"
        " WHERE table_schema = 'public' AND table_name <> 'schema_migrations' GROUP BY 1"
    )
    return {row["table_name"]: sorted(row["names"]) for row in found}


async def fill(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        for statement in ROWS:
            await connection.execute(statement)
    counts = {table: await connection.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES}
    assert [table for table, count in counts.items() if count == 0] == []


async def test_every_migration_is_undone_and_made_again_without_a_loss_of_what_the_earlier_version_knew(url: str):
    numbers = [number for number, _, _ in migrations()]
    shapes, known = {}, {}
    async with session(url) as people:
        for number in numbers:
            await migrate(people, through=number)
            shapes[number], known[number] = await shape(people), await columns(people)
        await fill(people)
        for number in reversed(numbers[:-1]):
            before = await rows(people, known[number])
            await go_back(people, number, discard=True)
            assert await version(people) == number
            assert await shape(people) == shapes[number]
            assert await rows(people, known[number]) == before
        kept = await rows(people, known[1])
        assert len(kept["servers"]) == len(kept["ai_interactions"]) == 2
        await migrate(people)
        assert await shape(people) == shapes[numbers[-1]]
        assert await rows(people, known[1]) == kept
        found = "SELECT query FROM ai_interactions WHERE words @@ plainto_tsquery('english', 'disks')"
        assert await people.fetchval(found) == "why"


async def test_what_would_go_is_said_and_stays_until_it_is_to_be_discarded(url: str):
    async with session(url) as people:
        await migrate(people)
        await fill(people)
        before = await rows(people, await columns(people))
        said = await go_back(people, 1, discard=False)
        assert await rows(people, await columns(people)) == before
        assert await version(people) == migrations()[-1][0]
        assert "users: 1 rows" in said
        assert any(line.startswith("ai_interactions: 2 rows, their subject, trace_id") for line in said)
        assert not any(line.startswith(("servers", "policies", "requests")) for line in said)


async def test_a_newer_schema_is_left_alone_and_named(url: str, app: str):
    async with session(url) as people:
        await migrate(people)
        await people.execute("INSERT INTO schema_migrations VALUES (99, '0099_x.sql', 'x')")
        await people.execute("GRANT SELECT ON schema_migrations TO " + (urlsplit(app).username or ""))
        before = await shape(people)
        why = f"newer version: migration 99, this version knows {migrations()[-1][0]}"
        for attempt in (migrate, is_current, version, lambda each: go_back(each, 1, discard=True)):
            with pytest.raises(SchemaError, match=why):
                await attempt(people)
        async with session(app) as role:
            with pytest.raises(SchemaError, match=why):
                await is_current(role)
        async with connected(url) as database:

            async def is_refused() -> bool:
                finding = await database.look()
                return finding.state == status_pb2.STORAGE_STATE_READONLY and why in finding.reason

            await wait_until(is_refused)
        assert await shape(people) == before


async def test_tables_that_become_newer_meanwhile_are_written_to_no_more(url: str):
    async with connected(url) as database, session(url) as people:
        await wait_until(lambda: answers(database))
        await people.execute("INSERT INTO schema_migrations VALUES (99, '0099_x.sql', 'x')")
        finding = await database.look()
        assert (finding.state, "migration 99" in finding.reason) == (status_pb2.STORAGE_STATE_READONLY, True)

        async def is_refused() -> bool:
            return not await answers(database)

        await wait_until(is_refused)
        await people.execute("DELETE FROM schema_migrations WHERE number = 99")
        await wait_until(lambda: answers(database), 20)


async def test_nothing_is_undone_while_the_service_is_connected(url: str):
    async with connected(url) as database, session(url) as people:
        await wait_until(lambda: answers(database))
        with pytest.raises(FailedPreconditionError, match="end it first"):
            await go_back(people, 1, discard=True)


def test_the_command_shows_what_would_go_and_then_lets_it_go(url: str, app: str, monkeypatch: pytest.MonkeyPatch):
    def run(*arguments: str) -> str:
        done = CliRunner().invoke(schema, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    async def execute(statement: str) -> None:
        async with session(url) as people:
            await migrate(people)
            await people.execute(statement)

    newest = migrations()[-1][0]
    monkeypatch.setenv("DATABASE_URL", url)
    assert run() == f"the database has migration 0, this version knows {newest}\n"
    asyncio.run(execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO " + (urlsplit(app).username or "")))
    assert run("--back-to", "1").startswith(
        "nothing is changed. With --discard, these would be deleted:\nai_interactions:"
    )
    assert run() == f"the database has migration {newest}, this version knows {newest}\n"
    monkeypatch.setenv("DATABASE_URL", app)
    with pytest.raises(FailedPreconditionError, match="set DATABASE_MIGRATION_URL"):
        run("--back-to", "1", "--discard")
    monkeypatch.setenv("DATABASE_MIGRATION_URL", url)
    asyncio.run(execute("CREATE VIEW ours AS SELECT subject FROM ai_interactions"))
    with pytest.raises(FailedPreconditionError, match="something of others, such as a view"):
        run("--back-to", "1", "--discard")
    asyncio.run(execute("DROP VIEW ours"))
    assert run("--back-to", "1", "--discard").startswith("the database has migration 1 now, and no longer:\n")
    assert run("--back-to", "1") == "the database has migration 1: there is nothing to undo\n"


async def test_the_role_of_the_service_may_neither_make_tables_nor_undo_them(url: str, app: str):
    async with session(url) as people:
        await migrate(people)
        await people.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO " + (urlsplit(app).username or ""))
    async with session(app) as role:
        for attempt in (migrate, lambda each: go_back(each, 1, discard=True)):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await attempt(role)
        assert await version(role) == migrations()[-1][0]


def test_a_folder_that_is_no_data_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(ConfigurationError, match="no data directory"):
        CliRunner().invoke(schema, ["--data-dir", str(tmp_path / "x")], catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []
