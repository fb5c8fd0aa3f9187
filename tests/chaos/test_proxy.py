"""The proxy does what it is set to, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from chaos.proxy import NONE, ChaosProxy, Trouble, Way, tcp


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[ChaosProxy]:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, ChaosProxy(tcp("127.0.0.1", server.sockets[0].getsockname()[1])) as made:
        yield made


class Link:
    """A connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, data: bytes, seconds: float = 5.0) -> bytes:
        self.writer.write(data)
        async with asyncio.timeout(seconds):
            return await self.reader.readexactly(len(data))


@contextlib.asynccontextmanager
async def linked(proxy: ChaosProxy) -> AsyncIterator[Link]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield Link(reader, writer)
    finally:
        writer.transport.abort()


async def test_without_trouble_everything_passes(proxy: ChaosProxy):
    data = bytes(range(256)) * 5000
    async with linked(proxy) as link:
        assert await link.ask(data) == data
    assert proxy.accepted == 1


async def test_what_is_down_refuses_and_cuts_and_is_back_on_the_same_port(proxy: ChaosProxy):
    port = proxy.port
    async with linked(proxy) as link:
        await link.ask(b"a")
        await proxy.set(Trouble(down=True))
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await link.ask(b"b")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    await proxy.set(NONE)
    assert proxy.port == port
    async with linked(proxy) as link:
        assert await link.ask(b"c") == b"c"


@pytest.mark.parametrize("ways", [{Way.THERE, Way.BACK}, {Way.BACK}], ids=["hung", "half open"])
async def test_silence_ends_nothing_and_is_made_up_for(proxy: ChaosProxy, ways: set[Way]):
    async with linked(proxy) as link:
        await proxy.set(Trouble(silent=frozenset(ways)))
        with pytest.raises(TimeoutError):
            await link.ask(b"abc", seconds=0.05)
        await proxy.set(NONE)
        async with asyncio.timeout(5):
            assert await link.reader.readexactly(3) == b"abc"


async def test_latency_is_added_both_ways(proxy: ChaosProxy):
    async with linked(proxy) as link, proxy.while_(Trouble(latency=0.05)):
        start = time.monotonic()
        await link.ask(b"x")
        assert 0.1 <= time.monotonic() - start < 2.0


async def test_slices_and_bandwidth_change_nothing_but_the_pace(proxy: ChaosProxy):
    data = bytes(range(200))
    async with linked(proxy) as link:
        async with proxy.while_(Trouble(slice_bytes=1)):
            assert await link.ask(data) == data
        async with proxy.while_(Trouble(bandwidth=2000)):
            start = time.monotonic()
            assert await link.ask(data) == data
            assert time.monotonic() - start >= 0.1


@pytest.mark.parametrize("after", [0, 7])
async def test_a_reset_comes_in_the_middle_of_an_answer(proxy: ChaosProxy, after: int):
    async with linked(proxy) as link:
        await proxy.set(Trouble(reset_after=after))
        link.writer.write(b"0123456789")
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            async with asyncio.timeout(5):
                await link.reader.readexactly(10)
    await proxy.set(NONE)
    async with linked(proxy) as link:
        assert await link.ask(b"again") == b"again"


async def test_one_bit_of_an_answer_is_turned(proxy: ChaosProxy):
    async with linked(proxy) as link, proxy.while_(Trouble(corrupt=1.0)):
        found = await link.ask(b"\0" * 100)
        assert sum(byte.bit_count() for byte in found) == 1


async def test_flapping_ends_up(proxy: ChaosProxy):
    await proxy.flap(3, 0.01)
    async with linked(proxy) as link:
        assert await link.ask(b"up") == b"up"
