"""`openmanager log`: how far the readers of the log are, and what they could not take."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import connection, render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from openmanager.client import Consumer, DeadLetter, Ledger

DEFAULT_LIMIT = 100
WIDE = 100
_CONSUMER = click.option("--consumer", metavar="NAME", default="", help="Only those of this consumer.")
_IDS = click.argument("ids", nargs=-1, metavar="[ID]...")


@click.group(invoke_without_command=True, epilog=render.examples("log", "log dead-letters", "log retry 17"))
@render.json_option
@click.pass_context
def log(ctx: click.Context, *, as_json: bool) -> None:
    """Show how far the readers of the log are, and what they could not take.

    Without a command the books are shown: of every sample that was ever acknowledged what became of it.
    """
    if ctx.invoked_subcommand is None:
        connection.run(lambda client: _books(client, as_json=as_json))


@log.command("dead-letters", epilog=render.examples("log dead-letters", "log dead-letters --consumer influxdb --json"))
@_CONSUMER
@click.option("--limit", type=click.IntRange(1), default=DEFAULT_LIMIT, show_default=True, help="How many at most.")
@render.json_option
def dead_letters_command(*, consumer: str, limit: int, as_json: bool) -> None:
    """List the samples that a reader refused for good, and why, oldest first."""
    connection.run(lambda client: _dead_letters(client, consumer, limit, as_json=as_json))


@log.command("retry", epilog=render.examples("log retry 17 18", "log retry --consumer influxdb"))
@_IDS
@_CONSUMER
@render.json_option
def retry_command(*, ids: Sequence[str], consumer: str, as_json: bool) -> None:
    """Give dead letters to their reader again: what history holds of these samples now."""
    _check_chosen(ids, consumer)
    connection.run(lambda client: _retry(client, ids, consumer, as_json=as_json))


@log.command("discard", epilog=render.examples("log discard 17", "log discard --consumer influxdb --yes"))
@_IDS
@_CONSUMER
@click.option("--yes", is_flag=True, help="Discard without asking.")
@render.json_option
def discard_command(*, ids: Sequence[str], consumer: str, yes: bool, as_json: bool) -> None:
    """Forget dead letters for good. History keeps the samples; only their reader does without them."""
    _check_chosen(ids, consumer)
    if not yes:
        which = f"dead letters {', '.join(ids)}" if ids else f"all dead letters of {consumer}"
        click.confirm(f"Forget {which} for good?", abort=True, err=True)
    connection.run(lambda client: _discard(client, ids, consumer, as_json=as_json))


def _check_chosen(ids: Sequence[str], consumer: str) -> None:
    if not (ids or consumer):
        raise click.UsageError("either ids or --consumer are needed: see `openmanager log dead-letters`")


# ── the books ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def _books(client: Any, *, as_json: bool) -> None:
    from openmanager.api.timeseries.v1 import timeseries_pb2
    from openmanager.client import codec, rpc

    reply = await client.rpc.call(rpc.GET_LEDGER, timeseries_pb2.GetLedgerRequest())
    if as_json:
        render.print_json(reply)
        return
    out, books = render.console(), codec.ledger(reply.ledger)
    out.print(ledger_table(books))
    for each in books.consumers:
        if each.state not in {None, "OK"}:
            out.print(_trouble(each))
    if letters := sum(each.dead_lettered for each in books.consumers):
        out.print(f"{render.show_count(letters, 'dead-lettered sample')}: see `openmanager log dead-letters`")


def ledger_table(ledger: Ledger) -> Table:
    """Return the books as a table: a row for each reader of the log."""
    from rich.text import Text

    figures = ("delivered", "waiting", "dead", "re-synced", "damaged", "lag")
    made = render.table(
        "consumer", "state", *figures, "balanced",
        right=figures,
        title=f"ledger: {ledger.accepted_sample_count:,} samples accepted, position {ledger.head_position:,}",
    )  # fmt: skip
    for each in ledger.consumers:
        balanced = each.accounted == ledger.accepted_sample_count
        made.add_row(
            each.name,
            render.state_text(each.state) if each.state else render.NOTHING,
            *(f"{n:,}" for n in (each.delivered, each.waiting, each.dead_lettered, each.resynced, each.damaged)),
            render.show_length(each.lag) if each.lag else render.NOTHING,
            Text("✓", style="green") if balanced else Text("✗", style="bold red"),
        )
    return made


def _trouble(consumer: Consumer) -> RenderableType:
    from rich.text import Text

    since = f" (for {render.show_age(consumer.since_time)})" if consumer.since_time else ""
    state = render.state_text(consumer.state)
    return Text.assemble("✗ ", consumer.name, " ", state, f": {consumer.reason or 'no reason given'}{since}")


# ── dead letters ───────────────────────────────────────────────────────────────────────────────────────────────────


async def _dead_letters(client: Any, consumer: str, limit: int, *, as_json: bool) -> None:
    from openmanager.api.timeseries.v1 import timeseries_pb2
    from openmanager.client import codec, rpc

    request = timeseries_pb2.ListDeadLettersRequest(consumer=consumer)
    found: list[DeadLetter] = []
    total = forgotten = 0
    async for page in client.rpc.pages(rpc.LIST_DEAD_LETTERS, request, limit=limit):
        if as_json:
            render.print_json(page, line=True)
        found.extend(codec.dead_letter(each) for each in page.dead_letters)
        total, forgotten = page.total_count, page.forgotten_count
    if as_json:
        return
    out = render.console()
    if found:
        out.print(_letters_table(found, wide=out.width >= WIDE))
        out.print()
    of = f"{len(found):,} of " if len(found) < total else ""
    out.print(f"{of}{render.show_count(total, 'dead letter')}" if found else "no dead letters")
    if forgotten:
        out.print(f"{forgotten:,} more had to make room for these")


def _letters_table(letters: Sequence[DeadLetter], *, wide: bool) -> Table:
    more = ("position", "retries") if wide else ()
    made = render.table("id", "consumer", "samples", "from", *more, "servers", "why", right=("id", "samples", *more))
    for name in ("servers", "why"):
        column = next(each for each in made.columns if each.header == name)
        column.no_wrap, column.overflow = False, "fold"
    for each in letters:
        servers = ", ".join(each.servers[:3]) + (f", … ({len(each.servers)})" if len(each.servers) > 3 else "")
        places = (f"{each.first_position:,}", str(each.retry_count)) if wide else ()
        made.add_row(
            each.id,
            each.consumer,
            f"{each.sample_count:,}",
            render.show_moment(each.start_time),
            *places,
            servers or render.NOTHING,
            each.reason,
        )
    return made


async def _retry(client: Any, ids: Sequence[str], consumer: str, *, as_json: bool) -> None:
    from openmanager.api.timeseries.v1 import timeseries_pb2
    from openmanager.client import rpc
    from openmanager.client.dead_letters import RETRY_SECONDS

    request = timeseries_pb2.RetryDeadLettersRequest(consumer=consumer, ids=ids)
    reply = await client.rpc.call(rpc.RETRY_DEAD_LETTERS, request, seconds=RETRY_SECONDS)
    if as_json:
        render.print_json(reply)
        return
    again = (
        f", {reply.refused_count:,} refused again: see `openmanager log dead-letters`" if reply.refused_count else ""
    )
    click.echo(f"{render.show_count(reply.taken_count, 'dead letter')} taken{again}")
    if reply.refused_count:
        sys.exit(1)


async def _discard(client: Any, ids: Sequence[str], consumer: str, *, as_json: bool) -> None:
    from openmanager.api.timeseries.v1 import timeseries_pb2
    from openmanager.client import rpc

    request = timeseries_pb2.DeleteDeadLettersRequest(consumer=consumer, ids=ids)
    reply = await client.rpc.call(rpc.DELETE_DEAD_LETTERS, request)
    if as_json:
        render.print_json(reply)
        return
    letters, samples = (
        render.show_count(reply.deleted_count, "dead letter"),
        render.show_count(reply.sample_count, "sample"),
    )
    click.echo(f"{letters} with {samples} discarded")
