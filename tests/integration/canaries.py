"""Secrets that can be recognised wherever they come out, and those who would take them."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
METRICS = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
LOOK_SECONDS = 0.1
# Whoever's: what services tell each other who is calling with, and what people and programs come with.
TOKEN = re.compile(rb"eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,}|om[a-z]_\w{16}_[\w-]{20,}")


def canary(name: str) -> str:
    """Return a secret of 40 characters that is good for any use."""
    return f"canary-{name.replace(' ', '-')}-".ljust(40, "x")


def forms(secret: str) -> Iterator[bytes]:
    """Yield a secret as it may be written: itself, in hexadecimal, in base64 after anything."""
    raw = secret.encode()
    yield raw
    yield raw.hex().encode()
    for start in range(3):
        whole = raw[start : start + (len(raw) - start) // 3 * 3]
        yield base64.b64encode(whole)


class Canaries:
    """Secrets by name."""

    def __init__(self) -> None:
        self._forms: dict[str, tuple[bytes, ...]] = {}

    def add(self, name: str, secret: str) -> str:
        """Take another one to look for."""
        assert len(secret) >= 20, f"{name} is too short to be recognised"
        self._forms[name] = tuple(forms(secret))
        return secret

    def make(self, name: str) -> str:
        """Return a new one."""
        return self.add(name, canary(name))

    def of(self, data: bytes | str) -> set[str]:
        """Return the names of those that are in some bytes, in any form."""
        raw = data.encode() if isinstance(data, str) else data
        found = {name for name, forms in self._forms.items() if any(form in raw for form in forms)}
        return found | ({"a token"} if TOKEN.search(raw) else set())

    def plainly_in(self, data: bytes) -> set[str]:
        """Return the names of those that are in some bytes as they are; quick, for large files."""
        return {name for name, (plain, *_) in self._forms.items() if plain in data}

    def leaks(self, places: Iterable[tuple[str, bytes | str]]) -> list[str]:
        """Return what was found where it may not be."""
        return sorted({f"{name} in {place}" for place, data in places for name in self.of(data)})


class Collector(grpc.GenericRpcHandler):
    """A receiver of OTLP that keeps every export as it came."""

    def __init__(self) -> None:
        self.exports: list[tuple[str, bytes]] = []

    def service(self, handler_call_details):
        def export(request: bytes, context) -> bytes:
            self.exports.append((handler_call_details.method, request))
            return b""

        return grpc.unary_unary_rpc_method_handler(export)

    def spans(self) -> set[tuple[str, str]]:
        """Return service and name of every span."""
        return {
            (_service(each.resource), span.name)
            for method, data in self.exports
            if method == TRACES
            for each in ExportTraceServiceRequest.FromString(data).resource_spans
            for scope in each.scope_spans
            for span in scope.spans
        }

    def measured(self) -> set[str]:
        """Return the services that have told measures."""
        return {
            _service(each.resource)
            for method, data in self.exports
            if method == METRICS
            for each in ExportMetricsServiceRequest.FromString(data).resource_metrics
        }


def _service(resource) -> str:
    return next(each.value.string_value for each in resource.attributes if each.key == "service.name")


@contextlib.contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    """Run a collector; yield it and its URL."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((collector,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


class _Echo(BaseHTTPRequestHandler):
    """Refuses everything, and repeats in header and body what it was told."""

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        told = self.headers.get("Authorization", "nothing")
        self.server.told.append(told)
        body = f'{{"code":"invalid","message":"{told} is not known: {self.path}"}}'.encode()
        self.send_response(400 if "write" in self.path else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Influxdb-Error", told)
        self.end_headers()
        self.wfile.write(body)

    do_GET = answer  # noqa: N815
    do_POST = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def echoing() -> Iterator[tuple[list[str], str]]:
    """Run a store that refuses credentials and repeats them; yield those it was shown, and its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        server.told = []
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.told, f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Onlooker:
    """Somebody on the machine who reads the arguments and the environments of our processes while they come and go."""

    def __init__(self) -> None:
        self.arguments: dict[bytes, str] = {}
        self.environments: dict[bytes, str] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            for process in ours():
                with contextlib.suppress(OSError):
                    arguments = (process / "cmdline").read_bytes()
                    self.arguments.setdefault(arguments, process.name)
                    words = arguments.decode().split("\0")
                    self.environments.setdefault((process / "environ").read_bytes(), " ".join(words[-3:-1]))

    def seen(self) -> Iterator[tuple[str, bytes]]:
        yield from (("the arguments of a process", data) for data in self.arguments)
        yield from ((f"the environment of {whose}", data) for data, whose in self.environments.items())


def ours() -> list[Path]:
    """Return the processes below this one, in /proc."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    found = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return [Path("/proc") / str(each) for each in found - {os.getpid()}]
