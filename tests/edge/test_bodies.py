"""Bodies that are sent and never ended, beside a client that does as it should."""

from __future__ import annotations

import contextlib
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h2.connection
import pytest
from conftest import Mesh

from edge.proxied import Edge, curl, needs_envoy, running

pytestmark = needs_envoy
MIB = 1 << 20
# An address of this machine stands for a client: the attack has its own.
ATTACKER = ("127.0.0.2", 0)
CLIENTS = 48
BEGIN = b'{"selector": {"servers": ["'
PART = 10_000


def manager(made: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = made["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    return found


def hurried(made: dict[str, Any]) -> None:
    """Have bodies come within 2 s."""
    routes = manager(made)["route_config"]["virtual_hosts"][0]["routes"]
    for route in (each for each in routes if each["match"].get("prefix") == "/v1/"):
        route["route"]["max_stream_duration"] = {"max_stream_duration": "2s"}


def tight(made: dict[str, Any]) -> None:
    """Give it a third of its memory, and let an address make as many calls as all together may."""
    heap, *_ = made["overload_manager"]["resource_monitors"]
    heap["typed_config"]["max_heap_size_bytes"] = 128 * MIB
    (limit,) = (each["typed_config"] for each in manager(made)["http_filters"] if each["name"] == "local_ratelimit")
    limit["token_bucket"]["max_tokens"] = limit["descriptors"][0]["token_bucket"]["max_tokens"] = 4000


@pytest.fixture(scope="module")
def edge(mesh: Mesh, edge_files: Path) -> Iterator[Edge]:
    with running(edge_files, mesh.gateway, change=hurried) as made:
        yield made


def connected(edge: Edge, stack: contextlib.ExitStack) -> socket.socket:
    host, port = edge.address.split(":")
    return stack.enter_context(socket.create_connection((host, int(port)), timeout=20, source_address=ATTACKER))


def unfinished(edge: Edge, stack: contextlib.ExitStack, size: int) -> socket.socket:
    """Send so many bytes of a body that says it has some more."""
    connection = connected(edge, stack)
    head = f"POST /v1/series:query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {size + 9}"
    with contextlib.suppress(ConnectionError):  # it was refused before all of it had been sent
        connection.sendall(head.encode() + b"\r\n\r\n" + BEGIN.ljust(size, b"a"))
    return connection


def answer(connection: socket.socket) -> int:
    """Return the status that ends the call; 0 when the connection was closed over what it still had to read."""
    with contextlib.suppress(ConnectionError):
        if told := connection.recv(65536):
            return int(told.split(b" ")[1])
    return 0


def streams(edge: Edge, stack: contextlib.ExitStack, count: int, size: int) -> None:
    """Send so many bytes of each of some bodies by one connection of HTTP/2, until it is not let go on."""
    connection, http2 = connected(edge, stack), h2.connection.H2Connection()
    connection.settimeout(0.5)
    http2.initiate_connection()
    heads = [(":method", "POST"), (":scheme", "http"), (":authority", "localhost"), (":path", "/v1/series:query")]
    numbers = list(range(1, 2 * count, 2))
    for number in numbers:
        http2.send_headers(number, [*heads, ("content-type", "application/json")])
    with contextlib.suppress(OSError, h2.exceptions.ProtocolError):
        for at in range(0, size, PART):
            for number in numbers:
                while http2.local_flow_control_window(number) < PART:
                    connection.sendall(http2.data_to_send())
                    http2.receive_data(connection.recv(65536))
                http2.send_data(number, (b"" if at else BEGIN).ljust(PART, b"a"))
                connection.sendall(http2.data_to_send())


def held(edge: Edge) -> int:
    """Return how many bytes Envoy has allocated."""
    with urllib.request.urlopen(f"http://{edge.admin}/memory", timeout=5) as told:
        return int(json.load(told)["allocated"])


def query(edge: Edge, size: int) -> int:
    """Make a call with a body of a size; return its status."""
    body = json.dumps({"selector": {"servers": ["nobody"], "metrics": ["cpu_usage"]}}).ljust(size).encode()
    request = urllib.request.Request(f"{edge.url}/v1/series:latest", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as told:
            return int(told.status)
    except urllib.error.HTTPError as error:
        return error.code


def rejected(edge: Edge) -> int:
    return edge.counter(f"listener.{edge.address.replace(':', '_')}.downstream_cx_overload_reject")


@pytest.mark.parametrize("size", [4 * MIB, MIB - 9, 64 * 1024 - 9])
def test_bodies_that_never_end_keep_nobody_else_from_being_served(edge: Edge, size: int):
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(CLIENTS) as clients:
        attacks = [clients.submit(unfinished, edge, stack, size) for _ in range(CLIENTS)]
        found = [curl(f"{edge.url}/v1/fleet")[0] for _ in range(20)]
        found += [query(edge, 900_000)]
        connections = [each.result() for each in attacks]
        assert (set(found), rejected(edge)) == ({200}, 0)
        # As if each had sent 64 KiB, and those few more that may be large.
        assert held(edge) < 24 * MIB
        # Whoever was let in has had the time to end.
        assert {answer(each) for each in connections} <= ({408} if size < 64 * 1024 else {408, 413, 429, 0})


def flood(edge: Edge, stack: contextlib.ExitStack, clients: ThreadPoolExecutor) -> None:
    """Send 38 MB of bodies that never end at once, and then 36 MB a second, for 3 s."""
    attacks = []
    for number in range(27):
        attacks.append(clients.submit(streams, edge, stack, 90, 60_000))
        time.sleep(0.15 if number >= 7 else 0)
    for each in attacks:
        each.result()


def test_where_memory_gets_short_the_calls_that_hold_most_are_ended_and_no_others(mesh: Mesh, edge_files: Path):
    with (
        running(edge_files, mesh.gateway, change=tight) as edge,
        contextlib.ExitStack() as stack,
        ThreadPoolExecutor(17) as clients,
    ):
        attack, found = clients.submit(flood, edge, stack, clients), []
        while not attack.done():
            found.append(curl(f"{edge.url}/v1/fleet")[0])
        attack.result()
        assert edge.counter("envoy.overload_actions.reset_high_memory_stream.count") > 0
        assert (set(found), rejected(edge)) == ({200}, 0)
