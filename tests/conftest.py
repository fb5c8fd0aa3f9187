"""Fixtures that more than one folder of tests uses: a whole mesh, started once as a user would start it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from hypothesis import settings

from openmanager import suite
from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.cli import layout
from openmanager.runtime.peer import Peer

suite.load_protos()
# The same examples every time; and how long one takes is the affair of the machine.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")

STARTED = "OpenManager is up"
PORTS = len(layout.PORTS)
# A store is not away because this machine is busy.
PATIENT = {"OPENMANAGER_METADATA_STATEMENT_TIMEOUT": "5s", "OPENMANAGER_METADATA_ACQUIRE_TIMEOUT": "2s"}
WORKERS, WORKER_PORTS = 4, 3_000  # below the ports that the system gives to clients


def free_ports(count: int = PORTS) -> int:
    """Return a port that is free together with the ones after it, for a mesh with the console's too.

    Tests that run beside each other have ranges of their own.
    """
    offsets = [*range(count), *([layout.CONSOLE_OFFSET] if count == PORTS else [])]
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
    first = 20_000 + worker * WORKER_PORTS
    for base in range(
        first + os.getpid() % (WORKER_PORTS // 2), first + WORKER_PORTS - layout.CONSOLE_OFFSET, count + 1
    ):
        sockets = [socket.socket() for _ in offsets]
        try:
            for offset, each in zip(offsets, sockets, strict=True):
                each.bind(("127.0.0.1", base + offset))
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
        return base
    pytest.fail("no free ports")


async def wait_until(condition: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
    """Return when the condition holds; fail when it does not within `seconds`."""
    end = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Mesh:
    """A running `openmanager up`."""

    process: subprocess.Popen[str]
    data: Path
    base: int
    screen: str

    @property
    def gateway(self) -> str:
        return f"127.0.0.1:{self.base}"

    @property
    def console(self) -> str:
        return f"http://127.0.0.1:{self.base + layout.CONSOLE_OFFSET}"

    def address(self, service: str) -> str:
        offsets = {"gateway": 0, "simulator": 1, "cache": 2, "timeseries": 3, "metadata": 4, "analysis": 5}
        return f"127.0.0.1:{self.base + offsets[service]}"

    def stop(self, number: int = signal.SIGINT) -> float:
        """End it; return the seconds it took."""
        start = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(timeout=20)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return time.monotonic() - start


def clean_environment() -> dict[str, str]:
    """Return the environment without what would configure the mesh."""
    names = ("OPENMANAGER_", "OTEL_", "REDIS_URL", "DATABASE_URL", "INFLUXDB_", "VICTORIAMETRICS_")
    return {key: value for key, value in os.environ.items() if not key.startswith(names)}


def start_mesh(data: Path, base: int, *options: str, environment: dict[str, str] | None = None) -> Mesh:
    """Start a mesh and return when it serves."""
    command = [sys.executable, "-m", "openmanager.cli", "up", "--data-dir", str(data)]
    process = subprocess.Popen(
        [*command, "--gateway", f"127.0.0.1:{base}", *options],
        # Tests do not wait for what people would not notice.
        env={**clean_environment(), "OPENMANAGER_CACHE_INVENTORY_INTERVAL": "1s", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if STARTED in line:
            break
    else:
        pytest.fail(f"the mesh did not start:\n{''.join(lines)}")
    return Mesh(process, data, base, "".join(lines))


def child(mesh: Mesh, word: str) -> int:
    """Return the id of the child whose command line has a word."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == mesh.process.pid and word.encode() in (entry / "cmdline").read_bytes():
                    return int(entry.name)
    pytest.fail(f"no child has {word}")


def environment(pid: int) -> dict[str, str]:
    """Return the environment of a process."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def secret(mesh: Mesh, service: str, variable: str) -> str:
    """Return a secret of a service, from the file that its environment names."""
    return Path(environment(child(mesh, f"serve\0{service}"))[f"{variable}_FILE"]).read_text()


@contextlib.contextmanager
def second_gateway(environment: dict[str, str], folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Serve a mesh by one gateway more, as a process; `environment` says where the services are."""
    address = f"127.0.0.1:{free_ports(1)}"
    with (folder / "second-gateway.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "openmanager.cli", "serve", "gateway", "--listen", address],
            env=environment,
            stdout=log,
            stderr=log,
            cwd=folder,
            start_new_session=True,
        )
    try:
        yield address, process
    finally:
        process.kill()
        process.wait(timeout=10)


def first_tick(mesh: Mesh, series: int = 1, seconds: float = 30.0) -> None:
    """Return when samples of so many series have come as far as the gateway; at once where it asks who wants to know."""
    end = time.monotonic() + seconds
    with grpc.insecure_channel(mesh.gateway, [("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary("/openmanager.api.gateway.v1.GatewayService/GetFleetSummary")
        while True:
            try:
                found = gateway_pb2.GetFleetSummaryResponse.FromString(ask(b"", timeout=2, wait_for_ready=True))
            except grpc.RpcError as err:
                if err.code() is grpc.StatusCode.UNAUTHENTICATED:
                    return
            else:
                if found.summary.series_count >= series:
                    return
            assert time.monotonic() < end, "no samples have come"
            time.sleep(0.05)


@contextlib.contextmanager
def running_mesh(*options: str, environment: dict[str, str] | None = None) -> Iterator[Mesh]:
    """Run a mesh of three servers that tick every second, in a folder of its own."""
    data = Path(tempfile.mkdtemp(prefix="openmanager-test-"))
    running = start_mesh(data, free_ports(), "--servers", "3", "--interval", "1s", *options, environment=environment)
    try:
        first_tick(running)
        yield running
    finally:
        running.stop()
        shutil.rmtree(data, ignore_errors=True)


@pytest.fixture(scope="session")
def mesh() -> Iterator[Mesh]:
    """A mesh for every test that does not break it."""
    variables = {
        # So that tests need not wait for a minute for one.
        "OPENMANAGER_METADATA_AUDIT_CHECKPOINT_INTERVAL": "1s",
        **PATIENT,
    }
    with running_mesh("--seed", "7", environment=variables) as running:
        yield running


@pytest.fixture
async def gateway(mesh: Mesh) -> AsyncIterator[Peer]:
    """A channel to the mesh's gateway."""
    async with Peer("gateway", mesh.gateway) as peer:
        yield peer
