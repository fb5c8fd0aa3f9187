"""The one wrapper around every served method: decoding, checking, deadlines, errors, traces.

A servicer's method sees a checked message and raises errors of `openmanager.errors`; nothing else of it reaches the
wire. Methods marked by `raw` take and return bytes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from openmanager import access, errors, policy
from openmanager.runtime import telemetry, validate
from openmanager.runtime.audit import Auditor, Intent
from openmanager.runtime.gate import Gate, Pass, admit
from openmanager.runtime.grpc_server import GuardedServer, abort, mark_received
from openmanager.runtime.patience import Patience
from openmanager.runtime.rpc_error import status_code, to_trailers
from openmanager.runtime.tls import anyone
from openmanager.runtime.trail import UNKNOWN, Trail

DEFAULT_DEADLINE_SECONDS, MAX_DEADLINE_SECONDS = 5.0, 30.0
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_METADATA_BYTES = 16 * 1024
# What HTTP/2 counts for a header beside its name and value.
HEADER_BYTES = 32
# A sender that says nothing so often in a row only keeps the server busy.
MAX_EMPTY_MESSAGES = 1000

log = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])
# What a caller is told, and the reason by itself.
Status = tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...], str]

# What C-core reports for a call that has no deadline at all (about 292 years).
NO_DEADLINE_SECONDS = 10**8


def raw(method: F) -> F:
    """Mark a servicer's method as taking and returning wire bytes instead of messages."""
    method.takes_bytes = True  # type: ignore[attr-defined]
    return method


def unbounded(method: F) -> F:
    """Mark a unary method as having no deadline of ours, only the caller's, however long."""
    method.has_no_deadline = True  # type: ignore[attr-defined]
    return method


def vital(method: F) -> F:
    """Mark a streaming method as served, and not counted, however many streams there are."""
    method.is_vital = True  # type: ignore[attr-defined]
    return method


def forwarded(method: F) -> F:
    """Mark a method as passing calls on to another server, which does the rest."""
    method.is_forwarded = True  # type: ignore[attr-defined]
    return method


@dataclass(slots=True, kw_only=True)
class Load:
    """What the server is doing: counts for status, and the limits that shed load."""

    max_unary: int = 1000
    max_streams: int = 10_000
    # How long a unary call without a deadline may take, and one with any.
    default_seconds: float = DEFAULT_DEADLINE_SECONDS
    max_seconds: float = MAX_DEADLINE_SECONDS
    # How long a stream's reader may leave one message waiting.
    write_seconds: float = 20.0
    # How long a stream's sender may be silent, all that it sent being answered.
    idle_seconds: float = 60.0
    unary: int = 0
    streams: int = 0
    served: int = 0
    draining: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Method:
    path: str
    request: type[Message]
    takes_bytes: bool
    unbounded: bool
    vital: bool
    rule: policy.Rule
    trail: Trail


class Edge:
    """Registers servicers on a guarded server, each method wrapped; `check_peer` raises for a connection not to be served."""

    def __init__(
        self,
        server: GuardedServer,
        load: Load,
        *,
        gate: Gate | None = None,
        rules: Mapping[str, Mapping[str, policy.Rule]] = policy.POLICY,
        check_peer: Callable[[Any], str | None] = anyone,
        auditor: Auditor | None = None,
    ) -> None:
        self._server = server
        self._check_peer = check_peer
        self._auditor = auditor
        self._load = load
        self._gate = gate or Gate()
        self._rules = rules
        self._calls: set[asyncio.Task[Any]] = set()
        self._endless: set[asyncio.Task[Any]] = set()

    def add(self, descriptor: ServiceDescriptor, servicer: object) -> None:
        """Register every method of a service; AttributeError when the servicer lacks one, KeyError when the policy does."""
        handlers = {method.name: self._handler(method, getattr(servicer, method.name)) for method in descriptor.methods}
        self._server.add_registered_method_handlers(descriptor.full_name, handlers)

    def drain(self) -> None:
        """Refuse new calls with UNAVAILABLE, reason SHUTTING_DOWN, and end the streams so that would not end by themselves."""
        self._load.draining = True
        _cancel(self._endless)

    def end(self) -> None:
        """End in the same way what is under way, after `drain`."""
        _cancel(self._calls)

    def _handler(self, descriptor: MethodDescriptor, behaviour: Callable[..., Any]) -> grpc.RpcMethodHandler[Any, Any]:
        service, name = descriptor.containing_service.full_name, descriptor.name
        rule = self._rules[service][name]
        # What is passed on is written down where it is done.
        changes = rule if not hasattr(behaviour, "is_forwarded") else replace(rule, audited="", noted="")
        method = _Method(
            path=f"/{service}/{name}",
            request=validate.message_class(descriptor.input_type),
            takes_bytes=getattr(behaviour, "takes_bytes", False),
            unbounded=hasattr(behaviour, "has_no_deadline"),
            vital=hasattr(behaviour, "is_vital"),
            rule=rule,
            trail=Trail(self._auditor, f"{service}/{name}", changes),
        )
        match descriptor.client_streaming, descriptor.server_streaming:
            case False, False:
                return grpc.unary_unary_rpc_method_handler(self._unary(method, behaviour), None, _serialize)
            case False, True:
                return grpc.unary_stream_rpc_method_handler(self._server_stream(method, behaviour), None, _serialize)
            case True, True:
                return grpc.stream_stream_rpc_method_handler(self._bidi_stream(method, behaviour), None, _serialize)
            case _:
                raise NotImplementedError(f"{method.path}: client streaming is not used in the contracts")

    def _unary(self, method: _Method, behaviour: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        load = self._load
        default, most = (None, math.inf) if method.unbounded else (load.default_seconds, load.max_seconds)

        async def call(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            mark_received()
            start = time.perf_counter()
            status: Status | None = None
            reply: Any = None
            intent: Intent | None = None
            task = _current_task()
            self._calls.add(task)
            load.unary += 1
            metadata = context.invocation_metadata() or ()  # made anew each time it is asked for
            with telemetry.server_span(method.path, metadata) as span:
                try:
                    self._admit(load.unary, load.max_unary)
                    _, caller = await self._enter(method, metadata, context)
                    async with asyncio.timeout(_remaining(context, default, most)):
                        request = _decode(method, data)
                        intent = await method.trail.begin(caller, request)
                        reply = await behaviour(request, context)
                except (Exception, asyncio.CancelledError) as err:  # noqa: BLE001  (the catch-all there must be)
                    status = _status(self._failure(err, method.path))
                finally:
                    _end(intent, status, reply)
                    load.unary -= 1
                    load.served += 1
                    self._calls.discard(task)
                telemetry.record_call(span, method.path, _number(status), time.perf_counter() - start)
            if status is not None:
                await abort(context, *status[:3])
            return reply

        return call

    def _server_stream(
        self, method: _Method, behaviour: Callable[..., AsyncIterator[Any]]
    ) -> Callable[..., Awaitable[None]]:
        async def call(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            mark_received()
            await self._stream(method, context, lambda: _decode(method, data), lambda ask, _: behaviour(ask, context))

        return call

    def _bidi_stream(
        self, method: _Method, behaviour: Callable[..., AsyncIterator[Any]]
    ) -> Callable[..., Awaitable[None]]:
        async def call(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await self._stream(
                method,
                context,
                lambda: None,
                lambda _, patience: behaviour(_requests(method, context, patience), context),
            )

        return call

    async def _stream(
        self,
        method: _Method,
        context: grpc.aio.ServicerContext[Any, Any],
        decode: Callable[[], Any],
        begin: Callable[[Any, Patience], AsyncIterator[Any]],
    ) -> None:
        start, load = time.perf_counter(), self._load
        status: Status | None = None
        intent: Intent | None = None
        task = _current_task()
        self._calls.add(task)
        counted = 0 if method.vital else 1
        load.streams += counted
        metadata = context.invocation_metadata() or ()
        with telemetry.server_span(method.path, metadata) as span:
            try:
                self._admit(counted * load.streams, load.max_streams)
                held, caller = await self._enter(method, metadata, context)
                request = decode()
                intent = await method.trail.begin(caller, request, noted=held.noted)
                if (seconds := _remaining(context, None, math.inf)) is None:
                    self._endless.add(task)
                patience = Patience(held, write_seconds=load.write_seconds, idle_seconds=load.idle_seconds)
                async with asyncio.timeout(seconds), patience:
                    await _write_all(begin(request, patience), context, patience)
            except (Exception, asyncio.CancelledError) as err:  # noqa: BLE001  (the catch-all there must be)
                status = _status(self._failure(err, method.path))
            finally:
                _end(intent, status, None)
                load.streams -= counted
                load.served += 1
                self._calls.discard(task)
                self._endless.discard(task)
            telemetry.record_call(span, method.path, _number(status), time.perf_counter() - start)
        if status is not None:
            await abort(context, *status[:3])

    async def _enter(
        self, method: _Method, metadata: Iterable[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> tuple[Pass, access.Caller]:
        """Return what the caller came with, and what they may reach, once it is known to be enough for the method."""
        _check_metadata(metadata)
        held: Pass | None = None
        peer: str | None = None
        try:
            peer = self._check_peer(context)
            held, source = await self._gate.who(metadata, context, method.rule, peer)
            caller = admit(held, method.rule, source)
        except (errors.UnauthenticatedError, errors.PermissionDeniedError) as err:
            actor = held.identity.subject if held is not None else UNKNOWN
            method.trail.refused(actor, self._gate.source(metadata, context, peer), err)
            raise
        access.serve(caller)
        return held, caller

    def _admit(self, active: int, limit: int) -> None:
        if self._load.draining:
            raise _going_down()
        if active > limit:
            raise errors.ResourceExhaustedError(
                f"more than {limit} calls are under way", reason=errors.Reason.OVERLOADED
            )

    def _failure(self, err: BaseException, path: str) -> errors.OpenManagerError:
        """Return what the caller may know of how a call ended."""
        task = _current_task()
        if self._load.draining and task.cancelling():
            task.uncancel()
            return _going_down()
        return _failure(err, path)


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  (a coroutine runs in a task)
    return task


def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tuple(tasks):
        task.cancel()


def _status(error: errors.OpenManagerError) -> Status:
    """Return what the caller is told; unlike the error it holds no frame, and so not the call."""
    return status_code(error), error.message, to_trailers(error), error.reason


def _end(intent: Intent | None, status: Status | None, reply: Any) -> None:
    """Write down how a change ended."""
    if intent is None:
        return
    if status is None:
        after = reply.SerializeToString(deterministic=True) if isinstance(reply, Message) else None
        intent.outcome(after=after)
    else:
        intent.outcome(_number(status), status[3])


def _number(status: Status | None) -> int:
    return int(status[0].value[0]) if status else 0


def _going_down() -> errors.OpenManagerError:
    return errors.UnavailableError("the server is going down", reason=errors.Reason.SHUTTING_DOWN)


def _check_metadata(metadata: Iterable[Any]) -> None:
    """Raise ResourceExhaustedError for more metadata than is taken.

    The transport's own limit holds only for a client that has acknowledged it.
    """
    size = sum(len(key) + len(value) + HEADER_BYTES for key, value in metadata)
    if size > MAX_METADATA_BYTES:
        raise errors.ResourceExhaustedError(
            f"the metadata is larger than {MAX_METADATA_BYTES // 1024} KiB", reason=errors.Reason.MESSAGE_TOO_LARGE
        )


async def _write_all(
    replies: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any], patience: Patience
) -> None:
    """Send each reply as it comes; the iterator is closed whatever happens, so that its clean-up runs at once."""
    try:
        async for reply in replies:
            patience.offers()
            await context.write(reply)
            patience.is_read()
    finally:
        if (close := getattr(replies, "aclose", None)) is not None:
            await close()


async def _requests(
    method: _Method, context: grpc.aio.ServicerContext[Any, Any], patience: Patience
) -> AsyncIterator[Any]:
    empty = 0
    while True:
        patience.listens()
        data = await context.read()
        patience.hears()
        if data is grpc.aio.EOF:
            return
        empty = 0 if data else empty + 1
        if empty > MAX_EMPTY_MESSAGES:
            raise errors.ResourceExhaustedError(
                f"more than {MAX_EMPTY_MESSAGES} messages in a row were empty", reason=errors.Reason.STREAM_IDLE
            )
        yield _decode(method, data)


def _decode(method: _Method, data: bytes) -> Any:
    return data if method.takes_bytes else validate.decode(method.request, data)


def _serialize(reply: Message | bytes) -> bytes:
    return reply if isinstance(reply, bytes) else reply.SerializeToString()


def _remaining(context: grpc.aio.ServicerContext[Any, Any], default: float | None, most: float) -> float | None:
    """Return the seconds that are left for a call, `most` at most; DeadlineExceededError when there are none."""
    left = context.time_remaining()
    if left is None or left > NO_DEADLINE_SECONDS:
        return default
    if left <= 0:
        raise errors.DeadlineExceededError("the deadline had passed when the call arrived")
    return min(left, most)


def _failure(err: BaseException, path: str) -> errors.OpenManagerError:
    """Return what the caller may know of an exception; what it may not is logged under an opaque id."""
    match err:
        case errors.OpenManagerError():
            return err
        case TimeoutError():
            return errors.DeadlineExceededError("the call did not end before its deadline")
        case asyncio.CancelledError():
            if _current_task().cancelling():
                raise err
            return errors.CancelledCallError("the call was cancelled in the server")
        case _:
            ident = secrets.token_hex(6)
            log.error("unexpected %s", path, exc_info=err, extra=telemetry.fields(error_id=ident, rpc=path))
            return errors.InternalError(f"internal error {ident}")
