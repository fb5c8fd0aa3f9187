"""`openmanager alerts silences`: whom nobody is told of for a while."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import connection, render
from openmanager.cli.query import length, moment

if TYPE_CHECKING:
    from openmanager.client import Client, Silence

STATES = {"ACTIVE": "bold", "EXPIRED": "dim"}


@click.group(
    "silences", invoke_without_command=True, epilog=render.examples("alerts silences", "alerts silences --active")
)
@click.option("--active", is_flag=True, help="Only those that are not over.")
@render.json_option
@click.pass_context
def silences(ctx: click.Context, *, active: bool, as_json: bool) -> None:
    """List silences, or create, change and end them."""
    if ctx.invoked_subcommand is None:
        connection.run(lambda client: _silences(client, active=active, as_json=as_json))


@silences.command(
    "create",
    epilog=render.examples(
        "alerts silences create 'server = web-01' --for 2h --comment 'new disk'",
        "alerts silences create 'rule = cpu AND environment = staging' --start 22:00 --end 23:00 --comment 'load test'",
    ),
)
@click.argument("matcher", metavar="MATCHER")
@click.option("--for", "lasting", callback=length, metavar="DURATION", help="For so long.")
@click.option("--start", callback=moment, metavar="TIME", help="From then on.  [default: now]")
@click.option("--end", callback=moment, metavar="TIME", help="Until then.")
@click.option("--comment", required=True, metavar="TEXT", help="Why.")
@render.json_option
def silence_command(**options: Any) -> None:
    """Have nobody told of the alerts that MATCHER chooses, by their labels. They are still listed."""
    if bool(options["lasting"]) == bool(options["end"]):
        raise click.UsageError("either --for or --end is needed")
    connection.run(lambda client: _silence(client, options))


@silences.command(
    "change",
    epilog=render.examples(
        "alerts silences change 3f9c0a1b2c4d --for 4h",
        "alerts silences change 3f9c0a1b2c4d --comment 'new disk, again'",
    ),
)
@click.argument("silence_id", metavar="ID")
@click.option("--matcher", metavar="MATCHER", help="Which alerts.")
@click.option("--for", "lasting", callback=length, metavar="DURATION", help="For so long from now.")
@click.option("--start", callback=moment, metavar="TIME", help="From then on.")
@click.option("--end", callback=moment, metavar="TIME", help="Until then.")
@click.option("--comment", metavar="TEXT", help="Why.")
@render.json_option
def change_command(**options: Any) -> None:
    """Change a silence: what is given, and nothing else."""
    if options["lasting"] and options["end"]:
        raise click.UsageError("--for and --end exclude each other")
    connection.run(lambda client: _change_silence(client, options))


@silences.command("expire", epilog=render.examples("alerts silences expire 3f9c0a1b2c4d"))
@click.argument("silence_id", metavar="ID")
@render.json_option
def expire_command(*, silence_id: str, as_json: bool) -> None:
    """End a silence now."""
    from openmanager.api.analysis.v1 import alert_pb2
    from openmanager.client import rpc

    request = alert_pb2.ExpireSilenceRequest(id=silence_id)
    reply = connection.run(lambda client: client.rpc.call(rpc.EXPIRE_SILENCE, request))
    render.told(reply, f"{silence_id} is over", as_json=as_json)


async def _silences(client: Client, *, active: bool, as_json: bool) -> None:
    from openmanager.api.analysis.v1 import alert_pb2
    from openmanager.client import alerts as wire
    from openmanager.client import rpc

    found: list[Silence] = []
    async for page in client.rpc.pages(rpc.LIST_SILENCES, alert_pb2.ListSilencesRequest(active_only=active)):
        if as_json:
            render.print_json(page, line=True)
        found.extend(map(wire.silence, page.silences))
    if as_json:
        return
    if found:
        from rich.text import Text

        made = render.table("id", "state", "until", "alerts", "matcher", "by", "comment", right=("alerts",))
        render.fold(made, "matcher", "comment")
        for each in found:
            made.add_row(
                each.id,
                Text(each.state.lower(), style=STATES.get(each.state, "")),
                each.end_time.astimezone().strftime("%d %b %H:%M") if each.end_time else render.NOTHING,
                f"{each.alert_count:,}",
                each.matcher,
                each.creator,
                each.comment,
            )
        render.console().print(made)
        click.echo()
    click.echo(render.show_count(len(found), "silence"))


async def _silence(client: Client, options: dict[str, Any]) -> None:
    from openmanager.api.analysis.v1 import alert_pb2
    from openmanager.client import alerts as wire
    from openmanager.client import codec, rpc

    start, end = options["start"], options["end"]
    end = end or (start or datetime.now(UTC)) + options["lasting"]
    wanted = alert_pb2.Silence(
        matcher=options["matcher"], end_time=codec.timestamp(end, "end"), comment=options["comment"]
    )
    if start is not None:
        wanted.start_time.CopyFrom(codec.timestamp(start, "start"))
    request = alert_pb2.CreateSilenceRequest(silence=wanted, request_id=uuid.uuid4().hex)
    reply = await client.rpc.call(rpc.CREATE_SILENCE, request)
    made = wire.silence(reply.silence)
    render.told(
        reply, f"{made.id}: {made.matcher}, until {render.show_moment(made.end_time)}", as_json=options["as_json"]
    )


async def _change_silence(client: Client, options: dict[str, Any]) -> None:
    from openmanager.client import alerts as wire
    from openmanager.client import rpc

    end = datetime.now(UTC) + options["lasting"] if options["lasting"] else options["end"]
    request = wire.silence_change(
        options["silence_id"], matcher=options["matcher"], start=options["start"], end=end, comment=options["comment"]
    )
    if not request.update_mask.paths:
        raise click.UsageError("there is nothing to change: --matcher, --for, --start, --end or --comment")
    reply = await client.rpc.call(rpc.UPDATE_SILENCE, request)
    made = wire.silence(reply.silence)
    render.told(
        reply, f"{made.id}: {made.matcher}, until {render.show_moment(made.end_time)}", as_json=options["as_json"]
    )
