"""`openmanager audit retention`, `holds`, `hold` and `release`: how long entries are kept, and which are kept for longer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import connection, render
from openmanager.cli.query import moment
from openmanager.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from rich.table import Table

    from openmanager.client import AuditPolicy, Client

MAX_DAYS = 36_500
# The fields of the document, as somebody at a terminal knows them; the first that fits.
_FIELDS = {
    "policy.document.retention_days": "--days",
    "policy.document.holds.id": "ID",
    "policy.document.holds.filter": "--filter",
    "policy.document.holds.reason": "--reason",
    "policy.document.holds": "holds",
    "policy.document.holds.range.start_time": "--from",
    "policy.document.holds.range.end_time": "--to",
}


@click.command(
    "retention",
    epilog=render.examples("audit retention", "audit retention --days 1825", "audit retention --forever"),
)
@click.option("--days", type=click.IntRange(1, MAX_DAYS), help="Delete entries that are older.")
@click.option("--forever", is_flag=True, help="Delete none.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@render.json_option
def retention_command(*, days: int | None, forever: bool, yes: bool, as_json: bool) -> None:
    """Show how long entries are kept, or change it. Holds keep some for longer: `openmanager audit hold`.

    Entries are deleted within an hour of their time, in blocks of 1,024, and the log says so first.
    """
    if days and forever:
        raise click.UsageError("--days and --forever exclude each other")
    if days or forever:
        connection.run(lambda client: _keep(client, days, sure=yes, as_json=as_json))
    else:
        connection.run(lambda client: _show(client, as_json=as_json))


@click.command("holds", epilog=render.examples("audit holds", "audit holds --json"))
@render.json_option
def holds_command(*, as_json: bool) -> None:
    """List what is kept whatever the retention says."""
    connection.run(lambda client: _show(client, as_json=as_json))


@click.command(
    "hold",
    epilog=render.examples(
        "audit hold case-17 --filter 'actor = users/3f0c' --reason litigation",
        "audit hold q3 --from 2026-07-01 --to 2026-10-01",
    ),
)
@click.argument("hold_id", metavar="ID")
@click.option("--filter", "text", metavar="FILTER", default="", help="Only entries such as “actor = users/3f0c”.")
@click.option("--from", "start", callback=moment, metavar="TIME", help="From then on.  [default: the beginning]")
@click.option("--to", "end", callback=moment, metavar="TIME", help="Until then, exclusive.  [default: no end]")
@click.option("--reason", metavar="TEXT", default="", help="Why, for people.")
@render.json_option
def hold_command(**options: Any) -> None:
    """Keep some entries whatever the retention says, until `openmanager audit release ID`."""
    start, end = options["start"], options["end"]
    if not options["text"].strip() and start is None and end is None:
        raise click.UsageError("what is held? --filter, --from or --to is needed")
    if start is not None and end is not None and start >= end:
        raise click.BadParameter("is not after --from", param_hint="'--to'")
    connection.run(lambda client: _hold(client, options))


@click.command("release", epilog=render.examples("audit release case-17"))
@click.argument("hold_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@render.json_option
def release_command(*, hold_id: str, yes: bool, as_json: bool) -> None:
    """End a hold: what only it kept is deleted when its time is over."""
    connection.run(lambda client: _release(client, hold_id, sure=yes, as_json=as_json))


COMMANDS = (retention_command, holds_command, hold_command, release_command)


async def _show(client: Client, *, as_json: bool) -> None:
    _print(await client.audit.policy(), as_json=as_json)


async def _keep(client: Client, days: int | None, *, sure: bool, as_json: bool) -> None:
    policy = await client.audit.policy()
    is_shorter = days is not None and (policy.retention_days is None or days < policy.retention_days)
    if is_shorter and not sure:
        click.confirm(f"Delete entries that are older than {days:,} days, now and from now on?", abort=True, err=True)
    await _update(client, replace(policy, retention_days=days), as_json=as_json)


async def _hold(client: Client, options: Mapping[str, Any]) -> None:
    from openmanager.client import AuditHold

    policy, hold_id = await client.audit.policy(), options["hold_id"]
    if any(each.id == hold_id for each in policy.holds):
        raise AlreadyExistsError(f"there is a hold {hold_id!r} already: release it first, or take another ID")
    hold = AuditHold(
        id=hold_id,
        filter=options["text"],
        start_time=options["start"],
        end_time=options["end"],
        reason=options["reason"],
    )
    await _update(client, replace(policy, holds=(*policy.holds, hold)), as_json=options["as_json"])


async def _release(client: Client, hold_id: str, *, sure: bool, as_json: bool) -> None:
    policy = await client.audit.policy()
    others = tuple(each for each in policy.holds if each.id != hold_id)
    if len(others) == len(policy.holds):
        known = ", ".join(each.id for each in policy.holds)
        raise NotFoundError(f"there is no hold {hold_id!r}" + (f"; there is {known}" if known else ""))
    if policy.retention_days is not None and not sure:
        older = f"older than {policy.retention_days:,} days"
        click.confirm(f"End {hold_id}? What it alone keeps and is {older} is deleted", abort=True, err=True)
    await _update(client, replace(policy, holds=others), as_json=as_json)


async def _update(client: Client, policy: AuditPolicy, *, as_json: bool) -> None:
    """Store a policy that was read before, unless somebody changed it in between, and show it."""
    try:
        stored = await client.audit.update_policy(policy)
    except InvalidArgumentError as err:
        if (name := _FIELDS.get(err.field)) is None:
            raise
        raise InvalidArgumentError(f"{name} {err.message.removeprefix(err.field).lstrip()}", field=name) from err
    _print(stored, as_json=as_json)


def _print(policy: AuditPolicy, *, as_json: bool) -> None:
    if as_json:
        from openmanager.client.audit import policy_document

        changed = policy.update_time.isoformat() if policy.update_time else None
        document = {"retention_days": None, **policy_document(policy), "etag": policy.etag, "update_time": changed}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    kept = "for ever" if policy.retention_days is None else f"for {policy.retention_days:,} days"
    when = f", since {render.show_moment(policy.update_time)}" if policy.update_time else ""
    click.echo(f"entries are kept {kept}{when}")
    if policy.holds:
        render.console().print(_table(policy))
    else:
        click.echo("no holds")


def _table(policy: AuditPolicy) -> Table:
    made = render.table("hold", "filter", "from", "until", "reason")
    for column in made.columns:
        column.no_wrap, column.overflow = False, "fold"
    for hold in policy.holds:
        made.add_row(
            hold.id,
            hold.filter or "every entry",
            _date(hold.start_time) or "the beginning",
            _date(hold.end_time) or "no end",
            hold.reason,
        )
    return made


def _date(when: datetime | None) -> str:
    return when.astimezone().strftime("%Y-%m-%d %H:%M") if when else ""
