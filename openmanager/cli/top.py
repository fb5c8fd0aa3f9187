"""`openmanager top`: the fleet, live."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import connection, render
from openmanager.cli.servers import servers_table, usage_bars, usages

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from openmanager.client import Client, Provenance, Server

REPAINT_SECONDS = 0.5
HEADER_LINES = 5
_GRAVITY = {"CRITICAL": 3, "WARNING": 2, "OFFLINE": 1}
SORTS = ("state", "cpu", "memory", "disk", "id")


@click.command(epilog=render.examples("top", "top --sort memory --filter 'role = database'", "top --once"))
@click.option("--sort", type=click.Choice(SORTS), default="state", show_default=True, help="What comes first.")
@click.option("--filter", "filter_", metavar="FILTER", default="", help="Which servers, such as “role = web”.")
@click.option("--once", is_flag=True, help="Print one frame and end.")
@render.json_option
def top(*, sort: str, filter_: str, once: bool, as_json: bool) -> None:
    """Show the fleet as it changes, until Ctrl-C.

    With --json every message of the watch is a line; where the output is no terminal one frame is printed.
    """
    if as_json and not once:
        connection.run_until_interrupted(lambda client: _stream_json(client, filter_))
    elif as_json:
        connection.run(lambda client: _snapshot_json(client, filter_))
    elif once or not render.console().is_terminal:
        connection.run(lambda client: _print_once(client, sort, filter_))
    else:
        connection.run_until_interrupted(lambda client: _live(client, sort, filter_))


@dataclass(slots=True, kw_only=True)
class _Fleet:
    """What is on the screen."""

    target: str
    servers: dict[str, Server] = field(default_factory=dict)
    provenance: Provenance | None = None
    trouble: str = ""


async def _stream_json(client: Client, filter_: str) -> None:
    from openmanager.client.watch import ServerWatch

    async for message in ServerWatch(client.rpc, filter=filter_).messages():
        render.print_json(message, line=True)


async def _snapshot_json(client: Client, filter_: str) -> None:
    from openmanager.api.gateway.v1 import gateway_pb2
    from openmanager.client import rpc

    async for page in client.rpc.pages(rpc.LIST_SERVERS, gateway_pb2.ListServersRequest(filter=filter_)):
        render.print_json(page, line=True)


async def _print_once(client: Client, sort: str, filter_: str) -> None:
    fleet = _Fleet(target=client.rpc.target)
    fleet.servers = {server.id: server async for server in client.list_servers(filter_)}
    for server in fleet.servers.values():
        fleet.provenance = server.provenance
    out = render.console()
    for part in _frame(fleet, sort, out.width, len(fleet.servers)):
        out.print(part)


async def _live(client: Client, sort: str, filter_: str) -> None:
    from rich.live import Live

    fleet = _Fleet(target=client.rpc.target)
    following = asyncio.create_task(_follow(client, fleet, filter_))
    try:
        # The first answer decides whether there is anything to show before the screen is taken.
        while fleet.provenance is None and not following.done():
            await asyncio.wait({following}, timeout=0.02)
        if following.done():
            following.result()
        out = render.console()
        with Live(console=out, screen=True, auto_refresh=False) as live:
            while not following.done():
                live.update(_screen(fleet, sort, out), refresh=True)
                await asyncio.wait({following}, timeout=REPAINT_SECONDS)
        following.result()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def _follow(client: Client, fleet: _Fleet, filter_: str) -> None:
    def away(err: Exception) -> None:
        fleet.trouble = f"{err}; trying again"

    async for event in client.watch_servers(filter_, on_away=away):
        event.apply(fleet.servers)
        fleet.provenance = event.provenance
        fleet.trouble = ""


def _screen(fleet: _Fleet, sort: str, out: Console) -> RenderableType:
    from rich.console import Group

    return Group(*_frame(fleet, sort, out.width, max(1, out.height - HEADER_LINES - 1)))


def _frame(fleet: _Fleet, sort: str, width: int, rows: int) -> Iterable[RenderableType]:
    from rich.text import Text

    ordered = sorted(fleet.servers.values(), key=lambda server: _rank(server, sort))
    rows = rows if len(ordered) <= rows else rows - 1
    yield from _header(fleet)
    yield ""
    yield servers_table(ordered[:rows], width)
    if len(ordered) > rows:
        yield Text(f"and {len(ordered) - rows:,} more", style="dim")


def _rank(server: Server, sort: str) -> tuple[Any, ...]:
    usage = {"cpu": server.cpu_usage, "memory": server.memory_usage, "disk": server.disk_usage}
    if sort == "id":
        return (server.id,)
    if sort == "state":
        return (-_GRAVITY.get(server.state or "", 0), -(server.cpu_usage or 0.0), server.id)
    return (-(usage[sort] if usage[sort] is not None else -1.0), server.id)  # type: ignore[operator]


def _header(fleet: _Fleet) -> Iterable[Text]:
    from rich.text import Text

    servers = list(fleet.servers.values())
    counts = {state: sum(server.state == state for server in servers) for state in render.STATE_STYLES}
    line = Text.assemble((f"{render.show_count(len(servers), 'server')} ", "bold"))
    for state in ("HEALTHY", "WARNING", "CRITICAL", "OFFLINE"):
        line.append(f" {counts[state]:,} {state}", style=render.STATE_STYLES[state] if counts[state] else "dim")
    yield line
    means = [_mean(column) for column in zip(*map(usages, servers), strict=True)] or [None] * 3
    line = Text()
    for name, bar in zip(("cpu", "memory", "disk"), usage_bars(means, 6), strict=True):
        line.append(f"{name} ").append_text(bar).append(" %  ")
    yield line
    series = sum(server.metric_count for server in servers)
    yield Text(
        f"{series:,} series  {_rate(servers):,.0f} samples/s  {datetime.now(UTC).astimezone():%H:%M:%S}  {fleet.target}"
    )
    yield _condition(fleet)


def _condition(fleet: _Fleet) -> Text:
    from rich.text import Text

    if fleet.trouble:
        return Text(fleet.trouble, style="bold red")
    return render.provenance_text(fleet.provenance) if fleet.provenance else Text("")


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def _rate(servers: Iterable[Server]) -> float:
    """Return samples a second: what the servers that are not silent send in their own intervals."""
    return sum(
        server.metric_count / (server.interval / timedelta(seconds=1))
        for server in servers
        if server.interval and server.state != "OFFLINE"
    )
