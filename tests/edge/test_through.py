"""gRPC, gRPC-Web and browsers through Envoy; who is let in, how often, and what happens when a gateway is lost."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.server
import json
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import h2.connection
import jwt
import pytest
import yaml
from conftest import Mesh, child, environment, second_gateway, secret, wait_until
from deploy.composed import ROOT, SERVICES
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from openmanager_metadata.keyring import Access, Keyring

from edge.proxied import Edge, needs_envoy, running
from openmanager.access import Grant as Granted
from openmanager.access import Identity, Role
from openmanager.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from openmanager.client import Client
from openmanager.client.people import Grant
from openmanager.config import Secret
from openmanager.errors import NotFoundError, OpenManagerError, UnauthenticatedError
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.mesh_key import HEADER, MeshKey

pytestmark = needs_envoy
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLEET = "/openmanager.api.gateway.v1.GatewayService/GetFleetSummary"


def framed(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


async def ask(url: str, path: str = FLEET, message: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Make a call by gRPC-Web; return the status, the trailers and the message."""
    kind = headers.get("content_type", "application/grpc-web+proto")
    body = framed(message)
    if "text" in kind:
        body = base64.b64encode(body)
    given = {"Content-Type": kind, "Accept": kind, "X-Grpc-Web": "1"}
    given |= {name.replace("_", "-"): value for name, value in headers.items() if name != "content_type"}
    async with aiohttp.ClientSession() as session, session.post(url + path, data=body, headers=given) as response:
        data = await response.read()
        trailers = {name: value for name, value in response.headers.items() if name.startswith("grpc-")}
        if "text" in kind:
            data = b"".join(base64.b64decode(part) for part in re.findall(rb"[^=]+={0,2}", data))
        found = b""
        while len(data) >= 5:
            flag, size = struct.unpack(">BI", data[:5])
            part, data = data[5 : 5 + size], data[5 + size :]
            if flag & 0x80:
                trailers |= dict(line.split(":", 1) for line in part.decode().split("\r\n") if line)
            else:
                found = part
        return response.status, trailers, found


# ── gRPC and gRPC-Web ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_client_asks_writes_queries_and_watches_as_at_the_gateway(edge: Edge):
    async with Client(edge.address) as client:
        assert (await client.fleet_summary()).total >= 3
        with pytest.raises(NotFoundError):
            await client.get_server("nobody")
        await client.write(times=[time.time_ns()], servers=["edge-1"], metrics=["edge_metric"], values=[[[1.0]]])
        seen = 0
        async with asyncio.timeout(30):
            async for _ in client.watch_servers():
                seen += 1
                if seen > 3:
                    break


@pytest.mark.parametrize("kind", ["application/grpc-web+proto", "application/grpc-web-text+proto"])
async def test_grpc_web_is_answered_in_both_of_its_forms(edge: Edge, kind: str):
    status, trailers, message = await ask(edge.url, content_type=kind)
    assert (status, trailers["grpc-status"].strip()) == (200, "0")
    assert gateway_pb2.GetFleetSummaryResponse.FromString(message).summary.total_count >= 3


async def test_an_error_by_grpc_web_has_our_details(edge: Edge):
    request = gateway_pb2.GetServerRequest(id="nobody").SerializeToString()
    status, trailers, _ = await ask(edge.url, FLEET.replace("GetFleetSummary", "GetServer"), request)
    assert (status, trailers["grpc-status"].strip(), "grpc-status-details-bin" in trailers) == (200, "5", True)


async def test_exports_reflection_and_health_go_through(edge: Edge):
    async with grpc.aio.insecure_channel(edge.address) as channel:
        export = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
        assert await channel.unary_unary(export)(b"", timeout=10) == b""
        health = await channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10)
        assert health_pb2.HealthCheckResponse.FromString(health).status == health_pb2.HealthCheckResponse.SERVING
        ask = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
        call = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(timeout=10)
        await call.write(ask)
        listed = reflection_pb2.ServerReflectionResponse.FromString(await call.read()).list_services_response.service
        call.cancel()
    assert {each.name for each in listed} >= {"openmanager.api.gateway.v1.GatewayService"}


def test_a_watch_outlives_the_silence_that_is_allowed(mesh: Mesh, edge_files: Path):
    def impatient(made: dict[str, Any]) -> None:
        manager = made["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        manager["stream_idle_timeout"] = "1s"
        manager["common_http_protocol_options"]["idle_timeout"] = "1s"

    with running(edge_files, mesh.gateway, change=impatient) as edge, grpc.insecure_channel(edge.address) as channel:
        request = gateway_pb2.WatchServersRequest()
        request.progress_interval.FromMilliseconds(300)
        begin = time.monotonic()
        for _ in gateway_pb2_grpc.GatewayServiceStub(channel).WatchServers(request, timeout=30):
            if time.monotonic() > begin + 2.5:
                return
    pytest.fail("the watch has ended")


# ── browsers ───────────────────────────────────────────────────────────────────────────────────────────────────────

CALL = """async (url) => {
  const asked = await fetch(url, {
    method: "POST", body: new Uint8Array(5), headers: {"Content-Type": "application/grpc-web+proto", "X-Grpc-Web": "1"},
  });
  const told = new Uint8Array(await asked.arrayBuffer());
  const size = new DataView(told.buffer).getUint32(1);
  const [trailers] = [new TextDecoder().decode(told.slice(5 + size + 5))];
  return {status: asked.status, message: Array.from(told.slice(5, 5 + size)), trailers};
}"""


@contextlib.contextmanager
def a_site() -> Iterator[str]:
    """Serve an empty page of another origin."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>a page</title>")

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
@pytest.mark.timeout(120)
def test_a_page_calls_from_its_own_origin_and_from_one_that_is_listed_and_from_no_other(
    mesh: Mesh, edge: Edge, edge_files: Path
):
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(a_site())
        open_to_it = stack.enter_context(running(edge_files, mesh.gateway, origins=[site]))
        browser = stack.enter_context(sync.sync_playwright()).chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        stack.callback(browser.close)
        page = browser.new_page()
        page.goto(f"{edge.url}/v1/fleet")
        found = page.evaluate(CALL, edge.url + FLEET)
        assert (found["status"], "grpc-status:0" in found["trailers"].replace(" ", "")) == (200, True)
        summary = gateway_pb2.GetFleetSummaryResponse.FromString(bytes(found["message"])).summary
        assert summary.total_count >= 3
        page.goto(site)
        assert page.evaluate(CALL, open_to_it.url + FLEET)["status"] == 200
        for asks in (CALL, "(url) => fetch(url, {method: 'POST'})", "(url) => fetch(url)"):
            with pytest.raises(sync.Error, match="Failed to fetch"):
                page.evaluate(asks, edge.url + FLEET)


# ── who comes in ───────────────────────────────────────────────────────────────────────────────────────────────────


def identity(url: str, authorization: str) -> tuple[int, str]:
    """Return the status, and who the gateway takes one for."""
    request = urllib.request.Request(f"{url}/v1/identity", headers={"Authorization": authorization})
    try:
        with urllib.request.urlopen(request, timeout=10) as told:
            return told.status, json.load(told)["identity"]["subject"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
async def session(mesh: Mesh) -> AsyncIterator[str]:
    """The access token of somebody who has signed in."""
    async with Client(mesh.gateway) as admin:
        _, invitation = await admin.users.create(f"edge-{time.time_ns()}", [Grant("viewer")])
        _, tokens = await admin.users.accept(invitation.text, "correct horse battery staple")
        yield tokens.access_token


async def test_a_token_that_we_have_signed_passes_and_no_other(mesh: Mesh, edge: Edge, session: str):
    status, who = await asyncio.to_thread(identity, edge.url, f"Bearer {session}")
    assert (status, who.startswith("users/")) == (200, True)
    now = int(time.time())
    ours = Keyring(Secret(secret(mesh, "metadata", "OPENMANAGER_METADATA_IDENTITY_KEY")))
    claims = Access(user="somebody", session="s", end=now - 120)
    head, body, signature = session.split(".")
    mesh_word = {"iss": "openmanager", "aud": "openmanager", "sub": "x", "sid": "s", "iat": now, "exp": now + 100}
    wrong = {
        "expired": ours.access_token(claims, now - 1000),
        "of another mesh": Keyring(Secret(40 * "z")).access_token(Access(user="u", session="s", end=now + 100), now),
        "changed": f"{head}.{body[:-2]}AA.{signature}",
        "signed with what everybody knows": jwt.encode(mesh_word, str(edge), "HS256"),
        "not signed": jwt.encode(mesh_word, None, "none"),
        "no token": "garbage",
    }
    before = edge.counter("cluster.gateway.upstream_rq_total")
    for kind, token in wrong.items():
        status, said = await asyncio.to_thread(identity, edge.url, f"Bearer {token}")
        assert (kind, status) == (kind, 401), said
    # Health is asked for on connections of its own: the gateway has heard of none of them.
    assert edge.counter("cluster.gateway.upstream_rq_total") == before


async def test_a_key_is_for_the_gateway_to_judge(mesh: Mesh, edge: Edge):
    async with Client(mesh.gateway) as admin:
        key, word = await admin.keys.create("edge", [Grant("viewer")])
        assert await asyncio.to_thread(identity, edge.url, f"Bearer {word}") == (200, f"keys/{key.id}")
        await admin.keys.delete(key.id)
    wrong = await asyncio.to_thread(identity, edge.url, "Bearer omk_nothing")
    assert (wrong[0], "CREDENTIALS_INVALID" in wrong[1]) == (401, True), wrong


async def test_a_refused_token_is_unauthenticated_by_grpc(edge: Edge):
    async with Client(edge.address, credential="not.a.token") as client:
        with pytest.raises(UnauthenticatedError):
            await client.fleet_summary()


async def test_what_says_who_is_calling_is_not_taken_from_a_client(mesh: Mesh, edge: Edge):
    # Even one with the mesh's own signature.
    key = MeshKey(Secret(secret(mesh, "gateway", "OPENMANAGER_MESH_KEY")), "gateway", SystemClock())
    token = key.token(Identity("users/forged", (Granted(Role.VIEWER),)))
    path = "/openmanager.api.metadata.v1.SessionService/GetIdentity"
    for place, found in ((mesh.gateway, b"users/forged"), (edge.address, b"local")):
        async with grpc.aio.insecure_channel(place) as channel:
            assert found in await channel.unary_unary(path)(b"", metadata=((HEADER, token),), timeout=10)


# ── too much, and too little ───────────────────────────────────────────────────────────────────────────────────────


def calls_a_minute(count: int) -> Callable[[dict[str, Any]], None]:
    """Return what lets an address make so many calls, and believes a proxy before Envoy of whose they are."""

    def change(made: dict[str, Any]) -> None:
        manager = made["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        manager["xff_num_trusted_hops"] = 1
        (limit,) = (each["typed_config"] for each in manager["http_filters"] if each["name"] == "local_ratelimit")
        limit["descriptors"][0]["token_bucket"] = {"max_tokens": count, "tokens_per_fill": 1, "fill_interval": "60s"}

    return change


async def test_of_ipv6_who_asks_too_often_has_all_addresses_of_a_network(mesh: Mesh, edge_files: Path):
    places = [f"2001:db8::{number}:1" for number in range(7)] + ["2001:db8:0:1::1", "192.0.2.1", "192.0.2.2"]
    with running(edge_files, mesh.gateway, change=calls_a_minute(5)) as edge:
        async with aiohttp.ClientSession() as session:
            found = []
            for place in places:
                async with session.get(f"{edge.url}/v1/fleet", headers={"X-Forwarded-For": place}) as response:
                    found.append(response.status)
    assert found == 5 * [200] + 2 * [429] + 3 * [200]


async def test_an_address_that_asks_too_often_is_told_to_wait(mesh: Mesh, edge_files: Path):
    with running(edge_files, mesh.gateway, change=calls_a_minute(5)) as edge:
        async with aiohttp.ClientSession() as session:
            found = []
            for _ in range(8):
                async with session.get(f"{edge.url}/v1/fleet") as response:
                    found.append((response.status, response.headers.get("retry-after")))
        assert found == 5 * [(200, None)] + 3 * [(429, "1")]
        async with grpc.aio.insecure_channel(edge.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary(FLEET)(b"", timeout=10)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_its_health_check_says_whether_it_serves_and_who_is_to_end_sends_clients_elsewhere(
    mesh: Mesh, edge_files: Path
):
    kind, *check = SERVICES["edge"]["healthcheck"]["test"]
    documents = yaml.safe_load_all((ROOT / "deploy/k8s/components/edge/edge.yaml").read_text())
    (pod,) = [each["spec"]["template"]["spec"] for each in documents if each["kind"] == "Deployment"]
    leave = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]

    async def run(command: list[str]) -> int | None:
        words = [word.replace("127.0.0.1/9901", edge.admin.replace(":", "/")) for word in command]
        assert words != command
        words[-1] = words[-1].replace("sleep 12", "sleep 0")
        process = await asyncio.create_subprocess_exec(*words, stderr=subprocess.DEVNULL)
        return await asyncio.wait_for(process.wait(), 10)

    assert kind == "CMD"
    with running(edge_files, mesh.gateway) as edge:
        assert await run(check) == 0
        async with aiohttp.ClientSession() as session:
            closing = []
            for _ in range(2):
                async with session.get(f"{edge.url}/v1/fleet") as response:
                    closing.append((response.status, response.headers.get("connection")))
                if len(closing) == 1:
                    assert await run(leave) == 0
                    await wait_until(lambda: _fails(run(check)), 10)
        assert closing == [(200, None), (200, "close")]
    assert await run(check) != 0


async def _fails(command: Awaitable[int | None]) -> bool:
    return await command != 0


def test_a_connection_that_only_resets_its_streams_is_closed(edge: Edge):
    host, port = edge.address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        http2 = h2.connection.H2Connection()
        http2.initiate_connection()
        path = [(":method", "GET"), (":scheme", "http"), (":authority", host), (":path", "/v1/fleet")]
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                stream = http2.get_next_available_stream_id()
                http2.send_headers(stream, path, end_stream=True)
                http2.reset_stream(stream)
                connection.sendall(http2.data_to_send())
            while connection.recv(65536):
                pass
    assert edge.counter("http.edge.downstream_rq_too_many_premature_resets") > 0


@pytest.mark.timeout(120)
async def test_a_gateway_that_is_killed_fails_no_read(mesh: Mesh, edge_files: Path, tmp_path: Path):
    with second_gateway(environment(child(mesh, "serve\0gateway")), tmp_path) as (address, process):
        async with Client(address) as client:

            async def serves() -> bool:
                with contextlib.suppress(OpenManagerError):
                    return (await client.fleet_summary()).total >= 3
                return False

            await wait_until(serves, 60)
        with running(edge_files, mesh.gateway, address, change=calls_a_minute(100_000)) as edge:
            failed, done = [], 0
            stub_path = FLEET

            async def read(channel: Any) -> None:
                nonlocal done
                while not finished.is_set():
                    try:
                        await channel.unary_unary(stub_path)(b"", timeout=20)
                    except grpc.aio.AioRpcError as error:
                        failed.append(error.details())
                    done += 1

            finished = asyncio.Event()
            async with grpc.aio.insecure_channel(edge.address) as channel, asyncio.TaskGroup() as group:
                for _ in range(8):
                    group.create_task(read(channel))

                async def some(more: int = 100) -> None:
                    target = done + more
                    await wait_until(lambda: asyncio.sleep(0, done >= target), 30)

                await some()
                process.send_signal(signal.SIGKILL)
                await some(300)
                finished.set()
            assert (failed, done > 400) == ([], True)
            # The lost one is not asked any more.
            await wait_until(
                lambda: asyncio.to_thread(lambda: edge.counter("cluster.gateway.membership_healthy") == 1), 30
            )
