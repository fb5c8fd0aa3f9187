"""The database of the metadata service: what it was before us, what it loses, what it cannot hold."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from conftest import Mesh, secret, wait_until
from openmanager_metadata.backends.postgresql import PostgresqlDatabase
from openmanager_metadata.config import MetadataConfig
from openmanager_metadata.inventory import Inventory, ListQuery, Server, Snapshot

from openmanager.api.status.v1 import status_pb2
from openmanager.config import Secret
from openmanager.errors import (
    AbortedError,
    AlreadyExistsError,
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from openmanager.frame import MAX_LABELS, ServerInfo

# As the tables were first drawn up.
FIRST_TABLE = (
    "CREATE TABLE servers (id varchar(255) PRIMARY KEY, hostname varchar(255) NOT NULL, environment varchar(50),"
    " role varchar(50), location varchar(100), created_at timestamp DEFAULT now(), updated_at timestamp DEFAULT now())"
)


@pytest.fixture
async def url(mesh: Mesh) -> AsyncIterator[str]:
    """An empty database of its own."""
    whole = secret(mesh, "metadata", "DATABASE_URL")
    name = f"t_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(whole)
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        yield urlunsplit(urlsplit(whole)._replace(path=f"/{name}"))
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[PostgresqlDatabase]:
    database = PostgresqlDatabase(MetadataConfig(database_url=Secret(url)))
    async with database.connecting():
        yield database


@pytest.fixture
async def database(url: str) -> AsyncIterator[PostgresqlDatabase]:
    async with connected(url) as made:
        await wait_until(lambda: answers(made))
        yield made


async def answers(database: PostgresqlDatabase) -> bool:
    try:
        return (await database.look()).state == status_pb2.STORAGE_STATE_OK
    except OSError:
        return False


@contextlib.asynccontextmanager
async def session(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def test_a_database_with_the_first_tables_keeps_what_is_in_them(url: str):
    async with session(url) as people:
        await people.execute(FIRST_TABLE)
        await people.execute("INSERT INTO servers (id, hostname) VALUES ('old', 'old.example')")
    async with connected(url) as database:
        await wait_until(lambda: answers(database))
        assert (await Inventory(database).get("old")).hostname == "old.example"


async def test_a_user_who_may_not_make_tables_is_named_as_the_reason_and_tried_again(url: str):
    async with session(url) as people, people.transaction():
        await people.execute("CREATE TABLE schema_migrations (number text)")
    async with connected(url) as database:

        async def is_refused() -> bool:
            return "cannot be prepared" in (await database.look()).reason

        await wait_until(is_refused)
        with pytest.raises(UnavailableError):
            await Inventory(database).get("x")
        async with session(url) as people:
            await people.execute("DROP TABLE schema_migrations")
        await wait_until(lambda: answers(database), 15)


async def test_tables_that_are_lost_are_made_again(url: str, database: PostgresqlDatabase):
    inventory = Inventory(database)
    await inventory.create(Server(id="a"), "")
    async with session(url) as people:
        await people.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    with pytest.raises(UnavailableError):
        await inventory.get("a")
    await wait_until(lambda: answers(database), 15)
    with pytest.raises(NotFoundError):
        await inventory.get("a")
    await inventory.create(Server(id="a"), "")


async def test_connections_that_were_cut_are_replaced(url: str, database: PostgresqlDatabase):
    inventory = Inventory(database)
    await inventory.create(Server(id="a"), "")
    async with session(url) as people:
        await people.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    await wait_until(lambda: answers(database))
    assert (await inventory.get("a")).id == "a"


async def test_a_lock_that_somebody_holds_makes_one_statement_fail_and_no_other(url: str, database: PostgresqlDatabase):
    inventory = Inventory(database)
    await inventory.create(Server(id="a"), "")
    async with session(url) as people, people.transaction():
        await people.execute("LOCK TABLE policies IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(UnavailableError):
            await database.fetch("SELECT * FROM policies")
        assert (await inventory.get("a")).id == "a"


async def test_what_it_cannot_hold_is_the_fault_of_the_request(database: PostgresqlDatabase):
    for value in ("a\0b", "x" * 300):
        with pytest.raises(InvalidArgumentError):
            await database.fetch("INSERT INTO servers (id, hostname) VALUES ('x', $1)", value)


async def test_creations_under_one_request_id_make_one_server(database: PostgresqlDatabase):
    inventory = Inventory(database)
    asked = Server(id="a", role="web", labels={"b": "1", "a": "2"})
    made = await asyncio.gather(*(inventory.create(asked, "r") for _ in range(8)))
    assert made == [made[0]] * 8
    # What happened to the server since changes nothing in the answer, nor does the order of its labels.
    await inventory.update(Server(id="a", role="db"), ["role"])
    assert await inventory.create(Server(id="a", role="web", labels={"a": "2", "b": "1"}, etag="v9"), "r") == made[0]
    with pytest.raises(AlreadyExistsError):
        await inventory.create(Server(id="a"), "s")
    with pytest.raises(AlreadyExistsError, match="already"):
        await inventory.create(Server(id="a"), "s")
    with pytest.raises(AlreadyExistsError, match="another body"):
        await inventory.create(Server(id="b"), "r")


async def test_requests_are_forgotten_after_a_day(database: PostgresqlDatabase):
    inventory = Inventory(database)
    await inventory.create(Server(id="a"), "r")
    await database.fetch("UPDATE requests SET created_at = now() - interval '25 hours'")
    await inventory.forget_requests()
    assert (await inventory.create(Server(id="b"), "r")).id == "b"


async def test_only_who_read_the_newest_deletes(database: PostgresqlDatabase):
    inventory = Inventory(database)
    old = await inventory.create(Server(id="a"), "")
    new = await inventory.update(Server(id="a", role="web"), ["role"])
    for purge in (False, True):
        with pytest.raises(AbortedError):
            await inventory.delete("a", old.etag, purge=purge)
    assert (await inventory.delete("a", new.etag, purge=True)).id == "a"


async def test_labels_told_by_frames_stay_few(database: PostgresqlDatabase):
    inventory = Inventory(database)
    for at in range(3):
        told = {f"label-{at}-{number}": "x" for number in range(MAX_LABELS - 10)}
        await inventory.register([ServerInfo(id="a", labels=told)], (await now(database)))
        found = (await inventory.get("a")).labels
        assert set(told) <= set(found)
        assert len(found) <= MAX_LABELS


async def now(database: PostgresqlDatabase):
    return (await database.fetch("SELECT now() AS now"))[0]["now"]


def query(**changes) -> ListQuery:
    return ListQuery(
        **{"page_size": 2, "page_token": "", "filter": "", "order_by": "", "show_deleted": False, **changes}
    )


async def test_a_page_of_large_servers_ends_early_and_goes_on(database: PostgresqlDatabase):
    inventory = Inventory(database)
    labels = {f"{number:063d}": "v" * 250 for number in range(MAX_LABELS)}
    infos = [ServerInfo(id=f"s{at:03d}", labels=labels) for at in range(120)]
    await inventory.register(infos, await now(database))
    snapshot = Snapshot()
    snapshot.take((await inventory.all(1000))[0], 0)

    async def from_snapshot(asked: ListQuery):
        return snapshot.list(asked)

    for read in (inventory.list, from_snapshot):
        found, token, pages = [], "", 0
        while True:
            page = await read(query(page_size=1000, page_token=token))
            found += [server.id for server in page.servers]
            token, pages = page.next_page_token, pages + 1
            if not token:
                break
        assert found == [info.id for info in infos]
        assert pages > 1


async def test_the_copy_answers_filters_and_pages_as_the_database_does(database: PostgresqlDatabase):
    inventory = Inventory(database)
    for at in range(7):
        await inventory.create(Server(id=f"s{at}", role=f"r{at % 3}", labels={"a": str(at % 2)}), "")
    snapshot = Snapshot()
    snapshot.take((await inventory.all(1000))[0], 0)
    middle = (await inventory.get("s3")).update_time
    assert middle is not None
    filters = (
        "",
        "role = r1",
        'labels.a != "1"',
        f'update_time > "{middle.isoformat()}"',
        f'update_time <= "{middle.isoformat()}" AND NOT role : 2',
        'update_time > "1970-01-01T00:00:00+02:00"',
    )
    for text in filters:
        for order_by in ("", "role desc", "update_time desc"):
            asked = query(filter=text, order_by=order_by, page_size=1000)
            stored, copied = await inventory.list(asked), snapshot.list(asked)
            assert [server.id for server in stored.servers] == [server.id for server in copied.servers], text
            assert stored.total_count == copied.total_count
    # A token goes on behind a server that is gone.
    token = (await inventory.list(query())).next_page_token
    snapshot.drop("s1")
    assert [server.id for server in snapshot.list(query(page_token=token)).servers] == ["s2", "s3"]


def test_a_server_that_is_not_in_the_copy_may_exist_all_the_same():
    snapshot = Snapshot()
    with pytest.raises(UnavailableError):
        snapshot.get("a")
    snapshot.take([], 0)
    with pytest.raises(UnavailableError):
        snapshot.get("a")
    snapshot.put(Server(id="a"))
    assert snapshot.get("a").id == "a"


@pytest.mark.parametrize("column", ["labels", "thresholds"])
@pytest.mark.parametrize("document", ["[1]", "7", '{"a": {"b": 1}}', '{"cpu_warning": "x"}', "null"])
async def test_a_row_that_nobody_can_read_fails_alone(database: PostgresqlDatabase, column: str, document: str):
    inventory = Inventory(database)
    for at in range(5):
        await inventory.create(Server(id=f"s{at}"), "")
    sound = column == "labels" and document == '{"cpu_warning": "x"}'
    await database.fetch(f"UPDATE servers SET {column} = $1 WHERE id = 's1'", document)
    if not sound:
        with pytest.raises(DataLossError):
            await inventory.get("s1")
    found, token = [], ""
    while True:
        page = await inventory.list(query(page_token=token))
        found += [server.id for server in page.servers]
        if not (token := page.next_page_token):
            break
    rest = ["s0", "s2", "s3", "s4"]
    assert [name for name in found if name != "s1"] == rest
    assert ("s1" in found) is sound
    servers, whole = await inventory.all(100)
    assert ([server.id for server in servers if server.id != "s1"], whole) == (rest, sound)
    assert [server.id for server in (await inventory.batch_get(["s1", "s2"]))[0]][-1] == "s2"
    # What frames tell of all of them is still taken in.
    await inventory.register([ServerInfo(id=f"s{at}", labels={"x": "y"}) for at in range(5)], await now(database))
    assert (await inventory.get("s2")).labels == {"x": "y"}
