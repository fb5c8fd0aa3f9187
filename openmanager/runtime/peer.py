"""Calls to other services: one long-lived channel per target, a deadline on every call, our errors back."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message
from grpc._cython import cygrpc

from openmanager import errors
from openmanager.runtime import address, telemetry
from openmanager.runtime.line import Line
from openmanager.runtime.rpc_error import from_rpc_error, was_away
from openmanager.runtime.tls import Files

# Goes with a write between services: its series are named by what nobody of ours wrote.
RATIONED = ("x-openmanager-rationed", "1")
KEEPALIVE_MILLIS = 30_000
# Between attempts to reach a peer that is away.
AGAIN_SECONDS = 0.05
# What is to be left of a deadline when it stays away, so that callers hear of it although they try again too.
LEAST_SECONDS = 0.5
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
M = TypeVar("M", bound=Message)
Identify = Callable[[], Sequence[tuple[str, str]]]

# Reads may be tried again by gRPC itself; a write is tried again only where it is idempotent by content.
_RETRIED_PREFIXES = ("Get", "List", "BatchGet", "Find", "Query", "Analyze", "Detect", "Forecast", "Score", "WriteFrame")

CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.keepalive_time_ms", KEEPALIVE_MILLIS),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # What connecting may take, by name and by the core's use of it the least time between attempts that hang.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    # Between attempts that are refused; the default of 120 s would break every promise on recovery.
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.dns_min_time_between_resolutions_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)


def service_config(methods: Sequence[str]) -> str:
    """Return gRPC's service config: retries of UNAVAILABLE for the given `service/method` names, throttled.

    A server that is about to end says so itself (GOAWAY). Its health is not watched: the core's own watching of health
    (1.85) now and then ends the whole process when a peer dies right after it was connected.
    """
    names = [dict(zip(("service", "method"), name.split("/"), strict=True)) for name in methods]
    policy = {
        "maxAttempts": 3,
        "initialBackoff": "0.05s",
        "maxBackoff": "0.5s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    config: dict[str, Any] = {
        # Retries stop below half of the tokens: after so many failures that a server which dies may take all calls with
        # it that one connection carries (`connection_streams`), and every one of them is made again elsewhere.
        "retryThrottling": {"maxTokens": 250, "tokenRatio": 0.1},
    }
    if names:
        config["methodConfig"] = [{"name": names, "retryPolicy": policy}]
    return json.dumps(config)


def nobody() -> Sequence[tuple[str, str]]:
    """Say nothing of who is calling."""
    return ()


class Peer:
    """Another server of the suite, by name and `host:port`; an async context manager that owns the channel.

    `retried` are the methods that may be tried again when the peer is not there: by gRPC, three times at once, or with
    `patience` by us, when it is back, unless it has been away for longer than that. `identify` returns the metadata that
    says who is calling.

    `tls` makes it encrypted. `server_name` is then the DNS name that the server's certificate must hold; empty: the host
    of `target`.
    """

    def __init__(
        self,
        name: str,
        target: str,
        *,
        retried: Sequence[str] = (),
        patience: timedelta = timedelta(),
        identify: Identify = nobody,
        tls: Files | None = None,
        server_name: str = "",
    ) -> None:
        self.name = name
        self.target = target
        options = (*CHANNEL_OPTIONS, ("grpc.service_config", service_config(() if patience else retried)))
        if tls is not None and server_name:
            options = (*options, ("grpc.ssl_target_name_override", server_name))
        self._identify = identify
        self._line = Line(address.target(target), options, tls)
        self._absence = Absence(self._line, patience.total_seconds())
        self._patient = frozenset(f"/{method}" for method in retried) if patience else frozenset()

    async def __aenter__(self) -> Self:
        """Connect in the background."""
        self._line.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the channel; calls under way are cancelled."""
        self._absence.close()
        await self._line.close()

    async def unary(self, path: str, request: Message | bytes, reply: type[M], *, seconds: float) -> M:
        """Call a unary method and return its reply; an error of `openmanager.errors` otherwise."""
        return reply.FromString(await self.unary_bytes(path, request, seconds=seconds))

    async def unary_bytes(
        self, path: str, request: Message | bytes, *, seconds: float | None, metadata: Sequence[tuple[str, Any]] = ()
    ) -> bytes:
        """Call a unary method with wire bytes, returning wire bytes."""
        if seconds is not None and seconds <= 0:
            raise errors.DeadlineExceededError(f"no time was left to ask {self.name}")
        data = request if isinstance(request, bytes) else request.SerializeToString()
        end = math.inf if seconds is None else time.monotonic() + seconds
        while True:
            call = self._callable("unary_unary", path)(
                data, timeout=seconds, metadata=(*metadata, *self._identify(), *telemetry.outgoing())
            )
            try:
                reply = bytes(await call)
            except grpc.aio.AioRpcError as failure:
                if path not in self._patient or not await self._absence.ends(failure, end):
                    raise from_rpc_error(failure, self.name) from failure
                seconds = None if end == math.inf else end - time.monotonic()
            except asyncio.CancelledError:
                call.cancel()
                raise
            else:
                self._absence.since = None
                return reply

    async def server_stream(
        self,
        path: str,
        request: Message | bytes,
        *,
        seconds: float | None = None,
        metadata: Sequence[tuple[str, Any]] = (),
    ) -> AsyncIterator[bytes]:
        """Call a server-streaming method and yield wire bytes; the call is cancelled when the iteration is left."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        end = math.inf if seconds is None else time.monotonic() + seconds
        begun = False
        while True:
            call = self._callable("unary_stream", path)(
                data, timeout=seconds, metadata=(*metadata, *self._identify(), *telemetry.outgoing())
            )
            try:
                while (reply := await call.read()) is not grpc.aio.EOF:
                    self._absence.since, begun = None, True
                    yield reply
            except grpc.aio.AioRpcError as failure:
                # What has begun cannot be begun again: the caller has a part of it.
                if begun or path not in self._patient or not await self._absence.ends(failure, end):
                    raise from_rpc_error(failure, self.name) from failure
                seconds = None if end == math.inf else end - time.monotonic()
            else:
                return
            finally:
                call.cancel()

    async def bidi_stream(
        self,
        path: str,
        requests: AsyncIterator[bytes],
        *,
        seconds: float | None = None,
        metadata: Sequence[tuple[str, Any]] = (),
    ) -> AsyncIterator[bytes]:
        """Call a bidirectional method, sending `requests` as they come and yielding replies as wire bytes."""
        call = self._callable("stream_stream", path)(
            timeout=seconds, metadata=(*metadata, *self._identify(), *telemetry.outgoing())
        )
        sender = asyncio.create_task(_send_all(call, requests))
        try:
            while (reply := await call.read()) is not grpc.aio.EOF:
                yield reply
            if sender.done() and not sender.cancelled() and (failed := sender.exception()):
                raise failed
        except grpc.aio.AioRpcError as failure:
            if sender.done() and not sender.cancelled() and (failed := sender.exception()):
                raise failed from failure
            raise from_rpc_error(failure, self.name) from failure
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and not task.cancelling() and sender.done() and (failed := sender.exception()):
                raise failed from None  # the sender cancelled the call because its source failed
            raise
        finally:
            sender.cancel()
            call.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    def _callable(self, kind: str, path: str) -> Callable[..., Any]:
        return self._line.method(kind, path)


class Absence:
    """The time that a peer is not there: `since` when on the monotonic clock, None while it is."""

    def __init__(self, line: Line | None, patience: float) -> None:
        self.since: float | None = None
        self._line = line
        self._patience = patience
        self._return: asyncio.Task[None] | None = None

    async def ends(self, failure: grpc.aio.AioRpcError, end: float) -> bool:
        """Say whether a call that failed may be made again: the peer was not there, and is in time for `end`."""
        if not was_away(failure):
            self.since = None
            return False
        now = time.monotonic()
        if self.since is None:
            self.since = now
        left = min(end - LEAST_SECONDS, self.since + self._patience) - now
        try:
            async with asyncio.timeout(left):
                # One that is going down is still connected.
                await asyncio.sleep(AGAIN_SECONDS)
                await self._connected()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Stop waiting."""
        if self._return is not None:
            self._return.cancel()

    async def _connected(self) -> None:
        """Wait until the channel is; all who do share one task."""
        assert self._line is not None  # noqa: S101  (what has no line is never away)
        if self._return is None or self._return.done():
            self._return = asyncio.create_task(self._line.ready())
        await asyncio.shield(self._return)


async def _send_all(call: Any, requests: AsyncIterator[bytes]) -> None:
    try:
        async for request in requests:
            await call.wait_for_connection()
            try:
                # `call.write` would make INTERNAL of a message that does not leave, and what the server says be lost.
                await call._cython_call.send_serialized_message(request)  # noqa: SLF001
            except cygrpc.InternalError:
                return
        await call.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return  # the reader reports how the call ended
    except Exception:
        call.cancel()
        raise


def retried(service: str, methods: Sequence[str]) -> tuple[str, ...]:
    """Return the `service/method` names among `methods` that may be tried again."""
    return tuple(f"{service}/{method}" for method in methods if method.startswith(_RETRIED_PREFIXES))


def backoff(attempt: int, uniform: float, *, first: float = 0.1, cap: float = 5.0) -> timedelta:
    """Return the wait before attempt `attempt` + 1: full jitter, `uniform` in [0, 1) times min(cap, first · 2^attempt)."""
    return timedelta(seconds=max(0.05, uniform * min(cap, first * 2 ** min(attempt, 16))))
