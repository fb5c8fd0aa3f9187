"""OTLP over HTTP: exports of metrics, passed on to the gateway as it takes them by gRPC, with the caller's credentials.

By the OTLP specification 1.9 (opentelemetry.io/docs/specs/otlp, “OTLP/HTTP”): protobuf or its JSON, gzip or not; a refusal
holds a google.rpc.Status in the form of the request; 429, 502, 503 and 504 are to be tried again, nothing else is.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from aiohttp import web
from google.protobuf.json_format import MessageToJson, ParseDict, ParseError
from google.protobuf.message import Message
from google.rpc import status_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as pb

from openmanager.client import Client
from openmanager.client.credential import Credential
from openmanager.client.rpc import Method
from openmanager.errors import InvalidArgumentError, OpenManagerError, Reason
from openmanager_console.session import showing
from openmanager_console.wire import JSON, MAX_BODY_BYTES, Budget, http_status, read_body, retry_headers, too_large

EXPORT: Method[Any] = Method(
    "opentelemetry.proto.collector.metrics.v1.MetricsService", "Export", pb.ExportMetricsServiceResponse
)
PROTOBUF = "application/x-protobuf"
# Before UNAVAILABLE reaches a client that gave up.
EXPORT_SECONDS = 8.0
# JSON is read by one thread at a time: it is all Python.
JSON_AT_ONCE = 1


class Receiver:
    """Takes exports; `budget` bounds what is in memory of them at once."""

    def __init__(self, client: Client, budget: Budget) -> None:
        self._client = client
        self._budget = budget
        self._reading = asyncio.Semaphore(JSON_AT_ONCE)

    async def export(self, request: web.Request, credential: Callable[[], Credential]) -> web.Response:
        """Write the metrics of a request in the name of whose `credential` it comes with."""
        kind = request.content_type
        if kind not in {PROTOBUF, JSON}:
            refused = InvalidArgumentError(f"Content-Type must be {PROTOBUF} or {JSON}", field="Content-Type")
            return _answer(_status(refused), JSON, status=415)
        try:
            with showing(credential()), self._budget.account() as account:
                data = await read_body(request, account)
                if kind == JSON:
                    async with self._reading:
                        data = await asyncio.to_thread(from_json, data)
                if len(data) > MAX_BODY_BYTES:
                    raise too_large(MAX_BODY_BYTES)
                reply = await self._client.rpc.call(EXPORT, data, seconds=EXPORT_SECONDS)
        except OpenManagerError as err:
            return _answer(_status(err), kind, status=http_status(err), headers=retry_headers(err))
        return _answer(reply, kind)


def from_json(data: bytes) -> bytes:
    """Return the protobuf of an export in JSON; what is not known of it is passed over, as the specification asks."""
    try:
        found = ParseDict(json.loads(data), pb.ExportMetricsServiceRequest(), ignore_unknown_fields=True)
    except (ParseError, ValueError, RecursionError, TypeError, AttributeError) as err:
        raise InvalidArgumentError("the body is not an export in OTLP's JSON", reason=Reason.MALFORMED_MESSAGE) from err
    return bytes(found.SerializeToString())


def _status(error: OpenManagerError) -> Message:
    status: Message = status_pb2.Status(code=error.code, message=error.message)
    return status


def _answer(message: Message, kind: str, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    body = MessageToJson(message, indent=None).encode() if kind == JSON else message.SerializeToString()
    return web.Response(body=body, status=status, headers=headers, content_type=kind)
