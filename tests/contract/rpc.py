"""Every method of the suite, from the descriptors, and a way to call it with any bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from openmanager import suite
from openmanager.runtime.module import service_descriptor

suite.load_protos()

STATUS = "openmanager.api.status.v1.StatusService"
GATEWAY = "openmanager.api.gateway.v1.GatewayService"
OTLP = "opentelemetry.proto.collector.metrics.v1.MetricsService"
BUDGET = 5.0


@dataclass(frozen=True)
class Method:
    """A method as one server serves it."""

    server: str
    descriptor: MethodDescriptor

    @property
    def path(self) -> str:
        return f"/{self.descriptor.containing_service.full_name}/{self.descriptor.name}"

    @property
    def request(self) -> Descriptor:
        return self.descriptor.input_type

    def __str__(self) -> str:
        return f"{self.server}:{self.descriptor.containing_service.name}.{self.descriptor.name}"


def methods() -> list[Method]:
    """Return every method of every server, and every routed one once more at the gateway."""
    served = {**suite.SERVICES, "gateway": (GATEWAY, OTLP)}
    found = [
        Method(server, method)
        for server, services in served.items()
        for service in (*services, STATUS)
        for method in service_descriptor(service).methods
    ]
    routed = [Method("gateway", method.descriptor) for method in found if method.server != "gateway"]
    return found + [method for method in routed if method.path != f"/{STATUS}/GetStatus"]


METHODS = methods()


def fields(
    descriptor: Descriptor, kinds: set[int], above: tuple[str, ...] = ()
) -> Iterator[tuple[str, bytes, FieldDescriptor]]:
    """Yield the fields of some kinds in a message and its messages: path, the tags that lead there, descriptor."""
    for field in descriptor.fields:
        if field.type in kinds:
            yield field.name, b"", field
        elif field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type.full_name not in above:
            if field.message_type.GetOptions().map_entry:
                continue
            for path, tags, inner in fields(field.message_type, kinds, (*above, descriptor.full_name)):
                yield f"{field.name}.{path}", tag(field.number, 2) + tags, inner


def tag(number: int, wire_type: int) -> bytes:
    """Return a field's tag."""
    return varint(number << 3 | wire_type)


def varint(number: int) -> bytes:
    """Return an unsigned number on the wire."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def nested(path_tags: bytes, payload: bytes) -> bytes:
    """Return a field wrapped in the messages that `path_tags` (tags of length-delimited fields) lead through."""
    tags = []
    rest = path_tags
    while rest:
        end = next(at for at, byte in enumerate(rest) if byte < 0x80) + 1
        tags.append(rest[:end])
        rest = rest[end:]
    for each in reversed(tags):
        payload = each + varint(len(payload)) + payload
    return payload


async def call(target: str, method: Method, message: bytes, seconds: float = BUDGET) -> tuple[grpc.StatusCode, str]:
    """Call a method with one message of any bytes; return the status, OK as soon as a stream has answered once."""
    async with grpc.aio.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        descriptor = method.descriptor
        try:
            if not descriptor.server_streaming:
                await channel.unary_unary(method.path)(message, timeout=seconds)
            elif descriptor.client_streaming:
                stream = channel.stream_stream(method.path)(iter([message]), timeout=seconds)
                await stream.read()
                stream.cancel() if not stream.done() else await stream.code()
                if stream.done() and await stream.code() != grpc.StatusCode.CANCELLED:
                    return await stream.code(), await stream.details()
            else:
                stream = channel.unary_stream(method.path)(message, timeout=seconds)
                if await stream.read() is grpc.aio.EOF:
                    return await stream.code(), await stream.details()
                stream.cancel()
        except grpc.aio.AioRpcError as failure:
            return failure.code(), failure.details() or ""
    return grpc.StatusCode.OK, ""


LEAKS = ("Traceback", "site-packages", "SELECT", "asyncpg", "redis.", "0x", "Exception", "127.0.0.1", "ipv4:")


def assert_clean(code: grpc.StatusCode, details: str) -> None:
    """Fail for a status that is a defect of ours, or a text that tells what is inside."""
    assert code not in {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS}, (code, details)
    with contextlib.suppress(ValueError):
        for leak in LEAKS:
            assert leak not in details, details
