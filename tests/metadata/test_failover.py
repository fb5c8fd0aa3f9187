"""A PostgreSQL with a standby: what happens when the primary is gone and the standby takes its place.

`DATABASE_URL` names both, with `target_session_attrs=read-write`, and nobody restarts the metadata service.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from auditing import Kept, event
from conftest import wait_until
from openmanager_metadata.audit.log import AuditLog
from openmanager_metadata.audit.reader import AuditReader
from openmanager_metadata.backends.hosts import hosts
from openmanager_metadata.backends.postgresql import PostgresqlDatabase
from openmanager_metadata.config import MetadataConfig
from openmanager_metadata.directory import KEYS, Directory
from openmanager_metadata.inventory import Inventory
from openmanager_metadata.keyring import Keyring
from openmanager_metadata.keys import Keys
from openmanager_metadata.memory import Memory
from openmanager_metadata.service import ServerService

from chaos.replicated import Pair, replicated
from openmanager.access import Grant, Role
from openmanager.api.metadata.v1 import metadata_pb2 as pb
from openmanager.api.status.v1 import status_pb2
from openmanager.audit import LOG_RESTORED
from openmanager.config import Secret
from openmanager.errors import UnavailableError
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.status import Storage

PROBE_SECONDS = 0.1
# The service probes once a second: what is waited for here, it has within three.
PATIENCE = 8.0
KEYRING = Keyring(Secret("k" * 32))


@dataclass(frozen=True)
class Service:
    """What the metadata service has of its database."""

    database: PostgresqlDatabase
    memory: Memory
    kept: Kept
    shown: Storage

    directory: Directory

    @property
    def inventory(self) -> Inventory:
        return Inventory(self.database)

    @property
    def keys(self) -> Keys:
        return Keys(self.database, self.directory, KEYRING)

    @property
    def servers(self) -> ServerService:
        return ServerService(self.inventory, self.memory.snapshot, SystemClock())

    async def create(self, name: str, role: str = "") -> None:
        """Create a server as a caller does, and record it."""
        request = pb.CreateServerRequest()
        request.server.id, request.server.role = name, role
        await self.servers.CreateServer(request, None)
        await self.kept.audit.event(event(of=f"servers/{name}"))

    async def writes(self) -> bool:
        with contextlib.suppress(UnavailableError):
            await self.create(f"tried-{time.monotonic_ns()}")
            return True
        return False

    async def until_writes(self) -> float:
        """Return how many seconds it takes until writes are taken."""
        start = time.monotonic()
        await wait_until(self.writes, PATIENCE)
        return time.monotonic() - start

    async def until_shown(self, state: int, reason: str) -> None:
        async def is_shown() -> bool:
            return (self.shown.finding.state, self.shown.finding.reason) == (state, reason)

        await wait_until(is_shown, PATIENCE)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with replicated() as made:
        yield made


@pytest.fixture
async def service(pair: Pair, tmp_path: Path) -> AsyncIterator[Service]:
    clock = SystemClock()
    directory = Directory(KEYRING, clock)
    memory = Memory(clock, 1000, directory)
    database = PostgresqlDatabase(MetadataConfig(database_url=Secret(pair.url)), memory, clock)
    audit = AuditLog(database, clock)
    shown = Storage(
        name="postgresql", role="metadata", engine="postgresql", check=database.look, clock=clock,
        breakers=database.breakers,
    )  # fmt: skip

    async def probe() -> None:
        while True:
            await shown.probe()
            await asyncio.sleep(PROBE_SECONDS)

    async with database.connecting(), audit.running():
        task = asyncio.create_task(probe())
        kept = Kept(database, clock, audit, AuditReader(database, clock), tmp_path)
        made = Service(database, memory, kept, shown, directory)
        try:
            await made.until_writes()
            yield made
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def names(service: Service) -> set[str]:
    return {server.id for server in (await service.inventory.all(1000))[0]}


async def test_nothing_acknowledged_is_lost_when_the_primary_dies_under_load(pair: Pair, service: Service):
    await pair.synchronous()
    await service.memory.copy(service.database)
    acknowledged, ended = [], asyncio.Event()

    async def write(writer: int) -> None:
        for number in range(100_000):
            if ended.is_set():
                return
            with contextlib.suppress(UnavailableError):
                await service.create(f"w{writer}-{number}")
                acknowledged.append(f"w{writer}-{number}")
            await asyncio.sleep(0.01)

    writers = [asyncio.create_task(write(writer)) for writer in range(4)]

    async def has(count: int) -> bool:
        return len(acknowledged) >= count

    await wait_until(lambda: has(40))
    pair.primary.kill()
    await service.until_shown(status_pb2.STORAGE_STATE_DOWN, "no host takes writes")
    with pytest.raises(UnavailableError, match="PostgreSQL does not answer"):
        await service.create("refused")
    found = await service.servers.GetServer(pb.GetServerRequest(id=acknowledged[0]), None)
    assert (found.server.id, found.provenance.degraded) == (acknowledged[0], True)
    before = len(acknowledged)
    await pair.promote()
    await wait_until(lambda: has(before + 40), PATIENCE)
    ended.set()
    await asyncio.gather(*writers)
    assert set(acknowledged) <= await names(service)
    found = await service.servers.GetServer(pb.GetServerRequest(id=acknowledged[-1]), None)
    assert not found.provenance.degraded
    assert service.memory.warnings == ()
    await service.kept.checkpoints().make()
    verdict = await service.kept.verdict()
    assert (verdict.problems, verdict.uncovered_count, service.kept.audit.warnings) == ([], 0, ())


async def test_the_old_primary_that_comes_back_is_not_gone_back_to(pair: Pair, service: Service):
    await pair.synchronous()
    await service.memory.copy(service.database)
    pair.primary.kill()
    await pair.promote()
    await service.until_writes()
    await pair.primary.start(synchronous_standby_names="")
    await service.create("new")
    await pair.standby.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'openmanager-metadata'"
    )
    await service.until_writes()
    assert "new" in await names(service)
    assert service.memory.warnings == ()


async def test_a_primary_that_hangs_does_not_hide_the_one_that_was_promoted(pair: Pair, service: Service):
    await pair.synchronous()
    await service.memory.copy(service.database)
    pair.primary.send(signal.SIGSTOP)
    assert not await service.writes()
    await service.until_shown(status_pb2.STORAGE_STATE_HUNG, "does not answer")
    await pair.promote()
    await service.until_writes()
    assert service.memory.warnings == ()


async def test_a_server_that_takes_no_writes_any_more_is_left_at_the_first_refusal(pair: Pair, service: Service):
    await service.memory.copy(service.database)
    await pair.caught_up()
    await pair.promote()
    await pair.primary.run("ALTER SYSTEM SET default_transaction_read_only = on")
    await pair.primary.run("SELECT pg_reload_conf()")

    async def is_refused() -> bool:
        return not await service.writes()

    await wait_until(is_refused)
    assert await service.until_writes() < PATIENCE
    rows = await pair.primary.run(
        "SELECT count(*) AS count FROM pg_stat_activity WHERE application_name = 'openmanager-metadata'"
    )
    assert rows[0]["count"] == 0
    assert (await service.database.fetch("SELECT inet_server_port() AS port"))[0]["port"] == pair.standby.port


async def cut(pair: Pair) -> None:
    """Have the standby follow no more."""
    await pair.standby.run("ALTER SYSTEM SET primary_conninfo = ''")
    await pair.standby.run("SELECT pg_reload_conf()")

    async def is_cut() -> bool:
        return not await pair.standby.run("SELECT 1 FROM pg_stat_wal_receiver")

    await wait_until(is_cut)


async def test_what_a_standby_that_was_behind_lacks_is_given_back_and_said(pair: Pair, service: Service):
    await service.create("a")
    await service.memory.copy(service.database)
    await pair.caught_up()
    await cut(pair)
    await service.create("b", role="web")
    size = service.kept.audit.head.size
    pair.primary.kill()
    await pair.promote()
    await service.until_writes()
    assert (await service.inventory.get("b")).role == "web"
    assert service.memory.warnings == ("failed over and lost the last changes: 1 rows were written back from memory",)
    (found,), _ = await service.kept.reader.list(f"action = {LOG_RESTORED}", "number", 0, "", full=False)
    assert (found.entry.details["known_size"], found.entry.details["found_size"]) == (str(size), str(size - 1))
    await service.kept.checkpoints().make()
    assert (await service.kept.verdict()).problems == []


async def test_who_was_let_in_or_put_out_a_moment_ago_stays_so_on_a_standby_that_was_behind(
    pair: Pair, service: Service
):
    revoked, _ = await service.keys.create("revoked", (Grant(Role.VIEWER),), None, "local")
    await service.memory.copy(service.database)
    await pair.caught_up()
    await cut(pair)
    made, secret = await service.keys.create("made", (Grant(Role.VIEWER),), None, "local")
    await service.keys.delete(revoked.id)
    pair.primary.kill()
    await pair.promote()
    await service.until_writes()
    assert service.memory.warnings == ("failed over and lost the last changes: 2 rows were written back from memory",)
    await service.memory.copy(service.database)
    assert set(service.directory.rows[KEYS]) == {made.id}
    assert service.directory.identity(secret).subject == f"keys/{made.id}"


async def test_sessions_that_have_ended_are_no_loss(pair: Pair, service: Service):
    await service.database.fetch(
        "WITH u AS (INSERT INTO users (name) VALUES ('ada') RETURNING id) INSERT INTO sessions (user_id, refresh_hash, ends)"
        " SELECT id, ''::bytea, now() - interval '1 hour' FROM u"
    )
    await service.memory.copy(service.database)
    await pair.caught_up()
    pair.primary.kill()
    await pair.promote()
    await service.until_writes()
    assert service.memory.warnings == ()


async def test_a_standby_that_was_far_behind_is_an_old_database(pair: Pair, service: Service):
    await service.create("a")
    await pair.caught_up()
    await cut(pair)
    await service.inventory.delete("a", "", purge=False)
    await service.create("b")
    await service.memory.copy(service.database)
    pair.primary.kill()
    await pair.promote()
    await service.until_writes()
    assert "came back old" in service.memory.warnings[0]
    found = await names(service)
    assert ("a" in found, "b" in found) == (False, True)


async def test_a_deletion_of_a_moment_ago_is_not_undone_by_a_standby_that_has_it(pair: Pair, service: Service):
    for name in ("a", "b"):
        await service.create(name)
    await service.memory.copy(service.database)
    await service.servers.DeleteServer(pb.DeleteServerRequest(id="a", purge=True), None)
    await service.database.fetch("DELETE FROM servers WHERE id = 'b'")  # another metadata service did
    await pair.caught_up()
    pair.primary.kill()
    await pair.promote()
    await service.until_writes()
    found = await names(service)
    assert ("a" in found, "b" in found, service.memory.warnings) == (False, False, ())


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p%40@h1,h2:5433/d?target_session_attrs=read-write", [("h1", 5432), ("h2", 5433)]),
        ("postgresql://u@[::1]:1,127.0.0.1:2/d", [("::1", 1), ("127.0.0.1", 2)]),
        ("postgresql://u:p@/d?host=/run/a,/run/b&port=1,2", [("/run/a", 1), ("/run/b", 2)]),
        ("postgresql://u:p@/d?host=/run/a,/run/b&port=6", [("/run/a", 6), ("/run/b", 6)]),
        ("postgresql://u:p@one/d", [("one", 5432)]),
        ("postgresql:///d", []),
    ],
)
def test_the_hosts_of_a_url_are_those_that_libpq_finds(url: str, expected: list[tuple[str, int]]):
    assert expected == hosts(url)
