"""`openmanager simulate`: the simulated fleet."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import connection, render
from openmanager.cli.query import length, moment
from openmanager.errors import InvalidArgumentError, OpenManagerError

if TYPE_CHECKING:
    from openmanager.api.simulator.v1.simulator_pb2 import BackfillHistoryRequest, BackfillHistoryResponse
    from openmanager.client import Client

# A batch of ticks takes about so long, so that the progress moves and Ctrl-C is heard.
BATCH_SECONDS = 0.5
MAX_BATCH = 10_000
WIDE = 120


@click.group()
def simulate() -> None:
    """See and steer the simulated fleet."""


@simulate.command("status", epilog=render.examples("simulate status"))
@render.json_option
def status_command(*, as_json: bool) -> None:
    """Show whether the simulation ticks, and how far it is."""
    from openmanager.api.simulator.v1 import simulator_pb2
    from openmanager.client import rpc

    reply = connection.run(lambda client: client.rpc.call(rpc.GET_SIMULATION, simulator_pb2.GetSimulationRequest()))
    _print(reply, as_json=as_json)


@simulate.command("start", epilog=render.examples("simulate start", "simulate start --servers 100 --interval 5s"))
@click.option("--servers", type=click.IntRange(1, 100_000), help="How many servers.  [default: as before]")
@click.option("--interval", callback=length, metavar="DURATION", help="Time between ticks.  [default: as before]")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="The fleet's seed.  [default: as before]")
@render.json_option
def start_command(*, servers: int | None, interval: timedelta | None, seed: int | None, as_json: bool) -> None:
    """Let the simulation tick; to change a fleet that ticks, stop it first."""
    from openmanager.api.simulator.v1 import simulator_pb2
    from openmanager.client import codec, rpc

    request = simulator_pb2.StartSimulationRequest(server_count=servers or 0, seed=seed)
    if interval is not None:
        request.interval.CopyFrom(codec.duration(interval))
    _print(connection.run(lambda client: client.rpc.call(rpc.START_SIMULATION, request)), as_json=as_json)


@simulate.command("stop", epilog=render.examples("simulate stop"))
@render.json_option
def stop_command(*, as_json: bool) -> None:
    """Stop the simulation; what is buffered is still delivered."""
    from openmanager.api.simulator.v1 import simulator_pb2
    from openmanager.client import rpc

    reply = connection.run(lambda client: client.rpc.call(rpc.STOP_SIMULATION, simulator_pb2.StopSimulationRequest()))
    _print(reply, as_json=as_json)


@simulate.command("advance", epilog=render.examples("simulate advance 360"))
@click.argument("ticks", type=click.IntRange(1, 10_000_000))
@render.json_option
def advance_command(*, ticks: int, as_json: bool) -> None:
    """Make TICKS at once, following on from the last one; the simulation must stand still."""
    _print(connection.run(lambda client: _advance(client, ticks, show=not as_json)), as_json=as_json)


@simulate.command(
    "backfill",
    epilog=render.examples("simulate backfill --start 365d", "simulate backfill --start 14d --raw"),
)
@click.option(
    "--start",
    callback=moment,
    required=True,
    metavar="TIME",
    help="From the hour of then on: 365d (ago), 2026-07-01T12:00 or 1782900000.",
)
@click.option("--end", callback=moment, metavar="TIME", help="Until then, exclusive.  [default: the last whole hour]")
@click.option("--raw", is_flag=True, help="Write the samples too, as far back as they are kept.")
@click.option("--resume", "token", metavar="TOKEN", default="", help="Go on where an earlier run ended.")
@render.json_option
def backfill_command(*, start: datetime, end: datetime | None, raw: bool, token: str, as_json: bool) -> None:
    """Make the history of the simulated fleet, as if it had ticked all along.

    What breaks goes on by itself; after Ctrl-C it goes on with the command that is shown.
    """
    from openmanager.api.simulator.v1 import simulator_pb2
    from openmanager.client import codec

    start = start.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    request = simulator_pb2.BackfillHistoryRequest(raw=raw, resume_token=token)
    request.start_time.CopyFrom(codec.timestamp(start, "start"))
    if end is not None:
        request.end_time.CopyFrom(codec.timestamp(end, "end"))
    try:
        reply = connection.run(lambda client: _backfill(client, request, as_json=as_json))
    except (KeyboardInterrupt, OpenManagerError) as err:
        if request.resume_token and not isinstance(err, InvalidArgumentError):
            until = f" --end {end.astimezone(UTC).isoformat()}" if end else ""
            options = f"--start {start.isoformat()}{until}{' --raw' if raw else ''}"
            command = f"openmanager simulate backfill {options} --resume {request.resume_token}"
            click.echo(f"What is written stays. To go on:\n  {command}", err=True)
        raise
    if not as_json:
        click.echo(
            f"{reply.sample_count:,} samples made until {render.show_moment(codec.moment(reply, 'done_time'))}; "
            f"written: {render.show_count(reply.bucket_count, 'bucket')}, "
            f"{render.show_count(reply.raw_sample_count, 'sample')}"
        )


@simulate.command("metrics", epilog=render.examples("simulate metrics", "simulate metrics --json"))
@render.json_option
def metrics_command(*, as_json: bool) -> None:
    """List the metrics that every simulated server has."""
    connection.run(lambda client: _metrics(client, as_json=as_json))


async def _advance(client: Client, ticks: int, *, show: bool) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from openmanager.api.simulator.v1 import simulator_pb2
    from openmanager.client import rpc
    from openmanager.client.simulation import ADVANCE_SECONDS

    err = Console(stderr=True)
    columns = (TextColumn("advancing"), BarColumn(), MofNCompleteColumn(), TextColumn("ticks"), TimeRemainingColumn())
    now = asyncio.get_running_loop().time
    made, batch, reply = 0, 1, None
    with Progress(*columns, console=err, disable=not (show and err.is_terminal), transient=True) as progress:
        task = progress.add_task("", total=ticks)
        while made < ticks:
            start, some = now(), min(batch, ticks - made)
            request = simulator_pb2.AdvanceSimulationRequest(tick_count=some)
            reply = await client.rpc.call(rpc.ADVANCE_SIMULATION, request, seconds=ADVANCE_SECONDS)
            made += some
            progress.update(task, completed=made)
            pace = BATCH_SECONDS / max(now() - start, 0.001)
            batch = max(1, min(MAX_BATCH, int(some * min(pace, 8.0))))
    return reply


async def _backfill(client: Client, request: BackfillHistoryRequest, *, as_json: bool) -> BackfillHistoryResponse:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from openmanager.api.simulator.v1 import simulator_pb2
    from openmanager.client.simulation import backfill_replies

    err = Console(stderr=True)
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    now = asyncio.get_running_loop().time
    start, first, reply = now(), None, simulator_pb2.BackfillHistoryResponse()
    with Progress(*columns, console=err, disable=as_json or not err.is_terminal, transient=True) as progress:
        task = progress.add_task("begins", total=1.0)

        def away(failure: OpenManagerError) -> None:
            progress.update(task, description=f"{failure.message}; tried again")

        async for reply in backfill_replies(client.rpc, request, away):
            if as_json:
                render.print_json(reply, line=True)
            first = reply.sample_count if first is None else first
            rate = (reply.sample_count - first) / max(now() - start, 0.001)
            told = f"{reply.sample_count / 1e6:,.0f} M samples, {rate / 1e6:,.1f} M/s"
            progress.update(task, completed=reply.done_ratio, description=told)
    return reply


async def _metrics(client: Client, *, as_json: bool) -> None:
    from openmanager.api.simulator.v1 import simulator_pb2
    from openmanager.client import codec, rpc

    out = render.console()
    wide = out.width >= WIDE
    made = render.table("metric", "unit", "range", *(["kind", "description"] if wide else []))
    async for page in client.rpc.pages(rpc.LIST_METRICS, simulator_pb2.ListMetricsRequest()):
        if as_json:
            render.print_json(page, line=True)
        for metric in map(codec.metric, page.metrics):
            low, high = ("" if bound is None else f"{bound:g}" for bound in (metric.minimum, metric.maximum))
            bounds = f"{low}–{high}" if low or high else ""
            more = (metric.kind.lower(), metric.description) if wide else ()
            made.add_row(metric.key, metric.unit, bounds, *more)
    if not as_json:
        out.print(made)


def _print(reply: Any, *, as_json: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from openmanager.client import codec

    if as_json:
        render.print_json(reply)
        return
    found = codec.simulation(reply.simulation)
    state = Text("running", style="green") if found.running else Text("stopped", style="yellow")
    made = Table.grid(padding=(0, 2))
    facts: dict[str, Any] = {
        "simulation": state,
        "fleet": f"{found.server_count:,} servers × {found.metric_count:,} metrics, seed {found.seed}",
        "interval": render.show_length(found.interval),
        "ticks": f"{found.tick_count:,}, the last at {render.show_moment(found.last_tick_time)}",
        "acknowledged": f"{found.acknowledged_sample_count:,} samples",
        "waiting": f"{found.buffered_frame_count:,} frames, {found.dropped_frame_count:,} dropped",
        "trouble": Text(found.last_error, style="red"),
    }
    for name, value in facts.items():
        if value:
            made.add_row(Text(name, style="dim"), value)
    render.console().print(made)
