"""The services of docker-compose.yml, started as it says, in its order, without containers, until each is healthy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import clean_environment, free_ports
from deploy.composed import (
    CERTS,
    COPIES,
    EXAMPLE,
    OWN,
    REPLICAS,
    SERVICES,
    SHARDS,
    environment,
    moved,
    placed,
    secrets_of,
    sharded,
)
from edge.proxied import ENVOY, curl, running, write_files
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from openmanager import Client, embedded, suite
from openmanager.datadir import DataDir
from openmanager.runtime.module import MeshConfig
from openmanager.runtime.supervisor import Supervisor
from openmanager.runtime.tls import Tls
from openmanager.shard import shard_of

PROGRAM = (sys.executable, "-m", "openmanager.cli")
HEALTHY_SECONDS = 30


class Machine:
    """What stands for the containers: addresses of this machine, and two stores of the same kinds."""

    def __init__(self, folder: Path, base: int, stores: dict[str, str], collector: str) -> None:
        self.folder = folder
        self.services = SERVICES
        self._stores = stores
        default = MeshConfig()
        self._addresses = {"http://otel-collector:4317": f"http://{collector}"}
        for offset, name in enumerate(suite.NAMES):
            port = getattr(default, name).rpartition(":")[2]
            here = f"127.0.0.1:{base + offset}"
            self._addresses |= {f"{name}:{port}": here, f"0.0.0.0:{port}": here, f"127.0.0.1:{port}": here}
        port = environment("gateway")["OPENMANAGER_SERVER_TLS_LISTEN"].rpartition(":")[2]
        services = f"127.0.0.1:{base + len(suite.NAMES)}"
        self._addresses |= {f"gateway:{port}": services, f"0.0.0.0:{port}": services}
        # A replica has addresses of its own, where its container would have its own machine's.
        first = base + len(suite.NAMES) + 1
        self._replicas = {
            name: dict(
                zip(self._heard(name), (f"127.0.0.1:{first + 2 * at}", f"127.0.0.1:{first + 2 * at + 1}"), strict=True)
            )
            for at, name in enumerate(REPLICAS)
        }
        first += 2 * len(REPLICAS)
        for at, name in enumerate(SHARDS):
            heard, here = self._heard(name)[0], f"127.0.0.1:{first + at}"
            self._replicas[name] = {heard: here}
            self._addresses[heard.replace("0.0.0.0", name)] = here

    @staticmethod
    def _heard(name: str) -> list[str]:
        found = environment(name)
        listens = [f"OPENMANAGER_SERVER_{listen}" for listen in ("LISTEN", "TLS_LISTEN")]
        return [found[listen] for listen in listens if listen in found]

    def address(self, name: str) -> str:
        """Return where a gateway is asked."""
        return self.environment(name)["OPENMANAGER_SERVER_LISTEN"]

    def translate(self, text: str, name: str = "") -> str:
        """Return a text of the compose file with this machine's address or folder in it."""
        text = text.replace("/etc/openmanager/certs", str(self.folder / "certs"))
        own = self._replicas.get(name, {})
        if (at_loopback := text.replace("127.0.0.1:", "0.0.0.0:")) in own:
            return own[at_loopback]
        text = ",".join(self._addresses.get(each, each) for each in text.split(","))
        return text.replace("/var/lib/openmanager", str(self.folder / ("volume-1" if name in SHARDS else "volume")))

    def _given(self, name: str) -> dict[str, str]:
        found: dict[str, str] = self.services[name].get("environment", {})
        return found

    def environment(self, name: str) -> dict[str, str]:
        secrets = placed(name, self.folder / "secrets")
        secrets |= {key: text for key, text in self._given(name).items() if not key.endswith("_FILE")}
        given = {variable: self.translate(text, name) for variable, text in secrets.items()}
        given = moved(given, "/etc/openmanager/tls", self.folder / "certs" / COPIES.get(name, name))
        given["OTEL_RESOURCE_ATTRIBUTES"] = f"service.instance.id={name}"  # in a container its host's name is its own
        given["OTEL_BSP_SCHEDULE_DELAY"] = "200"
        for variable in self._stores.keys() & given.keys():  # the stores of this machine are elsewhere
            Path(given[variable]).write_text(self._stores[variable])
        if "OPENMANAGER_SIMULATOR_INTERVAL" in given:
            given["OPENMANAGER_SIMULATOR_INTERVAL"] = "1s"  # nobody wants to wait ten for the first frame
        return {**clean_environment(), **given, "XDG_CONFIG_HOME": str(self.folder / "sessions")}

    def run(self, name: str, words: list[str]) -> subprocess.CompletedProcess[str]:
        """Run the program as in the container of a service."""
        command = [*PROGRAM, *(self.translate(word, name) for word in words)]
        return subprocess.run(
            command,
            cwd=self.folder / "work",
            env=self.environment(name),
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    @contextlib.contextmanager
    def serving(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*PROGRAM, *SERVICES[name]["command"]],
                cwd=self.folder / "work",
                env=self.environment(name),
                stderr=log,
                start_new_session=True,
            )
            try:
                yield process
            finally:
                process.terminate()
                process.wait(timeout=10)


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans as the collector does, and remembers whose they were."""

    def __init__(self) -> None:
        self.services: set[str] = set()
        # Instances and what they were asked.
        self.calls: set[tuple[str, str]] = set()

    def Export(self, request, context):
        for each in request.resource_spans:
            attributes = {attribute.key: attribute.value.string_value for attribute in each.resource.attributes}
            self.services.add(attributes["service.name"])
            instance = attributes["service.instance.id"]
            self.calls |= {(instance, span.name) for scope in each.scope_spans for span in scope.spans}
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    """A collector and its address."""
    servicer = Collector()
    server = grpc.server(ThreadPoolExecutor(2))  # in threads: processes are waited for while they send their last spans
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
async def machine(tmp_path: Path, collector: tuple[Collector, str]) -> AsyncIterator[Machine]:
    """PostgreSQL and Valkey, and folders for the rest."""
    (tmp_path / "work").mkdir()
    (tmp_path / "volume").mkdir()
    with tempfile.TemporaryDirectory(prefix="om-") as data, DataDir.open(data) as opened:
        valkey, postgresql = embedded.valkey(opened), embedded.postgresql(opened)
        async with Supervisor([valkey.spec, postgresql.spec]) as children:
            async with asyncio.timeout(HEALTHY_SECONDS):
                await children.wait_ready()
            urls = {"REDIS_URL_FILE": valkey.url.reveal(), "DATABASE_URL_FILE": postgresql.url.reveal()}
            yield Machine(
                tmp_path, free_ports(len(suite.NAMES) + 1 + 2 * len(REPLICAS) + len(SHARDS)), urls, collector[1]
            )


async def become_healthy(machine: Machine, name: str, process: subprocess.Popen[bytes]) -> None:
    """Ask as the health check does until it is content."""
    program, *words = SERVICES[name]["healthcheck"]["test"][1:]
    assert program == "openmanager"
    end = time.monotonic() + HEALTHY_SECONDS
    while (done := await asyncio.to_thread(machine.run, name, words)).returncode:
        log = (machine.folder / f"{name}.log").read_text()
        assert process.poll() is None, f"{name} has ended: {log}"
        assert time.monotonic() < end, f"{name} is not healthy: {done.stderr}{log}"


async def sign_in(machine: Machine) -> None:
    """Become the administrator, by the invitation of the first start."""
    invitation, password = machine.folder / "volume" / "metadata" / "admin-invitation", machine.folder / "password"
    assert invitation.stat().st_mode & 0o077 == 0
    password.write_text("correct horse battery staple")
    words = ["login", "--invitation-file", str(invitation), "--password-file", str(password)]
    done = await asyncio.to_thread(machine.run, "gateway", words)
    assert done.returncode == 0, done.stderr


def storages(board: dict[str, Any]) -> dict[str, str]:
    return {
        f"{service['service']}/{storage['name']}": storage["state"]
        for service in board["services"]
        for storage in service["storages"]
    }


async def the_edge_lets_in_by_key_and_counts_by_address(machine: Machine, key: str) -> None:
    folder, certificates = machine.folder / "edge", machine.folder / "certs" / "edge"
    write_files(folder, Path(machine.environment("metadata")["OPENMANAGER_METADATA_IDENTITY_KEY_FILE"]))
    listen = [machine.environment(name)["OPENMANAGER_SERVER_TLS_LISTEN"] for name in ("gateway", "gateway-2")]
    with running(folder, *listen, certificates=certificates) as edge:
        trusting = ("--cacert", str(certificates / "ca.pem"))

        async def ask(credential: str, *more: str) -> tuple[int, Any]:
            with_key = ("--header", f"Authorization: Bearer {credential}")
            return await asyncio.to_thread(curl, *trusting, *with_key, *more, f"{edge.url}/v1/fleet")

        status, fleet = await ask(key)
        assert (status, int(fleet["summary"]["total_count"])) == (200, int(EXAMPLE["SIMULATOR_SERVERS"]))
        assert (await asyncio.to_thread(curl, *trusting, f"{edge.url}/v1/fleet"))[0] == 401
        # Addresses of this machine stand for clients. A gateway counts for itself, and both are asked in turn.
        guessing, other = ("--interface", "127.0.0.2"), ("--interface", "127.0.0.3")
        found = [(await ask(f"omk_{guess}", *guessing))[0] for guess in range(30)]
        assert (found[0], found[-1]) == (401, 429)
        assert (await ask("omk_wrong", *guessing, "--header", "X-Forwarded-For: 192.0.2.1"))[0] == 429
        assert (await ask("omk_wrong", *other, "--header", "X-Forwarded-For: 127.0.0.2"))[0] == 401
        await a_new_certificate_is_used(machine, edge.address)


async def a_new_certificate_is_used(machine: Machine, address: str) -> None:
    host, _, port = address.rpartition(":")

    async def shown() -> str:
        return await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))

    before = await shown()
    done = await asyncio.to_thread(machine.run, "certs", ["certs", "issue", str(machine.folder / "certs"), "edge"])
    assert done.returncode == 0, done.stderr
    async with asyncio.timeout(HEALTHY_SECONDS):
        while await shown() == before:
            await asyncio.sleep(0.1)


async def two_gateways_are_asked_in_turn_and_one_is_enough(
    machine: Machine, stack: contextlib.ExitStack, collector: Collector
) -> None:
    second = stack.enter_context(machine.serving("gateway-2"))
    await become_healthy(machine, "gateway-2", second)
    done = await asyncio.to_thread(machine.run, "gateway", ["keys", "create", "reads", "--grant", "viewer", "--json"])
    assert done.returncode == 0, done.stderr
    key = json.loads(done.stdout)["secret"]
    both = ["gateway", "gateway-2"]
    client = Client(
        f"ipv4:{','.join(map(machine.address, both))}",
        tls=Tls(ca=machine.folder / "certs" / "gateway" / "ca.pem", server_name="localhost"),
        credential=key,
    )
    if ENVOY is not None:
        await the_edge_lets_in_by_key_and_counts_by_address(machine, key)
    asked = {(name, "openmanager.api.gateway.v1.GatewayService/GetFleetSummary") for name in both}
    async with client:
        async with asyncio.timeout(HEALTHY_SECONDS):
            while not asked <= collector.calls:
                await client.fleet_summary()
        second.kill()
        second.wait(timeout=10)
        for _ in range(40):
            assert (await client.fleet_summary()).total == int(EXAMPLE["SIMULATOR_SERVERS"])


@pytest.mark.timeout(150)
async def test_every_service_becomes_healthy_and_the_fleet_is_seen_at_the_gateway(machine, collector):
    waits = {name: set(service["depends_on"]) & set(OWN) for name, service in OWN.items()}
    done = machine.run("certs", CERTS["command"])
    assert done.returncode == 0, done.stderr
    with contextlib.ExitStack() as stack:
        processes = {}
        for name in TopologicalSorter(waits).static_order():
            processes[name] = stack.enter_context(machine.serving(name))
            await become_healthy(machine, name, processes[name])
        done = await asyncio.to_thread(machine.run, "gateway", ["status", "--json"])
        assert (done.returncode, "the gateway asks who you are" in done.stderr) == (1, True)
        await sign_in(machine)
        fleet: list[Any] = []
        async with asyncio.timeout(HEALTHY_SECONDS):
            while len(fleet) < int(EXAMPLE["SIMULATOR_SERVERS"]):
                done = await asyncio.to_thread(machine.run, "gateway", ["servers", "--json"])
                fleet = json.loads(done.stdout).get("servers", []) if done.returncode == 0 else []
        done = await asyncio.to_thread(machine.run, "gateway", ["status", "--json"])
        board = json.loads(done.stdout)
        assert {service["service"] for service in board["services"]} == set(OWN)
        assert [service["warnings"] for service in board["services"]] == [[]] * len(OWN)
        # There is no InfluxDB here: history is read from the blocks, and nothing stops without it.
        away = {name: state for name, state in storages(board).items() if state != "STORAGE_STATE_OK"}
        assert away == {"timeseries/influxdb": "STORAGE_STATE_DOWN"}
        await two_gateways_are_asked_in_turn_and_one_is_enough(machine, stack, collector[0])
        assert {name for name, process in processes.items() if process.poll() is not None} == set()
    assert {name: process.returncode for name, process in processes.items()} == dict.fromkeys(OWN, 0)
    assert collector[0].services == {f"openmanager-{name}" for name in OWN}
    assert list((machine.folder / "work").iterdir()) == []  # with a read-only root nothing could be written there
    assert any((machine.folder / "volume" / "timeseries").iterdir())
    said = "".join(file.read_text() for file in machine.folder.glob("*.log"))
    assert [path for name in OWN for path, secret in secrets_of(name).items() if secret in said] == []


@pytest.mark.timeout(150)
async def test_two_shards_serve_by_the_lines_of_the_page(machine):
    machine.services = sharded()
    stages = (["metadata"], ["timeseries", "timeseries-1"], ["cache", "cache-1"], ["gateway"])
    assert machine.run("certs", CERTS["command"]).returncode == 0
    with contextlib.ExitStack() as stack:
        for names in stages:
            started = {name: stack.enter_context(machine.serving(name)) for name in names}
            for name, process in started.items():
                stack.callback(process.terminate)  # all of them, before any is waited for
                await become_healthy(machine, name, process)
        await sign_in(machine)
        words = ["keys", "create", "writes", "--grant", "admin", "--json"]
        done = await asyncio.to_thread(machine.run, "gateway", words)
        assert done.returncode == 0, done.stderr
        tls = Tls(ca=machine.folder / "certs" / "gateway" / "ca.pem", server_name="localhost")
        servers, now = [f"web-{number:02}" for number in range(20)], time.time_ns()
        owners = {shard_of(each, 2) for each in servers}
        async with Client(machine.address("gateway"), tls=tls, credential=json.loads(done.stdout)["secret"]) as client:
            await client.write(times=[now], servers=servers, metrics=["m"], values=[[[float(at)] for at in range(20)]])
            board = await client.storage_status()
            async with asyncio.timeout(HEALTHY_SECONDS):
                while (await client.fleet_summary()).total < len(servers):
                    await asyncio.sleep(0.1)
    assert owners == {0, 1}
    assert {"timeseries/0", "timeseries/1", "cache/0", "cache/1"} <= {each.service for each in board.services}
    assert all(any((machine.folder / volume / "timeseries").iterdir()) for volume in ("volume", "volume-1"))


@pytest.mark.parametrize("name", sorted(OWN))
def test_without_the_key_of_the_mesh_a_service_does_not_start(tmp_path, name):
    variables = {**os.environ, **placed(name, tmp_path)}
    del variables["OPENMANAGER_MESH_KEY_FILE"]
    done = subprocess.run(
        [*PROGRAM, *OWN[name]["command"]],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert done.returncode == 78
    assert "OPENMANAGER_MESH_KEY_FILE" in done.stderr
