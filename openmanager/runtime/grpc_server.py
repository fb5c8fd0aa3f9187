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
from typing import Any

import grpc
import grpc.aio._server
from grpc._cython import cygrpc

_REQUIRED = (
    "AioServer",
    "_MethodResolver",
    "_RequestCallError",
    "_handle_rpc",
    "_schedule_rpc_coro",
    "_send_error_status_from_server",
    "SendInitialMetadataOperation",
    "ExecuteBatchError",
    "get_working_loop",
)

# Set by the handler of a unary request as soon as it runs: the message was there.
_received: contextvars.ContextVar[list[bool]] = contextvars.ContextVar("received")


def mark_received() -> None:
    """Record that the current call's request message has arrived; every handler of a unary request calls it first."""
    _received.get()[0] = True


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
            call = cygrpc._schedule_rpc_coro(self._serve(name, state), state, self.loop_, name)
            task = self.loop_.create_task(call)
            self.calls.add(task)
            task.add_done_callback(self.calls.discard)

    async def _serve(self, name: str, state: Any) -> None:
        received = [False]
        _received.set(received)
        try:
            await cygrpc._handle_rpc(name, self.resolver, (), state, self.loop_, False)
            if received[0] or name not in self.unary_requests:
                return
            code, details = grpc.StatusCode.UNIMPLEMENTED, "one request message is required"
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


class GuardedServer(grpc.aio._server.Server):
    """`grpc.aio.Server` whose methods are all registered by name; generic handlers are not taken."""

    def __init__(self, options: Sequence[tuple[str, Any]] = ()) -> None:
        self._loop = cygrpc.get_working_loop()
        arguments = grpc.aio._server._augment_channel_arguments(tuple(options), None)
        server = _AcceptLoops(self._loop, None, (), (), arguments, None)
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        server.loop_ = self._loop
        server.calls = set()
        server.unary_requests = set()
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
