"""A mesh in this process of some shards and gateways; metadata and simulator are away."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path

from client.mesh import NOBODY, SECTIONS, serving
from conftest import free_ports, wait_until
from openmanager_analysis.module import module as analysis
from openmanager_cache.module import module as cache
from openmanager_gateway.module import GatewayModule
from openmanager_timeseries.module import module as timeseries

from openmanager import suite
from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.config import load
from openmanager.errors import UnavailableError
from openmanager.runtime.module import Module
from openmanager.runtime.peer import Peer
from openmanager.shard import SHARDED

STATUS = "/openmanager.api.gateway.v1.GatewayService/GetStorageStatus"
MODULES: dict[str, Module] = {
    "timeseries": timeseries,
    "cache": cache,
    "analysis": analysis,
    "gateway": GatewayModule(suite.SERVICES),
}


class ShardedMesh:
    """Where everything is, and how one shard of a service is stopped and started again."""

    def __init__(
        self,
        data: Path,
        count: int,
        gateways: int = 1,
        *,
        patience: str = "0s",
        more: Mapping[tuple[str, str], object] | None = None,
    ) -> None:
        self.data = data
        self.more = more or {}
        self.count = count
        self.patience = patience
        base = free_ports(3 * count + gateways)
        ports = iter(range(base, base + 3 * count + gateways))
        self.addresses = {name: [f"127.0.0.1:{next(ports)}" for _ in range(count)] for name in SHARDED}
        self.addresses["gateway"] = [f"127.0.0.1:{next(ports)}" for _ in range(gateways)]
        self._running: dict[tuple[str, int], contextlib.AsyncExitStack] = {}

    @property
    def gateway(self) -> str:
        return ",".join(self.addresses["gateway"])

    async def start(self, name: str, number: int) -> None:
        """Serve one shard of a service, or one gateway."""
        stack = contextlib.AsyncExitStack()
        await stack.enter_async_context(self._serving(name, number))
        self._running[name, number] = stack

    async def stop(self, name: str, number: int) -> None:
        await self._running.pop((name, number)).aclose()

    @contextlib.asynccontextmanager
    async def _serving(self, name: str, number: int) -> AsyncIterator[None]:
        folder = self.data / str(number)
        flags: dict[tuple[str, str], object] = {
            ("mesh", "shard_count"): self.count,
            ("mesh", "shard_index"): number if name in SHARDED else 0,
            ("timeseries", "data_dir"): folder / "timeseries",
            ("timeseries", "ballast_size"): "1MiB",
            ("analysis", "data_dir"): folder / "analysis",
            ("gateway", "patience"): self.patience,
            **{("mesh", each): ",".join(where) for each, where in self.addresses.items()},
            **{("mesh", each): NOBODY for each in ("simulator", "metadata")},
            **self.more,
        }
        configuration = load(SECTIONS, flags=flags, environ={})
        async with serving(MODULES[name], configuration, name, self.addresses[name][number]):
            yield


async def _is_connected(gateway: str) -> bool:
    """Say whether a gateway answers and has connected to all that is there: channels of one process share their failures."""
    request, away = gateway_pb2.GetStorageStatusRequest(), {"metadata", "simulator"}
    with contextlib.suppress(UnavailableError):
        async with Peer("gateway", gateway) as peer:
            board = await peer.unary(STATUS, request, gateway_pb2.GetStorageStatusResponse, seconds=5)
            return {each.service for each in board.services if each.reason == "cannot be reached"} == away
    return False


@contextlib.asynccontextmanager
async def sharded_mesh(
    data: Path,
    count: int,
    gateways: int = 1,
    *,
    patience: str = "0s",
    more: Mapping[tuple[str, str], object] | None = None,
) -> AsyncIterator[ShardedMesh]:
    """Serve everything; `more` are further settings."""
    mesh = ShardedMesh(data, count, gateways, patience=patience, more=more)
    try:
        for name in (*SHARDED, "gateway"):
            for number in range(len(mesh.addresses[name])):
                await mesh.start(name, number)
        for address in mesh.addresses["gateway"]:
            await wait_until(partial(_is_connected, address), 60)
        yield mesh
    finally:
        for name, number in list(reversed(mesh._running)):
            await mesh.stop(name, number)
