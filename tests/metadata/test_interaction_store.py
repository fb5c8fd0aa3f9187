"""What the database of interactions holds: before us, after an erasure, while it is away."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from conftest import Mesh, secret
from openmanager_metadata.backends.postgresql import PostgresqlDatabase, migrate
from openmanager_metadata.config import MetadataConfig
from openmanager_metadata.interaction import Interaction, Interactions
from openmanager_metadata.interaction_search import ListQuery, Search
from openmanager_metadata.interaction_upkeep import Upkeep

from openmanager.config import Secret
from openmanager.errors import Reason, UnavailableError

# As the table was first drawn up, with what an earlier program wrote into it.
FIRST_TABLE = """
CREATE TABLE ai_interactions (id uuid, session_id varchar(255), query text, response text, confidence float,
    user_rating integer, created_at timestamp);
INSERT INTO ai_interactions (query, confidence, user_rating) VALUES ('an old question', 'NaN', 5), (NULL, NULL, NULL);
"""
WORDS = "SELECT count(*) FROM pg_stats WHERE tablename = 'ai_interactions' AND most_common_vals::text LIKE '%zebra%'"


@pytest.fixture
async def people(mesh: Mesh) -> AsyncIterator[asyncpg.Connection]:
    """A connection to an empty database of its own."""
    whole = secret(mesh, "metadata", "DATABASE_URL")
    name = f"t_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(whole)
    await admin.execute(f"CREATE DATABASE {name}")
    inside = await asyncpg.connect(urlunsplit(urlsplit(whole)._replace(path=f"/{name}")))
    try:
        yield inside
    finally:
        await inside.close()
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


@contextlib.asynccontextmanager
async def opened(mesh: Mesh, people: asyncpg.Connection) -> AsyncIterator[PostgresqlDatabase]:
    name = await people.fetchval("SELECT current_database()")
    whole = urlsplit(secret(mesh, "metadata", "DATABASE_URL"))
    url = Secret(urlunsplit(whole._replace(path=f"/{name}")))
    database = PostgresqlDatabase(MetadataConfig(database_url=url))
    async with database.connecting():
        yield database


async def test_a_table_as_it_was_first_drawn_up_keeps_what_is_in_it(mesh: Mesh, people: asyncpg.Connection):
    await people.execute(FIRST_TABLE)
    async with opened(mesh, people) as database:
        search = Search(database)
        (found,) = (await search.list(ListQuery(search="questions"))).interactions
        assert (found.query, found.confidence, found.rating) == ("an old question", None, 5)
        assert (await search.get(found.id)).create_time is not None
        assert (await search.list(ListQuery())).total_count == 2
        await Interactions(database).rate(found.id, 1, "")


async def test_migrations_of_other_numbers_may_come_before_or_after(people: asyncpg.Connection):
    await migrate(people)
    await people.execute("DELETE FROM schema_migrations WHERE number = 2; DROP TABLE epoch")
    await migrate(people)
    numbers = [row["number"] for row in await people.fetch("SELECT number FROM schema_migrations ORDER BY number")]
    assert {1, 2, 5} <= set(numbers)


async def test_nothing_of_what_was_erased_stays_in_index_statistics_or_requests(mesh: Mesh, people: asyncpg.Connection):
    async with opened(mesh, people) as database:
        interactions, upkeep = Interactions(database), Upkeep(database)
        for at in range(30):
            await interactions.create(Interaction(query="zebra", subject=f"zebra{at % 2}"), f"r{at}")
        await people.execute("VACUUM ANALYZE ai_interactions")
        assert await people.fetchval(WORDS) > 0
        assert await upkeep.clean() is False
        for subject in ("zebra0", "zebra1"):
            assert await interactions.erase(subject=subject) == 15
        assert await people.fetchval("SELECT count(*) FROM interaction_requests") == 0
        before = await people.fetchval("SELECT relfilenode FROM pg_class WHERE relname = 'ai_interactions_words'")
        assert await upkeep.clean() is True
        assert await upkeep.clean() is False
        after = await people.fetchval("SELECT relfilenode FROM pg_class WHERE relname = 'ai_interactions_words'")
        assert after != before
        assert await people.fetchval("SELECT pg_relation_size('ai_interactions')") == 0


async def test_without_a_database_everything_is_unavailable_at_once():
    database = PostgresqlDatabase(MetadataConfig(database_url=Secret("postgresql://nobody@127.0.0.1:1/none")))
    async with database.connecting():
        for work in (
            Interactions(database).create(Interaction(query="q"), ""),
            Interactions(database).erase(session_id="s"),
            Search(database).list(ListQuery(search="x")),
            Search(database).similar("x", "", 0, full=False),
            Upkeep(database).clean(),
        ):
            with pytest.raises(UnavailableError) as failure:
                await work
            assert failure.value.reason == Reason.STORE_UNAVAILABLE
