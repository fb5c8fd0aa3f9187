"""`openmanager serve`: one service in the foreground."""

from __future__ import annotations

import asyncio
import os

import click

from openmanager import failpoint, suite
from openmanager.cli import configuration
from openmanager.errors import ConfigurationError
from openmanager.runtime import telemetry
from openmanager.runtime.module import ServerConfig


@click.command(epilog="Example: OPENMANAGER_ALLOW_INSECURE=1 openmanager serve timeseries")
@click.argument("service", type=click.Choice(suite.NAMES))
@click.option("--listen", metavar="HOST:PORT", help="Where to listen; default: the service's address in [mesh].")
def serve(service: str, listen: str | None) -> None:
    """Run one service until SIGTERM, logging JSON lines to standard error.

    Configuration comes from the file that OPENMANAGER_CONFIG names and from the environment; see `openmanager config`.
    """
    loaded = configuration.load({("server", "listen"): listen})
    server = loaded.section(ServerConfig)
    # With certificates nobody but services and clients of the mesh gets in; the gateway's callers may have none.
    certain = bool(server.tls_certificate) and (service != suite.GATEWAY or server.tls_clients)
    if not server.allow_insecure and not certain:
        raise ConfigurationError(
            "serve needs credentials: give the service a certificate (`openmanager certs`; the gateway must require "
            "one of clients, too), or set OPENMANAGER_ALLOW_INSECURE=1 to serve without, on a network that you trust"
        )
    failpoint.arm(os.environ.get(failpoint.VARIABLE, ""))
    telemetry.set_up_logging(server.log_level)
    from openmanager.runtime.server import serve as run

    asyncio.run(run(suite.load_module(service), loaded))
