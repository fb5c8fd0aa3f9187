"""The inventory, the simulation and its faults through the client, on a whole mesh."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from conftest import wait_until

from openmanager.client import Client, FaultPattern, InventoryServer, StorageState, Thresholds
from openmanager.errors import (
    AbortedError,
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)


@pytest.fixture
async def whole(mesh) -> AsyncIterator[Client]:
    """A client of a whole mesh whose simulation ticks."""
    async with Client(mesh.gateway) as client:
        await client.simulation.start()
        yield client
        await client.simulation.start()


def fresh_id() -> str:
    return f"made-{secrets.token_hex(4)}"


async def test_a_server_of_the_inventory_is_created_read_changed_and_deleted(whole: Client):
    wanted = InventoryServer(
        id=fresh_id(), role="web", environment="test", labels={"rack": "r1"}, thresholds=Thresholds(cpu_warning=60.0)
    )
    made = await whole.inventory.create(wanted)
    assert (made.id, made.hostname, made.role, made.labels) == (wanted.id, wanted.id, "web", {"rack": "r1"})
    assert made.thresholds == Thresholds(cpu_warning=60.0)
    assert made.create_time is not None
    assert await whole.inventory.get(wanted.id) == made

    changed = await whole.inventory.update(wanted.id, role="cache", labels={}, etag=made.etag)
    assert (changed.role, changed.environment, changed.labels) == ("cache", "test", {})
    with pytest.raises(AbortedError):
        await whole.inventory.update(wanted.id, role="db", etag=made.etag)

    await whole.inventory.delete(wanted.id)
    with pytest.raises(NotFoundError):
        await whole.inventory.get(wanted.id)
    hidden = [server async for server in whole.inventory.list(f"id = {wanted.id}", show_deleted=True)]
    assert [server.delete_time is not None for server in hidden] == [True]
    await whole.inventory.delete(wanted.id, purge=True)


async def test_creating_twice_is_an_error_unless_it_is_the_same_request(whole: Client):
    wanted, request_id = InventoryServer(id=fresh_id()), secrets.token_hex(8)
    made = await whole.inventory.create(wanted, request_id=request_id)
    assert await whole.inventory.create(wanted, request_id=request_id) == made
    with pytest.raises(AlreadyExistsError):
        await whole.inventory.create(wanted)
    await whole.inventory.delete(wanted.id, purge=True)


async def test_several_servers_are_read_at_once_and_the_missing_are_named(whole: Client):
    simulated = [server.id async for server in whole.list_servers(limit=2)]

    async def registered() -> bool:
        return not (await whole.inventory.batch_get(simulated))[1]

    await wait_until(registered)
    found, missing = await whole.inventory.batch_get([simulated[1], "nobody-1", simulated[0]])
    assert [server.id for server in found] == [simulated[1], simulated[0]]
    assert missing == ("nobody-1",)


async def test_the_simulation_stops_advances_and_starts(whole: Client):
    with pytest.raises(FailedPreconditionError) as caught:
        await whole.simulation.advance(1)
    assert caught.value.reason == "SIMULATION_RUNNING"
    stopped = await whole.simulation.stop()
    assert not stopped.running
    advanced = await whole.simulation.advance(5)
    assert advanced.tick_count == stopped.tick_count + 5
    assert advanced.acknowledged_sample_count >= stopped.acknowledged_sample_count + 5 * 3 * advanced.metric_count
    started = await whole.simulation.start(interval=stopped.interval, seed=stopped.seed)
    assert started.running
    assert (await whole.simulation.get()).server_count == 3


async def test_the_catalogue_of_metrics_is_listed(whole: Client):
    metrics = [metric async for metric in whole.simulation.list_metrics()]
    assert len(metrics) == (await whole.simulation.get()).metric_count
    assert (metrics[0].key, metrics[0].unit, metrics[0].minimum, metrics[0].maximum) == ("cpu_usage", "%", 0.0, 100.0)


async def test_a_fault_is_injected_listed_and_cleared(whole: Client):
    server = [server.id async for server in whole.list_servers(limit=1)]
    end = datetime.now(UTC) + timedelta(minutes=30)
    fault = await whole.faults.inject(FaultPattern.MEMORY_LEAK, server, end=end, severity=0.5)
    assert (fault.pattern, list(fault.servers), fault.severity) == (FaultPattern.MEMORY_LEAK, server, 0.5)
    assert fault.end_time is not None
    assert abs(fault.end_time - end) < timedelta(seconds=2)
    assert fault.id in [each.id async for each in whole.faults.list(active_only=True)]
    assert (await whole.faults.clear(fault.id)).end_time < end
    assert fault.id not in [each.id async for each in whole.faults.list(active_only=True)]
    with pytest.raises(FailedPreconditionError) as caught:
        await whole.faults.clear(fault.id)
    assert caught.value.reason == "FAULT_ENDED"
    with pytest.raises(InvalidArgumentError, match="not in the simulated fleet"):
        await whole.faults.inject(FaultPattern.CPU_SPIKE, ["nobody-1"])


async def test_a_whole_mesh_is_well(whole: Client):
    async with asyncio.timeout(20):
        async for board in whole.watch_storage_status():
            if board.overall_state in {StorageState.OK, StorageState.SLOW}:
                break
    assert {service.service for service in board.services} == {
        "gateway",
        "timeseries",
        "cache",
        "metadata",
        "analysis",
        "simulator",
    }
    assert board.ledger is not None
    assert board.ledger.balanced
