"""Serve one module: bind, report health, drain and stop within the promised time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from typing import Any

from google.protobuf.internal import api_implementation
from grpc_health.v1 import health_pb2

from openmanager import access
from openmanager.config import Configuration
from openmanager.errors import ConfigurationError, FailedPreconditionError, Reason
from openmanager.runtime import grpc_server, measure, reflection, telemetry, tls
from openmanager.runtime.address import Proxies, is_loopback
from openmanager.runtime.audit import Auditor, PeerRecorder
from openmanager.runtime.clock import Clock, SystemClock
from openmanager.runtime.edge import MAX_MESSAGE_BYTES, MAX_METADATA_BYTES, Edge, Load
from openmanager.runtime.gate import Gate
from openmanager.runtime.health import HEALTH_SERVICE, HealthService
from openmanager.runtime.mesh_key import HEADER, MeshKey
from openmanager.runtime.module import (
    IdentifyAs,
    MeshConfig,
    Module,
    Runtime,
    ServerConfig,
    Service,
    service_descriptor,
)
from openmanager.runtime.status import StatusReporter
from openmanager.version import VERSION

STATUS_SERVICE = "openmanager.api.status.v1.StatusService"
DRAIN_SECONDS = 1.0
# For those who watch health to hear that it is over.
NOTICE_SECONDS = 0.1
# Of the grace, for the answers to the calls that have not ended by themselves.
ANSWER_SECONDS = 0.2
# What is left after drain and grace: then the process ends, whatever it waits for.
CLOSE_SECONDS = 1.0

log = logging.getLogger(__name__)

SERVER_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES // 2),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    # A client is held to our limits from when it has acknowledged them.
    ("grpc.http2.settings_timeout", 10_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
    # 1, the default, lets two servers share a port in silence.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.max_connection_idle_ms", 300_000),
)
# Connections of other services of the suite carry what many clients ask, and grow old only to see certificates anew.
INTERNAL_STREAMS = 10_000
PUBLIC_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_connection_age_ms", 1_800_000),
    ("grpc.max_connection_age_grace_ms", 30_000),
)
# Longer than any unary call between services may take; streams are taken up again.
SESSION_GRACE_MILLIS = 600_000
# gRPC counts in milliseconds of 31 bits.
MIN_SESSION, MAX_SESSION = timedelta(seconds=1), timedelta(days=20)


def _options(config: ServerConfig, *, public: bool, encrypted: bool) -> tuple[tuple[str, Any], ...]:
    if encrypted and not MIN_SESSION <= config.tls_session <= MAX_SESSION:
        raise ConfigurationError("server.tls_session must be 1s–20d")
    if not public:
        ages = (
            ("grpc.max_connection_age_ms", config.tls_session // timedelta(milliseconds=1)),
            ("grpc.max_connection_age_grace_ms", SESSION_GRACE_MILLIS),
        )
        return (*SERVER_OPTIONS, *(ages if encrypted else ()), ("grpc.max_concurrent_streams", INTERNAL_STREAMS))
    return (*SERVER_OPTIONS, *PUBLIC_OPTIONS, ("grpc.max_concurrent_streams", config.connection_streams))


def check_libraries() -> None:
    """Raise ConfigurationError unless gRPC has what we need of it, and protobuf is the C one.

    The one in Python could be brought down by a message that is nested deep (CVE-2025-4565).
    """
    missing = grpc_server.self_test()
    if missing or api_implementation.Type() != "upb":
        raise ConfigurationError(missing or "protobuf runs without its C implementation: reinstall protobuf")


def check_address(address: str, *, allow_insecure: bool, encrypted: bool = False) -> None:
    """Raise ConfigurationError for an address that is malformed, or neither loopback nor encrypted without leave."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ConfigurationError(f"{address!r} is not an address: host:port is expected")
    if not encrypted and not allow_insecure and not is_loopback(host):
        raise ConfigurationError(
            f"{address} is not a loopback address, and connections are not encrypted: give the server a certificate "
            "(`openmanager certs`), or set OPENMANAGER_ALLOW_INSECURE=1 to serve there all the same"
        )


def port_is_taken(address: str) -> bool:
    """Say whether somebody listens at an address of this machine."""
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError:
            return True
    return False


class Server:
    """One module served on one port; a public one, encrypted, on another one for services too.

    Where the configuration says so, a port of its own answers for the health of it, to anybody and unencrypted.
    """

    def __init__(
        self,
        *,
        service: Service,
        name: str,
        address: str,
        config: ServerConfig,
        clock: Clock,
        gate: Gate | None = None,
        files: tls.Files | None = None,
        auditor: Auditor | None = None,
    ) -> None:
        self._grpc = grpc_server.GuardedServer(
            _options(config, public=service.public, encrypted=files is not None),
            read_seconds=config.read_timeout.total_seconds(),
        )
        self._load = Load(
            max_unary=config.max_calls,
            max_streams=config.max_streams,
            default_seconds=config.default_deadline.total_seconds(),
            max_seconds=config.max_deadline.total_seconds(),
            write_seconds=config.write_timeout.total_seconds(),
            idle_seconds=config.idle_timeout.total_seconds(),
        )
        require_client = not service.public or config.tls_clients
        check_peer = tls.anyone if files is None else partial(tls.check_peer, required=require_client)
        self._edge = Edge(
            self._grpc, self._load, gate=gate, rules=service.rules, check_peer=check_peer, auditor=auditor
        )
        self._grace = config.grace.total_seconds()
        self._service = service
        self.names = [*service.servicers, STATUS_SERVICE]
        self._health = HealthService((*self.names, *service.routed))
        self.status = StatusReporter(
            service=name,
            address=address,
            version=VERSION,
            clock=clock,
            storages=service.storages,
            ledger=service.ledger,
            warnings=lambda: tls.transport_warnings(address, files, clock),
        )
        for full_name, servicer in {STATUS_SERVICE: self.status, **service.servicers}.items():
            self._edge.add(service_descriptor(full_name), servicer)
        self._edge.add(health_pb2.DESCRIPTOR.services_by_name["Health"], self._health)
        reflection.add(self._edge, [*self.names, *service.routed, HEALTH_SERVICE])
        self.port = self._listen(self._grpc, address, files, require_client=require_client)
        self.service_port = 0
        if files is not None and service.public and config.tls_listen:
            self.service_port = self._listen(self._grpc, config.tls_listen, files, require_client=True)
        self.health_port = 0
        self._probed: grpc_server.GuardedServer | None = None
        if config.health_listen:
            self._probed = self._open_health(config)

    def _open_health(self, config: ServerConfig) -> grpc_server.GuardedServer:
        """Return a second server, whose methods are those of health and no others."""
        probed = grpc_server.GuardedServer(
            _options(config, public=True, encrypted=False), read_seconds=config.read_timeout.total_seconds()
        )
        Edge(probed, Load()).add(health_pb2.DESCRIPTOR.services_by_name["Health"], self._health)
        self.health_port = self._listen(probed, config.health_listen, None, require_client=False)
        return probed

    def _listen(
        self, server: grpc_server.GuardedServer, address: str, files: tls.Files | None, *, require_client: bool
    ) -> int:
        """Listen at an address and return the port; ConfigurationError when that cannot be."""
        host, _, port = address.rpartition(":")
        if port != "0" and port_is_taken(address):
            raise ConfigurationError(f"port {port} of {host} is taken by another program")
        try:
            if files is None:
                return server.add_insecure_port(address)
            credentials = tls.server_credentials(files, require_client=require_client)
            return server.add_secure_port(address, credentials)
        except RuntimeError as err:
            raise ConfigurationError(f"cannot listen on {address}") from err

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve for the life of the context; on leaving, drain and stop."""
        async with self.status.probing():
            await self._grpc.start()
            if self._probed is not None:
                await self._probed.start()
            self._health.set_serving(serving=True)
            try:
                yield
            finally:
                await self._stop()

    async def _stop(self) -> None:
        self._health.set_serving(serving=False)
        self._service.on_drain()
        loop = asyncio.get_running_loop()
        end = loop.time() + DRAIN_SECONDS
        if self._health.watchers:  # they take their calls elsewhere
            await asyncio.sleep(NOTICE_SECONDS)
        # Nobody is waited for when nothing is under way.
        while self._load.unary and loop.time() < end:  # noqa: ASYNC110  (a plain counter costs the hot path least)
            await asyncio.sleep(0.02)
        self._edge.drain()
        stopping = asyncio.create_task(self._grpc.stop(self._grace))
        await asyncio.wait([stopping], timeout=max(0.0, self._grace - ANSWER_SECONDS))
        self._edge.end()
        await stopping
        if self._probed is not None:  # until now it has said that we are going
            await self._probed.stop(None)


def is_local(config: ServerConfig) -> bool:
    """Say whether callers without credentials are let in; ConfigurationError when nobody could be known."""
    if (config.auth or ("local" if config.allow_insecure else "required")) == "local":
        return True
    if not config.mesh_key.reveal():
        raise ConfigurationError(
            "credentials are required, and the servers of the mesh have none: OPENMANAGER_MESH_KEY_FILE must name the"
            " file of their key, or set OPENMANAGER_ALLOW_INSECURE=1 to serve without, on a network that you trust"
        )
    return False


def _unsigned(caller: access.Caller | None) -> tuple[tuple[str, str], ...]:
    """Say nothing of who is calling; of somebody with rights of their own that would give them ours."""
    if caller is not None and caller.identity is not access.LOCAL:
        raise FailedPreconditionError(
            "without the key of the mesh only anonymous calls can be passed on: set OPENMANAGER_MESH_KEY_FILE",
            reason=Reason.CONFIGURATION,
        )
    return ()


def _identify(name: str, mesh_key: MeshKey | None, *, anonymous: bool) -> IdentifyAs:
    """Return what says to the next server who is calling: somebody whose call is passed on, or we ourselves."""
    if mesh_key is None:
        return _unsigned
    own = access.Caller(access.server(name))

    def identify(caller: access.Caller | None) -> tuple[tuple[str, str], ...]:
        if anonymous and caller is not None and caller.identity is access.LOCAL and not caller.noted:
            return ()
        found = caller or own
        return ((HEADER, mesh_key.token(found.identity, found.source, noted=found.noted)),)

    return identify


@contextlib.asynccontextmanager
async def _telling_metadata(runtime: Runtime) -> AsyncIterator[Auditor]:
    """Open what writes to the audit through the metadata service."""
    async with (
        runtime.peer("metadata") as metadata,
        Auditor(PeerRecorder(metadata), runtime.name, clock=runtime.clock) as auditor,
    ):
        yield auditor


def _measure(service: Service) -> None:
    if telemetry.recording():
        measure.observe_breakers([*service.breakers, *(each for of in service.storages for each in of.breakers)])
        if service.ledger is not None:
            measure.observe_ledger(service.ledger)


def _hard_exit(seconds: float) -> None:
    timer = threading.Timer(seconds, os._exit, args=(1,))
    timer.daemon = True
    timer.start()


async def serve(module: Module, configuration: Configuration, *, clock: Clock | None = None) -> None:
    """Serve a module until SIGTERM or SIGINT. ConfigurationError when it cannot begin."""
    check_libraries()
    config = configuration.section(ServerConfig)
    local = is_local(config)
    mesh = configuration.section(MeshConfig)
    address = config.listen or mesh.own_address(module.name)
    files = tls.server_files(config.tls_ca, config.tls_certificate, config.tls_key)
    check_address(address, allow_insecure=config.allow_insecure, encrypted=files is not None)
    if config.tls_listen:
        check_address(config.tls_listen, allow_insecure=False, encrypted=files is not None)
    if config.health_listen:
        check_address(config.health_listen, allow_insecure=True)
    proxies = Proxies(config.trusted_proxies)
    own = None
    if config.own_metrics:
        from openmanager.runtime.own_metrics import OwnMetrics  # takes the SDK, which is not needed otherwise

        own = OwnMetrics()
    end_telemetry = telemetry.set_up(module.name, VERSION, mesh.gateway, own)
    clock = clock or SystemClock()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # Where nobody needs credentials clocks may differ as they like.
    mesh_key = MeshKey(config.mesh_key, module.name, clock, ends=not local) if config.mesh_key.reveal() else None
    runtime = Runtime(
        configuration=configuration,
        name=module.name,
        address=address,
        version=VERSION,
        clock=clock,
        identify=_identify(module.name, mesh_key, anonymous=local),
        tls=files,
    )
    async with module.open(runtime) as service, contextlib.AsyncExitStack() as stack:
        gate = Gate(
            anonymous=access.LOCAL if local else None,
            mesh_key=mesh_key,
            authenticator=service.authenticator,
            proxies=proxies,
        )
        auditor = service.auditor or await stack.enter_async_context(_telling_metadata(runtime))
        server = Server(
            service=service,
            name=module.name,
            address=address,
            config=config,
            clock=clock,
            gate=gate,
            files=files,
            auditor=auditor,
        )
        _measure(service)
        if own is not None:
            stack.enter_context(own.through(await stack.enter_async_context(runtime.peer("gateway"))))
        async with server.running():
            log.info("serving", extra=telemetry.fields(service=module.name, address=address, version=VERSION))
            try:
                await stop.wait()
            finally:
                _hard_exit(DRAIN_SECONDS + config.grace.total_seconds() + CLOSE_SECONDS)
    await asyncio.to_thread(end_telemetry)
    log.info("stopped", extra=telemetry.fields(service=module.name))
