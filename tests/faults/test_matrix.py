"""The fault matrix: every row of `matrix.yaml` on a whole mesh, whose stores stand behind proxies."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import yaml
from conftest import free_ports, wait_until

from chaos.load import GATEWAY
from chaos.mesh import Mesh, family, signalled
from chaos.proxy import Trouble, Way
from chaos.stores import Stores, stores
from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.metadata.v1 import metadata_pb2
from openmanager.api.status.v1 import status_pb2
from openmanager.errors import OpenManagerError
from openmanager.frame import Frame, encode_write_request
from openmanager.runtime.peer import Peer

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROWS = yaml.safe_load(Path(__file__).with_name("matrix.yaml").read_text(encoding="utf-8"))
SERVER = "web-onpremise-01"
INVENTORY = "/openmanager.api.metadata.v1.ServerService"
# A fault is held for so long after it was seen.
HELD_SECONDS = 0.5
# What the promises are multiplied by: the machine may have other work.
PATIENCE = 2.0


@dataclass(frozen=True)
class Broken:
    """A mesh on stores behind proxies, and a channel to its gateway."""

    behind: Stores
    peer: Peer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def broken() -> AsyncIterator[Broken]:
    with tempfile.TemporaryDirectory(prefix="openmanager-test-") as folder:
        async with stores(Path(folder) / "stores", 1) as behind:
            mesh = Mesh.start(Path(folder) / "data", free_ports(), Path(folder) / "screen", behind.environment)
            try:
                async with Peer("gateway", mesh.gateway) as peer:
                    yield Broken(behind, peer)
            finally:
                await asyncio.to_thread(mesh.end)


async def state_of(peer: Peer, store: str) -> str:
    """Return the state of a store as the gateway tells it."""
    request = gateway_pb2.GetStorageStatusRequest()
    reply = await peer.unary(f"{GATEWAY}/GetStorageStatus", request, gateway_pb2.GetStorageStatusResponse, seconds=3)
    for service in reply.services:
        for each in service.storages:
            if each.name == store:
                return status_pb2.StorageState.Name(each.state).removeprefix("STORAGE_STATE_")
    return ""


async def is_whole(peer: Peer, store: str) -> bool:
    try:
        hot = await peer.unary(
            f"{GATEWAY}/GetServer",
            gateway_pb2.GetServerRequest(id=SERVER),
            gateway_pb2.GetServerResponse,
            seconds=1,
        )
        inventory = await peer.unary(
            f"{INVENTORY}/GetServer",
            metadata_pb2.GetServerRequest(id=SERVER),
            metadata_pb2.GetServerResponse,
            seconds=1,
        )
        first_choice = not hot.provenance.degraded and inventory.provenance.source == "postgresql"
        return first_choice and await state_of(peer, store) == "OK"
    except OpenManagerError:
        return False


class Watch:
    """Reads and writes all the while, and remembers how long each took and what failed."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.reads: list[float] = []
        self.writes: list[float] = []
        self.failures: list[str] = []

    async def run(self) -> None:
        while True:
            for path, request, reply, found in (
                ("GetServer", gateway_pb2.GetServerRequest(id=SERVER), gateway_pb2.GetServerResponse, self.reads),
                ("WriteFrame", _frame(), gateway_pb2.WriteFrameResponse, self.writes),
            ):
                start = time.monotonic()
                try:
                    await self._peer.unary(f"{GATEWAY}/{path}", request, reply, seconds=2)
                except OpenManagerError as err:
                    self.failures.append(f"{path}: {err.message}")
                found.append(time.monotonic() - start)
            await asyncio.sleep(0.02)


def _frame() -> bytes:
    times = np.array([time.time_ns() // 1_000_000 * 1_000_000])
    return encode_write_request(Frame(times=times, servers=("watch",), metrics=("x",), values=np.ones((1, 1, 1))))


@contextlib.asynccontextmanager
async def in_trouble(behind: Stores, row: dict[str, Any]) -> AsyncIterator[None]:
    """Let happen to a store what a row of the matrix says."""
    proxy = behind.proxies[row["store"]]
    if trouble := dict(row.get("trouble", {})):
        trouble["silent"] = frozenset(map(Way, trouble.get("silent", ())))
        async with proxy.while_(Trouble(**trouble)):
            yield
    elif row.get("process") == "stop":
        pids = family(behind.pid(row["store"]) or 0)
        signalled(pids, signal.SIGSTOP)
        try:
            yield
        finally:
            signalled(pids, signal.SIGCONT)
    else:
        if row.get("process") == "kill":
            signalled([behind.pid(row["store"]) or 0], signal.SIGKILL)
        elif "flap" in row:
            await proxy.flap(**row["flap"])
        else:
            await behind.empty_redis()
        yield


@pytest.mark.timeout(180)
@pytest.mark.parametrize("row", ROWS, ids=[f"{row['store']} {row['fault']}" for row in ROWS])
async def test_a_store_in_trouble_is_seen_costs_no_answer_and_is_back(broken: Broken, row: dict[str, Any]):
    store, peer = row["store"], broken.peer
    await wait_until(lambda: is_whole(peer, store), 40)
    watch = Watch(peer)
    watching = asyncio.create_task(watch.run())

    async def is_seen() -> bool:
        return await state_of(peer, store) in row["states"]

    async with in_trouble(broken.behind, row):
        await wait_until(is_seen, row["detected"] * PATIENCE)
        await asyncio.sleep(HELD_SECONDS)
    await wait_until(lambda: is_whole(peer, store), row["recovered"] * PATIENCE)
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    assert watch.failures == []
    assert np.percentile(watch.reads, 99) <= 0.3 * PATIENCE
    assert np.percentile(watch.writes, 99) <= 0.3 * PATIENCE
