"""`openmanager retention`: what is kept how long, and what the tiers hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import connection, render, selection
from openmanager.cli.query import length, moment
from openmanager.config import show_duration
from openmanager.errors import NotFoundError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from openmanager.client import Client, LegalHold, RetentionPolicy, Selector, Tier, Tiers

NARROW = 110


@click.group(invoke_without_command=True, epilog=render.examples("retention", "retention --json"))
@render.json_option
@click.pass_context
def retention(ctx: click.Context, *, as_json: bool) -> None:
    """Show what is kept how long and what the tiers hold; change it.

    Without a command the tiers, the rules and the holds are shown.
    """
    if ctx.invoked_subcommand is None:
        connection.run(lambda client: _show(client, as_json=as_json))


@retention.command(
    "set",
    epilog=render.examples(
        "retention set --tier raw --metric 'debug.*' --for 2d",
        "retention set --tier 1h --where 'environment = production' --for 3650d",
        "retention set --tier raw --metric 'debug.*' --default",
    ),
)
@click.option("--tier", metavar="NAME", default="", help="raw, or a rollup tier such as 5m.  [default: every tier]")
@click.option("--metric", "metrics", multiple=True, metavar="METRIC", help="Only these metrics; may be repeated.")
@selection.series_options
@click.option("--for", "kept", callback=length, metavar="DURATION", help="How long: 30d, 12h.")
@click.option("--default", "forget", is_flag=True, help="Delete the rule instead: what is configured holds again.")
@render.json_option
def set_command(**options: Any) -> None:
    """Keep some series of a tier for so long: a rule, the last one that matches counts.

    A rule for the same tier and the same series is replaced and becomes the last.
    """
    if bool(options["kept"]) == options["forget"]:
        raise click.UsageError("either --for or --default is needed")
    connection.run(lambda client: _set(client, options))


@retention.command(
    "hold",
    epilog=render.examples(
        "retention hold incident-42 --where 'role = database' --start 2026-07-01 --end 2026-07-08 --reason audit"
    ),
)
@click.argument("name", metavar="NAME")
@click.option("--metric", "metrics", multiple=True, metavar="METRIC", help="Only these metrics; may be repeated.")
@selection.series_options
@click.option("--start", callback=moment, metavar="TIME", help="From then on.  [default: from the beginning]")
@click.option("--end", callback=moment, metavar="TIME", help="Until then, exclusive.  [default: without end]")
@click.option("--reason", metavar="TEXT", default="", help="Why, for people.")
@render.json_option
def hold_command(**options: Any) -> None:
    """Keep some series whatever the rules say, until `retention release NAME`."""
    connection.run(lambda client: _hold(client, options))


@retention.command("release", epilog=render.examples("retention release incident-42"))
@click.argument("name", metavar="NAME")
@render.json_option
def release_command(*, name: str, as_json: bool) -> None:
    """End a hold."""
    connection.run(lambda client: _release(client, name, as_json=as_json))


@retention.command(
    "rebuild", epilog=render.examples("retention rebuild --tier 1h --start 2026-07-01", "retention rebuild --start 7d")
)
@click.option("--tier", metavar="NAME", default="", help="A rollup tier such as 1h.  [default: all of them]")
@click.option("--start", callback=moment, required=True, metavar="TIME", help="From then on: 2026-07-01 or 7d (ago).")
@click.option("--end", callback=moment, metavar="TIME", help="Until then, exclusive.  [default: now]")
@render.json_option
def rebuild_command(*, tier: str, start: datetime, end: datetime | None, as_json: bool) -> None:
    """Have buckets computed again from what is finer; `openmanager retention` shows how many wait."""
    connection.run(lambda client: _rebuild(client, tier, start, end, as_json=as_json))


# ── showing ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _show(client: Client, *, as_json: bool) -> None:
    from openmanager.api.timeseries.v1 import timeseries_pb2
    from openmanager.client import codec, rpc

    policy = await client.rpc.call(rpc.GET_RETENTION_POLICY, timeseries_pb2.GetRetentionPolicyRequest())
    tiers = await client.rpc.call(rpc.LIST_TIERS, timeseries_pb2.ListTiersRequest())
    if as_json:
        render.print_json(policy, line=True)
        render.print_json(tiers, line=True)
        return
    out = render.console()
    for part in _parts(codec.tiers(tiers), codec.retention_policy(policy.policy), out.width):
        out.print(part)
    out.print(render.provenance_text(codec.provenance(policy.provenance)))


def _parts(found: Tiers, policy: RetentionPolicy, width: int) -> Iterator[RenderableType]:
    from rich.text import Text

    yield _tiers_table(found.tiers, width)
    yield ""
    yield from _remarks(found, narrow=width < NARROW)
    if policy.rules:
        yield _rules_table(policy)
        yield ""
    if policy.holds:
        yield _holds_table(policy.holds)
        yield ""
    if not policy.rules and not policy.holds:
        yield Text("no rules and no holds: every tier is kept as it is configured", style="dim")


def _tiers_table(tiers: Sequence[Tier], width: int) -> Table:
    figures = ("kept for", "oldest", "newest", "rows", "size", "B/row", "waiting", "deleted", "freed")
    # What was deleted and freed is told below where there is no room for it.
    shown = figures if width >= NARROW else figures[:7]
    made = render.table("tier", *shown, right=shown)
    for tier in tiers:
        per_row = f"{tier.size_bytes / tier.row_count:.2f}" if tier.row_count else render.NOTHING
        cells = (
            show_duration(tier.retention),
            _age(tier.oldest_time),
            _age(tier.newest_time),
            f"{tier.row_count:,}",
            render.show_bytes(tier.size_bytes),
            per_row,
            f"{tier.waiting_bucket_count:,}",
            f"{tier.deleted_row_count:,}",
            render.show_bytes(tier.freed_bytes),
        )
        made.add_row(tier.name, *cells[: len(shown)])
    return made


def _age(moment: datetime | None) -> str:
    return f"{render.show_age(moment)} ago" if moment else render.NOTHING


def _remarks(found: Tiers, *, narrow: bool) -> Iterator[RenderableType]:
    from rich.text import Text

    for tier in found.tiers:
        if tier.sketch_metrics:
            yield Text(f"{tier.name}: percentiles of {', '.join(tier.sketch_metrics)} in sketches", style="dim")
        if tier.damaged_file_count:
            what = render.show_count(tier.damaged_file_count, "file")
            yield Text(f"! {tier.name}: {what} damaged and set aside", style="yellow")
    gone = sum(tier.deleted_row_count for tier in found.tiers)
    if gone and narrow:
        freed = render.show_bytes(sum(tier.freed_bytes for tier in found.tiers))
        yield Text(f"{render.show_count(gone, 'row')} deleted, {freed} freed", style="dim")
    disk = found.disk
    share = 100 * disk.used_bytes / disk.limit_bytes if disk.limit_bytes else 0.0
    full = f", full on {render.show_moment(disk.full_time)}" if disk.full_time else ""
    budget = f"{render.show_bytes(disk.used_bytes)} of {render.show_bytes(disk.limit_bytes)}"
    yield Text.assemble("disk  ", render.bar(share, 20, warning=80, critical=90), f" %  {budget}{full}")
    if disk.plan:
        yield Text(disk.plan, style="yellow")
    yield ""


def _rules_table(policy: RetentionPolicy) -> Table:
    made = render.table("rule", "tier", "series", "kept for", right=("kept for",), title=None)
    render.fold(made, "series")
    for number, rule in enumerate(policy.rules, 1):
        made.add_row(f"{number}", rule.tier or "every", show_selector(rule.selector), show_duration(rule.retention))
    return made


def _holds_table(holds: Sequence[LegalHold]) -> Table:
    made = render.table("hold", "series", "from", "until", "reason")
    render.fold(made, "series", "reason")
    for hold in holds:
        start, end = (
            moment and moment.astimezone().strftime("%Y-%m-%d %H:%M") for moment in (hold.start_time, hold.end_time)
        )
        made.add_row(hold.name, show_selector(hold.selector), start or "the beginning", end or "no end", hold.reason)
    return made


def show_selector(selector: Selector) -> str:
    """Return which series a selector chooses."""
    parts = [", ".join(selector.metrics) or "all metrics"]
    if selector.servers:
        parts.append(f"of {', '.join(selector.servers)}")
    if selector.where:
        parts.append(f"where {selector.where}")
    return " ".join(parts)


# ── changing ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _selector(options: Mapping[str, Any]) -> Selector:
    from openmanager.client import Selector

    return Selector(metrics=options["metrics"], servers=options["servers"], where=options["where"])


async def _set(client: Client, options: Mapping[str, Any]) -> None:
    from openmanager.client import RetentionRule

    policy, tier, selector = await client.retention.get(), options["tier"], _selector(options)
    others = tuple(rule for rule in policy.rules if (rule.tier, rule.selector) != (tier, selector))
    if options["forget"]:
        if len(others) == len(policy.rules):
            raise NotFoundError(f"there is no rule for {show_selector(selector)} in {tier or 'every tier'}")
        await _update(client, replace(policy, rules=others), as_json=options["as_json"])
        return
    kept: timedelta = options["kept"]
    rule = RetentionRule(tier=tier, selector=selector, retention=kept)
    await _update(client, replace(policy, rules=(*others, rule)), as_json=options["as_json"])


async def _hold(client: Client, options: Mapping[str, Any]) -> None:
    from openmanager.client import LegalHold

    policy = await client.retention.get()
    hold = LegalHold(
        name=options["name"],
        selector=_selector(options),
        start_time=options["start"],
        end_time=options["end"],
        reason=options["reason"],
    )
    others = tuple(each for each in policy.holds if each.name != hold.name)
    await _update(client, replace(policy, holds=(*others, hold)), as_json=options["as_json"])


async def _release(client: Client, name: str, *, as_json: bool) -> None:
    policy = await client.retention.get()
    others = tuple(each for each in policy.holds if each.name != name)
    if len(others) == len(policy.holds):
        known = ", ".join(each.name for each in policy.holds)
        raise NotFoundError(f"there is no hold {name!r}" + (f"; there is {known}" if known else ""))
    await _update(client, replace(policy, holds=others), as_json=as_json)


async def _update(client: Client, policy: RetentionPolicy, *, as_json: bool) -> None:
    """Store a policy that was read before, unless somebody changed it in between, and show it."""
    from openmanager.api.timeseries.v1 import timeseries_pb2
    from openmanager.client import codec, rpc

    request = timeseries_pb2.UpdateRetentionPolicyRequest(policy=codec.retention_message(policy))
    reply = await client.rpc.call(rpc.UPDATE_RETENTION_POLICY, request)
    if as_json:
        render.print_json(reply)
        return
    now, out = codec.retention_policy(reply.policy), render.console()
    if now.rules:
        out.print(_rules_table(now))
    if now.holds:
        out.print(_holds_table(now.holds))
    if not now.rules and not now.holds:
        click.echo("no rules and no holds: every tier is kept as it is configured")


async def _rebuild(client: Client, tier: str, start: datetime, end: datetime | None, *, as_json: bool) -> None:
    from openmanager.api.timeseries.v1 import timeseries_pb2
    from openmanager.client import codec, rpc

    request = timeseries_pb2.RebuildTierRequest(tier=tier, start_time=codec.timestamp(start, "start"))
    if end is not None:
        request.end_time.CopyFrom(codec.timestamp(end, "end"))
    reply = await client.rpc.call(rpc.REBUILD_TIER, request)
    if as_json:
        render.print_json(reply)
        return
    waiting = render.show_count(reply.waiting_bucket_count, "bucket")
    click.echo(f"{waiting} of time to be computed again: `openmanager retention` shows how many still wait")
