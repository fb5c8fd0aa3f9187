"""Real stores for the engines' tests: started on a free port of the loopback, or where the environment says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from conftest import free_ports
from openmanager_timeseries.engines.port import Engine
from openmanager_timeseries.engines.victoriametrics import VictoriaEngine

from openmanager.config import Secret

WRITE_TIMEOUT = timedelta(seconds=10)
QUERY_TIMEOUT = timedelta(seconds=20)
START_SECONDS = 30.0
RETENTION = timedelta(days=3650)


def ask(url: str, body: object = None, method: str = "GET", token: str = "") -> bytes:
    """Return an answer; OSError for every one that is not 2xx."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Token {token}"} if token else {})}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()


@dataclass
class Server:
    """A store's process."""

    command: Sequence[str]
    url: str
    health: str
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + START_SECONDS
        while True:
            assert self.process.poll() is None, f"{self.command[0]} has ended"
            with contextlib.suppress(OSError):
                ask(self.url + self.health)
                return
            assert time.monotonic() < end, f"{self.command[0]} does not serve"
            time.sleep(0.02)

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(timeout=20)
            self.process = None

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        self.send(signal.SIGSTOP)
        assert self.process is not None
        # Its threads stop one after the other, and until then it may answer.
        while " T " not in Path(f"/proc/{self.process.pid}/stat").read_text():
            time.sleep(0.01)
        try:
            yield
        finally:
            self.send(signal.SIGCONT)


class Store(Protocol):
    """A running store, and how an engine of ours gets to it."""

    name: str
    server: Server | None

    def engine(self, *, url: str = "", write: timedelta = WRITE_TIMEOUT, query: timedelta = QUERY_TIMEOUT) -> Engine:
        """Return an engine, of which nothing is known in the store where it is able to keep them apart."""
        ...

    async def settle(self) -> None:
        """Return when everything that was written can be seen."""
        ...

    async def empty(self) -> None:
        """Lose what was written."""
        ...


@dataclass
class Victoria:
    """A VictoriaMetrics of our own."""

    server: Server
    name: str = "victoriametrics"
    # Empty for one of its own for every engine.
    marker: str = ""

    def engine(
        self, *, url: str = "", write: timedelta = WRITE_TIMEOUT, query: timedelta = QUERY_TIMEOUT
    ) -> VictoriaEngine:
        return VictoriaEngine(
            write_url=url or self.server.url,
            read_url="",
            write_timeout=write,
            query_timeout=query,
            marker=self.marker or f"marker_{uuid.uuid4().hex}",
        )

    async def settle(self) -> None:
        await asyncio.to_thread(ask, self.server.url + "/internal/force_flush")

    async def empty(self) -> None:
        match = urllib.parse.urlencode({"match[]": '{__name__!=""}'})
        await self.settle()
        await asyncio.to_thread(ask, f"{self.server.url}/api/v1/admin/tsdb/delete_series?{match}")


def victoria_server(data: Path, *options: str) -> Server | None:
    """Return a server that is not yet started; None when there is none on this machine."""
    binary = shutil.which("victoria-metrics")
    if binary is None:
        return None
    port = free_ports(1)
    own = [f"-storageDataPath={data}", f"-httpListenAddr=127.0.0.1:{port}", "-retentionPeriod=10y"]
    return Server([binary, *own, *options], f"http://127.0.0.1:{port}", "/health")


@dataclass
class Influx:
    """An InfluxDB 2.x: our own, or one that the environment names."""

    server: Server | None
    url: str
    token: str
    org: str
    name: str = "influxdb"
    buckets: list[str] = field(default_factory=list)

    def engine(self, *, url: str = "", write: timedelta = WRITE_TIMEOUT, query: timedelta = QUERY_TIMEOUT) -> Engine:
        return self.engine_with(self.token, url=url, write=write, query=query)

    def engine_with(
        self, token: str, *, url: str = "", write: timedelta = WRITE_TIMEOUT, query: timedelta = QUERY_TIMEOUT
    ) -> Engine:
        from openmanager_timeseries.engines.influxdb import InfluxEngine

        self.buckets.append(f"test-{uuid.uuid4().hex}")
        return InfluxEngine(
            url=url or self.url,
            token=Secret(token),
            org=self.org,
            bucket=self.buckets[-1],
            retention=RETENTION,
            write_timeout=write,
            query_timeout=query,
        )

    async def settle(self) -> None:
        """What was written can be seen at once."""

    async def empty(self) -> None:
        await asyncio.to_thread(self.delete_buckets)

    def delete_buckets(self) -> None:
        """Delete what the tests made."""
        for name in self.buckets:
            query = urllib.parse.urlencode({"org": self.org, "name": name})
            with contextlib.suppress(urllib.error.HTTPError):
                for found in json.loads(ask(f"{self.url}/api/v2/buckets?{query}", token=self.token))["buckets"]:
                    ask(f"{self.url}/api/v2/buckets/{found['id']}", method="DELETE", token=self.token)


def influx_server(data: Path) -> Server | None:
    """Return a server that is not yet started; None when there is none on this machine."""
    binary = os.environ.get("TEST_INFLUXD") or shutil.which("influxd")
    if binary is None or shutil.which(binary) is None:
        return None
    port = free_ports(1)
    paths = [f"--bolt-path={data}/influxd.bolt", f"--engine-path={data}/engine", f"--sqlite-path={data}/influxd.sqlite"]
    command = [binary, *paths, f"--http-bind-address=127.0.0.1:{port}", "--reporting-disabled", "--log-level=error"]
    return Server(command, f"http://127.0.0.1:{port}", "/health")


def set_up(server: Server) -> Influx:
    """Return a new InfluxDB, with an organisation and a token."""
    token, org = uuid.uuid4().hex, "openmanager"
    first = {"username": "tests", "password": uuid.uuid4().hex, "org": org, "bucket": "first", "token": token}
    ask(server.url + "/api/v2/setup", first, "POST")
    return Influx(server, server.url, token, org)
