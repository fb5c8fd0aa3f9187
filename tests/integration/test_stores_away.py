"""Stores and services that go away: answers go on, say so, and are whole again afterwards."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from conftest import Mesh, child, free_ports, secret, start_mesh, wait_until
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from openmanager.api.cache.v1 import cache_pb2
from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.metadata.v1 import metadata_pb2
from openmanager.api.server.v1 import server_pb2
from openmanager.api.simulator.v1 import simulator_pb2
from openmanager.api.status.v1 import status_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.errors import OpenManagerError, UnavailableError
from openmanager.runtime.peer import Peer

GATEWAY = "/openmanager.api.gateway.v1.GatewayService"
INVENTORY = "/openmanager.api.metadata.v1.ServerService"
FAULTS = "/openmanager.api.simulator.v1.FaultService"
POLICIES = "/openmanager.api.metadata.v1.PolicyService"
SERVER = "web-onpremise-01"


@pytest.fixture(scope="module")
def fragile() -> Iterator[Mesh]:
    """A mesh whose parts are stopped and killed, one after the other."""
    with tempfile.TemporaryDirectory(prefix="openmanager-test-") as folder:
        mesh = start_mesh(Path(folder) / "data", free_ports(), "--servers", "3", "--interval", "500ms")
        yield mesh
        mesh.stop()


@pytest.fixture
async def peer(fragile: Mesh) -> AsyncIterator[Peer]:
    async with Peer("gateway", fragile.gateway) as made:
        yield made


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Stop processes, and let them go on."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def family(pid: int) -> list[int]:
    """Return a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


async def read(peer: Peer) -> gateway_pb2.GetServerResponse:
    request = gateway_pb2.GetServerRequest(id=SERVER)
    return await peer.unary(f"{GATEWAY}/GetServer", request, gateway_pb2.GetServerResponse, seconds=2)


async def storage(peer: Peer, name: str) -> status_pb2.StorageStatus:
    request = gateway_pb2.GetStorageStatusRequest()
    reply = await peer.unary(f"{GATEWAY}/GetStorageStatus", request, gateway_pb2.GetStorageStatusResponse, seconds=3)
    for service in reply.services:
        for each in service.storages:
            if each.name == name:
                return each
    return status_pb2.StorageStatus()


async def is_whole(peer: Peer) -> bool:
    try:
        answer = await read(peer)
    except OpenManagerError:
        return False
    return not answer.provenance.degraded and answer.provenance.source == "replica"


@pytest.mark.timeout(90)
async def test_a_redis_that_hangs_or_dies_costs_a_mark_and_nothing_else(fragile: Mesh, peer: Peer):
    await wait_until(lambda: is_whole(peer), 20)
    before = (await read(peer)).server.sample_time.ToNanoseconds()

    async def is_hung() -> bool:
        return (await storage(peer, "redis")).state == status_pb2.STORAGE_STATE_HUNG

    async def is_marked() -> bool:
        provenance = (await read(peer)).provenance
        return provenance.degraded and "Redis" in provenance.reason

    with stopped(child(fragile, "valkey-server")):
        await wait_until(is_hung, 10)
        await wait_until(is_marked, 10)
        assert (await read(peer)).server.sample_time.ToNanoseconds() > before
    await wait_until(lambda: is_whole(peer), 20)
    os.kill(child(fragile, "valkey-server"), signal.SIGKILL)
    await read(peer)
    await wait_until(lambda: is_whole(peer), 20)


async def test_redis_holds_the_keys_that_are_promised(fragile: Mesh, peer: Peer):
    async def answers() -> bool:
        return (await storage(peer, "redis")).state == status_pb2.STORAGE_STATE_OK

    await wait_until(answers, 20)
    async with Redis.from_url(secret(fragile, "cache", "REDIS_URL")) as redis:

        async def is_filled() -> bool:
            try:
                return bool(await redis.exists("om:servers:all", "om:epoch") == 2)
            except RedisConnectionError:  # one that was killed just now is not yet back
                return False

        await wait_until(is_filled, 20)
        assert int(await redis.get("om:servers:count")) == 3
        assert 0 <= int(await redis.get("om:servers:healthy")) <= 3
        listing = cache_pb2.ListServersResponse.FromString(await redis.get("om:servers:all"))
        assert len(listing.servers) == 3
        stored = cache_pb2.GetServerResponse.FromString(await redis.get(f"om:server:{SERVER}")).server
        assert (stored.id, len(stored.values)) == (SERVER, 511)
        names = server_pb2.Server.FromString(await redis.get(f"om:metrics:{stored.metric_set}")).metrics
        assert len(names) == 511
        for key, seconds in (
            ("servers:all", 60),
            ("servers:count", 300),
            ("servers:healthy", 60),
            (f"server:{SERVER}", 300),
        ):
            assert 0 < await redis.ttl(f"om:{key}") <= seconds
        assert await redis.ttl("om:epoch") == -1
        await redis.flushall()
        await wait_until(is_filled, 20)


@pytest.mark.timeout(90)
async def test_an_inventory_without_postgresql_is_read_from_its_copy_and_not_written(fragile: Mesh, peer: Peer):
    request = metadata_pb2.GetServerRequest(id=SERVER)

    async def inventory() -> metadata_pb2.GetServerResponse:
        return await peer.unary(f"{INVENTORY}/GetServer", request, metadata_pb2.GetServerResponse, seconds=5)

    async def source_is(name: str) -> bool:
        try:
            return (await inventory()).provenance.source == name
        except OpenManagerError:
            return False

    await wait_until(lambda: is_whole(peer), 20)
    await wait_until(lambda: source_is("postgresql"), 20)
    with stopped(*family(child(fragile, "bin/postgres"))):
        await wait_until(lambda: source_is("snapshot"), 20)
        answer = await inventory()
        assert (answer.server.id, answer.provenance.degraded) == (SERVER, True)
        create = metadata_pb2.CreateServerRequest(server=metadata_pb2.Server(id="new"))
        with pytest.raises(UnavailableError) as failure:
            await peer.unary(f"{INVENTORY}/CreateServer", create, metadata_pb2.CreateServerResponse, seconds=5)
        assert failure.value.retry_after is not None
        await wait_until(lambda: is_whole(peer), 20)
    await wait_until(lambda: source_is("postgresql"), 20)
    os.kill(child(fragile, "bin/postgres"), signal.SIGKILL)
    assert (await inventory()).server.id == SERVER
    await wait_until(lambda: source_is("postgresql"), 30)


@pytest.mark.timeout(90)
async def test_without_the_cache_the_gateway_answers_from_the_head(fragile: Mesh, peer: Peer):
    await wait_until(lambda: is_whole(peer), 30)

    async def is_from_head() -> bool:
        provenance = (await read(peer)).provenance
        return provenance.degraded and provenance.source == "head"

    cache = child(fragile, "cache")
    os.kill(cache, signal.SIGKILL)
    with contextlib.ExitStack() as stack:
        # Its successor is stopped as soon as it is there, so that the cache stays away.
        async def is_back() -> bool:
            with contextlib.suppress(BaseException):
                successor = child(fragile, "cache")
                if successor != cache:
                    stack.enter_context(stopped(successor))
                    return True
            return False

        await wait_until(is_back, 20)
        await wait_until(is_from_head, 20)
        first = (await read(peer)).server
        assert (first.id, len(first.values)) == (SERVER, 511)

        async def is_newer() -> bool:
            return (await read(peer)).server.sample_time.ToNanoseconds() > first.sample_time.ToNanoseconds()

        await wait_until(is_newer, 20)
    await wait_until(lambda: is_whole(peer), 30)


async def waits(peer: Peer) -> bool:
    path = "/openmanager.api.simulator.v1.SimulatorService/GetSimulation"
    request = simulator_pb2.GetSimulationRequest()
    reply = await peer.unary(path, request, simulator_pb2.GetSimulationResponse, seconds=5)
    return reply.simulation.buffered_frame_count >= 3


@pytest.mark.timeout(90)
async def test_the_simulator_buffers_while_the_mesh_is_away_and_leaves_no_gap(fragile: Mesh, peer: Peer):
    request = timeseries_pb2.QueryRangeRequest()
    request.selector.servers.append(SERVER)
    request.selector.metrics.append("cpu_usage")
    request.start_time.GetCurrentTime()
    with stopped(child(fragile, "timeseries")):
        await wait_until(lambda: waits(peer), 20)
    await wait_until(lambda: is_whole(peer), 30)

    async def has_no_gap() -> bool:
        times: list[int] = []
        path = "/openmanager.api.timeseries.v1.TimeseriesService/QueryRange"
        async for data in peer.server_stream(path, request, seconds=5):
            times += timeseries_pb2.QueryRangeResponse.FromString(data).series.time_unix_nanos
        return len(times) > 10 and all(b - a == 500_000_000 for a, b in itertools.pairwise(times))

    await wait_until(has_no_gap, 20)


@pytest.mark.timeout(90)
async def test_an_injection_that_is_repeated_after_a_restart_is_the_same(fragile: Mesh, peer: Peer):
    request = simulator_pb2.InjectFaultRequest(request_id="once")
    request.fault.pattern = simulator_pb2.FAULT_PATTERN_CPU_SPIKE
    request.fault.servers.append(SERVER)

    async def inject() -> simulator_pb2.Fault:
        reply = simulator_pb2.InjectFaultResponse
        return (await peer.unary(f"{FAULTS}/InjectFault", request, reply, seconds=5)).fault

    made = await inject()

    async def is_recorded() -> bool:
        asked = metadata_pb2.GetPolicyRequest(kind="fault", id=made.id)
        with contextlib.suppress(OpenManagerError):
            await peer.unary(f"{POLICIES}/GetPolicy", asked, metadata_pb2.GetPolicyResponse, seconds=5)
            return True
        return False

    await wait_until(is_recorded, 20)
    os.kill(child(fragile, "simulator"), signal.SIGKILL)

    async def is_known() -> bool:
        with contextlib.suppress(OpenManagerError):
            listing = simulator_pb2.ListFaultsRequest(active_only=True, page_size=1000)
            reply = await peer.unary(f"{FAULTS}/ListFaults", listing, simulator_pb2.ListFaultsResponse, seconds=5)
            return made.id in {fault.id for fault in reply.faults}
        return False

    await wait_until(is_known, 30)
    assert await inject() == made
