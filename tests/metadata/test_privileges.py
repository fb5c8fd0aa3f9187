"""A role that may change rows and nothing else, and never what stands in the audit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from conftest import wait_until
from openmanager_metadata.audit.log import AuditLog
from openmanager_metadata.backends.postgresql import PostgresqlDatabase
from openmanager_metadata.config import MetadataConfig
from openmanager_metadata.inventory import Inventory, Server
from openmanager_metadata.memory import Memory
from openmanager_metadata.policy import Policies
from test_database import answers, session, url

from openmanager.audit import Record
from openmanager.config import Secret
from openmanager.runtime.clock import SystemClock

__all__ = ["url"]

PASSWORD = "p"  # of a role of this test alone


def as_role(url: str, role: str) -> str:
    """Return a URL as another role."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{role}:{PASSWORD}@{parts.netloc.rpartition('@')[2]}"))


@pytest.fixture
async def app(url: str) -> AsyncIterator[str]:
    """The URL of a role that owns nothing."""
    role = f"app_{urlsplit(url).path[3:]}"
    async with session(url) as owner:
        await owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
        yield as_role(url, role)
        await owner.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def opened(app: str, owner: str = "") -> tuple[PostgresqlDatabase, Memory]:
    memory = Memory(SystemClock(), 100)
    return PostgresqlDatabase(MetadataConfig(database_url=Secret(app), migration_url=Secret(owner)), memory), memory


async def test_the_service_does_all_it_does_as_a_role_that_owns_nothing(url: str, app: str):
    database, memory = opened(app, url)
    async with database.connecting():
        await wait_until(lambda: answers(database))
        await Inventory(database).create(Server(id="a"), "r1")
        await Policies(database).update("thresholds", "default", {"cpu_warning": 60}, "")
        await memory.copy(database)
        log = AuditLog(database, SystemClock())
        async with log.running():
            assert await log.intent(Record(actor="local", via="metadata", action="a.b")) == 1
        assert (await database.look()).reason == ""


async def test_the_owner_is_not_needed_while_the_tables_are_of_this_version(url: str, app: str):
    database, _ = opened(app, url)
    async with database.connecting():
        await wait_until(lambda: answers(database))
    database, _ = opened(app, url.replace("openmanager:", "nobody:", 1))
    async with database.connecting():
        await wait_until(lambda: answers(database))


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM audit_entries",
        "UPDATE audit_entries SET number = number",
        "TRUNCATE audit_entries",
        "DELETE FROM audit_checkpoints",
        "DELETE FROM audit_tiles",
        "DROP TABLE audit_entries",
        "ALTER TABLE audit_entries DISABLE TRIGGER ALL",
        "ALTER TABLE servers ADD COLUMN x int",
        "CREATE TABLE mine (x int)",
        "DELETE FROM schema_migrations",
    ],
)
async def test_the_role_changes_no_table_and_nothing_in_the_audit(url: str, app: str, statement: str):
    database, _ = opened(app, url)
    async with database.connecting():
        await wait_until(lambda: answers(database))
    async with session(app) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)


async def test_without_an_owner_a_role_with_few_rights_says_what_it_lacks(app: str):
    database, _ = opened(app)
    async with database.connecting():
        assert "does not let our user make its tables" in (await database.look()).reason
