"""`openmanager serve`: one service in the foreground."""

from __future__ import annotations

import asyncio
import os
import resource

import click

from openmanager import failpoint, suite
from openmanager.cli import configuration
from openmanager.runtime import telemetry
from openmanager.runtime.module import ServerConfig


@click.command(epilog="Example: OPENMANAGER_ALLOW_INSECURE=1 openmanager serve timeseries")
@click.argument("service", type=click.Choice(suite.PROGRAMS))
@click.option("--listen", metavar="HOST:PORT", help="Where to listen; default: the service's address in [mesh].")
def serve(service: str, listen: str | None) -> None:
    """Run one service until SIGTERM, logging JSON lines to standard error.

    Configuration comes from the file that OPENMANAGER_CONFIG names and from the environment; see `openmanager config`.
    """
    loaded = configuration.load({("server", "listen"): listen})
    server = loaded.section(ServerConfig)
    # A core dump would hold the secrets.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    failpoint.arm(os.environ.get(failpoint.VARIABLE, ""))
    telemetry.set_up_logging(server.log_level)
    asyncio.run(suite.serve(service, loaded))
