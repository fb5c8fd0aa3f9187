"""A whole mesh whose every part stands behind a proxy: stores, services, and the links between them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.rpc import free_ports
from chaos import inside
from chaos.part import Part
from chaos.proxy import tcp
from chaos.stores import Stores, small_disk, stores
from chaos.wall_clock import CLOCK, set_clock
from openmanager import suite
from openmanager.failpoint import VARIABLE
from openmanager.runtime.peer import Peer
from openmanager.runtime.supervisor import BACKOFF_RESET_SECONDS, ChildSpec, Supervisor

# Of the file systems that parts have for themselves, where the machine lets us mount some.
DISK_BYTES = 256 << 20
# So short that files are sealed, merged and deleted all the while.
HURRY = {
    "OPENMANAGER_TIMESERIES_SEAL_INTERVAL": "5s",
    "OPENMANAGER_TIMESERIES_LOG_RETENTION": "10s",
    "OPENMANAGER_TIMESERIES_SEGMENT_SIZE": "1MiB",
    "OPENMANAGER_ANALYSIS_INTERVAL": "1s",
    "OPENMANAGER_ANALYSIS_SAVE_INTERVAL": "1s",
}
# A failpoint is passed within so long.
DEATH_SECONDS = 40.0
FLEET = {"OPENMANAGER_SIMULATOR_SERVERS": "3", "OPENMANAGER_SIMULATOR_INTERVAL": "1s"}


class Service(Part):
    """A service of ours; `variables` is its environment, for its next start."""

    def __init__(self, name: str, variables: dict[str, str], port: int, folder: Path, logs: Path, seed: int) -> None:
        self.variables = variables
        spec = ChildSpec(
            name=name,
            argv=(sys.executable, "-m", "openmanager.cli", "serve", name),
            env=variables,
            stop_group=0 if name in {"gateway", "simulator"} else 1,
            log_path=logs / f"{name}.log",
            lock_path=logs / f"{name}.lock",
            ready=self.answers,
        )
        super().__init__(spec, folder, tcp("127.0.0.1", port), seed)
        self._address = f"127.0.0.1:{port}"

    async def answers(self) -> bool:
        """Whether it serves, whatever its stores do."""
        from openmanager.api.status.v1 import status_pb2
        from openmanager.errors import OpenManagerError

        path = "/openmanager.api.status.v1.StatusService/GetStatus"
        try:
            async with Peer(self.name, self._address) as peer:
                await peer.unary(path, status_pb2.GetStatusRequest(), status_pb2.GetStatusResponse, seconds=1.0)
        except OpenManagerError:
            return False
        return True

    @contextlib.asynccontextmanager
    async def dies_at(self, place: str) -> AsyncIterator[None]:
        """Let it die when it passes a failpoint, once; it is started again."""
        died = self.folder.with_name(f"{self.name}.died")
        died.unlink(missing_ok=True)
        self.variables[VARIABLE] = f"{place}:{died}"
        try:
            # After a life that is too short it would be started again ever later.
            await asyncio.sleep(BACKOFF_RESET_SECONDS)
            await self.restart()
            end = time.monotonic() + DEATH_SECONDS
            while not died.exists():
                if time.monotonic() > end:
                    raise TimeoutError(f"{self.name} did not pass {place} within {DEATH_SECONDS:.0f} s")
                await asyncio.sleep(0.02)
            yield
        finally:
            self.variables.pop(VARIABLE, None)

    @contextlib.asynccontextmanager
    async def ended(self) -> AsyncIterator[None]:
        """End it as an operator does; it is started again."""
        await self.restart(number=signal.SIGTERM)
        yield


@dataclass(frozen=True)
class World:
    """A running mesh: its parts by name, and a channel to its gateway."""

    folder: Path
    engine: str
    stores: Stores
    services: Mapping[str, Service]
    peer: Peer
    clock: Path

    def part(self, name: str) -> Part:
        """Return a store or a service."""
        return self.stores.parts.get(name) or self.services[name]

    @contextlib.asynccontextmanager
    async def clock_jumped(self, seconds: float) -> AsyncIterator[None]:
        """Put the clock of all services forward, or back."""
        set_clock(self.clock, round(seconds * 1e9))
        try:
            yield
        finally:
            set_clock(self.clock, 0)


@contextlib.asynccontextmanager
async def world(engine: str = "", *, seed: int = 1, small_disks: bool = False) -> AsyncIterator[World]:
    """Run a mesh with the stores that it needs, and an engine beside the blocks where one is named."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="openmanager-world-")))
        size = DISK_BYTES if small_disks else 0
        data = folder / "timeseries"
        data.mkdir()
        if size:
            stack.enter_context(small_disk(data, size))
        clock = folder / "clock"
        set_clock(clock, 0)
        async with stores(folder / "stores", seed, engine=engine, disk_bytes=size) as behind:
            services = _services(folder, data, {**behind.environment, **inside.environment(), CLOCK: str(clock)}, seed)
            async with contextlib.AsyncExitStack() as open_:
                for each in services.values():
                    await open_.enter_async_context(each.proxy)
                children = await open_.enter_async_context(Supervisor([each.spec for each in services.values()]))
                for each in services.values():
                    each.kept_by(children)
                await children.wait_ready()
                address = f"127.0.0.1:{services['gateway'].proxy.port}"
                yield World(
                    folder, engine, behind, services, await open_.enter_async_context(Peer("gateway", address)), clock
                )


def _services(folder: Path, data: Path, environment: Mapping[str, str], seed: int) -> dict[str, Service]:
    own = ("OPENMANAGER_", "REDIS_URL", "DATABASE_URL", "INFLUXDB_", "VICTORIAMETRICS_", "OTEL_")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    base, logs = free_ports(2 * len(suite.NAMES)), folder / "logs"
    listening = {name: base + at for at, name in enumerate(suite.NAMES)}
    doors = {name: base + len(suite.NAMES) + at for at, name in enumerate(suite.NAMES)}
    made = {}
    for name in suite.NAMES:
        variables = {
            **inherited,
            **environment,
            **HURRY,
            **FLEET,
            **{_variable(other): f"127.0.0.1:{port}" for other, port in doors.items()},
            "OPENMANAGER_ALLOW_INSECURE": "1",  # on the loopback
            "OPENMANAGER_SERVER_LISTEN": f"127.0.0.1:{listening[name]}",
            "OPENMANAGER_TIMESERIES_DATA_DIR": str(data),
            "OPENMANAGER_ANALYSIS_DATA_DIR": str(folder / "analysis"),
        }
        made[name] = Service(name, variables, listening[name], data, logs, seed)
        made[name].proxy.port = doors[name]
    return made


def _variable(service: str) -> str:
    return "OPENMANAGER_GATEWAY" if service == "gateway" else f"OPENMANAGER_MESH_{service.upper()}"
