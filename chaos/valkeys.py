"""Valkey as it is deployed on several machines: Sentinels with a master, and clusters; real servers on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from bench.rpc import free_ports
from chaos.mesh import wait_until
from openmanager import embedded
from openmanager.datadir import DataDir
from openmanager.runtime import launch

PASSWORD = "geheim"
MASTER = "hot"
SLOTS = 16384
# How long a master is waited for before another takes its place: long where none is to, short where one is.
CALM_MILLIS, SHORT_MILLIS = 10_000, 600
REPLICATED = (f"masterauth {PASSWORD}", "repl-diskless-sync-delay 0", 'save ""')


@dataclass(kw_only=True)
class Valkey:
    """One server, or one Sentinel: its folder, its port, and its process while it runs."""

    folder: Path
    port: int
    settings: Sequence[str]
    sentinel: bool = False
    process: subprocess.Popen[bytes] | None = None

    @property
    def file(self) -> Path:
        return self.folder / "valkey.conf"

    async def start(self) -> None:
        if not self.file.exists():
            self.folder.mkdir()
            common = ("bind 127.0.0.1", f"port {self.port}", f"dir {self.folder}", f"requirepass {PASSWORD}")
            self.file.write_text("\n".join((*common, *self.settings, "")))
        argv = [program(), str(self.file), *(["--sentinel"] if self.sentinel else [])]
        with (self.folder / "log").open("ab") as out:
            self.process = subprocess.Popen(
                launch.argv(argv, user=None, death_signal=signal.SIGKILL),
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        await wait_until(self.answers)

    async def answers(self) -> bool:
        with contextlib.suppress(RedisError, OSError):
            return bool(await self.ask("PING"))
        return False

    async def ask(self, *command: object) -> Any:
        async with Redis(port=self.port, password=PASSWORD, decode_responses=True) as client:
            return await client.execute_command(*command)

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it at once, also when it is stopped."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass(kw_only=True)
class Valkeys:
    """Several servers; `url` is what a user gives as REDIS_URL."""

    url: str
    servers: list[Valkey]
    sentinels: list[Valkey] = field(default_factory=list)


def program() -> str:
    with tempfile.TemporaryDirectory() as folder, DataDir.open(Path(folder)) as data:
        return embedded.valkey(data).spec.argv[0]


@contextlib.asynccontextmanager
async def sentinels(silence_millis: int = CALM_MILLIS) -> AsyncIterator[Valkeys]:
    """Run a master, its replica, and three Sentinels of whom two decide."""
    base = free_ports(5)
    master, replica, *watchers = range(base, base + 5)
    with _stopped_at_the_end() as (folder, started):
        servers = [
            Valkey(folder=folder / "master", port=master, settings=REPLICATED),
            Valkey(folder=folder / "replica", port=replica, settings=(*REPLICATED, f"replicaof 127.0.0.1 {master}")),
        ]
        watching = (
            f"sentinel monitor {MASTER} 127.0.0.1 {master} 2",
            f"sentinel auth-pass {MASTER} {PASSWORD}",
            f"sentinel sentinel-pass {PASSWORD}",
            f"sentinel down-after-milliseconds {MASTER} {silence_millis}",
            f"sentinel failover-timeout {MASTER} 5000",
        )
        found = [
            Valkey(folder=folder / f"sentinel-{port}", port=port, settings=watching, sentinel=True) for port in watchers
        ]
        started.extend((*servers, *found))
        for each in servers:
            await each.start()
        await asyncio.gather(*(each.start() for each in found))
        for each in found:
            await each.ask("SENTINEL", "DEBUG", "info-period", 200, "publish-period", 200)

        async def know_each_other() -> bool:
            told = [await each.ask("SENTINEL", "MASTER", MASTER) for each in found]
            return all(
                (int(each["num-other-sentinels"]), int(each["num-slaves"])) == (2, 1) for each in map(_as_mapping, told)
            )

        await wait_until(know_each_other)
        names = ",".join(f"127.0.0.1:{port}" for port in watchers)
        url = f"redis+sentinel://:{PASSWORD}@{names}/{MASTER}?sentinel_password={PASSWORD}"
        yield Valkeys(url=url, servers=servers, sentinels=found)


@contextlib.asynccontextmanager
async def cluster(silence_millis: int = CALM_MILLIS, *, replicas: bool = False) -> AsyncIterator[Valkeys]:
    """Run three masters, each with a replica or without."""
    count = 6 if replicas else 3
    base = free_ports(2 * count)
    with _stopped_at_the_end() as (folder, started):
        for port in range(base, base + count):
            settings = (
                *("cluster-enabled yes", f"cluster-port {port + count}", "cluster-config-file nodes.conf"),
                *(f"cluster-node-timeout {silence_millis}", *REPLICATED),
            )
            started.append(Valkey(folder=folder / str(port), port=port, settings=settings))
        await asyncio.gather(*(each.start() for each in started))
        masters = started[:3]
        for at, each in enumerate(masters):
            await each.ask("CLUSTER", "SET-CONFIG-EPOCH", at + 1)
            await each.ask("CLUSTER", "ADDSLOTSRANGE", at * SLOTS // 3, (at + 1) * SLOTS // 3 - 1)
        for each in started[1:]:
            await each.ask("CLUSTER", "MEET", "127.0.0.1", base, base + count)
        await wait_until(lambda: _all_say(started, f"cluster_known_nodes:{count}"))
        for master, replica in zip(masters, started[3:], strict=False):
            await replica.ask("CLUSTER", "REPLICATE", await master.ask("CLUSTER", "MYID"))
        await wait_until(lambda: _all_say(started, "cluster_state:ok"))
        if replicas:
            await wait_until(lambda: _all_copied(masters))
        names = ",".join(f"127.0.0.1:{each.port}" for each in started)
        yield Valkeys(url=f"redis+cluster://:{PASSWORD}@{names}", servers=started)


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[Valkeys]:
    """Run one server."""
    with _stopped_at_the_end() as (folder, started):
        port = free_ports(1)
        started.append(Valkey(folder=folder / "server", port=port, settings=REPLICATED))
        await started[0].start()
        yield Valkeys(url=f"redis://:{PASSWORD}@127.0.0.1:{port}", servers=started)


async def _all_say(servers: Sequence[Valkey], line: str) -> bool:
    said = [await each.ask("CLUSTER", "INFO") for each in servers]
    # Lines of text, or what redis-py has made of them.
    return all(
        line in ([f"{key}:{value}" for key, value in each.items()] if isinstance(each, dict) else each) for each in said
    )


async def _all_copied(masters: Sequence[Valkey]) -> bool:
    said = [await each.ask("INFO", "replication") for each in masters]
    return all(each.get("slave0", {}).get("state") == "online" for each in said)


def _as_mapping(told: Any) -> dict[str, str]:
    return told if isinstance(told, dict) else dict(zip(told[::2], told[1::2], strict=True))


@contextlib.contextmanager
def _stopped_at_the_end() -> Iterator[tuple[Path, list[Valkey]]]:
    folder, started = Path(tempfile.mkdtemp(prefix="openmanager-valkeys-")), list[Valkey]()
    try:
        yield folder, started
    finally:
        for each in started:
            each.kill()
        shutil.rmtree(folder, ignore_errors=True)
