"""What any store of hot state does: in this process, on one Redis, behind Sentinels, and in a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio
from conftest import wait_until
from openmanager_cache.backends import EPOCH, KeyValueStore
from openmanager_cache.backends.memory import MemoryStore
from openmanager_cache.backends.redis import REFUSED, RedisStore, open_redis

from chaos import valkeys
from openmanager.api.status.v1 import status_pb2
from openmanager.config import Secret
from openmanager.runtime.clock import SystemClock

pytestmark = pytest.mark.asyncio(loop_scope="module")

MINUTE = timedelta(minutes=1)
SERVERS = {"Redis": valkeys.server, "Sentinel": valkeys.sentinels, "cluster": valkeys.cluster}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["memory", *SERVERS])
async def url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """What REDIS_URL says; empty for a store in this process."""
    if request.param == "memory":
        yield ""
        return
    async with SERVERS[request.param]() as running:
        yield running.url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(url: str) -> AsyncIterator[KeyValueStore]:
    opened = of(url) if url else MemoryStore(SystemClock(), 64 << 20)
    yield opened
    await opened.close()


def of(url: str) -> RedisStore:
    return open_redis(Secret(url), prefix="t:", seconds=10, connect_seconds=10, connections=16, clock=SystemClock())


async def test_what_is_written_is_read_in_the_order_asked_for(store: KeyValueStore):
    values = {f"order:{number}": b"%d" % number for number in range(300)}
    await store.set_many({key: (value, MINUTE) for key, value in values.items()})
    asked = [*reversed(values), "order:none"]
    assert await store.get_many(asked) == [*reversed(values.values()), None]


async def test_nothing_asked_for_is_nothing(store: KeyValueStore):
    assert await store.get_many([]) == []


async def test_bytes_of_any_kind_come_back(store: KeyValueStore):
    values = {"empty": b"", "zero \n\r\0 {é}": bytes(range(256)), "large": b"x" * (1 << 20)}
    await store.set_many({key: (value, None) for key, value in values.items()})
    assert await store.get_many(list(values)) == list(values.values())


async def test_a_value_ends_with_its_time(store: KeyValueStore):
    await store.set_many({"short": (b"1", timedelta(milliseconds=1)), "long": (b"2", MINUTE), "ever": (b"3", None)})

    async def is_gone() -> bool:
        return await store.get_many(["short"]) == [None]

    await wait_until(is_gone)
    assert await store.get_many(["long", "ever"]) == [b"2", b"3"]


async def test_the_last_of_two_values_of_a_name_stays(store: KeyValueStore):
    await store.set_many({"twice": (b"1", None)})
    await store.set_many({"twice": (b"2", MINUTE)})
    assert await store.get_many(["twice", "twice"]) == [b"2", b"2"]


async def test_a_deletion_says_whether_there_was_something(store: KeyValueStore):
    await store.set_many({"deleted": (b"1", MINUTE)})
    assert [await store.delete("deleted"), await store.delete("deleted")] == [True, False]
    assert await store.get_many(["deleted"]) == [None]


async def test_many_callers_at_once_get_their_own_answers(store: KeyValueStore):
    async def write_and_read(number: int) -> None:
        await store.set_many({f"many:{number}": (b"%d" % number, MINUTE)})
        assert await store.get_many([f"many:{number}"]) == [b"%d" % number]

    async with asyncio.TaskGroup() as group:
        for number in range(16):
            group.create_task(write_and_read(number))


async def test_epochs_are_keys_like_others(store: KeyValueStore):
    epochs = await store.epochs()
    assert epochs
    assert all(key.startswith(EPOCH) for key in epochs)
    await store.set_many(dict.fromkeys(epochs, (b"1", None)))
    assert await store.get_many(epochs) == [b"1"] * len(epochs)


async def test_a_probe_finds_it_well_and_counts(store: KeyValueStore):
    await store.set_many({f"counted:{number}": (b"x", MINUTE) for number in range(50)})
    found = await store.look()
    assert found.state == status_pb2.STORAGE_STATE_OK
    assert found.item_count >= 50
    assert found.size_bytes > 0


async def test_a_probe_leaves_nothing(store: KeyValueStore):
    before = (await store.look()).item_count
    assert (await store.look()).item_count <= before


async def test_what_is_wrong_with_a_url_is_told_by_who_is_asked(url: str):
    if not url:
        pytest.skip("a store in this process has no URL")
    mistakes = {url.replace(valkeys.PASSWORD, "wrong"): REFUSED}
    if "sentinel" in url:
        mistakes[url.replace(f"/{valkeys.MASTER}?", "/other?")] = "Sentinel knows no master"
    elif "cluster" not in url:
        mistakes[url.replace("redis://", "redis+cluster://")] = "is no cluster"
    for mistaken, reason in mistakes.items():
        opened = of(mistaken)
        try:
            found = await opened.look()
        finally:
            await opened.close()
        assert (found.state, found.reason) == (status_pb2.STORAGE_STATE_DOWN, reason)
