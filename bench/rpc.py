"""Rows against a running mesh: hot reads, the routed hop, and the claims made for the Redis path."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from redis.asyncio import Redis

from bench.echo import ECHO
from bench.pair import Row, at_most
from openmanager import suite
from openmanager.api.cache.v1 import cache_pb2
from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.server.v1 import server_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.cli.layout import CONSOLE_OFFSET, PORTS
from openmanager.client import Client
from openmanager.client.people import Grant
from openmanager.runtime.peer import Peer

GET_SERVER = "/openmanager.api.gateway.v1.GatewayService/GetServer"
CACHE_GET_SERVER = "/openmanager.api.cache.v1.CacheService/GetServer"
LIST_SERIES = "/openmanager.api.timeseries.v1.TimeseriesService/ListSeries"
ECHO_SERVER = (sys.executable, "-m", "bench.echo")
ECHO_GO = Path(__file__).with_name("echo_go")
USERS_RATE = 1000.0
SECONDS = 4.0
PAIRS = 5
# What a key adds is little: on a busy machine it takes many calls to be seen.
KEY_CALLS, KEY_MILLIS = 2_000, 0.1


@dataclass(frozen=True)
class Load:
    """What a load saw: milliseconds, and microseconds of the server's processor time a call."""

    p50: float
    p99: float
    cpu: float


def free_ports(count: int) -> int:
    """Return a port that is free with the ones after it, and the console's for a mesh.

    Processes that look at once begin apart from each other.
    """
    return free_base((*range(count), *([CONSOLE_OFFSET] if count == len(suite.NAMES) else [])), count)


def free_base(offsets: Sequence[int], step: int) -> int:
    """Return a port that is free with those at some offsets from it; one in `step` is tried."""
    for base in range(26_000 + os.getpid() * 16 % 4_000, 32_000, step):
        with contextlib.ExitStack() as stack:
            try:
                for offset in offsets:
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", base + offset))
            except OSError:
                continue
            return base
    raise SystemExit("no free ports")


@contextlib.contextmanager
def mesh(servers: int) -> Iterator[tuple[int, dict[str, int]]]:
    """Run a whole mesh; yield its first port and the process id of each service."""
    base = free_ports(6)
    with tempfile.TemporaryDirectory(prefix="openmanager-bench-") as folder:
        command = [sys.executable, "-m", "openmanager.cli", "up", "--data-dir", folder]
        process = subprocess.Popen(
            [*command, "--gateway", f"127.0.0.1:{base}", "--servers", str(servers), "--interval", "1s"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if "is up" in line:
                    break
            time.sleep(3)
            yield base, _pids(process.pid)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(20)


def _pids(parent: int) -> dict[str, int]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
                is_child = int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent
                if is_child and b"serve" in arguments:
                    found[arguments[arguments.index(b"serve") + 1].decode()] = int(entry.name)
    return found


def echo(size: int, *command: str) -> contextlib.AbstractContextManager[tuple[str, int]]:
    """Run an echo server, of grpc.aio unless another is named; yield its address and process id."""
    return peer_server(str(size), command=command or (*ECHO_SERVER, "aio"))


@contextlib.contextmanager
def peer_server(*arguments: str, command: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Run a server that takes its port before its other arguments; yield its address and process id."""
    port = free_ports(1)
    process = subprocess.Popen([*command, str(port), *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield f"127.0.0.1:{port}", process.pid
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _other_echoes(size: int) -> Iterator[dict[str, tuple[str, int]]]:
    """Run the echo servers that say what another way to serve would cost; that in Go is built where Go is."""
    with contextlib.ExitStack() as stack:
        found = {"a pool of threads": stack.enter_context(echo(size, *ECHO_SERVER, "threads"))}
        if go := shutil.which("go"):
            binary = Path(stack.enter_context(tempfile.TemporaryDirectory()), "echo")
            subprocess.run([go, "build", "-o", str(binary), "."], cwd=ECHO_GO, check=True)
            found["Go"] = stack.enter_context(echo(size, str(binary)))
        yield found


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(target: str, path: str, request: bytes, pids: list[int], *, rate: float, amount: float, key: str = "") -> Load:
    """Put a load on a server from another process, which comes with a key where one is given."""
    before = sum(cpu_seconds(pid) for pid in pids)
    command = [sys.executable, "-m", "bench.load", target, path, request.hex(), str(rate), str(amount)]
    environment = {**os.environ, "OPENMANAGER_TOKEN": key}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    latencies = sorted(json.loads(done.stdout))
    used = sum(cpu_seconds(pid) for pid in pids) - before
    at = [latencies[int(len(latencies) * share)] * 1e3 for share in (0.5, 0.99)]
    return Load(at[0], at[1], used / (len(latencies) + 100) * 1e6)


def compare(name: str, ours, peer, goals: dict[str, float]) -> list[Row]:  # type: ignore[no-untyped-def]
    """Return a row for each figure of interleaved loads; a goal of infinity is none."""
    found = [(ours(), peer()) for _ in range(PAIRS)]
    rows = []
    for figure, goal in goals.items():
        values = [(getattr(a, figure), getattr(b, figure)) for a, b in found]
        medians = tuple(statistics.median(side) for side in zip(*values, strict=True))
        ratio = statistics.median(a / b for a, b in values if b)
        unit = "µs cpu" if figure == "cpu" else "ms"
        rows.append(at_most(f"{name}, {figure}", (medians[0], medians[1], ratio), goal, unit, 1))
    return rows


def with_a_key(target: str, request: bytes, key: str, pid: int) -> list[Row]:
    """Return what a key adds to a cached read: a share of the processor's time, and to the p50 at most 0.1 ms."""
    found = [
        [load(target, GET_SERVER, request, [pid], rate=0, amount=500, key=each).cpu for each in (key, "")]
        for _ in range(PAIRS)
    ]
    ours, peer = (statistics.median(side) for side in zip(*found, strict=True))
    cpu = ours, peer, statistics.median(a / b for a, b in found)
    added = asyncio.run(_added(target, request, key))
    name = "cached read by who comes with a key"
    return [
        at_most(f"{name}, against by anybody, cpu", cpu, 1.1, "µs cpu", 1),
        at_most(f"{name}, added to the p50, against a limit", (added, KEY_MILLIS, added / KEY_MILLIS), 1.0, "ms", 1),
    ]


async def _added(target: str, request: bytes, key: str) -> float:
    """Return how many milliseconds longer the median call with a key takes, of calls with and without it turn about."""
    with_key = (("authorization", f"Bearer {key}"),)
    took: dict[bool, list[float]] = {True: [], False: []}
    async with grpc.aio.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(GET_SERVER)
        for at in range(2 * KEY_CALLS):
            begin = time.perf_counter()
            await call(request, metadata=with_key if at % 2 else (), timeout=10)
            took[bool(at % 2)].append(time.perf_counter() - begin)
    return (statistics.median(took[True]) - statistics.median(took[False])) * 1e3


async def _reply_size(target: str, path: str, request: bytes) -> int:
    async with Peer("bench", target) as peer:
        return len(await peer.unary_bytes(path, request, seconds=5))


async def _key(target: str) -> str:
    async with Client(target) as client:
        return (await client.keys.create("bench", [Grant("viewer")]))[1]


async def _first_server(target: str) -> str:
    async with Peer("bench", target) as peer:
        path = "/openmanager.api.gateway.v1.GatewayService/ListServers"
        request = gateway_pb2.ListServersRequest(page_size=1)
        return (await peer.unary(path, request, gateway_pb2.ListServersResponse, seconds=5)).servers[0].id


def rows() -> list[Row]:
    """Measure against one mesh of 20 servers."""
    out: list[Row] = []
    with mesh(20) as (base, pids):
        gateway, cache, timeseries = (
            f"127.0.0.1:{base + PORTS.index(name)}" for name in ("gateway", "cache", "timeseries")
        )
        server = asyncio.run(_first_server(gateway))
        read = gateway_pb2.GetServerRequest(id=server).SerializeToString()
        size = asyncio.run(_reply_size(gateway, GET_SERVER, read))
        with echo(size) as (peer, peer_pid):
            out += compare(
                f"cached read of {size // 1024} KiB, 500 users at 1,000 rps, against echo",
                lambda: load(gateway, GET_SERVER, read, [pids["gateway"]], rate=USERS_RATE, amount=SECONDS),
                lambda: load(peer, ECHO, b"", [peer_pid], rate=USERS_RATE, amount=SECONDS),
                {"p50": 1.3, "p99": 1.5, "cpu": 1.2},
            )
            with _other_echoes(size) as others:
                for language, (other, other_pid) in others.items():
                    out += compare(
                        f"the same, against an echo in {language}",
                        lambda: load(gateway, GET_SERVER, read, [pids["gateway"]], rate=USERS_RATE, amount=SECONDS),
                        lambda at=other, pid=other_pid: load(at, ECHO, b"", [pid], rate=USERS_RATE, amount=SECONDS),
                        {"p50": math.inf, "p99": math.inf, "cpu": math.inf},
                    )
            one = cache_pb2.GetServerRequest(id=server).SerializeToString()
            out += compare(
                "one call routed by the gateway, against two echoes",
                lambda: load(gateway, CACHE_GET_SERVER, one, [pids["gateway"]], rate=0, amount=600),
                lambda: _twice(load(peer, ECHO, b"", [peer_pid], rate=0, amount=600)),
                {"p50": 1.0},
            )
            with peer_server(cache, CACHE_GET_SERVER, command=(*ECHO_SERVER, "pass")) as (bare, bare_pid):
                out += compare(
                    "the same, against a bare gateway of grpc.aio that passes bytes on to the same cache",
                    lambda: load(gateway, CACHE_GET_SERVER, one, [pids["gateway"]], rate=0, amount=600),
                    lambda: load(bare, CACHE_GET_SERVER, one, [bare_pid], rate=0, amount=600),
                    {"p50": 1.1, "cpu": 1.2},
                )
        key = asyncio.run(_key(gateway))
        out += with_a_key(gateway, read, key, pids["gateway"])
        request = timeseries_pb2.ListSeriesRequest(page_size=1000)
        request.selector.servers.append(server)
        series = request.SerializeToString()
        out += compare(
            "hot read from the gateway, against asking timeseries for the same server",
            lambda: load(gateway, GET_SERVER, read, [pids["gateway"]], rate=0, amount=400),
            lambda: load(timeseries, LIST_SERIES, series, [pids["timeseries"]], rate=0, amount=400),
            {"p50": 1.0, "cpu": 0.7},
        )
        out.append(asyncio.run(hot_memory(secret(pids["cache"], "REDIS_URL"), server)))
    return out


def secret(pid: int, variable: str) -> str:
    """Return a secret of a service, from the file that its environment names."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    (file,) = [entry.partition("=")[2] for entry in entries if entry.startswith(f"{variable}_FILE=")]
    return Path(file).read_text(encoding="utf-8")


async def hot_memory(url: str, server: str) -> Row:
    """Compare what Redis needs for one hot server with a hash of its fields, in the same Redis."""
    async with Redis.from_url(url) as redis:
        blob = await redis.memory_usage(f"om:server:{server}")
        stored = cache_pb2.GetServerResponse.FromString(await redis.get(f"om:server:{server}")).server
        keys = server_pb2.Server.FromString(await redis.get(f"om:metrics:{stored.metric_set}")).metrics
        fields = {key: repr(value) for key, value in zip(keys, stored.values, strict=True)}
        await redis.hset("bench:hash", mapping=fields)
        peer = await redis.memory_usage("bench:hash", samples=0)
        await redis.delete("bench:hash")
    figures = (blob / 1024, peer / 1024, blob / peer)
    return at_most("memory of a hot server in Redis, against a hash of its fields", figures, 0.4, "KiB", 1)


def _twice(found: Load) -> Load:
    return Load(2 * found.p50, 2 * found.p99, 2 * found.cpu)
