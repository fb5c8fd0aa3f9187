"""A TCP proxy that does to a connection what networks and dying peers do.

Whatever it is set to holds for the connections there are and for those to come, until it is set to something else.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

CHUNK = 64 << 10
# A connection that is cut at once, with a reset instead of a farewell.
_NO_LINGER = struct.pack("ii", 1, 0)

# Connects to what stands behind the proxy.
Upstream = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Way(StrEnum):
    """The two directions of a connection."""

    THERE = "there"  # what the client sends
    BACK = "back"  # what it is answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What happens to what is sent; nothing by default."""

    # Nobody listens: connections are refused, and those there are cut.
    down: bool = False
    # Connections are accepted and nothing passes, in these directions.
    silent: frozenset[Way] = frozenset()
    # Seconds that every piece takes, give or take the jitter.
    latency: float = 0.0
    jitter: float = 0.0
    # Bytes a piece, each sent for itself.
    slice_bytes: int = 0
    # Bytes a second.
    bandwidth: int = 0
    # After so many bytes in a direction the connection is reset; 0: at the next byte, None: never.
    reset_after: int | None = None
    # The share of answered pieces of which one bit is turned.
    corrupt: float = 0.0


NONE = Trouble()


class ChaosProxy:
    """Stands between clients and an upstream, on a port of the loopback."""

    def __init__(self, upstream: Upstream, *, port: int = 0, seed: int = 1) -> None:
        self._upstream = upstream
        self._dice = random.Random(seed)
        self._trouble = NONE
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.port = port
        # Connections that were accepted so far.
        self.accepted = 0

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def set(self, trouble: Trouble) -> None:
        """Do something else from now on."""
        before, self._trouble = self._trouble, trouble
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if trouble.down and not before.down:
            await self._close()
        elif before.down and not trouble.down:
            await self._listen()

    @contextlib.asynccontextmanager
    async def while_(self, trouble: Trouble) -> AsyncIterator[None]:
        """Do something for a while."""
        await self.set(trouble)
        try:
            yield
        finally:
            await self.set(NONE)

    async def flap(self, times: int, seconds: float) -> None:
        """Go down and up again and again, for so many seconds each."""
        for _ in range(times):
            await self.set(replace(self._trouble, down=True))
            await asyncio.sleep(seconds)
            await self.set(replace(self._trouble, down=False))
            await asyncio.sleep(seconds)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            there, back = await self._upstream()
            ends.append(back)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(Way.THERE, reader, back))
                pumps.create_task(self._pump(Way.BACK, there, writer))
        except* (OSError, asyncio.IncompleteReadError, _ResetError):
            pass
        finally:
            for end in ends:
                _cut(end)

    async def _pump(self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = 0
        while data := await reader.read(CHUNK):
            while way in self._trouble.silent:
                await self._changed.wait()
            trouble = self._trouble
            if trouble.reset_after is not None and passed + len(data) > trouble.reset_after:
                writer.write(data[: max(0, trouble.reset_after - passed)])
                with contextlib.suppress(OSError):
                    await writer.drain()
                raise _ResetError
            if trouble.latency:
                await asyncio.sleep(max(0.0, trouble.latency + self._dice.uniform(-1, 1) * trouble.jitter))
            if way is Way.BACK and trouble.corrupt and self._dice.random() < trouble.corrupt:
                data = self._turned(data)
            size = trouble.slice_bytes or len(data)
            for first in range(0, len(data), size):
                piece = data[first : first + size]
                if trouble.bandwidth or trouble.slice_bytes:
                    await asyncio.sleep(len(piece) / trouble.bandwidth if trouble.bandwidth else 0.0)
                writer.write(piece)
                await writer.drain()
            passed += len(data)
        if writer.can_write_eof():
            writer.write_eof()

    def _turned(self, data: bytes) -> bytes:
        at, bit = self._dice.randrange(len(data)), self._dice.randrange(8)
        return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


class _ResetError(Exception):
    """The connection is to be reset."""


def _cut(writer: asyncio.StreamWriter) -> None:
    """Reset a connection, if it is one that can be."""
    found: socket.socket | None = writer.get_extra_info("socket")
    if found is not None and found.family in {socket.AF_INET, socket.AF_INET6}:
        with contextlib.suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()


def tcp(host: str, port: int) -> Upstream:
    """Return what connects to a port."""
    return lambda: asyncio.open_connection(host, port)


def unix(path: str) -> Upstream:
    """Return what connects to a socket in the file system."""
    return lambda: asyncio.open_unix_connection(path)
