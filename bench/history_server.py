"""The time-series service as a process of its own, and a client that feeds and asks it over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc

from bench.rpc import cpu_seconds, free_ports
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb

START_SECONDS = 120.0
# What it leaves for later it has begun after so long, and an idle one uses less CPU in that time than this.
SETTLE_SECONDS, IDLE_CPU_SECONDS = 1.5, 0.1
SERVICE = "/openmanager.api.timeseries.v1.TimeseriesService/"
GET_LEDGER = "/openmanager.api.timeseries.v1.LogService/GetLedger"
LIST_TIERS = "/openmanager.api.timeseries.v1.RetentionService/ListTiers"
OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
]


@dataclass(frozen=True)
class Server:
    """A running time-series service."""

    pid: int
    target: str
    folder: Path
    # From the start of the process to its first answer.
    seconds: float

    def cpu(self) -> float:
        """Return the seconds of CPU that its process has used."""
        return cpu_seconds(self.pid)

    def settle(self) -> None:
        """Return when it has done what it left for later."""
        used = -1.0
        while self.cpu() - used > IDLE_CPU_SECONDS:
            used = self.cpu()
            time.sleep(SETTLE_SECONDS)

    def rss(self) -> int:
        """Return the bytes of memory that its process has."""
        return memory(self.pid)["VmRSS"]

    def peak(self) -> int:
        """Return the most bytes of memory that its process has had."""
        return memory(self.pid)["VmHWM"]


def memory(pid: int) -> dict[str, int]:
    """Return what the kernel says of a process's memory, in bytes."""
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name in {"VmRSS", "VmHWM"}:
            found[name] = int(rest.split()[0]) * 1024
    return found


def clean_environment() -> dict[str, str]:
    """Return the environment without settings of ours: those of tests are not known to the program."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OPENMANAGER_")}


@contextlib.contextmanager
def timeseries(folder: Path, **settings: str) -> Iterator[Server]:
    """Run `openmanager serve timeseries` on a folder; settings are those of its section, as the environment has them."""
    base = free_ports(2)
    target = f"127.0.0.1:{base}"
    environment = {
        **clean_environment(),
        "OPENMANAGER_ALLOW_INSECURE": "1",
        "OPENMANAGER_TIMESERIES_DATA_DIR": str(folder),
        "OPENMANAGER_TIMESERIES_ENGINE": "blocks",
        # Nobody is there: the inventory waits.
        "OPENMANAGER_MESH_METADATA": f"127.0.0.1:{base + 1}",
        **{f"OPENMANAGER_TIMESERIES_{name.upper()}": value for name, value in settings.items()},
    }
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "openmanager.cli", "serve", "timeseries", "--listen", target],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        asyncio.run(_answers(target, process))
        yield Server(process.pid, target, folder, time.perf_counter() - start)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def mesh(folder: Path) -> Iterator[str]:
    """Run the whole mesh on a data directory, without a simulation; yield the gateway's address."""
    gateway = f"127.0.0.1:{free_ports(6)}"
    command = [sys.executable, "-m", "openmanager.cli", "up", "--data-dir", str(folder), "--gateway", gateway]
    process = subprocess.Popen(
        [*command, "--no-simulation"],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        if not any("is up" in line for line in process.stdout):
            raise OSError("the mesh did not start")
        yield gateway
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


async def _answers(target: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        async with Client(target) as client:
            try:
                await client.ledger(0.5)
            except grpc.aio.AioRpcError:
                if process.poll() is not None or time.monotonic() > end:
                    raise
                await asyncio.sleep(0.01)
            else:
                return


class Client:
    """A connection without codecs: requests and replies are bytes."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.aio.insecure_channel(target, OPTIONS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def ledger(self, seconds: float = 10.0) -> Any:
        """Return the books."""
        reply = await self._channel.unary_unary(GET_LEDGER)(b"", timeout=seconds)
        return pb.GetLedgerResponse.FromString(reply).ledger

    async def unary(self, path: str, request: bytes) -> bytes:
        reply: bytes = await self._channel.unary_unary(path)(request, timeout=60)
        return reply

    async def stream(self, path: str, request: bytes) -> list[bytes]:
        """Return the replies of a call that streams them."""
        call = self._channel.unary_stream(path)(request, timeout=60)
        replies = []
        while (reply := await call.read()) is not grpc.aio.EOF:
            replies.append(reply)
        return replies

    async def write(
        self, requests: Sequence[bytes], in_flight: int, path: str = f"{SERVICE}WriteFrames"
    ) -> list[float]:
        """Send frames on one stream; return the seconds from sending each to its acknowledgement."""
        room = asyncio.Semaphore(in_flight)
        sent: list[float] = []

        async def outgoing() -> AsyncIterator[bytes]:
            for request in requests:
                await room.acquire()
                sent.append(time.perf_counter())
                yield request

        waits = []
        call = self._channel.stream_stream(path)(outgoing(), timeout=600)
        async for _ in call:
            waits.append(time.perf_counter() - sent[len(waits)])
            room.release()
        if len(waits) != len(requests):
            raise OSError(f"{len(waits)} of {len(requests)} frames were acknowledged")
        return waits

    async def filed(self, seconds: float = 120.0) -> None:
        """Return when everything is in blocks and the tiers are made of it."""
        end = time.monotonic() + seconds
        while not await self._is_filed():
            if time.monotonic() > end:
                raise TimeoutError("history is not sealed and rolled up")
            await asyncio.sleep(0.1)

    async def rolled_up(self, seconds: float = 120.0) -> None:
        """Return when the tiers are made of everything that is in blocks."""
        end = time.monotonic() + seconds
        while not await self._is_rolled_up():
            if time.monotonic() > end:
                raise TimeoutError("history is not rolled up")
            await asyncio.sleep(0.1)

    async def _is_filed(self) -> bool:
        ledger = await self.ledger()
        positions = {each.name: each.position for each in ledger.consumers}
        if min(positions.get(name, 0) for name in ("blocks", "rollups")) < ledger.head_position:
            return False
        return await self._is_rolled_up()

    async def _is_rolled_up(self) -> bool:
        tiers = pb.ListTiersResponse.FromString(await self.unary(LIST_TIERS, b"")).tiers
        return not any(tier.waiting_bucket_count for tier in tiers)
