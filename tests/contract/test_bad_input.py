"""What no server may choke on, tried on every method of every server from the descriptors alone."""

from __future__ import annotations

import random

import grpc
import pytest
from conftest import Mesh
from google.protobuf.descriptor import FieldDescriptor

from contract.rpc import METHODS, Method, assert_clean, call, fields, nested, tag, varint

INVALID = grpc.StatusCode.INVALID_ARGUMENT
OUT_OF_RANGE = grpc.StatusCode.OUT_OF_RANGE
every_method = pytest.mark.parametrize("method", METHODS, ids=str)

MALFORMED = {
    "no message at all": b"\xff\xff\xff\xff\xff",
    "a length beyond the end": b"\x0a\x7f\x01",
    "a varint of eleven bytes": b"\x08" + b"\xff" * 11,
    "groups nested a hundred thousand deep": b"\xa3\x06" * 100_000,
}


@every_method
async def test_malformed_bytes_are_an_invalid_argument(mesh: Mesh, method: Method):
    for what, message in MALFORMED.items():
        code, details = await call(mesh.address(method.server), method, message)
        assert code == INVALID, (what, code, details)
        assert_clean(code, details)


@every_method
async def test_random_bytes_never_show_the_inside(mesh: Mesh, method: Method):
    generator = random.Random(str(method))
    for size in (1, 7, 64, 1000):
        assert_clean(*await call(mesh.address(method.server), method, generator.randbytes(size)))


@every_method
async def test_an_empty_message_is_answered(mesh: Mesh, method: Method):
    assert_clean(*await call(mesh.address(method.server), method, b""))


@every_method
async def test_unknown_fields_are_ignored_up_to_64_kib(mesh: Mesh, method: Method):
    target = mesh.address(method.server)
    plain, _ = await call(target, method, b"")
    few = tag(5000, 2) + varint(100) + b"x" * 100
    assert (await call(target, method, few))[0] == plain
    if method.path.startswith("/openmanager."):
        many = tag(5000, 2) + varint(65 * 1024) + b"x" * 65 * 1024
        assert (await call(target, method, many))[0] == INVALID


@every_method
async def test_bad_utf8_in_any_string_is_an_invalid_argument(mesh: Mesh, method: Method):
    for path, tags, field in fields(method.request, {FieldDescriptor.TYPE_STRING}):
        if not method.path.startswith("/openmanager."):
            break
        message = nested(tags, tag(field.number, 2) + varint(2) + b"\xff\xfe")
        code, details = await call(mesh.address(method.server), method, message)
        assert code == INVALID, (path, code, details)


@every_method
async def test_an_enum_value_that_does_not_exist_is_an_invalid_argument(mesh: Mesh, method: Method):
    if not method.path.startswith("/openmanager."):
        pytest.skip("OpenTelemetry's own messages: unknown values are theirs to add")
    for path, tags, field in fields(method.request, {FieldDescriptor.TYPE_ENUM}):
        message = nested(tags, tag(field.number, 0) + varint(999))
        code, details = await call(mesh.address(method.server), method, message)
        assert code == INVALID, (path, code, details)


@every_method
async def test_times_that_do_not_exist_are_refused(mesh: Mesh, method: Method):
    for path, tags, inner in fields(method.request, {FieldDescriptor.TYPE_INT32}):
        kind = inner.containing_type.full_name
        if inner.name != "nanos" or not kind.startswith("google.protobuf."):
            continue
        for nanos in (-1 if kind.endswith("Timestamp") else -(10**9), 10**9):
            message = nested(tags, tag(2, 0) + varint(nanos % (1 << 64)))
            code, details = await call(mesh.address(method.server), method, message)
            assert code in {INVALID, OUT_OF_RANGE}, (path, nanos, code, details)
        for seconds in (1 << 62, -(1 << 62)):
            message = nested(tags, tag(1, 0) + varint(seconds % (1 << 64)))
            code, details = await call(mesh.address(method.server), method, message)
            assert code in {INVALID, OUT_OF_RANGE}, (path, seconds, code, details)


@every_method
async def test_a_deadline_that_has_passed_is_told_so_or_the_answer_came_first(mesh: Mesh, method: Method):
    """The transport's clock ticks in milliseconds: a quick answer to an empty message may come within one."""
    if method.descriptor.client_streaming:
        # grpcio's client fails such a call before it begins, with a status of its own.
        pytest.skip("a client stream has no message that could come too late")
    for seconds in (0.0, -1.0):
        code, _ = await call(mesh.address(method.server), method, b"", seconds=seconds)
        assert code in {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.OK, INVALID}


@every_method
async def test_pages_are_checked(mesh: Mesh, method: Method):
    names = method.request.fields_by_name
    if "page_size" not in names:
        pytest.skip("not a list")
    filled = _required(method)
    size = tag(names["page_size"].number, 0)
    target = mesh.address(method.server)
    assert (await call(target, method, filled + size + varint((1 << 64) - 1)))[0] == INVALID
    assert (await call(target, method, filled + size + varint(2**31 - 1)))[0] == grpc.StatusCode.OK
    for token in (b"forged", b"%%%", b"AAAAAAAAAAAAAAAAAAAA"):
        message = filled + tag(names["page_token"].number, 2) + varint(len(token)) + token
        code, details = await call(target, method, message)
        assert (code, details) == (INVALID, "invalid page token")


def _required(method: Method) -> bytes:
    """Return the fields that a list needs before its pages are looked at."""
    kind = method.request.fields_by_name.get("kind")
    return tag(kind.number, 2) + varint(5) + b"fault" if kind is not None else b""


@every_method
async def test_cancelling_leaves_the_server_well(mesh: Mesh, method: Method):
    async with grpc.aio.insecure_channel(mesh.address(method.server)) as channel:
        for _ in range(5):
            kind = "unary_stream" if method.descriptor.server_streaming else "unary_unary"
            if method.descriptor.client_streaming:
                running = channel.stream_stream(method.path)(timeout=5)
            else:
                running = getattr(channel, kind)(method.path)(b"", timeout=5)
            running.cancel()
    status = next(each for each in METHODS if each.server == method.server and each.path.endswith("/GetStatus"))
    assert (await call(mesh.address(method.server), status, b""))[0] == grpc.StatusCode.OK


@pytest.mark.parametrize("server", ["gateway", "timeseries", "cache", "metadata", "analysis", "simulator"])
async def test_unknown_services_and_methods_are_unimplemented(mesh: Mesh, server: str):
    async with grpc.aio.insecure_channel(mesh.address(server)) as channel:
        for path in ("/no.Service/Method", "/openmanager.api.status.v1.StatusService/Nope", "/", "/x", "//"):
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await channel.unary_unary(path)(b"", timeout=5)
            assert failure.value.code() == grpc.StatusCode.UNIMPLEMENTED, path
