"""What only a hostile or broken client sends: raw HTTP/2 frames and bytes that are no HTTP/2 at all."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import h2.config
import h2.connection
import h2.events
import pytest
from conftest import Mesh

from contract.rpc import METHODS, call

SERVERS = ["gateway", "timeseries", "cache", "metadata", "analysis", "simulator"]
every_server = pytest.mark.parametrize("server", SERVERS)
GET_STATUS = "/openmanager.api.status.v1.StatusService/GetStatus"
HEADERS = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":authority", b"test"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]


async def exchange(address: str, path: bytes, body: bytes, extra: list[tuple[bytes, bytes]] | None = None) -> str:
    """Send one request and return the grpc-status, `closed` when the connection or stream ended without one."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    config = h2.config.H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    connection.send_headers(1, [(b":path", path), *HEADERS, *(extra or [])])
    connection.send_data(1, body, end_stream=True)
    writer.write(connection.data_to_send())
    try:
        async with asyncio.timeout(5):
            while data := await reader.read(65536):
                for event in connection.receive_data(data):
                    if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                        found = dict(event.headers)
                        if b"grpc-status" in found:
                            return found[b"grpc-status"].decode()
                    elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                        return "closed"
                writer.write(connection.data_to_send())
            return "closed"
    finally:
        writer.close()


async def assert_serves(mesh: Mesh, server: str) -> None:
    status = next(each for each in METHODS if each.server == server and each.path == GET_STATUS)
    assert (await call(mesh.address(server), status, b""))[0] == grpc.StatusCode.OK


@every_server
async def test_a_path_that_is_not_utf8_ends_nothing(mesh: Mesh, server: str):
    for path in (b"/x/\xff\xfe", b"/\xc3\x28", b"/" + b"a" * 60_000):
        assert await exchange(mesh.address(server), path, b"\0\0\0\0\0") in {"12", "closed"}
    await assert_serves(mesh, server)


@every_server
async def test_a_unary_call_without_its_message_is_answered_at_once(mesh: Mesh, server: str):
    assert await exchange(mesh.address(server), GET_STATUS.encode(), b"") in {"12", "13"}
    await assert_serves(mesh, server)


@every_server
async def test_a_truncated_message_is_answered_at_once(mesh: Mesh, server: str):
    assert await exchange(mesh.address(server), GET_STATUS.encode(), b"\0\0\0\0\x05ab") in {"12", "13", "closed"}
    await assert_serves(mesh, server)


@every_server
async def test_two_messages_on_a_unary_call_end_nothing(mesh: Mesh, server: str):
    await exchange(mesh.address(server), GET_STATUS.encode(), b"\0\0\0\0\0\0\0\0\0\0")
    await assert_serves(mesh, server)


@every_server
@pytest.mark.parametrize("metadata", [(("x-big", "b" * 17 * 1024),), tuple((f"x-{n}", "value") for n in range(1000))])
async def test_metadata_beyond_the_limit_is_refused(mesh: Mesh, server: str, metadata: tuple[tuple[str, str], ...]):
    async with grpc.aio.insecure_channel(mesh.address(server)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await channel.unary_unary(GET_STATUS)(b"", metadata=metadata, timeout=5)
    assert failure.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    await assert_serves(mesh, server)


@every_server
async def test_binary_metadata_that_is_not_base64_ends_nothing(mesh: Mesh, server: str):
    await exchange(mesh.address(server), GET_STATUS.encode(), b"\0\0\0\0\0", [(b"x-bin", b"%%%")])
    await assert_serves(mesh, server)


@every_server
async def test_an_unknown_encoding_is_unimplemented(mesh: Mesh, server: str):
    extra = [(b"grpc-encoding", b"rot13")]
    assert await exchange(mesh.address(server), GET_STATUS.encode(), b"\1\0\0\0\x01x", extra) in {"12", "13"}
    await assert_serves(mesh, server)


@every_server
@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,
        b"\xde\xad\xbe\xef" * 64,
    ],
    ids=["HTTP/1.1", "TLS hello", "random bytes"],
)
async def test_what_is_no_http2_is_hung_up_on(mesh: Mesh, server: str, noise: bytes):
    host, _, port = mesh.address(server).rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(noise)
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(10):
            while await reader.read(65536):
                pass
    writer.close()
    await assert_serves(mesh, server)


@every_server
async def test_a_message_of_more_than_4_mib_is_refused(mesh: Mesh, server: str):
    status = next(each for each in METHODS if each.server == server and each.path == GET_STATUS)
    code, _ = await call(mesh.address(server), status, b"\x00" * (4 * 1024 * 1024 + 1))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
