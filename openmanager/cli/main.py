"""`openmanager`: the commands, and what becomes of an error."""

from __future__ import annotations

import keyword
import os
import sys
from importlib import import_module
from typing import Any

import click

from openmanager.cli.connection import tls_options
from openmanager.errors import ConfigurationError, DeadlineExceededError, OpenManagerError, UnavailableError
from openmanager.version import VERSION

EXIT_FAILED = 1
EXIT_UNAVAILABLE = 69
EXIT_CONFIGURATION = 78
GATEWAY = "127.0.0.1:50050"

# The module of each command, which has its name: imported when it is called, so that `--help` and errors come at once.
COMMANDS = {
    "up": "up",
    "serve": "serve",
    "agent": "agent",
    "status": "status",
    "health": "status",
    "servers": "servers",
    "top": "top",
    "query": "query",
    "series": "series",
    "export": "export",
    "import": "import_",
    "sql": "sql",
    "anomalies": "anomalies",
    "trend": "trend",
    "forecast": "forecast",
    "alerts": "alerts",
    "retention": "retention",
    "interactions": "interactions",
    "audit": "audit",
    "log": "log",
    "migrate": "migrate",
    "reshard": "reshard",
    "login": "login",
    "logout": "login",
    "whoami": "login",
    "users": "users",
    "keys": "keys",
    "score-csv": "score_csv",
    "forecast-csv": "forecast_csv",
    "exhaust-csv": "exhaust_csv",
    "simulate": "simulate",
    "fault": "fault",
    "certs": "certs",
    "edge": "edge",
    "backup": "backup",
    "restore": "restore",
    "plan": "plan",
    "schema": "schema",
    "config": "config",
    "version": "version",
}


class _Commands(click.Group):
    """Finds commands by name, in the order of COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"openmanager.cli.{COMMANDS[cmd_name]}")
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(module, f"{name}_" if keyword.iskeyword(name) else name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--gateway",
    metavar="HOST:PORT",
    envvar="OPENMANAGER_GATEWAY",
    default=GATEWAY,
    show_default=True,
    help="Where the gateway is.",
)
@tls_options
@click.version_option(VERSION, "-V", "--version", message="openmanager %(version)s")
@click.pass_context
def cli(ctx: click.Context, gateway: str) -> None:
    """Run, watch and ask a telemetry store for server fleets.

    \b
    Start everything on this machine:    openmanager up
    See how it is:                       openmanager status
    See the fleet, live:                 openmanager top
    Ask for history:                     openmanager query cpu_usage --last 1h
    """  # noqa: D301  (click's mark for text that keeps its lines)
    ctx.obj = gateway


def exit_code(error: OpenManagerError) -> int:
    """Return the exit code of an error."""
    if isinstance(error, ConfigurationError):
        return EXIT_CONFIGURATION
    return EXIT_UNAVAILABLE if isinstance(error, UnavailableError | DeadlineExceededError) else EXIT_FAILED


def main(arguments: list[str] | None = None) -> Any:
    """Run a command. An error is one sentence on standard error and an exit code."""
    # Read when grpc is imported: what is wrong is told in our own words, and logs hold JSON lines alone.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        return cli.main(args=arguments, prog_name="openmanager", standalone_mode=False)
    except OpenManagerError as error:
        click.echo(f"openmanager: {error.message}", err=True)
        sys.exit(exit_code(error))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read has seen enough
        sys.exit(0)
