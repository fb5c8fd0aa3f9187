"""The wrapper around every method, on a real server with a service made for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2, wrappers_pb2
from grpc._cython import cygrpc

from fuzz import http2
from fuzz.http2 import connected
from openmanager import errors
from openmanager.access import Permission
from openmanager.api.metadata.v1 import metadata_pb2
from openmanager.errors import OpenManagerError
from openmanager.frame import length_delimited
from openmanager.policy import POLICY, Reach, Rule
from openmanager.runtime import validate
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.edge import MAX_EMPTY_MESSAGES
from openmanager.runtime.module import ServerConfig, Service
from openmanager.runtime.peer import CHANNEL_OPTIONS, Peer
from openmanager.runtime.rpc_error import from_rpc_error, to_trailers
from openmanager.runtime.server import PUBLIC_OPTIONS, SERVER_OPTIONS, Server

NAME = "openmanager.test.v1.TestService"


def describe() -> None:
    """Add a service with a method of each kind to the pool, once."""
    pool = descriptor_pool.Default()
    try:
        pool.FindServiceByName(NAME)
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto(
            name="openmanager/test/v1/test.proto", package="openmanager.test.v1", syntax="proto3"
        )
        file.dependency.append("google/protobuf/wrappers.proto")
        service = file.service.add(name="TestService")
        for name, asks, answers in (("Call", False, False), ("Watch", False, True), ("Talk", True, True)):
            service.method.add(
                name=name,
                input_type=".google.protobuf.StringValue",
                output_type=".google.protobuf.BytesValue",
                client_streaming=asks,
                server_streaming=answers,
            )
        pool.AddSerializedFile(file.SerializeToString())


RULES = {**POLICY, NAME: dict.fromkeys(("Call", "Watch", "Talk"), Rule(Permission.READ, Reach.NONE))}


class TestService:
    """Does what the request says."""

    __test__ = False

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def Call(self, request, context):
        if request.value == "known":
            raise errors.AbortedError("somebody was faster", retry_after=timedelta(milliseconds=250), resource="x/y")
        if request.value == "unknown":
            raise ValueError("/secret/path")
        if request.value == "cancelled":
            raise asyncio.CancelledError
        if request.value == "slow":
            try:
                await asyncio.sleep(30)
            finally:
                self.ended.append("slow")
        return wrappers_pb2.BytesValue(value=b"ok")

    async def Watch(self, request, context) -> AsyncIterator[wrappers_pb2.BytesValue]:
        try:
            for _ in range(3 if request.value == "few" else 1000):
                yield wrappers_pb2.BytesValue(value=bytes(1 << 20))
                if request.value == "once":
                    await asyncio.sleep(30)
                if request.value == "few":
                    await asyncio.sleep(0.1)
        finally:
            self.ended.append("watch")

    async def Talk(self, requests, context) -> AsyncIterator[wrappers_pb2.BytesValue]:
        heard: asyncio.Queue = asyncio.Queue()

        async def listen() -> None:
            try:
                async for request in requests:
                    heard.put_nowait(request)
                heard.put_nowait(None)
            except OpenManagerError as err:
                heard.put_nowait(err)

        listener = asyncio.create_task(listen())
        try:
            while (request := await heard.get()) is not None:
                if isinstance(request, OpenManagerError):
                    raise request
                if request.value == "think":
                    await asyncio.sleep(1.0)
                yield wrappers_pb2.BytesValue(value=request.value.encode())
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)
            self.ended.append("talk")


@asynccontextmanager
async def serving(
    *, address: str = "127.0.0.1:0", public: bool = False, **config
) -> AsyncIterator[tuple[TestService, str, Server]]:
    describe()
    service = TestService()
    server = Server(
        service=Service(rules=RULES, servicers={NAME: service}, public=public),
        name="test",
        address=address,
        config=ServerConfig(**config),
        clock=SystemClock(),
    )
    async with server.running():
        yield service, f"127.0.0.1:{server.port}", server


async def call(address: str, value: str, seconds: float = 5) -> bytes:
    async with Peer("test", address) as peer:
        request = wrappers_pb2.StringValue(value=value)
        reply = await peer.unary(f"/{NAME}/Call", request, wrappers_pb2.BytesValue, seconds=seconds)
        return reply.value


async def test_an_error_of_ours_arrives_with_all_it_says():
    async with serving() as (_, address, _server):
        with pytest.raises(errors.AbortedError) as failure:
            await call(address, "known")
        found = failure.value
        assert (found.message, found.reason, found.resource) == ("somebody was faster", "ETAG_MISMATCH", "x/y")
        assert found.retry_after == timedelta(milliseconds=250)


async def test_a_call_that_fails_leaves_no_error_in_the_logs(caplog: pytest.LogCaptureFixture):
    async with serving() as (_, address, _server):
        with pytest.raises(errors.AbortedError):
            await call(address, "known")
    assert [record.getMessage() for record in caplog.records if record.name.startswith("grpc")] == []


async def test_an_error_of_nobody_is_internal_with_an_opaque_id(caplog: pytest.LogCaptureFixture):
    async with serving() as (_, address, _server):
        with pytest.raises(errors.InternalError) as failure:
            await call(address, "unknown")
        assert "secret" not in failure.value.message
        ident = failure.value.message.split()[-1]
        assert any(getattr(record, "fields", {}).get("error_id") == ident for record in caplog.records)


async def test_a_handler_that_ends_in_cancellation_is_answered_at_once():
    async with serving() as (_, address, _server):
        with pytest.raises(errors.CancelledCallError):
            await call(address, "cancelled")


async def test_a_deadline_ends_the_handler_too():
    async with serving() as (service, address, _server):
        with pytest.raises(errors.DeadlineExceededError):
            await call(address, "slow", seconds=0.2)
        async with asyncio.timeout(5):
            while service.ended != ["slow"]:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("limit", "seconds"), [("default_deadline", None), ("max_deadline", 30.0)], ids=["none given", "a long one given"]
)
async def test_no_call_takes_longer_than_the_server_lets_it(limit: str, seconds: float | None):
    async with serving(**{limit: timedelta(milliseconds=200)}) as (service, address, _server):
        async with grpc.aio.insecure_channel(address) as channel:
            request = wrappers_pb2.StringValue(value="slow").SerializeToString()
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await channel.unary_unary(f"/{NAME}/Call")(request, timeout=seconds)
        assert from_rpc_error(failure.value, "test").reason == "DEADLINE_EXCEEDED"
        assert service.ended == ["slow"]


async def test_a_stream_that_is_not_read_is_ended_with_its_reason():
    async with serving(write_timeout=timedelta(milliseconds=300)) as (service, address, _server):
        async with grpc.aio.insecure_channel(address) as channel:
            stream = channel.unary_stream(f"/{NAME}/Watch")(b"", timeout=30)
            await stream.read()
            async with asyncio.timeout(10):
                while not service.ended:
                    await asyncio.sleep(0.01)
            assert await call(address, "fine") == b"ok"
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                while await stream.read() is not grpc.aio.EOF:
                    pass
            assert from_rpc_error(failure.value, "test").reason == "WATCH_TOO_SLOW"


@pytest.mark.parametrize("window", [0, 1 << 16], ids=["nothing", "the beginning"])
async def test_a_reader_who_takes_nothing_more_is_dropped_with_what_waits_for_it(window: int):
    async with serving(write_timeout=timedelta(milliseconds=100)) as (service, address, server):
        async with connected(address, reads=False, values={http2.INITIAL_WINDOW_SIZE: window}) as connection:
            await connection.send(http2.call(1, f"/{NAME}/Watch".encode(), http2.message(b"")))
            assert await connection.status(1, 10) == str(grpc.StatusCode.CANCELLED.value[0])
            assert (service.ended, server._grpc._server.calls) == (["watch"], set())


async def test_more_calls_than_allowed_are_shed():
    async with serving(max_calls=3) as (_, address, _server):
        calls = [asyncio.create_task(call(address, "slow", seconds=1)) for _ in range(6)]
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [getattr(each, "reason", None) for each in found].count("OVERLOADED") == 3


async def test_calls_are_taken_however_many_streams_there_are():
    async with serving(max_streams=1) as (_, address, _server), grpc.aio.insecure_channel(address) as channel:
        stream = channel.unary_stream(f"/{NAME}/Watch")(wrappers_pb2.StringValue(value="once").SerializeToString())
        await stream.read()
        assert await call(address, "fine") == b"ok"


async def test_a_server_that_stops_ends_its_streams_and_says_so():
    async with serving() as (service, address, _server), grpc.aio.insecure_channel(address) as channel:
        stream = channel.unary_stream(f"/{NAME}/Watch")(wrappers_pb2.StringValue(value="once").SerializeToString())
        await stream.read()
        stopping = asyncio.create_task(_server._stop())
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stream.read()
        error: OpenManagerError = from_rpc_error(failure.value, "test")
        assert (error.reason, service.ended) == ("SHUTTING_DOWN", ["watch"])
        async with asyncio.timeout(3):
            await stopping


async def test_a_stream_with_a_deadline_is_finished_by_a_server_that_stops():
    async with serving() as (_, address, server), Peer("test", address) as peer:
        request = wrappers_pb2.StringValue(value="few")
        replies = peer.server_stream(f"/{NAME}/Watch", request, seconds=10)
        await anext(replies)
        async with asyncio.timeout(3):
            await server._stop()
        assert len([each async for each in replies]) == 2


async def test_a_call_that_does_not_end_is_told_that_the_server_stops():
    async with serving(grace=timedelta(seconds=0.3)) as (service, address, server):
        calling = asyncio.create_task(call(address, "slow", seconds=30))
        streaming = asyncio.create_task(watched(address, "once"))
        async with asyncio.timeout(5):
            while server._load.unary + server._load.streams < 2:
                await asyncio.sleep(0.01)
            await server._stop()
        found = await asyncio.gather(calling, streaming, return_exceptions=True)
        assert [getattr(each, "reason", each) for each in found] == ["SHUTTING_DOWN", "SHUTTING_DOWN"]
        assert sorted(service.ended) == ["slow", "watch"]


async def watched(address: str, value: str) -> None:
    async with Peer("test", address) as peer:
        async for _ in peer.server_stream(f"/{NAME}/Watch", wrappers_pb2.StringValue(value=value), seconds=30):
            pass


def test_bytes_that_are_no_message_are_an_invalid_argument():
    validate.check(duration_pb2.Duration(seconds=1), 2)
    with pytest.raises(errors.InvalidArgumentError):
        validate.decode(wrappers_pb2.StringValue, b"\xff")


CALL, WATCH, TALK = (f"/{NAME}/{method}" for method in ("Call", "Watch", "Talk"))
SAYS = wrappers_pb2.StringValue(value="once").SerializeToString()


async def test_a_message_that_never_comes_whole_ends_its_call():
    async with serving(read_timeout=timedelta(milliseconds=300)) as (_, address, _server):
        async with connected(address) as connection:
            await connection.send(http2.call(1, CALL.encode(), http2.message(bytes(100))[:20], end=False))
            await connection.send(http2.call(3, WATCH.encode(), b"", end=False))
            assert await connection.status(1, 5) == str(grpc.StatusCode.DEADLINE_EXCEEDED.value[0])
            assert await connection.status(3, 5) == str(grpc.StatusCode.DEADLINE_EXCEEDED.value[0])
        assert await call(address, "fine") == b"ok"


async def test_a_call_whose_message_has_come_may_take_longer_than_a_message_may():
    async with serving(read_timeout=timedelta(milliseconds=100)) as (service, address, _server):
        with pytest.raises(errors.DeadlineExceededError):
            await call(address, "slow", seconds=0.5)
        await ended(service, "slow")


async def test_a_stream_whose_sender_says_nothing_is_ended_with_its_reason():
    async with serving(idle_timeout=timedelta(milliseconds=300)) as (service, address, _server):
        async with grpc.aio.insecure_channel(address) as channel:
            stream = channel.stream_stream(TALK)()
            await stream.write(SAYS)
            assert await stream.read() == b"\n\x04once"
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await stream.read()
            error = from_rpc_error(failure.value, "test")
            assert (error.code, error.reason) == (errors.DeadlineExceededError.code, "STREAM_IDLE")
        await ended(service, "talk")


async def test_a_sender_who_waits_for_an_answer_is_not_idle():
    async with serving(idle_timeout=timedelta(milliseconds=300)) as (_, address, _server):
        async with grpc.aio.insecure_channel(address) as channel:
            stream = channel.stream_stream(TALK)()
            await stream.write(wrappers_pb2.StringValue(value="think").SerializeToString())
            assert await stream.read() == b"\n\x05think"
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF


async def test_a_sender_of_nothing_but_empty_messages_is_refused():
    async with serving() as (service, address, _server):
        async with grpc.aio.insecure_channel(address) as channel:

            async def nothing() -> AsyncIterator[bytes]:
                for _ in range(MAX_EMPTY_MESSAGES + 1):
                    yield b""

            with pytest.raises(grpc.aio.AioRpcError) as failure:
                async for _ in channel.stream_stream(TALK)(nothing()):
                    pass
            assert failure.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        await ended(service, "talk")


async def test_metadata_is_limited_before_a_client_has_heard_of_the_limit():
    async with serving() as (_, address, _server):
        for path, size, code in ((CALL, 1_000, "0"), (CALL, 4_000, "8"), (WATCH, 4_000, "8"), (TALK, 4_000, "8")):
            async with connected(address) as connection:
                extra = [(b"x-large", b"x" * 14_000), (b"y-large", b"y" * size)]
                await connection.send(http2.call(1, path.encode(), http2.message(b""), extra=extra))
                assert await connection.status(1, 5) == code


async def test_a_connection_of_a_client_has_few_streams_and_one_of_a_service_has_many():
    for public, streams in ((True, 100), (False, 10_000)):
        async with serving(public=public) as (_, address, _server), connected(address) as connection:
            await connection.greeted(5)
            assert connection.settings[http2.MAX_CONCURRENT_STREAMS] == streams


async def test_a_call_that_is_given_up_ends_its_handler_whatever_its_kind():
    async with serving() as (service, address, server), grpc.aio.insecure_channel(address) as channel:
        calls = [
            channel.unary_unary(CALL)(wrappers_pb2.StringValue(value="slow").SerializeToString()),
            channel.unary_stream(WATCH)(SAYS),
            channel.stream_stream(TALK)(),
        ]
        await calls[1].read()
        await calls[2].write(SAYS)
        await calls[2].read()
        async with asyncio.timeout(5):
            while not server._load.unary:  # one that has not begun has no handler to end
                await asyncio.sleep(0.01)
        for each in calls:
            each.cancel()
        await ended(service, "slow", "watch", "talk")
        assert (server._load.unary, server._load.streams, server._edge._calls) == (0, 0, set())


async def test_our_clients_ping_no_more_often_than_our_servers_allow():
    client, server = dict(CHANNEL_OPTIONS), dict(SERVER_OPTIONS)
    assert client["grpc.keepalive_time_ms"] >= server["grpc.http2.min_ping_interval_without_data_ms"]
    assert server["grpc.keepalive_permit_without_calls"] == 1


def test_the_core_knows_every_option_that_it_is_given():
    """One that it does not know it ignores in silence: `min_recv_ping_interval…` cost every quiet connection its life."""
    core = Path(cygrpc.__file__).read_bytes()
    for name in dict((*SERVER_OPTIONS, *PUBLIC_OPTIONS, *CHANNEL_OPTIONS)):
        assert f"{name}\0".encode() in core, name


async def test_a_second_server_on_a_port_is_refused():
    async with serving() as (_, address, _server):
        with pytest.raises(errors.ConfigurationError, match="taken"):
            async with serving(address=address):
                pass


async def ended(service: TestService, *names: str) -> None:
    """Wait until handlers have ended."""
    async with asyncio.timeout(5):
        while not set(names) <= set(service.ended):
            await asyncio.sleep(0.01)


def test_what_a_request_held_is_told_no_longer_than_headers_carry():
    long = "x" * 100_000
    error = errors.NotFoundError(f"there is no {long}", resource=f"thing/{long}")
    assert (len(error.message), len(str(error))) == (errors.MAX_MESSAGE,) * 2
    assert sum(len(value) for _, value in to_trailers(error)) < 4096


@pytest.mark.parametrize("number", [5000, 1], ids=["in the message", "in a message in it"])
@pytest.mark.parametrize("over", [-16, 16])
def test_unknown_fields_are_counted_at_any_depth_and_of_any_type(number: int, over: int):
    one = varint_field(777, 1)  # 3 bytes
    inside = one * ((validate.MAX_UNKNOWN_BYTES + over) // len(one))
    data = inside if number != 1 else length_delimited(1, length_delimited(7, inside))
    if over > 0:
        with pytest.raises(errors.InvalidArgumentError):
            validate.decode(metadata_pb2.UpdateServerRequest, data)
    else:
        validate.decode(metadata_pb2.UpdateServerRequest, data + length_delimited(2, b""))


def varint_field(number: int, value: int) -> bytes:
    tag = number << 3
    return bytes([tag & 0x7F | 0x80, tag >> 7, value])
