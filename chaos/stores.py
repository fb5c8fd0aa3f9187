"""Real stores for a mesh, each behind a proxy: Valkey and PostgreSQL as `up` runs them, and an engine where one is here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import urllib.request
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
from redis.asyncio import Redis as RedisClient
from redis.exceptions import RedisError

from bench.store import influx_binary, victoria_binary
from chaos.part import Part
from chaos.proxy import ChaosProxy, tcp, unix
from openmanager import embedded
from openmanager.datadir import DataDir
from openmanager.runtime.supervisor import ChildSpec, Supervisor

REDIS, POSTGRESQL = "redis", "postgresql"
VICTORIAMETRICS, INFLUXDB = "victoriametrics", "influxdb"
ENGINES = (VICTORIAMETRICS, INFLUXDB)
ORG, BUCKET = "openmanager", "metrics"


class Redis(Part):
    """A Valkey."""

    def __init__(self, data: DataDir, seed: int) -> None:
        made = embedded.valkey(data)
        # Commands that make faults, for whoever has the socket: that is us.
        argv = (*made.spec.argv, "--enable-debug-command", "yes")
        spec = replace(made.spec, name=REDIS, argv=argv)
        super().__init__(spec, data.valkey, unix(str(data.runtime / "valkey.sock")), seed)
        self._password = data.credential("valkey").reveal()
        self._direct = made.url.reveal()

    @property
    def environment(self) -> dict[str, str]:
        """What leads a mesh to it."""
        return {"REDIS_URL": f"redis://:{self._password}@127.0.0.1:{self.proxy.port}/0"}

    def client(self) -> RedisClient:
        """Return a client that does not pass the proxy."""
        return RedisClient.from_url(self._direct, client_name="chaos")

    @contextlib.asynccontextmanager
    async def emptied(self) -> AsyncIterator[None]:
        """Delete everything, behind the back of the mesh."""
        async with self.client() as redis:
            await redis.flushall()
        yield

    @contextlib.asynccontextmanager
    async def set_to(self, name: str, value: str, *, cut: bool = False) -> AsyncIterator[None]:
        """Set one of its settings, and cut all connections if so asked, so that it counts for them too."""
        async with self.client() as redis:
            before = (await redis.config_get(name))[name]
            await redis.config_set(name, value)
            if cut:
                await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            try:
                yield
            finally:
                await redis.config_set(name, before)

    def memory_full(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Leave it no memory to write to."""
        return self.set_to("maxmemory", "1")

    def credentials_rotated(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Give it another password than we were told."""
        return self.set_to("requirepass", "another", cut=True)

    def connections_exhausted(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Let it take no more connections than one, which is ours to make the fault with."""
        return self.set_to("maxclients", "1", cut=True)

    @contextlib.asynccontextmanager
    async def read_only(self) -> AsyncIterator[None]:
        """Make it a replica of nobody, as it is after a failover."""
        async with self.client() as redis:
            await redis.execute_command("REPLICAOF", "127.0.0.1", "1")
            try:
                yield
            finally:
                await redis.execute_command("REPLICAOF", "NO", "ONE")

    @contextlib.asynccontextmanager
    async def loading(self) -> AsyncIterator[None]:
        """Let it load its data, slowly: it answers LOADING meanwhile."""
        ballast = [f"chaos:{at}" for at in range(1000)]
        async with self.client() as redis:
            await redis.mset({key: os.urandom(1500) for key in ballast})
            # It looks at its clients after every such piece of what it loads.
            await redis.config_set("loading-process-events-interval-bytes", 1024)
            await redis.config_set("key-load-delay", 50_000)  # microseconds
            task = asyncio.create_task(_quietly(redis.execute_command("DEBUG", "RELOAD")))
            try:
                yield
            finally:
                async with self.client() as other:
                    await other.config_set("key-load-delay", 0)
                await asyncio.wait([task], timeout=20)
                task.cancel()
        async with self.client() as redis:
            await redis.delete(*ballast)

    @contextlib.asynccontextmanager
    async def poisoned(self) -> AsyncIterator[None]:
        """Write under every key what does not belong there: garbage, halves, and the value of another key."""
        async with self.client() as redis:
            keys = sorted([key async for key in redis.scan_iter("om:*")])
            values = [await redis.get(key) for key in keys]
            for at, key in enumerate(keys):
                other = values[(at + 1) % len(keys)] or b""
                await redis.set(key, (b"\xff\x00garbage", other[: len(other) // 2], other)[at % 3], keepttl=True)
        yield


async def _quietly(command: Any) -> None:
    with contextlib.suppress(RedisError, OSError):
        await command


class Postgresql(Part):
    """A PostgreSQL."""

    def __init__(self, data: DataDir, seed: int) -> None:
        made = embedded.postgresql(data)
        upstream = unix(str(data.runtime / "pg" / ".s.PGSQL.5432"))
        super().__init__(replace(made.spec, name=POSTGRESQL), data.postgresql, upstream, seed)
        self._direct = made.url.reveal()

    @property
    def environment(self) -> dict[str, str]:
        """What leads a mesh to it."""
        user = urlsplit(self._direct).netloc.rpartition("@")[0]
        return {"DATABASE_URL": f"postgresql://{user}@127.0.0.1:{self.proxy.port}/openmanager"}

    async def run(self, *statements: str) -> None:
        """Run statements without passing the proxy."""
        connection = await asyncpg.connect(self._direct, timeout=5, server_settings={"application_name": "chaos"})
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            connection.terminate()

    @contextlib.asynccontextmanager
    async def emptied(self) -> AsyncIterator[None]:
        """Drop everything, behind the back of the mesh."""
        await self.run("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
        yield

    @contextlib.asynccontextmanager
    async def read_only(self) -> AsyncIterator[None]:
        """Let it take no writes, as a standby does."""
        await self.run("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
        try:
            yield
        finally:
            await self.run(
                "SET default_transaction_read_only = off",
                "ALTER SYSTEM RESET default_transaction_read_only",
                "SELECT pg_reload_conf()",
            )

    @contextlib.asynccontextmanager
    async def credentials_rotated(self) -> AsyncIterator[None]:
        """Give it another password than we were told."""
        password = urlsplit(self._direct).password
        direct, self._direct = self._direct, self._direct.replace(f":{password}@", ":another@")
        connection = await asyncpg.connect(direct, timeout=5)
        try:
            await connection.execute("ALTER ROLE openmanager PASSWORD 'another'")
            await connection.execute(_END_OTHERS)
            yield
        finally:
            await connection.execute(f"ALTER ROLE openmanager PASSWORD '{password}'")
            connection.terminate()
            self._direct = direct

    @contextlib.asynccontextmanager
    async def connections_exhausted(self) -> AsyncIterator[None]:
        """Take every connection that it has."""
        held: list[asyncpg.Connection] = []
        task = asyncio.create_task(self._take_all(held))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            for connection in held:
                connection.terminate()

    async def _take_all(self, held: list[asyncpg.Connection]) -> None:
        """Take every connection there is, and those that others give back; end those that others have."""
        mine = {"application_name": "chaos"}
        while True:
            with contextlib.suppress(asyncpg.TooManyConnectionsError, TimeoutError):
                while True:
                    held.append(await asyncpg.connect(self._direct, timeout=5, server_settings=mine))
            await held[0].execute(_END_OTHERS)

    @contextlib.asynccontextmanager
    async def loading(self) -> AsyncIterator[None]:
        """Make it a standby that takes no connections: it says that it is starting up."""

        def to_standby() -> None:
            cluster = next(self.folder.glob("[0-9]*"))
            (cluster / "standby.signal").touch()
            with (cluster / "postgresql.auto.conf").open("a") as out:
                out.write("hot_standby = off\n")

        def to_primary() -> None:
            cluster = next(self.folder.glob("[0-9]*"))
            (cluster / "standby.signal").unlink(missing_ok=True)
            settings = cluster / "postgresql.auto.conf"
            settings.write_text(settings.read_text().replace("hot_standby = off\n", ""))

        self._change = to_standby
        self.kill()
        try:
            yield
        finally:
            self._change = to_primary
            self.kill()

    @contextlib.asynccontextmanager
    async def poisoned(self) -> AsyncIterator[None]:
        """Give one server a row that no version of ours has written."""
        await self.run("UPDATE servers SET labels = '[1, {\"a\": null}]', thresholds = '7' WHERE id LIKE 'web-%'")
        try:
            yield
        finally:
            await self.run("UPDATE servers SET labels = '{}', thresholds = '{}' WHERE id LIKE 'web-%'")


_END_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE application_name <> 'chaos' AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
)


def free_port() -> int:
    """Return a port that the system says is free, far from those of a mesh."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port: int = opened.getsockname()[1]
        return port


class _Http(Part):
    """An engine that speaks HTTP on a port of the loopback."""

    def __init__(self, name: str, command: Sequence[str], port: int, folder: Path, logs: Path, seed: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        spec = ChildSpec(
            name=name,
            argv=tuple(command),
            env={"PATH": os.environ.get("PATH", ""), "HOME": str(folder)},
            log_path=logs / f"{name}.log",
            lock_path=logs / f"{name}.lock",
            stop_group=2,
            ready=self.answers,
        )
        super().__init__(spec, folder, tcp("127.0.0.1", port), seed)

    async def answers(self) -> bool:
        """Whether it serves."""
        try:
            await self.ask("/health")
        except OSError:
            return False
        return True

    async def ask(self, path: str, body: bytes | None = None, method: str = "", token: str = "") -> bytes:
        """Return what it answers, without passing the proxy; OSError for what is not 2xx."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Token {token}"} if token else {})
        request = urllib.request.Request(self.url + path, body, headers, method=method or None)

        def run() -> bytes:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return bytes(answer.read())

        return await asyncio.to_thread(run)


class Victoria(_Http):
    """A VictoriaMetrics."""

    def __init__(self, folder: Path, logs: Path, seed: int, *options: str) -> None:
        binary, port = victoria_binary(), free_port()
        if binary is None:
            raise FileNotFoundError("victoria-metrics is not here")
        own = [f"-storageDataPath={folder}", f"-httpListenAddr=127.0.0.1:{port}", "-retentionPeriod=10y"]
        super().__init__(VICTORIAMETRICS, [binary, *own, "-loggerLevel=ERROR", *options], port, folder, logs, seed)

    @property
    def environment(self) -> dict[str, str]:
        """What leads a mesh to it."""
        return {"VICTORIAMETRICS_WRITE_URL": f"http://127.0.0.1:{self.proxy.port}"}

    @contextlib.asynccontextmanager
    async def emptied(self) -> AsyncIterator[None]:
        """Delete every series, behind the back of the mesh."""
        await self.ask("/internal/force_flush")
        await self.ask("/api/v1/admin/tsdb/delete_series?match%5B%5D=%7B__name__!%3D%22%22%7D")
        yield


class Influx(_Http):
    """An InfluxDB 2.x; `token` is ours, `admin` that of who makes the faults."""

    def __init__(self, folder: Path, logs: Path, seed: int) -> None:
        binary, port = influx_binary(), free_port()
        if binary is None:
            raise FileNotFoundError("influxd is not here")
        own = [f"--{name}-path={folder}/{name}" for name in ("bolt", "engine", "sqlite")]
        command = [binary, *own, f"--http-bind-address=127.0.0.1:{port}", "--reporting-disabled", "--log-level=error"]
        super().__init__(INFLUXDB, command, port, folder, logs, seed)
        self._token = uuid.uuid4().hex

    @property
    def environment(self) -> dict[str, str]:
        """What leads a mesh to it."""
        return {
            "INFLUXDB_URL": f"http://127.0.0.1:{self.proxy.port}",
            "INFLUXDB_TOKEN": self._token,
            "INFLUXDB_ORG": ORG,
            "INFLUXDB_BUCKET": BUCKET,
        }

    async def answers(self) -> bool:
        """Whether it serves; it is set up when it is new."""
        if not await super().answers():
            return False
        try:
            if json.loads(await self.ask("/api/v2/setup"))["allowed"]:
                first = {"username": "chaos", "password": uuid.uuid4().hex, "org": ORG, "bucket": "first"}
                await self.ask("/api/v2/setup", json.dumps(first | {"token": self._token}).encode(), "POST")
        except OSError:
            return False
        return True

    async def _bucket(self) -> dict[str, Any]:
        found = json.loads(await self.ask(f"/api/v2/buckets?org={ORG}&name={BUCKET}", token=self._token))["buckets"]
        return dict(found[0])

    @contextlib.asynccontextmanager
    async def emptied(self) -> AsyncIterator[None]:
        """Delete the bucket, behind the back of the mesh."""
        await self.ask(f"/api/v2/buckets/{(await self._bucket())['id']}", method="DELETE", token=self._token)
        yield

    @contextlib.asynccontextmanager
    async def credentials_rotated(self) -> AsyncIterator[None]:
        """Let it refuse our token."""
        found = json.loads(await self.ask("/api/v2/authorizations", token=self._token))["authorizations"][0]
        path = f"/api/v2/authorizations/{found['id']}"
        wanted = {"orgID": found["orgID"], "description": "chaos", "permissions": found["permissions"]}
        made = json.loads(await self.ask("/api/v2/authorizations", json.dumps(wanted).encode(), "POST", self._token))
        await self.ask(path, b'{"status": "inactive"}', "PATCH", made["token"])
        try:
            yield
        finally:
            await self.ask(path, b'{"status": "active"}', "PATCH", made["token"])

    @contextlib.asynccontextmanager
    async def refusing_a_series(self, line: str) -> AsyncIterator[None]:
        """Give a field another type than ours, so that a sample of it is refused for ever."""
        path = f"/api/v2/write?org={ORG}&bucket={BUCKET}&precision=ns"
        await self.ask(path, line.encode(), "POST", self._token)
        yield


Store = Redis | Postgresql | Victoria | Influx


@dataclass(frozen=True)
class Stores:
    """Running stores. `environment` leads a mesh through the proxies."""

    environment: Mapping[str, str]
    parts: Mapping[str, Store]

    @property
    def redis(self) -> Redis:
        """The Valkey."""
        found = self.parts[REDIS]
        assert isinstance(found, Redis)
        return found

    @property
    def proxies(self) -> Mapping[str, ChaosProxy]:
        """The proxy before each."""
        return {name: part.proxy for name, part in self.parts.items()}

    def pid(self, name: str) -> int | None:
        """Return the process of a store, None while it has none."""
        return self.parts[name].pid


@contextlib.asynccontextmanager
async def stores(folder: Path, seed: int, *, engine: str = "", disk_bytes: int = 0) -> AsyncIterator[Stores]:
    """Run the stores in a folder, and a proxy for each on a port of its own.

    With `disk_bytes` each has a file system of that size for itself, which takes root.
    """
    with DataDir.open(folder) as data, contextlib.ExitStack() as disks:
        if disk_bytes:
            for each in (data.valkey, data.postgresql):
                disks.enter_context(small_disk(each, disk_bytes))
        found: list[Store] = [Redis(data, seed), Postgresql(data, seed)]
        if engine:
            place = folder / engine
            place.mkdir(exist_ok=True)
            if disk_bytes:
                disks.enter_context(small_disk(place, disk_bytes))
            found.append((Victoria if engine == VICTORIAMETRICS else Influx)(place, data.logs, seed))
        async with Supervisor([part.spec for part in found]) as children:
            await children.wait_ready()
            async with contextlib.AsyncExitStack() as proxies:
                environment: dict[str, str] = {}
                for part in found:
                    await proxies.enter_async_context(part.proxy)
                    environment |= part.environment
                yield Stores(environment, {part.name: part.kept_by(children) for part in found})


def can_mount() -> bool:
    """Say whether this machine lets us mount file systems."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "chaos", folder]
        if (
            os.geteuid()
            or not shutil.which("mount")
            or subprocess.run(command, capture_output=True, check=False).returncode
        ):
            return False
        subprocess.run(["umount", folder], check=True)
    return True


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Mount a file system of a size at a folder, for as long as the context is open."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "chaos", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
