"""A small mesh in this process: timeseries, cache and gateway on ports of their own; metadata and simulator are away."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import numpy as np
from openmanager_cache.module import module as cache
from openmanager_gateway.module import GatewayModule
from openmanager_timeseries.module import module as timeseries

from openmanager import suite
from openmanager.client import Client, Frame, ServerInfo, StorageState
from openmanager.config import Configuration, load
from openmanager.errors import UnavailableError
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.module import Module, Runtime, ServerConfig
from openmanager.runtime.server import Server

NOBODY = "127.0.0.1:1"
SECTIONS = suite.sections()
METRICS = ("cpu_usage", "memory_usage", "disk_usage", "system.cpu.utilization{cpu=0,state=user}")
STEP = 10 * 10**9


class LocalMesh:
    """The addresses of a mesh, and a gateway that can be stopped and started again on its port."""

    def __init__(self, data: Path, settings: Mapping[tuple[str, str], object]) -> None:
        self.data = data
        self.settings = settings
        self.addresses = dict.fromkeys(("gateway", "simulator", "metadata", "analysis", "timeseries", "cache"), NOBODY)
        self._stack = contextlib.AsyncExitStack()
        self._gateway = contextlib.AsyncExitStack()

    @property
    def gateway(self) -> str:
        return self.addresses["gateway"]

    async def start(self, *more: Module) -> None:
        """Serve timeseries, cache, what else is wanted, and the gateway."""
        for module in (timeseries, cache, *more):
            self.addresses[module.name] = await self._stack.enter_async_context(self._serve(module.name, module))
        await self.start_gateway()

    async def start_gateway(self) -> None:
        port = self.gateway.rpartition(":")[2] if self.gateway != NOBODY else "0"
        serving = self._serve("gateway", GatewayModule(suite.SERVICES), port)
        self.addresses["gateway"] = await self._gateway.enter_async_context(serving)

    async def stop_gateway(self) -> None:
        await self._gateway.aclose()

    async def stop(self) -> None:
        await self.stop_gateway()
        await self._stack.aclose()

    @contextlib.asynccontextmanager
    async def _serve(self, name: str, module: Module, port: str = "0") -> AsyncIterator[str]:
        flags = {**self.settings, **{("mesh", peer): address for peer, address in self.addresses.items()}}
        flags |= {("timeseries", "data_dir"): self.data, ("timeseries", "ballast_size"): "1MiB"}
        # Who is away here stays away.
        configuration = load(SECTIONS, flags={**flags, ("gateway", "patience"): "0s"})
        async with serving(module, configuration, name, f"127.0.0.1:{port}") as found:
            yield found


@contextlib.asynccontextmanager
async def serving(
    module: Module, configuration: Configuration, name: str, address: str = "127.0.0.1:0"
) -> AsyncIterator[str]:
    """Serve a module as its program does; yield where."""
    runtime = Runtime(configuration=configuration, name=name, address=address, version="0.1.0")
    async with module.open(runtime) as service:
        config = configuration.section(ServerConfig)
        server = Server(service=service, name=name, address=address, config=config, clock=SystemClock())
        async with server.running():
            yield f"127.0.0.1:{server.port}"


def frame_of(servers: int, ticks: int, *, end: int | None = None) -> Frame:
    """Return `ticks` samples of some servers at multiples of 10 s that end now; server k stands at 10 · k + 5 percent."""
    last = (end or time.time_ns()) // STEP * STEP
    ids = tuple(f"web-{k:02d}" for k in range(servers))
    times = last - STEP * np.arange(ticks - 1, -1, -1, dtype=np.int64)
    values = np.empty((ticks, servers, len(METRICS)))
    values[:] = (10.0 * np.arange(servers) + 5.0)[None, :, None]
    values[:, :, 0] += np.sin(np.arange(ticks) / 9.0)[:, None]
    return Frame(
        times=times,
        servers=ids,
        metrics=METRICS,
        values=values,
        server_infos=tuple(
            ServerInfo(
                id=server,
                hostname=f"{server}.example.net",
                environment="production" if k % 2 == 0 else "staging",
                role="web" if k % 3 else "database",
                labels={"rack": f"r{k}"},
            )
            for k, server in enumerate(ids)
        ),
    )


async def servers_known(client: Client, count: int) -> None:
    """Return when the hot state has so many servers."""
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(UnavailableError):
                if (await client.fleet_summary()).total == count:
                    return
            await asyncio.sleep(0.02)


async def replica_filled(client: Client) -> None:
    """Return when the gateway answers hot reads from its own replica."""
    async with asyncio.timeout(10):
        while (await client.storage_status()).services[0].state is StorageState.RECOVERING:
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def local_mesh(data: Path, settings: Mapping[tuple[str, str], object] | None = None) -> AsyncIterator[LocalMesh]:
    mesh = LocalMesh(data, settings or {})
    try:
        await mesh.start()
        yield mesh
    finally:
        await mesh.stop()


async def _run() -> None:
    """Serve a mesh with ten servers' last hour until standard input ends."""
    suite.load_protos()
    with tempfile.TemporaryDirectory(prefix="openmanager-test-") as data:
        async with local_mesh(Path(data)) as mesh:
            async with Client(mesh.gateway) as client:
                await client.write_frame(frame_of(10, 360))
                await servers_known(client, 10)
                await replica_filled(client)
            print(mesh.gateway, flush=True)  # noqa: T201  (what whoever started it waits for)
            await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_run())
