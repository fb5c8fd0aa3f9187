"""A mesh that is started, broken and mended: processes by name, and whether all of it works again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chaos.load import GATEWAY, INVENTORY
from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.metadata.v1 import metadata_pb2
from openmanager.errors import OpenManagerError
from openmanager.failpoint import VARIABLE
from openmanager.frame import Frame, encode_write_request
from openmanager.runtime.peer import Peer

START_SECONDS = 60.0
# The server and metric that probes write and read.
PROBE = "probe"
PROBE_SECONDS = 0.02
# The fleet that the simulator plays, as options of `up`.
FLEET = ("--servers", "3", "--interval", "1s")
# The order of the ports that `up` gives to the services.
PORTS = ("gateway", "simulator", "cache", "timeseries", "metadata", "analysis")
# The words of a command line by which a process of the mesh is known.
SERVICES = {name: f"serve\0{name}" for name in ("gateway", "timeseries", "cache", "metadata", "analysis", "simulator")}


@dataclass
class Mesh:
    """A running `openmanager up`."""

    process: subprocess.Popen[bytes]
    data: Path
    gateway: str
    screen: Path

    @classmethod
    def start(
        cls,
        data: Path,
        base: int,
        screen: Path,
        stores: Mapping[str, str],
        failpoint: str = "",
        *,
        fleet: Sequence[str] = FLEET,
    ) -> Mesh:
        """Start one on stores that the environment `stores` leads to, and return at once."""
        gateway = f"127.0.0.1:{base}"
        command = [sys.executable, "-m", "openmanager.cli", "up", "--data-dir", str(data), "--gateway", gateway]
        own = ("OPENMANAGER_", "REDIS_URL", "DATABASE_URL", "INFLUXDB_", "VICTORIAMETRICS_")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(own)} | dict(stores)
        if failpoint:
            environment[VARIABLE] = failpoint
        with screen.open("ab") as out:
            process = subprocess.Popen(
                [*command, *fleet],
                env=environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        return cls(process, data, gateway, screen)

    def addresses(self) -> dict[str, str]:
        """Return where each service listens."""
        host, _, port = self.gateway.rpartition(":")
        return {name: f"{host}:{int(port) + offset}" for offset, name in enumerate(PORTS)}

    def restarts(self, service: str) -> int:
        """Return how often a service has ended and was started again, in all meshes that wrote to this screen."""
        return self.screen.read_text(encoding="utf-8", errors="replace").count(f"{service} ended and is started again")

    def pid(self, name: str) -> int | None:
        """Return the process of a service, None while it has none."""
        word = SERVICES[name].encode()
        for pid in _children(self.process.pid):
            with contextlib.suppress(OSError):
                if word in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        return None

    def kill(self) -> None:
        """Kill all of it in one go."""
        signalled(family(self.process.pid), signal.SIGKILL)
        self.process.wait()

    def end(self) -> float:
        """End it as an operator does; return the seconds it took."""
        start = time.monotonic()
        self.process.terminate()
        self.process.wait(30)
        return time.monotonic() - start


def family(pid: int) -> list[int]:
    """Return a process and all below it."""
    return [pid, *_descendants(pid)]


def signalled(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to processes; those that have ended are left out."""
    for pid in pids:
        if pid > 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _descendants(pid: int) -> Iterator[int]:
    for child in _children(pid):
        yield child
        yield from _descendants(child)


def _children(pid: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


async def wait_until(condition: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
    """Return when the condition holds; TimeoutError when it does not within `seconds`."""
    end = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s")
        await asyncio.sleep(PROBE_SECONDS)


class Probe:
    """Says whether a mesh works: a write is acknowledged, and reads are answered from the first choice."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def wait(self, what: str) -> None:
        """Return when it works; SystemExit when it does not after `what`."""
        if await self.works(START_SECONDS) is None:
            raise SystemExit(f"the mesh does not work after {what}")

    async def works(self, seconds: float) -> float | None:
        """Return after how many seconds it does, None when it does not within `seconds`."""
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            try:
                async with asyncio.timeout(1.0):
                    if await self._write() and await self._read() and await self._remembers():
                        return time.monotonic() - start
            except (OpenManagerError, TimeoutError):
                pass
            await asyncio.sleep(PROBE_SECONDS)
        return None

    async def _write(self) -> bool:
        frame = Frame(
            times=np.array([time.time_ns() // 1_000_000 * 1_000_000]),
            servers=(PROBE,),
            metrics=(PROBE,),
            values=np.ones((1, 1, 1)),
        )
        request = encode_write_request(frame)
        reply = await self._peer.unary(f"{GATEWAY}/WriteFrame", request, gateway_pb2.WriteFrameResponse, seconds=1)
        return reply.ack.accepted_sample_count == 1

    async def _read(self) -> bool:
        request = gateway_pb2.GetServerRequest(id=PROBE)
        reply = await self._peer.unary(f"{GATEWAY}/GetServer", request, gateway_pb2.GetServerResponse, seconds=1)
        fresh = time.time_ns() - reply.server.sample_time.ToNanoseconds() < 3 * 10**9
        return fresh and not reply.provenance.degraded

    async def _remembers(self) -> bool:
        """Say whether the inventory is asked: what was given back to an emptied one is remembered by one process only.

        Whether the writers are in it is for the checker to say: one that never comes would be waited for for ever.
        """
        request = metadata_pb2.ListServersRequest(page_size=1)
        reply = await self._peer.unary(f"{INVENTORY}/ListServers", request, metadata_pb2.ListServersResponse, seconds=1)
        return reply.provenance.source == "postgresql"
