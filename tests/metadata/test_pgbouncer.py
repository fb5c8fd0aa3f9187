"""The metadata service behind a PgBouncer in transaction mode: the next statement may run on another connection."""

from __future__ import annotations

import asyncio
import os
import pwd
import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from auditing import DAY, Kept, Wall, event, own_database, pem
from conftest import Mesh, free_ports, wait_until
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from openmanager_metadata.audit.log import AuditLog
from openmanager_metadata.audit.reader import AuditReader
from openmanager_metadata.backends.postgresql import STORE, PostgresqlDatabase
from openmanager_metadata.config import MetadataConfig
from openmanager_metadata.interaction import Interaction, Interactions
from openmanager_metadata.interaction_export import Export, ExportQuery
from openmanager_metadata.interaction_search import ListQuery, Search
from openmanager_metadata.interaction_upkeep import Upkeep
from openmanager_metadata.inventory import Inventory, Server
from openmanager_metadata.memory import Memory
from openmanager_metadata.policy import Policies
from test_database import answers, session

from openmanager.config import Secret
from openmanager.errors import AlreadyExistsError, UnavailableError
from openmanager.frame import ServerInfo
from openmanager.runtime import launch
from openmanager.runtime.breaker import Breaker
from openmanager.runtime.clock import SystemClock

BOUNCER = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")
pytestmark = pytest.mark.skipif(BOUNCER is None, reason="pgbouncer is not installed")

SETTINGS = """
[databases]
* = host={folder} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = transaction
default_pool_size = 3
logfile =
pidfile = {pid}
"""


@pytest.fixture
async def direct(mesh: Mesh) -> AsyncIterator[str]:
    """The URL of an empty database whose own time is not UTC."""
    async with own_database(mesh) as url:
        async with session(url) as owner:
            name = await owner.fetchval("SELECT current_database()")
            await owner.execute(f"ALTER DATABASE {name} SET timezone = 'America/New_York'")
        yield url


@pytest.fixture
def url(direct: str) -> Iterator[str]:
    """The same database through a PgBouncer with three connections."""
    whole, listen = urlsplit(direct), free_ports(1)
    asked = {name: values[0] for name, values in parse_qs(whole.query).items()}
    folder = Path(tempfile.mkdtemp(prefix="openmanager-pgbouncer-"))
    owner = Path(asked["host"]).stat().st_uid  # nobody else may open the socket
    users, settings = folder / "users.txt", folder / "pgbouncer.ini"
    users.write_text(f'"{whole.username}" "{unquote(whole.password or "")}"\n')
    settings.write_text(
        SETTINGS.format(folder=asked["host"], port=asked["port"], listen=listen, users=users, pid=folder / "pid")
    )
    for path in (folder, users, settings):
        os.chown(path, owner, -1)
    assert BOUNCER is not None
    user = pwd.getpwuid(owner).pw_name if os.geteuid() == 0 else None
    command = launch.argv([BOUNCER, "-q", str(settings)], user=user, death_signal=signal.SIGKILL)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        yield whole._replace(netloc=f"{whole.netloc.rpartition('@')[0]}@127.0.0.1:{listen}", query="").geturl()
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def opened(url: str, memory: Memory | None = None, **settings: object) -> PostgresqlDatabase:
    seconds = dict.fromkeys(("statement_timeout", "acquire_timeout", "connect_timeout"), timedelta(seconds=5))
    made = PostgresqlDatabase(
        MetadataConfig(database_url=Secret(url), statement_cache=0, **{**seconds, **settings}), memory
    )
    # Forty at once wait for three connections, and how long is the machine's affair.
    made.reads, made.writes = (
        Breaker(STORE, operation, SystemClock(), random.Random(1), slow_seconds=float("inf"))
        for operation in ("reads", "writes")
    )
    return made


@pytest.fixture
async def memory() -> Memory:
    return Memory(Wall(), 1000)


@pytest.fixture
async def database(url: str, memory: Memory) -> AsyncIterator[PostgresqlDatabase]:
    made = opened(url, memory)
    async with made.connecting():
        await wait_until(lambda: answers(made))
        yield made


async def test_the_inventory_is_as_without_it(database: PostgresqlDatabase, memory: Memory):
    inventory = Inventory(database)
    made = await asyncio.gather(*(inventory.create(Server(id=f"s{at % 10}"), f"r{at % 10}") for at in range(40)))
    assert len({server.id for server in made}) == 10
    with pytest.raises(AlreadyExistsError):
        await inventory.create(Server(id="s0"), "")
    told = [ServerInfo(id=f"s{at}", role="web") for at in range(20)]
    assert await inventory.register(told, datetime.now(UTC)) == (10, 0)
    await asyncio.gather(*(inventory.update(Server(id=f"s{at}", location="hall"), ["location"]) for at in range(20)))
    found = await asyncio.gather(*(inventory.get(f"s{at}") for at in range(20)))
    assert {(server.role, server.location) for server in found} == {("web", "hall")}
    await memory.copy(database)
    assert set(memory.snapshot.known()) == {f"s{at}" for at in range(20)}


async def test_times_are_utc_whatever_the_database_has(database: PostgresqlDatabase):
    inventory = Inventory(database)
    for _ in range(2):  # also on connections that were given back
        made = await asyncio.gather(*(inventory.create(Server(id=f"t{at}"), "") for at in range(8)))
        assert all(abs(datetime.now(UTC) - server.create_time) < timedelta(minutes=1) for server in made)
        await asyncio.gather(*(inventory.delete(server.id, "", purge=True) for server in made))


async def test_the_audit_log_is_as_without_it(database: PostgresqlDatabase, tmp_path: Path):
    clock, key = Wall(), Ed25519PrivateKey.generate()
    clock.nanos -= 10 * DAY
    audit = AuditLog(database, clock)
    async with audit.running():
        kept = Kept(database, clock, audit, AuditReader(database, clock), tmp_path)
        await asyncio.gather(*(audit.intent(event(source="10.0.0.1")) for _ in range(300)))
        await kept.fill(1800)
        await kept.checkpoints(pem(key)).make()
        clock.nanos += 10 * DAY
        await Policies(database).update("audit", "default", {"retention_days": 5}, "")
        assert await kept.pruning.prune() == 2048
        await kept.checkpoints(pem(key)).make()
        assert (await kept.verdict(key)).problems == []


async def test_interactions_are_as_without_it(database: PostgresqlDatabase):
    interactions, search = Interactions(database), Search(database)
    asked = [Interaction(query=f"Why is zebra-{at} slow?", subject="users/ada", model="m") for at in range(30)]
    made = await asyncio.gather(*(interactions.create(each, f"i{at % 15}") for at, each in enumerate(asked[:15])))
    await interactions.rate(made[0].id, 5, "It was.")
    assert (await search.list(ListQuery(search="slow", filter="rating = 5"))).interactions[0].id == made[0].id
    assert (await search.similar("zebra-3", "", 5, full=False))[0][0].query == "Why is zebra-3 slow?"
    export = Export(database, ExportQuery(filter="", form="jsonl", redactions=(), resume_token=""))
    await export.begin()
    assert sum(chunk.count for chunk in [each async for each in export.chunks()]) == 15
    assert await interactions.erase(subject="users/ada") == 15
    assert await Upkeep(database).clean()


async def test_a_transaction_has_its_limits_and_leaves_none_behind(url: str, direct: str):
    database = opened(url, statement_timeout=timedelta(milliseconds=700))
    limits = "SELECT current_setting('statement_timeout') AS a, current_setting('lock_timeout') AS b"
    async with database.connecting():
        await wait_until(lambda: answers(database))
        (inside,) = await database.transaction(lambda statements: statements.fetch(limits))
        assert tuple(inside) == ("700ms", "350ms")
        (single,) = await database.fetch(limits)
        assert tuple(single) == ("700ms", "350ms")
    async with session(url) as anybody:
        assert tuple(await anybody.fetchrow(limits)) == ("0", "0")


async def test_another_database_behind_it_is_known_by_the_next_copy(
    direct: str, database: PostgresqlDatabase, memory: Memory
):
    inventory = Inventory(database)
    await inventory.create(Server(id="a"), "")
    await memory.copy(database)
    async with session(direct) as people:
        await people.execute("DELETE FROM servers; UPDATE epoch SET id = gen_random_uuid()")
    with pytest.raises(UnavailableError):
        await memory.copy(database)

    async def is_back() -> bool:
        return bool(memory.warnings) and await answers(database)

    await wait_until(is_back)
    assert (await inventory.get("a")).id == "a"
