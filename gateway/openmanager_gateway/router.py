"""Forwards every method of another service as bytes: no codec, the caller's deadline, metadata and trace passed on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from openmanager.errors import DeadlineExceededError
from openmanager.runtime.address import FORWARDED_FOR
from openmanager.runtime.breaker import Breaker
from openmanager.runtime.clock import Clock
from openmanager.runtime.edge import DEFAULT_DEADLINE_SECONDS, NO_DEADLINE_SECONDS, forwarded, raw, unbounded
from openmanager.runtime.peer import Peer

# What a hop keeps back of the deadline, to be able to answer; with less than this left nobody is asked.
HOP_SECONDS = 0.05
LEAST_SECONDS = 0.02

# Ours to set, or the transport's; and what somebody came with, and from where, is between them and the gateway.
_NOT_PASSED = frozenset(
    {
        "authorization",
        FORWARDED_FOR,
        "user-agent",
        "traceparent",
        "tracestate",
        "content-type",
        "te",
        "grpc-accept-encoding",
    }
)
_INTERNAL_PREFIX = "x-openmanager-"


@dataclass(frozen=True, slots=True)
class Upstream:
    """A service that calls are forwarded to, unless it hangs."""

    peer: Peer
    breaker: Breaker
    clock: Clock


class Route:
    """A servicer whose every method is forwarded."""

    def __init__(self, descriptor: ServiceDescriptor, upstream: Upstream) -> None:
        for method in descriptor.methods:
            setattr(self, method.name, forwarder(method, upstream))


def path_of(method: MethodDescriptor) -> str:
    """Return the path by which a method is called."""
    return f"/{method.containing_service.full_name}/{method.name}"


def forwarder(method: MethodDescriptor, upstream: Upstream, path: str | None = None) -> Any:
    """Return a handler that forwards a method, under the method's own path unless another is given."""
    target = path or path_of(method)
    if method.client_streaming:
        return forwarded(_bidi(upstream, target))
    return forwarded(_server_stream(upstream, target) if method.server_streaming else _unary(upstream, target))


def _unary(upstream: Upstream, path: str) -> Any:
    peer, breaker, clock = upstream.peer, upstream.breaker, upstream.clock

    @raw
    @unbounded  # the service itself knows which of its methods may take long
    async def forward(data: bytes, context: Any) -> bytes:
        breaker.check()
        start = clock.monotonic()
        reply = await peer.unary_bytes(path, data, seconds=remaining(context), metadata=passed(context))
        breaker.answered(start)
        return reply

    return forward


def _server_stream(upstream: Upstream, path: str) -> Any:
    peer, breaker = upstream.peer, upstream.breaker

    @raw
    async def forward(data: bytes, context: Any) -> AsyncIterator[bytes]:
        breaker.check()
        async for reply in peer.server_stream(path, data, seconds=stream_left(context), metadata=passed(context)):
            yield reply

    return forward


def _bidi(upstream: Upstream, path: str) -> Any:
    peer, breaker = upstream.peer, upstream.breaker

    @raw
    async def forward(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        breaker.check()
        async for reply in peer.bidi_stream(path, requests, seconds=stream_left(context), metadata=passed(context)):
            yield reply

    return forward


def remaining(context: Any) -> float:
    """Return the seconds that the next hop may take."""
    left = context.time_remaining()
    if left is None or left > NO_DEADLINE_SECONDS:
        return DEFAULT_DEADLINE_SECONDS
    if left < LEAST_SECONDS:
        raise DeadlineExceededError("too little time was left to ask another service")
    return max(LEAST_SECONDS, float(left) - HOP_SECONDS)


def stream_left(context: Any) -> float | None:
    """Return the seconds that a stream of the next hop may take; None where nobody says."""
    left = context.time_remaining()
    return None if left is None or left > NO_DEADLINE_SECONDS else float(left)


def passed(context: Any) -> list[tuple[str, Any]]:
    """Return the caller's metadata without what is ours or the transport's."""
    return [
        (key, value)
        for key, value in context.invocation_metadata() or ()
        if key not in _NOT_PASSED and not key.startswith((_INTERNAL_PREFIX, "grpc-", ":"))
    ]
