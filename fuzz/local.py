"""Calls without a socket: what a client of `grpc.aio` holds on one side, what a server's edge sees on the other."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NoReturn, Self

import grpc

from openmanager.runtime import grpc_server
from openmanager.runtime.edge import MAX_MESSAGE_BYTES
from openmanager.runtime.peer import Absence, Peer, nobody

Handler = Any  # grpc.RpcMethodHandler, which is generic for type checkers only
Trailers = Sequence[tuple[str, bytes]]
# Messages that one side may be ahead of the other.
ROOM = 4


class Collector:
    """The handlers that an edge registers, by path, in place of a server."""

    def __init__(self) -> None:
        self.handlers: dict[str, Handler] = {}

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        self.handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}


class Pipe:
    """Hands messages over, no more than ROOM at once."""

    def __init__(self) -> None:
        self._items: deque[bytes] = deque()
        self._moved = asyncio.Event()
        self._closed = False

    async def put(self, item: bytes) -> None:
        while len(self._items) >= ROOM and not self._closed:
            await self._move()
        self._items.append(item)
        self._moved.set()

    async def get(self) -> Any:
        while not self._items:
            if self._closed:
                return grpc.aio.EOF
            await self._move()
        self._moved.set()
        return self._items.popleft()

    def close(self) -> None:
        self._closed = True
        self._moved.set()

    async def _move(self) -> None:
        self._moved.clear()
        await self._moved.wait()


class _AbortError(Exception):
    """How a handler ends that has answered with an error."""


class Context:
    """What a handler sees of its call."""

    def __init__(self, handler: Handler, seconds: float | None, metadata: Sequence[tuple[str, Any]]) -> None:
        self.requests, self.replies = Pipe(), Pipe()
        self.status: tuple[grpc.StatusCode, str, Trailers] | None = None
        self._serialize: Callable[[Any], bytes] = handler.response_serializer
        self._end = None if seconds is None else time.monotonic() + seconds
        self._metadata = metadata

    def invocation_metadata(self) -> Sequence[tuple[str, Any]]:
        return self._metadata

    def time_remaining(self) -> float | None:
        return None if self._end is None else self._end - time.monotonic()

    async def read(self) -> Any:
        return await self.requests.get()

    async def write(self, reply: Any) -> None:
        await self.replies.put(self.serialized(reply))

    def serialized(self, reply: Any) -> bytes:
        data = self._serialize(reply)
        if len(data) > MAX_MESSAGE_BYTES:  # as the transport does it
            self.status = grpc.StatusCode.RESOURCE_EXHAUSTED, "the reply is larger than 4 MiB", ()
            raise _AbortError
        return data

    async def abort(self, code: grpc.StatusCode, details: str, trailers: Trailers) -> NoReturn:
        self.status = code, details, trailers
        raise _AbortError


class Call:
    """A call under way. Awaited it gives its one reply; `read` and `write` are those of a stream."""

    def __init__(
        self,
        handler: Handler,
        data: bytes | None,
        *,
        timeout: float | None = None,
        metadata: Sequence[tuple[str, Any]] = (),
    ) -> None:
        self.context = Context(handler, timeout, metadata)
        self.task = asyncio.create_task(self._serve(handler, data))
        self.task.add_done_callback(self._ended)

    async def _serve(self, handler: Handler, data: bytes | None) -> bytes:
        grpc_server._call.set(grpc_server._Call())
        try:
            if handler.unary_unary is not None:
                return self.context.serialized(await handler.unary_unary(data, self.context))
            if handler.unary_stream is not None:
                await handler.unary_stream(data, self.context)
            else:
                await handler.stream_stream(None, self.context)
        except _AbortError:
            pass
        return b""

    def _ended(self, task: asyncio.Task[bytes]) -> None:
        if self.context.status is None:
            if task.cancelled():
                self.context.status = grpc.StatusCode.CANCELLED, "", ()
            elif (failure := task.exception()) is not None:  # what the transport would make of it
                self.context.status = grpc.StatusCode.UNKNOWN, f"{type(failure).__name__}: {failure}", ()
        self.context.replies.close()
        self.context.requests.close()

    def __await__(self) -> Generator[Any, None, bytes]:
        yield from asyncio.wait([self.task]).__await__()
        self._check()
        return self.task.result()

    async def wait_for_connection(self) -> None:
        """Return: it is connected from the start."""

    async def read(self) -> Any:
        reply = await self.context.replies.get()
        if reply is grpc.aio.EOF:
            await asyncio.wait([self.task])
            self._check()
        return reply

    async def write(self, request: bytes) -> None:
        if self.task.done():
            raise asyncio.InvalidStateError
        await self.context.requests.put(request)

    @property
    def _cython_call(self) -> Call:
        """What a peer sends by."""
        return self

    async def send_serialized_message(self, request: bytes) -> None:
        await self.write(request)

    async def done_writing(self) -> None:
        self.context.requests.close()

    def cancel(self) -> None:
        self.task.cancel()

    def _check(self) -> None:
        if self.context.status is not None:
            code, details, trailers = self.context.status
            raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details)


class LocalPeer(Peer):
    """A peer in this process; `handlers` are its own once it is open."""

    def __init__(self, name: str, handlers: Mapping[str, Handler]) -> None:
        self.name = self.target = name
        self._handlers = handlers
        # Nobody is away here for a while only.
        self._patient = frozenset()
        self._identify = nobody
        self._absence = Absence(None, 0.0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def _callable(self, kind: str, path: str) -> Callable[..., Any]:
        def call(data: bytes | None = None, *, timeout: float | None, metadata: Sequence[tuple[str, Any]]) -> Call:
            return Call(self._handlers.get(path) or _AWAY[kind], data, timeout=timeout, metadata=metadata)

        return call


async def _away(_: object, context: Context) -> NoReturn:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "", ())


# What a server is that is not open yet.
_AWAY: dict[str, Handler] = {
    "unary_unary": grpc.unary_unary_rpc_method_handler(_away, None, bytes),
    "unary_stream": grpc.unary_stream_rpc_method_handler(_away, None, bytes),
    "stream_stream": grpc.stream_stream_rpc_method_handler(_away, None, bytes),
}
