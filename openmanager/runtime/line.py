"""The way to a peer: a channel, and with TLS another one whenever the certificates change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc._cython import cygrpc

from openmanager.runtime.tls import Files, Material, channel_credentials

# Between looks at the files of certificates.
LOOK_SECONDS = 1.0
# A channel that is replaced stays for so long after its last call: what has come may not have been read.
LINGER_SECONDS = 1.0


class Line:
    """A channel to `target`, encrypted when there are files for that.

    When these change, calls go by a new channel as soon as it is connected; those under way end on theirs. A peer that
    does not take what is new, or is away, leaves the old channel where it is.
    """

    def __init__(self, target: str, options: Sequence[tuple[str, Any]], tls: Files | None = None) -> None:
        self._target = target
        self._options = tuple(options)
        self._tls = tls
        self._material = None if tls is None else tls.material
        self._used = self._open(self._material)
        self._following: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def channel(self) -> Any:
        """The channel that calls go by now."""
        return self._used.channel

    def connect(self) -> None:
        """Connect in the background, and begin to follow the files."""
        self.channel.get_state(try_to_connect=True)
        if self._tls is not None:
            self._following = asyncio.create_task(self._follow(self._tls))

    async def close(self) -> None:
        """Close every channel; calls under way are cancelled."""
        tasks = [*self._retiring, *([self._following] if self._following is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.channel.close()

    def method(self, kind: str, path: str) -> Callable[..., Any]:
        """Return what calls a method; `kind` is the channel's name for its shape."""
        return self._used.method(kind, path)

    async def ready(self) -> None:
        """Wait until the peer is connected, by whichever channel."""
        while True:
            channel = self.channel
            try:
                await channel.channel_ready()
            except cygrpc.UsageError:
                if channel is self.channel:
                    raise
            else:
                return

    def _open(self, material: Material | None) -> _Channel:
        if material is None:
            return _Channel(grpc.aio.insecure_channel(self._target, self._options))
        return _CountingChannel(grpc.aio.secure_channel(self._target, channel_credentials(material), self._options))

    async def _follow(self, tls: Files) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            found = await asyncio.to_thread(tls.current)
            if found is self._material or (opened := await self._connected(tls, found)) is None:
                continue
            old, self._used, self._material = self._used, opened, found
            task = asyncio.create_task(old.retire())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _connected(self, tls: Files, material: Material) -> _Channel | None:
        """Return a new channel when it is connected; None when the files have changed once more before that."""
        opened = self._open(material)
        ready = asyncio.create_task(opened.channel.channel_ready())
        try:
            while not ready.done() and await asyncio.to_thread(tls.current) is material:
                await asyncio.wait([ready], timeout=LOOK_SECONDS)
        finally:
            is_ready = ready.done()
            ready.cancel()
            if not is_ready:
                await opened.channel.close()
        return opened if is_ready else None


class _Channel:
    """A channel and its methods."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self._methods: dict[tuple[str, str], Callable[..., Any]] = {}

    def method(self, kind: str, path: str) -> Callable[..., Any]:
        key = (kind, path)
        if key not in self._methods:
            self._methods[key] = getattr(self.channel, kind)(path)
        return self._methods[key]

    async def retire(self) -> None:
        """Close the channel when nothing needs it any more."""
        await self.channel.close()


class _CountingChannel(_Channel):
    """One that may be replaced, and so knows whether calls are under way."""

    def __init__(self, channel: Any) -> None:
        super().__init__(channel)
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def method(self, kind: str, path: str) -> Callable[..., Any]:
        made = super().method(kind, path)

        def call(*arguments: Any, **options: Any) -> Any:
            begun = made(*arguments, **options)
            self._under_way += 1
            self._idle.clear()
            begun.add_done_callback(self._ended)
            return begun

        return call

    def _ended(self, _: object) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._idle.set()

    async def retire(self) -> None:
        try:
            await self._idle.wait()
            await asyncio.sleep(LINGER_SECONDS)
        finally:
            await self.channel.close()
