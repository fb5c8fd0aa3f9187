"""The whole answer to a call: its code, its text, and the details that come with it."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from contract.rpc import BUDGET, Method
from fuzz import judge
from openmanager.runtime.rpc_error import DETAILS_KEY


@dataclass(frozen=True)
class Answer:
    """What a client gets; `fault` says why it may not get that, if it may not."""

    code: str
    text: str
    reason: str
    field: str
    fault: str


OK = Answer("OK", "", "", "", "")


async def ask(channel: grpc.aio.Channel, method: Method, *messages: bytes | Message, seconds: float = BUDGET) -> Answer:
    """Call a method with one message, or with several where requests are a stream; of a stream the first reply counts."""
    data = [each.SerializeToString() if isinstance(each, Message) else each for each in messages]
    descriptor = method.descriptor
    try:
        if not descriptor.server_streaming:
            await channel.unary_unary(method.path)(data[0], timeout=seconds)
            return OK
        if descriptor.client_streaming:
            stream = channel.stream_stream(method.path)(iter(data), timeout=seconds)
        else:
            stream = channel.unary_stream(method.path)(data[0], timeout=seconds)
        try:
            if await stream.read() is grpc.aio.EOF and await stream.code() != grpc.StatusCode.OK:
                return answer(await stream.code(), await stream.details() or "", await stream.trailing_metadata())
        finally:
            stream.cancel()
    except grpc.aio.AioRpcError as failure:
        return answer(failure.code(), failure.details() or "", failure.trailing_metadata())
    return OK


def answer(code: grpc.StatusCode, text: str, trailers: grpc.aio.Metadata | None) -> Answer:
    """Return what a status says."""
    held = tuple(trailers or ())
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for key, value in held:
        if key == DETAILS_KEY:
            for detail in status_pb2.Status.FromString(value).details:
                _ = detail.Unpack(info) or detail.Unpack(request)
    field = request.field_violations[0].field if request.field_violations else ""
    return Answer(code.name, text, info.reason, field, judge.fault(code, text, held))
