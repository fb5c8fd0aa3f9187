"""Peers that are servers: VictoriaMetrics and InfluxDB on free ports of the loopback, and rows for what is not there."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.pair import Row
from bench.rpc import cpu_seconds, free_ports

START_SECONDS = 30.0
ORG = "openmanager"
BUCKET = "bench"
VICTORIA = "victoria-metrics"
INFLUX = "influxd"
_NOTHING: Mapping[str, str] = {}


def missing(name: str, goal: str, what: str) -> Row:
    """Return the row of what was not measured because a program is not here."""
    return Row(name, "—", "not run", math.nan, goal, met=True, note=f"not run: {what} is missing")


def victoria_binary() -> str | None:
    return shutil.which(VICTORIA)


def influx_binary() -> str | None:
    named = os.environ.get("TEST_INFLUXD")
    return shutil.which(named) if named else shutil.which(INFLUX)


@dataclass
class Store:
    """A running store: its process, its folder, and one connection to it."""

    pid: int
    folder: Path
    port: int
    headers: Mapping[str, str] = field(default_factory=dict)
    _connection: http.client.HTTPConnection | None = None

    def request(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = _NOTHING) -> bytes:
        """Return the body of an answer; OSError for one that is not 2xx."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            self._connection.request(method, path, body, {**self.headers, **headers})
            answer = self._connection.getresponse()
            found = answer.read()
        except (http.client.HTTPException, OSError):
            self.close()
            raise
        if answer.status // 100 != 2:
            raise OSError(f"{method} {path}: {answer.status} {found[:200]!r}")
        return found

    def cpu(self) -> float:
        """Return the seconds of CPU that its process has used."""
        return cpu_seconds(self.pid)

    def size(self) -> int:
        """Return the bytes of all its files."""
        return folder_size(self.folder)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Victoria(Store):
    """A VictoriaMetrics."""

    write_path = "/write?precision=ms"

    def settle(self) -> None:
        """Return when what was written is in files and can be seen."""
        self.request("GET", "/internal/force_flush")

    def merge(self) -> None:
        """Return when its files are merged as far as they will be."""
        self.settle()
        self.request("GET", "/internal/force_merge")
        before = -1
        while before != (before := self.size()):
            time.sleep(1.0)
        self.settle()

    def query_range(self, query: str, start: float, end: float, step: int) -> list[dict[str, Any]]:
        """Return the series of a range of seconds, asked for as a client would, without its cache of answers."""
        ends = {"start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step}s", "nocache": "1"}
        form = urllib.parse.urlencode({"query": query, **ends}).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        found: list[dict[str, Any]] = json.loads(self.request("POST", "/api/v1/query_range", form, headers))["data"][
            "result"
        ]
        return found


class Influx(Store):
    """An InfluxDB 2.x with an organisation and a bucket."""

    write_path = f"/api/v2/write?org={ORG}&bucket={BUCKET}&precision=ms"

    def flux(self, text: str) -> bytes:
        """Return the annotated-less CSV that a Flux query answers."""
        headers = {"Content-Type": "application/vnd.flux", "Accept": "application/csv"}
        return self.request("POST", f"/api/v2/query?org={ORG}", text.encode(), headers)


@contextlib.contextmanager
def victoria(*options: str) -> Iterator[Victoria | None]:
    """Run a VictoriaMetrics; None when there is none here."""
    binary = victoria_binary()
    if binary is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="bench-victoria-") as folder:
        port = free_ports(1)
        own = [f"-storageDataPath={folder}/data", f"-httpListenAddr=127.0.0.1:{port}", "-retentionPeriod=10y"]
        # While a slow machine measures the others, the one connection is neither old nor idle for too long.
        own += ["-http.connTimeout=1h", "-http.idleConnTimeout=1h"]
        with _running([binary, *own, "-loggerLevel=ERROR", *options]) as pid:
            store = Victoria(pid, Path(folder) / "data", port)
            _wait(lambda: store.request("GET", "/health"))
            yield store
            store.close()


@contextlib.contextmanager
def influx() -> Iterator[Influx | None]:
    """Run an InfluxDB; None when there is none here."""
    binary = influx_binary()
    if binary is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="bench-influx-") as folder:
        port, token = free_ports(1), uuid.uuid4().hex
        own = [f"--{name}-path={folder}/{file}" for name, file in (("bolt", "bolt"), ("engine", "engine"))]
        own += [f"--sqlite-path={folder}/sqlite", f"--http-bind-address=127.0.0.1:{port}"]
        with _running([binary, *own, "--reporting-disabled", "--log-level=error"]) as pid:
            store = Influx(pid, Path(folder) / "engine", port)
            _wait(lambda: store.request("GET", "/health"))
            first = {"username": "bench", "password": uuid.uuid4().hex, "org": ORG, "bucket": BUCKET, "token": token}
            store.request("POST", "/api/v2/setup", json.dumps(first).encode())
            store.headers = {"Authorization": f"Token {token}"}
            yield store
            store.close()


@contextlib.contextmanager
def _running(command: Sequence[str]) -> Iterator[int]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _wait(ask: Callable[[], object]) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            ask()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
        else:
            return


def folder_size(folder: Path) -> int:
    """Return the bytes of all files below a folder; what goes away meanwhile does not count."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(root) / name).stat().st_size
    return total
