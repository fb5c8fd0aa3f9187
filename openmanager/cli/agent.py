"""`openmanager agent`: report this machine."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from datetime import timedelta

import click

from openmanager.cli import connection
from openmanager.config import parse_duration
from openmanager.errors import ConfigurationError, InvalidArgumentError
from openmanager.frame import check_server_id

MIN_INTERVAL, MAX_INTERVAL = timedelta(milliseconds=100), timedelta(hours=1)


@click.command(epilog="Example: openmanager agent --environment production --role web")
@click.option("--interval", default="10s", show_default=True, metavar="DURATION", help="How often to report.")
@click.option("--id", "server_id", metavar="ID", help="The server id; default: the host name.")
@click.option("--environment", metavar="NAME", help="The server's environment.")
@click.option("--role", metavar="NAME", help="The server's role.")
@click.option("--location", metavar="NAME", help="The server's location.")
@click.pass_obj
def agent(gateway: str, /, interval: str, server_id: str | None, **about: str | None) -> None:
    """Report this machine's own metrics through OpenTelemetry until Ctrl-C.

    While the gateway is away reports are kept, an hour of them, and sent in order when it is back.
    """
    try:
        every = parse_duration(interval)
    except ValueError as err:
        raise click.BadParameter(str(err), param_hint="--interval") from err
    if not MIN_INTERVAL <= every <= MAX_INTERVAL:
        raise click.BadParameter("must be 100 ms–1 h", param_hint="--interval")
    try:
        from openmanager.agent import host_resource, run_agent
    except ImportError as err:
        raise ConfigurationError("the agent is not installed: pip install 'openmanager[agent]'") from err
    names = {"environment": "deployment.environment.name", "role": "openmanager.role", "location": "cloud.region"}
    attributes = {names[name]: value for name, value in about.items() if value}
    reporter, tls = _Reporter(), connection.tls()
    name = host_resource(server_id, attributes).attributes["host.id"]
    try:
        check_server_id(str(name), "the id")
    except InvalidArgumentError as err:
        raise click.BadParameter(err.message, param_hint="--id") from err
    click.echo(f"reporting {name!s} to {gateway} every {interval}; Ctrl-C ends it", err=True)

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await run_agent(
            gateway,
            interval=every,
            server_id=server_id,
            attributes=attributes,
            on_event=reporter.take,
            stop=stop,
            tls=tls,
        )

    asyncio.run(run())
    click.echo(f"\nreported {reporter.exported} times", err=True)


class _Reporter:
    """Keeps one line on the terminal up to date, and writes a line when the gateway goes and comes."""

    def __init__(self) -> None:
        self.exported = 0
        self._away = False
        self._lock = threading.Lock()

    def take(self, event: object) -> None:
        """Take an event of the agent (in the reader's thread)."""
        from openmanager.agent import AgentEvent

        assert isinstance(event, AgentEvent)  # noqa: S101
        with self._lock:
            if event.kind == "exported":
                self.exported += event.count
                if self._away:
                    click.echo(f"\nthe gateway is back; {event.count} reports sent", err=True)
                self._away = event.waiting > 0
            elif event.kind == "buffered" and not self._away:
                self._away = True
                click.echo("\nthe gateway is away; reports wait", err=True)
            elif event.kind == "refused":
                click.echo(f"\nthe gateway refuses a report, which is dropped: {event.reason}", err=True)
            if sys.stderr.isatty():
                click.echo(f"\r{self.exported} reports sent, {event.waiting} waiting ", err=True, nl=False)
