"""`openmanager alerts`: what the rules have found."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import connection, render
from openmanager.cli.alert_rules import rules
from openmanager.cli.alert_silences import silences

if TYPE_CHECKING:
    from openmanager.client import Alert, Client, Provenance

STATES = {"PENDING": "yellow", "FIRING": "bold red", "RESOLVED": "green"}
FILTER_HELP = "By alertname, rule, severity, server, metric, environment, role, labels.<name> or state."


@click.group(
    invoke_without_command=True,
    epilog=render.examples(
        "alerts rules create cpu cpu_usage --above 90 --clear 80 --for 5m",
        "alerts",
        "alerts --active --filter 'severity = critical'",
        "alerts watch",
        "alerts silences create 'server = web-01' --for 2h --comment 'new disk'",
    ),
)
@click.option("--active", is_flag=True, help="Only those that are pending or firing.")
@click.option("--filter", "where", default="", metavar="FILTER", help=FILTER_HELP)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="How many at most.")
@render.json_option
@click.pass_context
def alerts(ctx: click.Context, *, active: bool, where: str, limit: int, as_json: bool) -> None:
    """List alerts, the newest first: what is wrong, since when, and who keeps it from being sent."""
    if ctx.invoked_subcommand is None:
        connection.run(lambda client: _list(client, active=active, where=where, limit=limit, as_json=as_json))


@alerts.command("watch", epilog=render.examples("alerts watch", "alerts watch --filter 'server : web' --json"))
@click.option("--filter", "where", default="", metavar="FILTER", help=FILTER_HELP)
@render.json_option
def watch_command(*, where: str, as_json: bool) -> None:
    """Show those that are pending or firing, and then each that begins, changes or ends, until Ctrl-C."""
    connection.run_until_interrupted(lambda client: _watch(client, where, as_json=as_json))


async def _list(client: Client, *, active: bool, where: str, limit: int, as_json: bool) -> None:
    from openmanager.api.analysis.v1 import alert_pb2
    from openmanager.client import alerts as wire
    from openmanager.client import codec, rpc

    found: list[Alert] = []
    total, about = 0, None
    request = alert_pb2.ListAlertsRequest(filter=where, active_only=active)
    async for page in client.rpc.pages(rpc.LIST_ALERTS, request, limit=limit):
        if as_json:
            render.print_json(page, line=True)
        found.extend(map(wire.alert, page.alerts))
        total, about = page.total_count, codec.provenance(page.provenance)
    if not as_json:
        _print(found, total, about)


def _print(found: Sequence[Alert], total: int, about: Provenance | None) -> None:
    if found:
        made = render.table("since", "for", "state", "severity", "rule", "what", "sent", right=("for",))
        render.fold(made, "what")
        for each in found:
            made.add_row(*_cells(each))
        render.console().print(made)
        click.echo()
    of = f"{len(found):,} of " if len(found) < total else ""
    click.echo(f"{of}{render.show_count(total, 'alert')}")
    if about is not None:
        render.console().print(render.provenance_text(about))


def _cells(each: Alert) -> tuple[Any, ...]:
    from rich.text import Text

    now = datetime.now(UTC)
    start = each.start_time or now
    state = Text(each.state.lower(), style=STATES.get(each.state, ""))
    if each.stale:
        state.append(", stale", style="magenta")
    return (
        start.astimezone().strftime("%d %b %H:%M"),
        render.show_length((each.end_time or now) - start),
        state,
        render.severity_text(each.severity),
        each.rule,
        each.annotations.get("summary", ""),
        "silenced"
        if each.silenced_by
        else "inhibited"
        if each.inhibited_by
        else render.NOTHING
        if each.state == "PENDING"
        else "yes",
    )


async def _watch(client: Client, where: str, *, as_json: bool) -> None:
    from rich.text import Text

    from openmanager.api.analysis.v1 import alert_pb2
    from openmanager.client import alerts as wire
    from openmanager.client import rpc
    from openmanager.client.rpc import closable

    request = alert_pb2.WatchAlertsRequest(filter=where)
    async with aclosing(closable(client.rpc.watched(rpc.WATCH_ALERTS, request))) as replies:
        async for reply in replies:
            if as_json:
                render.print_json(reply, line=True)
                continue
            for each in map(wire.alert, reply.alerts):
                since, lasting, state, severity, rule, what, sent = _cells(each)
                line = Text.assemble(f"{since}  ", state, "  ", severity, f"  {rule}  {what} ({lasting})")
                render.console().print(line if sent in {"yes", render.NOTHING} else line.append(f", {sent}"))


alerts.add_command(rules)
alerts.add_command(silences)
