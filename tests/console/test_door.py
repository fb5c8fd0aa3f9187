"""Connections that let the console wait, and more of them than there is room for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from openmanager_console import door
from openmanager_console.door import Door

from console.served import Console, serving

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    for name in ("HEAD_SECONDS", "IDLE_SECONDS", "WRITE_SECONDS"):
        monkeypatch.setattr(door, name, 0.3)
    monkeypatch.setattr(door, "LOOK_SECONDS", 0.05)


@contextlib.asynccontextmanager
async def connected(console: Console) -> AsyncIterator[Streams]:
    host, _, port = console.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """Return what comes until the connection ends."""
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionError:
        return b""


async def test_a_head_that_comes_a_byte_at_a_time_is_not_waited_for(lonely: Console):
    async with connected(lonely) as (reader, writer):

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                for each in HEALTH * 100:
                    writer.write(bytes([each]))
                    await writer.drain()
                    await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        assert await ended(reader) == b""
        dripping.cancel()


async def test_a_connection_that_says_nothing_ends(lonely: Console):
    async with connected(lonely) as (reader, _):
        assert await ended(reader) == b""


async def test_a_connection_is_used_again_and_ends_when_it_is_not(lonely: Console):
    async with connected(lonely) as (reader, writer):
        for _ in range(3):
            writer.write(HEALTH)
            assert (await reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200")
        assert await ended(reader) == b""


async def test_a_body_that_does_not_come_is_not_waited_for(lonely: Console, monkeypatch):
    monkeypatch.setattr("openmanager_console.wire.BODY_SECONDS", 0.3)
    head = b"POST /v1/metrics HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    async with connected(lonely) as (reader, writer):
        writer.write(head)
        assert (await reader.readline()).split()[1] == b"504"


async def test_who_does_not_read_is_let_go(lonely: Console):
    async with connected(lonely) as (_, writer):
        # As many answers as no socket takes.
        ask = b"GET /vendor/uplot/uPlot.esm.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(20):
                while True:
                    writer.write(ask * 50)
                    await writer.drain()
                    await asyncio.sleep(0.02)


async def test_a_page_that_does_not_read_does_not_stay(local, monkeypatch):
    """Its events wait in no queue, and its connection ends."""
    monkeypatch.setattr("openmanager_console.service.PACE_SECONDS", 0.0)
    monkeypatch.setattr("openmanager_console.service.HEARTBEAT_SECONDS", 0.0)
    monkeypatch.setattr("openmanager_console.service.event", lambda *_: b":" * 65536 + b"\n\n")
    async with serving(local.gateway) as made, connected(made) as (reader, writer):
        writer.write(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readline()
        async with asyncio.timeout(20):
            while b"openmanager_console_pages 1.0" in (await made.ask("GET", "/metrics"))[1]:
                await asyncio.sleep(0.05)


async def test_where_there_is_no_room_the_longest_idle_goes(monkeypatch):
    monkeypatch.setattr(door, "IDLE_SECONDS", 60.0)
    async with serving(max_connections=3) as made, contextlib.AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(connected(made)) for _ in range(3)]
        async with connected(made) as (reader, writer):
            writer.write(HEALTH)
            assert (await reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200")
            assert await ended(idle[0][0]) == b""
            idle[2][1].write(HEALTH)
            assert (await idle[2][0].readline()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "text",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: x\r\n" % at for at in range(1000)) + b"\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /v1/metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: upgrade\r\nOrigin: http://evil.example\r\n\r\n",
        bytes(range(256)) * 8,
    ],
)
async def test_what_is_no_request_of_ours_is_refused_and_others_are_served(lonely: Console, text):
    async with connected(lonely) as (reader, writer):
        with contextlib.suppress(ConnectionError):
            writer.write(text)
            await writer.drain()
        found = await ended(reader)
    assert not found or found.split()[1][:1] == b"4"
    assert b"Traceback" not in found
    assert (await lonely.ask("GET", "/healthz"))[:2] == (200, b"ok\n")


async def test_a_head_of_any_length_does_not_fill_memory():
    class Transport(asyncio.Transport):
        aborted = False

        def abort(self) -> None:
            self.aborted = True

    transport = Transport()
    connection = Door(asyncio.Protocol, most=1)()
    connection.connection_made(transport)
    for _ in range(20):
        connection.data_received(bytes(64 * 1024))
    assert transport.aborted
