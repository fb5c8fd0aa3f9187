"""Whether an answer is one that a client may get: a documented code and reason, and nothing of what is inside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from openmanager.errors import Reason
from openmanager.runtime.rpc_error import DETAILS_KEY, DOMAIN

# Defects of ours, whatever was asked.
DEFECTS = frozenset({grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS})
# What only the inside knows: traces, files, statements, libraries, objects, addresses.
LEAK = re.compile(
    r"Traceback|\.py\b|site-packages|/(?:tmp|home|usr|root|proc|var|etc)/|\bSELECT\b|\bINSERT\b|asyncpg|redis\.|pyarrow|numpy"
    r"|Exception|<class|\bobject at\b|\b0x[0-9a-f]{6}|127\.0\.0\.1|ipv[46]:|unix:|_pb2|[A-Z]\w+Error\b"
)
# Proxies and stock clients give up on headers beyond 8 KiB.
MAX_TEXT, MAX_TRAILERS = 1000, 4096


def fault(code: grpc.StatusCode, details: str, trailers: Sequence[Any]) -> str:
    """Return what is wrong with an answer; nothing when a client may get it."""
    if code is grpc.StatusCode.OK:
        return ""
    if code in DEFECTS:
        return f"answers {code.name}"
    return _details_fault(code, details, trailers)


def _details_fault(code: grpc.StatusCode, details: str, trailers: Sequence[Any]) -> str:
    packed = next((value for key, value in trailers if key == DETAILS_KEY), None)
    if packed is None:
        return f"answers {code.name} without details"
    status = status_pb2.Status.FromString(packed)
    if status.code != code.value[0] or status.message != details:
        return "says two things"
    if found := LEAK.search(f"{details} {packed.decode(errors='ignore')}"):
        return f"tells {found[0]!r}"
    if len(details) > MAX_TEXT or len(packed) > MAX_TRAILERS:
        return "says too much"
    return _reason_fault(code, status)


def _reason_fault(code: grpc.StatusCode, status: status_pb2.Status) -> str:
    details = {each.TypeName().removeprefix("google.rpc."): each for each in status.details}
    info = error_details_pb2.ErrorInfo()
    if "ErrorInfo" not in details or not details["ErrorInfo"].Unpack(info):
        return "gives no reason"
    if info.domain != DOMAIN or info.reason not in set(Reason):
        return f"gives the reason {info.reason!r}"
    whole = info.reason == Reason.MALFORMED_MESSAGE
    if code is grpc.StatusCode.INVALID_ARGUMENT and not whole and "BadRequest" not in details:
        return "names no field"
    if code is grpc.StatusCode.UNAVAILABLE and "RetryInfo" not in details:
        return "does not say when to try again"
    return ""
