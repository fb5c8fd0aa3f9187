"""Between HTTP and the mesh: statuses for errors, JSON for messages, bodies that are bounded."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson
from aiohttp import web
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from openmanager.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    OpenManagerError,
    Reason,
    ResourceExhaustedError,
    invalid,
)

# What gRPC takes, too.
MAX_BODY_BYTES = 4 * 1024 * 1024
BODY_SECONDS = 10.0
JSON = "application/json"

# By the number of google.rpc.Code; what is not here is 500.
_STATUSES = {
    1: 503,
    3: 400,
    4: 504,
    5: 404,
    6: 409,
    7: 403,
    8: 429,
    9: 400,
    10: 409,
    11: 400,
    12: 501,
    14: 503,
    16: 401,
}


def http_status(error: OpenManagerError) -> int:
    """Return the status that says of an error what its code says."""
    if isinstance(error, ResourceExhaustedError) and error.reason == Reason.MESSAGE_TOO_LARGE:
        return 413
    return _STATUSES.get(error.code, 500)


def retry_headers(error: OpenManagerError) -> dict[str, str]:
    """Return when to try again, in whole seconds, where that makes sense."""
    if error.retry_after is None:
        return {}
    return {"Retry-After": str(max(1, math.ceil(error.retry_after.total_seconds())))}


def error_response(error: OpenManagerError) -> web.Response:
    """Return an error as the page reads it."""
    about = {"code": error.code, "reason": error.reason, "message": error.message, "field": error.field}
    return json_response({"error": about}, status=http_status(error), headers=retry_headers(error))


def dumps(content: Any) -> bytes:
    """Return JSON; arrays of numpy as lists, NaN as null."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def json_response(content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return an answer in JSON."""
    return web.Response(body=dumps(content), status=status, headers=headers, content_type=JSON)


def as_dict(message: Message) -> dict[str, Any]:
    """Return a message as `--json` prints it."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


class Budget:
    """The bytes of bodies that may be in memory at once."""

    def __init__(self, most: int) -> None:
        self._left = most

    @contextmanager
    def account(self) -> Iterator[Account]:
        """Yield what to take bytes from; they come back at the end of the context."""
        account = Account(self)
        try:
            yield account
        finally:
            self._left += account.taken

    def take(self, count: int) -> None:
        """Take some; ResourceExhaustedError when there are none left."""
        if count > self._left:
            raise ResourceExhaustedError("too much is being received at once: try again in a moment")
        self._left -= count


class Account:
    """What one request has taken of a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.taken = 0

    def take(self, count: int) -> None:
        """Take some more."""
        self._budget.take(count)
        self.taken += count


def too_large(most: int) -> ResourceExhaustedError:
    """Return the error for a body over its limit."""
    return ResourceExhaustedError(f"the body is larger than {most:,} bytes", reason=Reason.MESSAGE_TOO_LARGE)


async def read_body(request: web.Request, account: Account, *, most: int = MAX_BODY_BYTES) -> bytes:
    """Return the body of a request, unpacked, `most` bytes at most.

    DeadlineExceededError when it has not come after BODY_SECONDS, ResourceExhaustedError when it is too large,
    InvalidArgumentError for an encoding that is none, or not known.
    """
    if (request.content_length or 0) > most:
        raise too_large(most)
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.content.iter_any():
                size += len(part)
                if size > most:
                    raise too_large(most)
                account.take(len(part))
                parts.append(part)
    except TimeoutError as err:
        raise DeadlineExceededError(f"the body did not come within {BODY_SECONDS:g} s") from err
    data = b"".join(parts)
    match request.headers.get("Content-Encoding", "identity").strip().lower():
        case "identity":
            return data
        case "gzip" | "x-gzip":
            account.take(most)
            return await asyncio.to_thread(_unpack, data, most)
        case _:
            raise invalid("Content-Encoding", "must be gzip or identity")


def _unpack(data: bytes, most: int) -> bytes:
    """Return what a gzip file of one or more members holds; never more than `most` is unpacked."""
    parts, left = [], most
    try:
        while data:
            member = zlib.decompressobj(16 + zlib.MAX_WBITS)
            part = member.decompress(data, left + 1)
            left -= len(part)
            if left < 0:
                raise too_large(most)
            if not member.eof:
                raise InvalidArgumentError("the body ends before its gzip does", reason=Reason.MALFORMED_MESSAGE)
            parts.append(part)
            data = member.unused_data
    except zlib.error as err:
        raise InvalidArgumentError("the body is not gzip", reason=Reason.MALFORMED_MESSAGE) from err
    return b"".join(parts)
