"""Connections as they come in: how many, how long one may take to say what it wants, and to take what it is given.

aiohttp limits a request once its head is there. What is here holds before and after: a head that comes a byte at a time, a
reader that does not read, and more connections than there is room for. It stands between the socket and aiohttp's
protocol, and uses of both only what asyncio promises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

HEAD_SECONDS = 10.0
IDLE_SECONDS = 60.0
WRITE_SECONDS = 20.0
# Of a request that is not answered yet: its head, which aiohttp limits, and what comes right behind it.
MAX_UNSERVED_BYTES = 1024 * 1024
LOOK_SECONDS = 1.0


class Connection(asyncio.Protocol):
    """One connection, its bytes passed on to `inner`; `serving` while one of its requests is answered."""

    def __init__(self, door: Door, inner: asyncio.Protocol) -> None:
        self._door = door
        self._inner = inner
        self.transport: asyncio.Transport | None = None
        self.serving = False
        self.since = 0.0  # when it began to wait, on the loop's clock
        self._unread_since: float | None = None
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let it in."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  (of a stream)
        self.transport = transport
        self.since = self._door.now()
        self._inner.connection_made(transport)
        self._door.enter(self)

    def data_received(self, data: bytes) -> None:
        """Pass bytes on; a head that is too long ends the connection."""
        if not self.serving:
            if not self._head_bytes:
                self.since = self._door.now()
            self._head_bytes += len(data)
            if self._head_bytes > MAX_UNSERVED_BYTES:
                self.abort()
                return
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass on that no more comes."""
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._door.leave(self)
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Note that the other side does not read."""
        self._unread_since = self._door.now()
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Note that it does."""
        self._unread_since = None
        self._inner.resume_writing()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Be serving for the length of the context."""
        self.serving = True
        try:
            yield
        finally:
            self.serving, self._head_bytes, self.since = False, 0, self._door.now()

    def is_late(self, now: float) -> bool:
        """Say whether it has let us wait for too long."""
        if self._unread_since is not None:
            return now - self._unread_since > WRITE_SECONDS
        return not self.serving and now - self.since > (HEAD_SECONDS if self._head_bytes else IDLE_SECONDS)

    def abort(self) -> None:
        """End it at once; nothing more is sent."""
        if self.transport is not None:
            self.transport.abort()


class Door:
    """All connections of a server, `most` at once. `factory` makes aiohttp's protocol."""

    def __init__(self, factory: Callable[[], asyncio.Protocol], *, most: int) -> None:
        self._factory = factory
        self._most = most
        self._connections: dict[Connection, None] = {}
        self.now = asyncio.get_running_loop().time

    def __call__(self) -> Connection:
        """Return the protocol of a new connection."""
        return Connection(self, self._factory())

    def __len__(self) -> int:
        return len(self._connections)

    def enter(self, connection: Connection) -> None:
        """Take a connection in; where there is no room the one that has waited longest goes, be it this one."""
        self._connections[connection] = None
        if len(self._connections) > self._most:
            waiting = [each for each in self._connections if not each.serving]
            min(waiting, key=lambda each: each.since).abort()

    def leave(self, connection: Connection) -> None:
        """Take note of its end."""
        self._connections.pop(connection, None)

    async def watch(self) -> None:
        """End the connections that let us wait, for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = self.now()
            for each in [each for each in self._connections if each.is_late(now)]:
                each.abort()


def connection_of(transport: Any) -> Connection | None:
    """Return the connection that a request came by; None where there is no door, or it is gone."""
    found = transport.get_protocol() if transport is not None else None
    return found if isinstance(found, Connection) else None
