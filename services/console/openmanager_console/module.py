"""Assembly of the console: a client of the gateway behind an HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from openmanager.client import Client
from openmanager.config import Configuration
from openmanager.errors import ConfigurationError
from openmanager.runtime import telemetry, tls
from openmanager.runtime.address import is_loopback
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.module import MeshConfig, ServerConfig
from openmanager.runtime.server import check_address, port_is_taken
from openmanager.spiffe import server_name
from openmanager.version import VERSION
from openmanager_console.config import ConsoleConfig
from openmanager_console.door import IDLE_SECONDS, Door
from openmanager_console.feed import Feeds
from openmanager_console.guard import Guard, add_headers
from openmanager_console.service import ConsoleService
from openmanager_console.session import Shown

MAX_LINE_BYTES, MAX_HEADERS = 8190, 48
BACKLOG = 128
CLOSE_SECONDS = 1.0
# How soon a certificate that was exchanged is used.
LOOK_SECONDS = 5.0

log = logging.getLogger(__name__)


async def serve(configuration: Configuration) -> None:
    """Serve until SIGTERM or SIGINT. ConfigurationError when it cannot begin."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(configuration) as address:
        log.info("serving", extra=telemetry.fields(service="console", address=address, version=VERSION))
        await stop.wait()
    log.info("stopped", extra=telemetry.fields(service="console"))


@contextlib.asynccontextmanager
async def running(configuration: Configuration) -> AsyncIterator[str]:
    """Serve for the life of the context, and yield the address."""
    config, server = configuration.section(ConsoleConfig), configuration.section(ServerConfig)
    mesh = configuration.section(MeshConfig)
    address = server.listen or mesh.console
    files = tls.server_files(server.tls_ca, server.tls_certificate, server.tls_key)
    check_address(address, allow_insecure=server.allow_insecure, encrypted=files is not None)
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            Client(mesh.gateway, tls=_client_tls(server) if files else None, credential=Shown())
        )
        feeds = Feeds(client, most_pages=config.max_pages, most_people=config.max_identities)
        stack.push_async_callback(feeds.close)
        service = ConsoleService(
            client,
            clock=SystemClock(),
            feeds=feeds,
            secure=files is not None,
            anonymous=server.allow_insecure or is_loopback(address.rpartition(":")[0]),
        )
        guard = Guard(_names(config.hosts, address))
        yield await stack.enter_async_context(
            _listening(service, guard, address, most=config.max_connections, config=server, files=files)
        )


@contextlib.asynccontextmanager
async def _listening(
    service: ConsoleService, guard: Guard, address: str, *, most: int, config: ServerConfig, files: tls.Files | None
) -> AsyncIterator[str]:
    app = web.Application(middlewares=[guard])
    app.add_routes(service.routes())
    app.on_response_prepare.append(add_headers)
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        auto_decompress=False,
        keepalive_timeout=IDLE_SECONDS,
        max_line_size=MAX_LINE_BYTES,
        max_field_size=MAX_LINE_BYTES,
        max_headers=MAX_HEADERS,
        shutdown_timeout=CLOSE_SECONDS,
    )
    await runner.setup()
    assert runner.server is not None  # noqa: S101  (it was set up)
    door = Door(runner.server, most=most)
    service.connections = lambda: len(door)
    context = _context(config) if files else None
    listener = await _listen(door, address, context)
    tasks = [asyncio.create_task(door.watch())]
    if context is not None and files is not None:
        tasks.append(asyncio.create_task(_follow_files(context, config, files)))
    try:
        host = address.rpartition(":")[0]
        yield f"{host}:{listener.sockets[0].getsockname()[1]}"
    finally:
        guard.draining = True
        listener.close()
        for task in tasks:
            task.cancel()
        await runner.cleanup()


async def _listen(door: Door, address: str, context: ssl.SSLContext | None) -> asyncio.Server:
    host, _, port = address.rpartition(":")
    if port != "0" and port_is_taken(address):
        raise ConfigurationError(f"port {port} of {host} is taken by another program")
    try:
        return await asyncio.get_running_loop().create_server(
            door, host.strip("[]"), int(port), ssl=context, backlog=BACKLOG
        )
    except OSError as err:
        raise ConfigurationError(f"cannot listen on {address}") from err


def _names(hosts: str, address: str) -> list[str]:
    """Return the names that it is called by."""
    given = [*hosts.split(","), address.rpartition(":")[0].strip("[]")]
    return [each.strip().lower() for each in given if each.strip()]


def _client_tls(config: ServerConfig) -> tls.Tls:
    return tls.Tls(
        ca=Path(config.tls_ca),
        certificate=Path(config.tls_certificate),
        key=Path(config.tls_key),
        server_name=server_name("gateway"),
    )


def _context(config: ServerConfig) -> ssl.SSLContext:
    """Return what connections of browsers are encrypted with; they are not asked for certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(config.tls_certificate, config.tls_key)
    return context


async def _follow_files(context: ssl.SSLContext, config: ServerConfig, files: tls.Files) -> None:
    """Use the certificate that is in the files now, for ever; one that cannot be used is not taken."""
    known = files.material
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        found = await asyncio.to_thread(files.current)
        if found is not known:
            with contextlib.suppress(OSError):
                context.load_cert_chain(config.tls_certificate, config.tls_key)
            known = found
