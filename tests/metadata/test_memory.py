"""A database that comes back empty, or as it was some time ago, is given back what the service remembers of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from conftest import wait_until
from openmanager_metadata.backends.postgresql import PostgresqlDatabase
from openmanager_metadata.config import MetadataConfig
from openmanager_metadata.inventory import QUICK_SECONDS, Inventory, Server
from openmanager_metadata.memory import Memory
from openmanager_metadata.policy import Policies
from test_database import answers, session, url

from openmanager.api.status.v1 import status_pb2
from openmanager.config import Secret
from openmanager.errors import NotFoundError, UnavailableError
from openmanager.frame import ServerInfo
from openmanager.runtime.clock import SystemClock

__all__ = ["url"]


@dataclass(frozen=True)
class Kept:
    """A database, and what is remembered of it."""

    url: str
    database: PostgresqlDatabase
    memory: Memory

    @property
    def inventory(self) -> Inventory:
        return Inventory(self.database)

    async def run(self, *statements: str) -> None:
        async with session(self.url) as people:
            for statement in statements:
                await people.execute(statement)


@contextlib.asynccontextmanager
async def remembered(url: str, limit: int = 100) -> AsyncIterator[Kept]:
    memory = Memory(SystemClock(), limit)
    database = PostgresqlDatabase(MetadataConfig(database_url=Secret(url)), memory)
    async with database.connecting():
        await wait_until(lambda: answers(database))
        yield Kept(url, database, memory)


@pytest.fixture
async def kept(url: str) -> AsyncIterator[Kept]:
    async with remembered(url) as made:
        yield made


async def is_never_not_found(kept: Kept, server_id: str) -> bool:
    """Ask the database until it answers, which must never say that the server does not exist."""
    try:
        await kept.inventory.get(server_id)
    except UnavailableError:
        return False
    return True


RESTART = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


async def test_an_emptied_database_is_given_back_before_anybody_asks_it(kept: Kept):
    made = await kept.inventory.create(
        Server(id="a", role="web", labels={"x": "1"}, thresholds={"cpu_warning": 50.0}), ""
    )
    policy = await Policies(kept.database).update("thresholds", "default", {"cpu_warning": 70}, "")
    await kept.memory.copy(kept.database)
    await kept.run("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await wait_until(lambda: is_never_not_found(kept, "a"), 15)
    assert await kept.inventory.get("a") == made
    assert await Policies(kept.database).get("thresholds", "default") == policy
    found = await kept.database.look()
    assert found.state == status_pb2.STORAGE_STATE_OK
    assert found.warnings == ("came back empty or as another: 2 rows were written back from memory",)


async def test_what_a_person_set_is_still_theirs_after_it_was_given_back(kept: Kept):
    await kept.inventory.create(Server(id="a", role="web"), "")
    await kept.memory.copy(kept.database)
    await kept.run("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await wait_until(lambda: is_never_not_found(kept, "a"), 15)
    await kept.inventory.register([ServerInfo(id="a", role="told", location="hall")], datetime.now(UTC))
    found = await kept.inventory.get("a")
    assert (found.role, found.location) == ("web", "hall")


async def test_a_database_of_some_time_ago_becomes_as_it_was_remembered(kept: Kept):
    for name in ("changed", "deleted", "same"):
        await kept.inventory.create(Server(id=name), "")
    await kept.memory.copy(kept.database)
    await kept.run("CREATE TABLE old_servers AS TABLE servers", "CREATE TABLE old_epoch AS TABLE epoch")
    await kept.inventory.update(Server(id="changed", role="db"), ["role"])
    await kept.inventory.delete("deleted", "", purge=False)
    await kept.inventory.create(Server(id="new"), "")
    kept.memory.snapshot.drop("deleted")
    await kept.memory.copy(kept.database)
    await kept.run(
        "BEGIN; DELETE FROM servers; INSERT INTO servers TABLE old_servers; DELETE FROM epoch;"
        " INSERT INTO epoch TABLE old_epoch; COMMIT",
        RESTART,
    )

    async def is_given_back() -> bool:
        with contextlib.suppress(UnavailableError):
            await kept.inventory.get("changed")
        return bool(kept.memory.warnings)

    await wait_until(is_given_back, 15)
    await wait_until(lambda: is_never_not_found(kept, "new"), 15)
    assert (await kept.inventory.get("changed")).role == "db"
    assert (await kept.inventory.get("same")).etag == "v1"
    with pytest.raises(NotFoundError):
        await kept.inventory.get("deleted")
    assert kept.memory.warnings == ("came back old: 3 rows were written back from memory",)


async def test_a_copy_that_does_not_hold_all_servers_hides_none(url: str):
    async with remembered(url, limit=1) as kept:
        for name in ("a", "b"):
            await kept.inventory.create(Server(id=name), "")
        await kept.memory.copy(kept.database)
        await kept.run("UPDATE epoch SET id = gen_random_uuid()", RESTART)

        async def is_given_back() -> bool:
            with contextlib.suppress(UnavailableError):
                await kept.inventory.get("a")
            return bool(kept.memory.warnings)

        await wait_until(is_given_back, 15)
        await wait_until(lambda: is_never_not_found(kept, "b"), 15)


async def test_a_restart_of_the_same_database_gives_nothing_back(kept: Kept):
    await kept.inventory.create(Server(id="a"), "")
    await kept.memory.copy(kept.database)
    await kept.run(RESTART)
    await wait_until(lambda: is_never_not_found(kept, "a"), 15)
    assert kept.memory.warnings == ()


async def test_a_read_by_id_gives_up_soon_on_a_database_that_hangs(kept: Kept):
    await kept.inventory.create(Server(id="a"), "")
    async with session(kept.url) as people, people.transaction():
        await people.execute("LOCK TABLE servers IN ACCESS EXCLUSIVE MODE")
        start = time.monotonic()
        for read in (kept.inventory.get("a"), kept.inventory.batch_get(["a"])):
            with pytest.raises(UnavailableError):
                await read
        assert time.monotonic() - start < 2 * QUICK_SECONDS + 0.3
