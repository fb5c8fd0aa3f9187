"""A `grpc.aio` server that no request can stop, and that answers every call.

The stock aio server (grpcio 1.85) has one loop that accepts calls of all methods. It decodes the method path there,
unguarded, so that one request whose path is not UTF-8 ends the whole server; a handler that ends in CancelledError,
and a unary call that is half-closed without its message, are never answered. Here every registered method has its own
accept loop, the slot for unregistered paths never decodes one, and both silent endings get a status.

This uses private names of cygrpc, checked by `self_test` at start; hence the pin of grpcio in pyproject.toml.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio._server
from grpc._cython import cygrpc

# How long a status may take to leave.
STATUS_SECONDS = 2.0
DROP_SECONDS = 0.5

_REQUIRED = (
    "AioServer",
    "_MethodResolver",
    "_RequestCallError",
    "_handle_rpc",
    "_schedule_rpc_coro",
    "_send_error_status_from_server",
    "SendInitialMetadataOperation",
    "AbortError",
    "ExecuteBatchError",
    "get_working_loop",
)


@dataclass(slots=True)
class _Call:
    """What is known of a call under way."""

    # Set by the handler of a unary request as soon as it runs: the message was there.
    received: bool = False
    # Set when the caller could not be told how it ended.
    dropped: bool = False
    # Keeps what the core holds of the call until the caller has closed its side.
    keeper: asyncio.Task[None] | None = None
    # The core's own error by which a handler ended the call.
    aborted: BaseException | None = None

    def forget(self, _: object) -> None:
        """Let go of the frames of that error: the core keeps it with the call, and they would keep the call."""
        if self.aborted is not None:
            self.aborted.__traceback__ = None


_call: contextvars.ContextVar[_Call] = contextvars.ContextVar("call")


def mark_received() -> None:
    """Record that the current call's request message has arrived; every handler of a unary request calls it first."""
    _call.get().received = True


async def abort(context: Any, code: grpc.StatusCode, details: str, trailers: Any) -> None:
    """End the current call with a status; a caller who takes nothing is not told, and the call is dropped.

    A status goes behind the messages before it. One that never leaves would keep the call, and them, for as long as
    the connection lives.
    """
    try:
        async with asyncio.timeout(STATUS_SECONDS):
            await context.abort(code, details, trailers)
    except (TimeoutError, cygrpc.ExecuteBatchError):
        _call.get().dropped = True


def self_test() -> str | None:
    """Return what is missing of grpcio's private names, None when the guarded server can be built."""
    missing = [name for name in _REQUIRED if not hasattr(cygrpc, name)]
    slots = ("_make_request_call_future", "_request_registered_call", "_request_call")
    missing.extend(f"AioServer.{name}" for name in slots if not hasattr(getattr(cygrpc, "AioServer", None), name))
    return f"grpcio {grpc.__version__} lacks {', '.join(missing)}" if missing else None


class _AcceptLoops(cygrpc.AioServer):  # type: ignore[misc]
    """The Cython server with one endless accept loop for each registered method."""

    def _make_request_call_future(self, method: bytes | None) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self.loop_.create_task(self._accept(method))
        return task

    async def _accept(self, method: bytes | None) -> None:
        name = method.decode() if method else "/unknown"
        while True:
            try:
                state = await (self._request_registered_call(method) if method else self._request_call())
            except cygrpc._RequestCallError:
                if not self.is_running():
                    raise
                continue
            call = _Call()
            served = cygrpc._schedule_rpc_coro(self._serve(name, state, call), state, self.loop_, name)
            call.keeper = self.loop_.create_task(served)
            self.calls.add(call.keeper)
            call.keeper.add_done_callback(self.calls.discard)
            call.keeper.add_done_callback(call.forget)
            del state, served, call  # the core lets go of a call when nobody here holds it

    async def _serve(self, name: str, state: Any, call: _Call) -> None:
        _call.set(call)
        try:
            await self._handle(name, state, call)
        finally:
            if call.dropped and call.keeper is not None:
                # One whose caller has hung up ends by itself, and at once.
                self.loop_.call_later(DROP_SECONDS, call.keeper.cancel)

    async def _handle(self, name: str, state: Any, call: _Call) -> None:
        try:
            if name not in self.unary_requests:
                await cygrpc._handle_rpc(name, self.resolver, (), state, self.loop_, False)
                return
            async with asyncio.timeout(None) as limit:
                timer = self.loop_.call_later(self.read_seconds, _give_up, limit, call)
                try:
                    await cygrpc._handle_rpc(name, self.resolver, (), state, self.loop_, False)
                finally:
                    timer.cancel()
            if call.received:
                return
            code, details = grpc.StatusCode.UNIMPLEMENTED, "one request message is required"
        except cygrpc.AbortError as err:
            call.aborted = err
            raise
        except TimeoutError:
            code, details = grpc.StatusCode.DEADLINE_EXCEEDED, "the request message did not come in time"
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            code, details = grpc.StatusCode.CANCELLED, "cancelled in the server"
        await self._answer(state, code, details)

    async def _answer(self, state: Any, code: grpc.StatusCode, details: str) -> None:
        metadata = cygrpc.SendInitialMetadataOperation(None, 0)
        try:
            await cygrpc._send_error_status_from_server(state, code.value[0], details, (), metadata, self.loop_)
        except cygrpc.ExecuteBatchError:
            return  # the caller has gone


def _give_up(limit: asyncio.Timeout, call: _Call) -> None:
    """End a call whose message has not come; one that runs has deadlines of its own."""
    if not call.received:
        limit.reschedule(0)


class GuardedServer(grpc.aio._server.Server):
    """`grpc.aio.Server` whose methods are all registered by name; generic handlers are not taken."""

    def __init__(self, options: Sequence[tuple[str, Any]] = (), *, read_seconds: float = 20.0) -> None:
        self._loop = cygrpc.get_working_loop()
        arguments = grpc.aio._server._augment_channel_arguments(tuple(options), None)
        server = _AcceptLoops(self._loop, None, (), (), arguments, None)
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        server.loop_ = self._loop
        server.calls = set()
        server.unary_requests = set()
        server.read_seconds = read_seconds
        server.resolver = cygrpc._MethodResolver([], self._handlers)
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Ignore them: generated code registers the same methods by name right after."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Register the methods of a service by name."""
        super().add_registered_method_handlers(service, dict(handlers))
        for method, handler in handlers.items():
            path = f"/{service}/{method}"
            self._handlers[path] = handler
            if not handler.request_streaming:
                self._server.unary_requests.add(path)
