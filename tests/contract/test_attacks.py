"""Attacks, damaged messages and cancelled calls on a mesh of their own, each in small; `make fuzz-wire` does it at length."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest
from conftest import Mesh, child, running_mesh, secret, wait_until

from fuzz import cancellation, mutation
from fuzz.attack import ATTACKS, takes_streams
from fuzz.footprint import footprint, reset_peak
from fuzz.good_client import GoodClient
from openmanager.runtime.peer import Peer

SERVERS = ("gateway", "timeseries", "cache", "metadata", "analysis", "simulator")
TIMEOUTS = {f"OPENMANAGER_SERVER_{name}_TIMEOUT": "500ms" for name in ("READ", "WRITE")}
# How much of each attack; enough to be told from none.
COUNTS = {
    "silent connections": 50,
    "idle connections": 50,
    "open streams": 10_100,
    "rapid reset": 2_000,
    "ping flood": 20_000,
    "settings flood": 2_000,
    "empty data flood": 20_000,
    "continuation flood": 600,
    "header bomb": 3,
    "large metadata": 3,
    "gzip bomb": 256,
    "large messages": 20,
    "slow senders": 20,
    "slow readers": 20,
    "empty messages": 2_000,
    "HTTP/1.1": 3,
    "TLS hello": 3,
    "random bytes": 3,
}


@pytest.fixture(scope="module")
def attacked() -> Iterator[Mesh]:
    """A mesh whose servers soon lose patience."""
    with running_mesh(environment=TIMEOUTS) as running:
        yield running


@pytest.fixture
async def good(attacked: Mesh) -> AsyncIterator[GoodClient]:
    """A client that does no harm, of a mesh that works."""
    async with Peer("gateway", attacked.gateway) as peer:
        client = GoodClient(peer)
        await wait_until(client.works)
        yield client


def pid_of(mesh: Mesh, server: str) -> int:
    return child(mesh, f"serve\0{server}")


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack_ends_as_it_must_and_the_server_lives(attacked: Mesh, good: GoodClient, server: str, name: str):
    pid, address = pid_of(attacked, server), attacked.address(server)
    await wait_until(lambda: takes_streams(address))
    before = footprint(pid)
    reset_peak(pid)
    assert await ATTACKS[name].make(address, COUNTS[name]) in ATTACKS[name].ends
    assert footprint(pid).peak_bytes - before.resident_bytes <= ATTACKS[name].most_bytes
    await wait_until(good.works)
    assert pid_of(attacked, server) == pid


@pytest.mark.parametrize("name", ["rapid reset", "open streams", "large messages"])
async def test_a_good_client_is_answered_beside_an_attack(attacked: Mesh, good: GoodClient, name: str):
    attack = asyncio.create_task(ATTACKS[name].make(attacked.gateway, COUNTS[name]))
    latencies = await good.latencies(1.0)
    assert await attack in ATTACKS[name].ends
    assert np.isfinite(latencies).all()


async def test_damaged_messages_are_refused_without_a_defect(attacked: Mesh, good: GoodClient):
    addresses = {server: attacked.address(server) for server in SERVERS}
    tally = await mutation.run(addresses, ["web-01"], 1000, 1)
    assert tally.codes.total() == 1000
    assert tally.defects == []
    await wait_until(good.works)


async def test_cancelled_calls_leave_no_answer_to_others_and_nothing_behind(attacked: Mesh, good: GoodClient):
    urls = secret(attacked, "cache", "REDIS_URL"), secret(attacked, "metadata", "DATABASE_URL")
    tally = await cancellation.run(attacked.gateway, 300, 1)
    assert tally.cancelled.total() >= 300
    assert tally.answered.total() > 0
    assert tally.foreign == []

    async def nothing_is_left() -> bool:
        found = await cancellation.behind(*urls)
        return found.transactions == 0 and found.redis <= 40 and found.postgresql <= 12

    await wait_until(nothing_is_left)
    await wait_until(good.works)
