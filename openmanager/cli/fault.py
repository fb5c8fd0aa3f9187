"""`openmanager fault`: trouble in the simulated fleet, on purpose and on record."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import connection, render
from openmanager.cli.query import length, moment

if TYPE_CHECKING:
    from openmanager.client import Client, Fault

PATTERNS = (
    "memory_leak", "cpu_spike", "disk_full", "cascade_failure", "network_latency", "database_lock",
    "gradual_degradation",
)  # fmt: skip


@click.group()
def fault() -> None:
    """Inject faults into the simulated fleet, list them, and end them."""


@fault.command(
    "inject",
    epilog=render.examples(
        "fault inject cpu_spike web-01 --for 30m", "fault inject cascade_failure db-01 --severity 1"
    ),
)
@click.argument("pattern", type=click.Choice(PATTERNS, case_sensitive=False), metavar="PATTERN")
@click.argument("servers", nargs=-1, required=True, metavar="SERVER...")
@click.option("--start", callback=moment, metavar="TIME", help="When it starts.  [default: now]")
@click.option(
    "--for", "duration", callback=length, metavar="DURATION", help="How long.  [default: as the pattern has it]"
)
@click.option("--severity", type=click.FloatRange(0, 1, min_open=True), default=0.8, show_default=True)
@render.json_option
def inject_command(
    *,
    pattern: str,
    servers: Sequence[str],
    start: datetime | None,
    duration: timedelta | None,
    severity: float,
    as_json: bool,
) -> None:
    """Inject a fault of a PATTERN into SERVERs, the root first.

    A PATTERN is memory_leak, cpu_spike, disk_full, cascade_failure, network_latency, database_lock or
    gradual_degradation.
    """
    from openmanager.api.simulator.v1 import simulator_pb2
    from openmanager.client import codec, rpc

    wanted = simulator_pb2.Fault(pattern=codec.fault_pattern(pattern.upper()), servers=servers, severity=severity)
    if start is not None:
        wanted.start_time.CopyFrom(codec.timestamp(start, "start"))
    if duration is not None:
        wanted.end_time.CopyFrom(codec.timestamp((start or datetime.now(UTC)) + duration, "end"))
    request = simulator_pb2.InjectFaultRequest(fault=wanted, request_id=uuid.uuid4().hex)
    reply = connection.run(lambda client: client.rpc.call(rpc.INJECT_FAULT, request))
    _print(reply, reply.fault, as_json=as_json)


@fault.command("list", epilog=render.examples("fault list", "fault list --active", "fault list --last 7d --json"))
@click.option("--active", is_flag=True, help="Only what is going on now.")
@click.option("--last", callback=length, metavar="DURATION", help="What touched this time.  [default: 24h]")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="How many at most.")
@render.json_option
def list_command(*, active: bool, last: timedelta | None, limit: int, as_json: bool) -> None:
    """List faults, injected and scheduled, the newest start first."""
    connection.run(lambda client: _list(client, active=active, last=last, limit=limit, as_json=as_json))


@fault.command("clear", epilog=render.examples("fault clear 3f9c0a1b"))
@click.argument("fault_id", metavar="ID")
@render.json_option
def clear_command(*, fault_id: str, as_json: bool) -> None:
    """End a fault now; its record stays."""
    from openmanager.api.simulator.v1 import simulator_pb2
    from openmanager.client import rpc

    request = simulator_pb2.ClearFaultRequest(id=fault_id)
    reply = connection.run(lambda client: client.rpc.call(rpc.CLEAR_FAULT, request))
    _print(reply, reply.fault, as_json=as_json)


async def _list(client: Client, *, active: bool, last: timedelta | None, limit: int, as_json: bool) -> None:
    from openmanager.api.simulator.v1 import simulator_pb2
    from openmanager.client import codec, rpc

    request = simulator_pb2.ListFaultsRequest(active_only=active)
    if last is not None:
        request.start_time.CopyFrom(codec.timestamp(datetime.now(UTC) - last, "start"))
    found: list[Fault] = []
    total = 0
    async for page in client.rpc.pages(rpc.LIST_FAULTS, request, limit=limit):
        if as_json:
            render.print_json(page, line=True)
        found.extend(codec.fault(each) for each in page.faults)
        total = page.total_count
    if as_json:
        return
    if found:
        render.console().print(_table(found))
        click.echo()
    of = f"{len(found):,} of " if len(found) < total else ""
    click.echo(f"{of}{render.show_count(total, 'fault')}")


def _table(faults: Sequence[Fault]) -> Any:
    from rich.text import Text

    made = render.table("id", "pattern", "start", "for", "sev", "servers", right=("for", "sev"))
    made.columns[-1].no_wrap, made.columns[-1].overflow = False, "fold"
    now = datetime.now(UTC)
    for each in faults:
        start, end = each.start_time or now, each.end_time or now
        made.add_row(
            each.id,
            Text(each.pattern.lower(), style="bold red" if start <= now < end else ""),
            start.astimezone().strftime("%d %b %H:%M"),
            render.show_length(end - start),
            f"{each.severity:.2f}",
            ", ".join(each.servers),
        )
    return made


def _print(reply: Any, message: Any, *, as_json: bool) -> None:
    from openmanager.client import codec

    if as_json:
        render.print_json(reply)
        return
    found = codec.fault(message)
    servers = ", ".join(found.servers)
    click.echo(
        f"{found.id}: {found.pattern.lower()} of {servers}, severity {found.severity:.2f}, "
        f"{render.show_moment(found.start_time)} – {render.show_moment(found.end_time)}"
    )
