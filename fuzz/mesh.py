"""The whole suite in one process: the real services on real stores, each behind its edge, calling each other directly."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2

from fuzz.local import Call, Collector, Handler, LocalPeer
from openmanager import config, suite
from openmanager.runtime.edge import Edge, Load
from openmanager.runtime.health import HealthService
from openmanager.runtime.module import Runtime, service_descriptor
from openmanager.runtime.peer import Peer
from openmanager.runtime.server import STATUS_SERVICE
from openmanager.runtime.status import StatusReporter
from openmanager.version import VERSION

# The order in which they need each other.
ORDER = ("timeseries", "metadata", "cache", "analysis", "gateway", "simulator")
# Everything that may grow is small, so that it has grown before leaks are looked for.
FLAGS: dict[tuple[str, str], Any] = {
    ("timeseries", "segment_size"): "4MiB",
    ("timeseries", "log_max_size"): "64MiB",
    ("timeseries", "ballast_size"): "0",
    ("timeseries", "disk_reserve"): "0",
    ("timeseries", "head_size"): "16MiB",
    ("timeseries", "read_cache_size"): "8MiB",
    ("timeseries", "max_series"): 5000,
    ("analysis", "max_series"): 5000,
    # A store is not away because this machine is busy.
    ("cache", "redis_timeout"): "5s",
    ("cache", "redis_connect_timeout"): "5s",
    ("metadata", "identity_key"): "f" * 40,
    ("metadata", "connect_timeout"): "5s",
    ("metadata", "acquire_timeout"): "5s",
    ("metadata", "statement_timeout"): "5s",
    ("simulator", "servers"): 3,
    ("simulator", "autostart"): False,
}


@dataclass(frozen=True, slots=True)
class Method:
    """A method as one server serves it."""

    server: str
    descriptor: MethodDescriptor
    handler: Handler

    @property
    def path(self) -> str:
        return f"/{self.descriptor.containing_service.full_name}/{self.descriptor.name}"

    def __str__(self) -> str:
        return f"{self.server}:{self.descriptor.containing_service.name}.{self.descriptor.name}"

    def call(self, data: bytes | None, seconds: float) -> Call:
        """Begin a call; None where requests are a stream."""
        return Call(self.handler, data, timeout=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRuntime(Runtime):
    """A runtime whose peers are in this process."""

    servers: Mapping[str, Collector]

    def peer(  # nobody is away, and there is one of each
        self,
        name: str,
        *_: str,
        patience: timedelta = timedelta(),  # noqa: ARG002
        passes_on: bool = False,  # noqa: ARG002
        shard: int | None = None,  # noqa: ARG002
    ) -> Peer:
        return LocalPeer(name, self.servers[name].handlers)


@contextlib.asynccontextmanager
async def open_mesh(
    folder: Path, environment: Mapping[str, str], flags: Mapping[tuple[str, str], Any] | None = None
) -> AsyncIterator[list[Method]]:
    """Open every service in a folder, on the stores that the environment leads to; yield every method of every server."""
    suite.load_protos()
    settings = config.load(
        suite.sections(),
        environ=environment,
        flags={
            **FLAGS,
            ("timeseries", "data_dir"): folder / "timeseries",
            ("analysis", "data_dir"): folder / "analysis",
            **(flags or {}),
        },
    )
    servers = {name: Collector() for name in ORDER}
    async with contextlib.AsyncExitStack() as stack:
        methods = []
        for name in ORDER:
            runtime = LocalRuntime(configuration=settings, name=name, address=name, version=VERSION, servers=servers)
            services = await stack.enter_async_context(_served(name, runtime, servers[name]))
            for service in services:
                for method in service_descriptor(service).methods:
                    handler = servers[name].handlers[f"/{service}/{method.name}"]
                    methods.append(Method(name, method, handler))
        yield methods


@contextlib.asynccontextmanager
async def _served(name: str, runtime: LocalRuntime, server: Collector) -> AsyncIterator[list[str]]:
    """Open one service behind its edge, as `runtime.server.Server` does it; yield the names of what it serves."""
    async with suite.load_module(name).open(runtime) as service:
        edge = Edge(server, Load(), auditor=service.auditor)  # type: ignore[arg-type]
        status = StatusReporter(
            service=name,
            address=name,
            version=VERSION,
            clock=runtime.clock,
            storages=service.storages,
            ledger=service.ledger,
        )
        health = HealthService((*service.servicers, *service.routed))
        servicers = {**service.servicers, STATUS_SERVICE: status}
        for full_name, servicer in servicers.items():
            edge.add(service_descriptor(full_name), servicer)
        edge.add(health_pb2.DESCRIPTOR.services_by_name["Health"], health)
        async with status.probing():
            health.set_serving(serving=True)
            try:
                yield [*servicers, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
            finally:
                edge.drain()
