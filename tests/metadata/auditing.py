"""An audit log of its own, on a database of its own, with a clock that goes as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from conftest import Mesh, secret, wait_until
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from openmanager_metadata.audit.checkpoint import Checkpoints
from openmanager_metadata.audit.log import AuditLog
from openmanager_metadata.audit.pruning import Pruning
from openmanager_metadata.audit.reader import AuditReader
from openmanager_metadata.backends.postgresql import PostgresqlDatabase
from openmanager_metadata.config import MetadataConfig
from test_database import answers

from openmanager.audit import Record
from openmanager.audit_file import Verdict, verify
from openmanager.config import Secret

DAY = 86_400 * 10**9


@dataclass
class Wall:
    """A clock that stands still unless it is moved."""

    nanos: int = field(default_factory=time.time_ns)

    def now_nanos(self) -> int:
        return self.nanos

    def monotonic(self) -> float:
        return time.monotonic()


@dataclass(frozen=True)
class Kept:
    """A log, what reads it, and what vouches for it."""

    database: PostgresqlDatabase
    clock: Wall
    audit: AuditLog
    reader: AuditReader
    folder: Path

    def checkpoints(self, key: str = "", copy: str = "") -> Checkpoints:
        return Checkpoints(self.database, self.audit, self.clock, key=Secret(key), copy=copy)

    @property
    def pruning(self) -> Pruning:
        return Pruning(self.database, self.audit, self.clock)

    async def fill(self, count: int, actor: str = "users/1", **more) -> None:
        """Record so many events."""
        for at in range(0, count, 2000):
            some = range(at, min(count, at + 2000))
            await asyncio.gather(*(self.audit.event(event(actor, f"servers/{k}", **more)) for k in some))

    async def export(self, start: int = 0) -> Path:
        """Write the log to a file; from a number on, append."""
        file = self.folder / "audit.log"
        with file.open("ab" if start else "wb") as out:
            async for chunk in self.reader.export(start):
                out.write(chunk.data)
        return file

    async def lines(self) -> Path:
        """Write the checkpoints to a file."""
        file = self.folder / "checkpoints.jsonl"
        found, _ = await self.reader.checkpoints("", 1000, "")
        file.write_text("".join(each.line() for each in found))
        return file

    async def verdict(self, *keys: Ed25519PrivateKey) -> Verdict:
        return verify(await self.export(), await self.lines(), [key.public_key() for key in keys])


@contextlib.asynccontextmanager
async def own_database(mesh: Mesh) -> AsyncIterator[str]:
    """An empty database on the mesh's PostgreSQL."""
    whole = secret(mesh, "metadata", "DATABASE_URL")
    name = f"t_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(whole)
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        yield urlunsplit(urlsplit(whole)._replace(path=f"/{name}"))
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


async def emptied(url: str) -> None:
    """Make a database one that has no log yet."""
    connection = await asyncpg.connect(url)
    try:
        if await connection.fetchval("SELECT to_regclass('audit_log')"):
            await connection.execute(
                "TRUNCATE audit_entries, audit_tiles, audit_checkpoints, audit_subject_keys, audit_holds, policies;"
                "UPDATE audit_log SET id = gen_random_uuid()"
            )
    finally:
        await connection.close()


def event(actor: str = "users/1", of: str = "servers/web-1", **more) -> Record:
    return Record(actor=actor, via="gateway", action="retention.deletion", object=of, **more)


def pem(*keys: Ed25519PrivateKey) -> str:
    return "".join(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode() for key in keys)


@contextlib.asynccontextmanager
async def audit_log(url: str, folder: Path, clock: Wall | None = None) -> AsyncIterator[Kept]:
    """Open the log of a database, as the service does."""
    clock = clock or Wall()
    # A machine that is busy is not a database that is away.
    seconds = {"statement_timeout": 5, "acquire_timeout": 5, "connect_timeout": 5}
    config = MetadataConfig(
        database_url=Secret(url), **{name: timedelta(seconds=each) for name, each in seconds.items()}
    )
    database = PostgresqlDatabase(config)
    audit = AuditLog(database, clock)
    async with database.connecting(), audit.running():
        await wait_until(lambda: answers(database))
        yield Kept(database, clock, audit, AuditReader(database, clock), folder)
