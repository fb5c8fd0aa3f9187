"""Watches that outlive their connection."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

import numpy as np
import pytest

from client.mesh import METRICS, NOBODY, STEP, LocalMesh, frame_of, servers_known
from openmanager.client import Client, Server, WatchKind
from openmanager.errors import OpenManagerError, OutOfRangeError, UnavailableError


def frame_at(tick: int, servers: int = 2):
    return frame_of(servers, 1, end=time.time_ns() // STEP * STEP - (100 - tick) * STEP)


async def test_a_watch_begins_with_the_servers_as_they_are(client: Client):
    await client.write_frame(frame_of(3, 4))
    await servers_known(client, 3)
    known: dict[str, Server] = {}
    async with asyncio.timeout(10), aclosing(client.watch_servers(full=True)) as events:
        async for event in events:
            event.apply(known)
            if event.kind is WatchKind.SNAPSHOT:
                break
            assert event.reset
    assert sorted(known) == ["web-00", "web-01", "web-02"]
    assert all(server.metrics == METRICS for server in known.values())
    assert known["web-02"].values[1] == 25.0


async def test_a_watch_goes_on_with_every_change(client: Client):
    await client.write_frame(frame_at(1))
    await servers_known(client, 2)
    known: dict[str, Server] = {}
    async with asyncio.timeout(10), aclosing(client.watch_servers("id = web-01", full=True)) as events:
        async for event in events:
            event.apply(known)
            if event.kind is WatchKind.SNAPSHOT:
                await client.write(
                    times=[time.time_ns() // STEP * STEP],
                    servers=["web-01"],
                    metrics=METRICS,
                    values=np.ones((1, 1, 4)),
                )
            elif event.kind is WatchKind.DELTA and known["web-01"].cpu_usage == 1.0:
                break
    assert list(known) == ["web-01"]
    assert known["web-01"].metrics == METRICS


async def test_a_watch_that_is_cut_resumes_without_beginning_anew(client: Client, road):
    await client.write_frame(frame_at(1))
    await servers_known(client, 2)
    away: list[OpenManagerError] = []
    resets, known = 0, {}
    async with (
        asyncio.timeout(15),
        Client(road.address) as watcher,
        aclosing(watcher.watch_servers(full=True, on_away=away.append)) as events,
    ):
        async for event in events:
            event.apply(known)
            resets += event.reset
            if event.kind is WatchKind.SNAPSHOT:
                road.cut()
                await client.write_frame(frame_at(2, servers=3))
            if len(known) == 3:
                break
    assert resets == 1
    assert len(away) >= 1
    assert isinstance(away[0], UnavailableError)
    assert known["web-02"].metrics == METRICS


async def test_a_watch_of_a_gateway_that_was_replaced_begins_anew_and_says_so(client: Client, local: LocalMesh):
    await client.write_frame(frame_at(1))
    await servers_known(client, 2)
    kinds, resets = [], []
    async with asyncio.timeout(20), aclosing(client.watch_servers()) as events:
        async for event in events:
            kinds.append(event.kind)
            resets.append(event.reset)
            if kinds.count(WatchKind.SNAPSHOT) == 2:
                break
            if event.kind is WatchKind.SNAPSHOT:
                await local.stop_gateway()
                await local.start_gateway()
    assert sum(resets) == 2
    assert kinds[-2:] == [WatchKind.CREATED, WatchKind.SNAPSHOT]
    assert resets[-2:] == [True, False]


async def test_a_token_from_another_time_begins_anew(client: Client):
    await client.write_frame(frame_at(1))
    await servers_known(client, 2)
    async with asyncio.timeout(10), aclosing(client.watch_servers(resume_token="0badcafe-7")) as events:
        first = await anext(events)
        second = await anext(events)
    assert (first.kind, first.reset) == (WatchKind.CREATED, True)
    assert (second.kind, len(second.servers)) == (WatchKind.SNAPSHOT, 2)


async def test_a_watch_that_never_began_fails_at_once():
    async with Client(NOBODY) as client:
        with pytest.raises(UnavailableError):
            await anext(client.watch_servers())


async def test_the_log_is_watched_across_a_cut_without_loss_or_repetition(client: Client, road):
    await client.write_frame(frame_at(1))
    seen = []
    async with (
        asyncio.timeout(15),
        Client(road.address) as watcher,
        aclosing(watcher.watch_frames(from_position=1)) as records,
    ):
        async for record in records:
            seen.append((record.position, record.frame.servers, record.receive_time is not None))
            if record.position == 6:
                break
            if record.position in {2, 4}:
                road.cut()
            await client.write_frame(frame_at(1 + record.position))
    assert seen == [(position, ("web-00", "web-01"), True) for position in range(1, 7)]


async def test_a_position_that_does_not_exist_ends_a_watch_of_the_log(client: Client):
    with pytest.raises(OutOfRangeError):
        async with asyncio.timeout(10):
            await anext(client.watch_frames(from_position=1000))


async def test_the_status_is_watched_and_tells_of_what_comes_back(client: Client, road):
    async with (
        asyncio.timeout(15),
        Client(road.address) as watcher,
        aclosing(watcher.watch_storage_status()) as boards,
    ):
        first = await anext(boards)
        road.cut()
        second = await anext(boards)
    assert [service.service for service in first.services] == [service.service for service in second.services]
