"""A primary and a standby that follows it: two real PostgreSQL servers on loopback, of the wheel's own programs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import asyncpg

from bench.rpc import free_ports
from chaos.mesh import wait_until
from openmanager import embedded
from openmanager.datadir import DataDir
from openmanager.runtime import launch

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "wal_level": "replica",
    "max_wal_senders": "4",
    "hot_standby": "on",
    "wal_receiver_status_interval": "1",
    "fsync": "off",  # nobody pulls a plug here, and processes that are killed lose nothing by it
}


@dataclass(kw_only=True)
class Server:
    """One server: its folder, its port, and its process while it runs."""

    data: DataDir
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def store(self) -> embedded.Store:
        return embedded.postgresql(self.data)

    @property
    def cluster(self) -> Path:
        assert self.store.spec.cwd is not None
        return self.store.spec.cwd

    async def start(self, **settings: str) -> None:
        spec, asked = self.store.spec, {**SETTINGS, "port": str(self.port), **settings}
        argv = [*spec.argv, *(part for name, value in asked.items() for part in ("-c", f"{name}={value}"))]
        with spec.log_path.open("ab") as out:
            self.process = subprocess.Popen(
                launch.argv(argv, user=spec.user, death_signal=signal.SIGKILL),
                cwd=self.cluster,
                env=dict(spec.env),
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        await wait_until(self.answers, 30)

    async def answers(self) -> bool:
        with contextlib.suppress(OSError, asyncpg.PostgresError):
            await self.run("SELECT 1", database="postgres")
            return True
        return False

    @property
    def password(self) -> str:
        return self.data.credential("postgresql").reveal()

    def url(self, database: str) -> str:
        return f"postgresql://openmanager:{quote(self.password)}@127.0.0.1:{self.port}/{database}"

    async def run(self, statement: str, *, database: str = "openmanager") -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.url(database), timeout=5)
        try:
            return await connection.fetch(statement)
        finally:
            await connection.close()

    def kill(self) -> None:
        """End every process of it at once."""
        if self.process is not None:
            self.send(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to every process of it."""
        assert self.process is not None
        pid = self.process.pid
        # Each is the leader of a group of its own.
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in (pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, number)


@dataclass(kw_only=True)
class Pair:
    """A primary and its standby."""

    primary: Server
    standby: Server
    _held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def url(self) -> str:
        """What a user gives as DATABASE_URL."""
        first, second = self.primary, self.standby
        return (
            f"postgresql://openmanager:{quote(first.password)}@127.0.0.1:{first.port},127.0.0.1:{second.port}"
            "/openmanager?target_session_attrs=read-write"
        )

    async def synchronous(self) -> None:
        """Have the primary acknowledge what the standby has too, and nothing else, from now on."""
        await self.primary.run("ALTER SYSTEM SET synchronous_standby_names = '*'")
        await self.primary.run("SELECT pg_reload_conf()")
        await wait_until(self.is_synchronous)

    async def is_synchronous(self) -> bool:
        """Say whether what is acknowledged now is at the standby too."""
        rows = await self.primary.run("SELECT sync_state FROM pg_stat_replication")
        return [row["sync_state"] for row in rows] == ["sync"]

    async def promote(self) -> None:
        assert (await self.standby.run("SELECT pg_promote(true, 30) AS done"))[0]["done"]

    async def caught_up(self) -> None:
        """Return when the standby has everything."""
        end = (await self.primary.run("SELECT pg_current_wal_lsn()::text AS lsn"))[0]["lsn"]

        async def has_it() -> bool:
            rows = await self.standby.run(f"SELECT pg_last_wal_replay_lsn() >= '{end}'::pg_lsn AS has_it")
            return bool(rows[0]["has_it"])

        await wait_until(has_it)


@contextlib.asynccontextmanager
async def alone() -> AsyncIterator[Server]:
    """Run one server with an empty database."""
    with contextlib.ExitStack() as held:
        folder = Path(tempfile.mkdtemp(prefix="openmanager-alone-"))
        held.callback(shutil.rmtree, folder, ignore_errors=True)
        server = Server(data=held.enter_context(DataDir.open(folder / "alone")), port=free_ports(1))
        held.callback(server.kill)
        prepare = server.store.spec.prepare
        assert prepare is not None
        await prepare()
        await server.start()
        await server.run("CREATE DATABASE openmanager", database="postgres")
        yield server


@contextlib.asynccontextmanager
async def replicated() -> AsyncIterator[Pair]:
    """Run a primary and a standby that streams from it, asynchronously."""
    base = free_ports(2)
    with contextlib.ExitStack() as held:
        folder = Path(tempfile.mkdtemp(prefix="openmanager-pair-"))
        held.callback(shutil.rmtree, folder, ignore_errors=True)
        servers = []
        for at, name in enumerate(("primary", "standby")):
            server = Server(data=held.enter_context(DataDir.open(folder / name)), port=base + at)
            held.callback(server.kill)
            servers.append(server)
        primary, standby = servers
        prepare = primary.store.spec.prepare
        assert prepare is not None
        await prepare()
        await primary.start()
        await primary.run("CREATE DATABASE openmanager", database="postgres")
        await _copy(primary, standby)
        await standby.start()
        yield Pair(primary=primary, standby=standby)


async def _copy(primary: Server, standby: Server) -> None:
    """Make a standby of a running primary."""
    shutil.copy2(primary.data.credential_file("postgresql"), standby.data.credentials / "postgresql")
    programs = Path(primary.store.spec.argv[0]).parent
    process = await asyncio.create_subprocess_exec(
        *(str(programs / "pg_basebackup"), "-d", primary.url("postgres"), "-D", str(standby.cluster)),
        *("-R", "-X", "stream", "-c", "fast", "--no-sync"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert process.returncode == 0, said.decode()
    owner = primary.cluster.stat()
    for path in (standby.cluster, *standby.cluster.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)
    standby.data.runtime.joinpath("pg").mkdir(mode=0o700, exist_ok=True)
    os.chown(standby.data.runtime / "pg", owner.st_uid, owner.st_gid)
