"""`openmanager keys`: what programs come in with."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import connection, grants, render
from openmanager.cli.query import length

if TYPE_CHECKING:
    from openmanager.client import Client
    from openmanager.client.people import Key


@click.group(
    invoke_without_command=True,
    epilog=render.examples("keys", "keys create 'agent of web-01' --grant 'service:id = web-01' --for 90d"),
)
@render.json_option
@click.pass_context
def keys(ctx: click.Context, *, as_json: bool) -> None:
    """List keys; make, exchange and revoke them. A program comes with one in OPENMANAGER_TOKEN or OPENMANAGER_TOKEN_FILE."""
    if ctx.invoked_subcommand is None:
        connection.run(lambda client: _list(client, as_json=as_json))


@keys.command("create", epilog=render.examples("keys create 'billing reads' --grant viewer --for 30d"))
@click.argument("description")
@grants.option
@click.option("--for", "lifetime", callback=length, metavar="DURATION", help="How long it holds.  [default: 90d]")
@render.json_option
def create_command(**options: Any) -> None:
    """Make a key and print its secret, which is shown this once."""
    if not options["grants"]:
        raise click.UsageError("a key needs at least one --grant ROLE")
    connection.run(lambda client: _create(client, options))


@keys.command("rotate", epilog=render.examples("keys rotate abcdefghijklmnop --overlap 1h"))
@click.argument("key_id", metavar="ID")
@click.option("--overlap", callback=length, metavar="DURATION", help="How long the old one works on.  [default: 1d]")
@render.json_option
def rotate_command(*, key_id: str, overlap: timedelta | None, as_json: bool) -> None:
    """Give a key a new secret, shown this once."""
    connection.run(lambda client: _rotate(client, key_id, overlap, as_json=as_json))


@keys.command("revoke", epilog=render.examples("keys revoke abcdefghijklmnop"))
@click.argument("key_id", metavar="ID")
def revoke_command(*, key_id: str) -> None:
    """End a key: within a minute nobody gets in with it."""
    connection.run(lambda client: client.keys.delete(key_id))
    click.echo(f"{key_id} is revoked")


async def _list(client: Client, *, as_json: bool) -> None:
    from openmanager.api.metadata.v1 import identity_pb2
    from openmanager.client import rpc

    if as_json:
        async for page in client.rpc.pages(rpc.LIST_KEYS, identity_pb2.ListKeysRequest()):
            render.print_json(page, line=True)
        return
    found = [each async for each in client.keys.list()]
    if not found:
        click.echo("there are no keys: make one with `openmanager keys create WHAT_FOR --grant ROLE`")
        return
    made = render.table("id", "for", "may", "ends", "used")
    made.columns[0].no_wrap = True
    for each in found:
        used = render.show_age(each.use_time) if each.use_time else "never"
        made.add_row(each.id, each.description, grants.show(each.grants), render.show_moment(each.end_time), used)
    render.console().print(made)


async def _create(client: Client, options: dict[str, Any]) -> None:
    end = datetime.now(UTC) + options["lifetime"] if options["lifetime"] else None
    key, secret = await client.keys.create(options["description"], grants.parse(options["grants"]), end_time=end)
    _print_secret(key, secret, as_json=options["as_json"])


async def _rotate(client: Client, key_id: str, overlap: timedelta | None, *, as_json: bool) -> None:
    key, secret = await client.keys.rotate(key_id, overlap=overlap)
    _print_secret(key, secret, as_json=as_json)


def _print_secret(key: Key, secret: str, *, as_json: bool) -> None:
    if as_json:
        end = key.end_time.isoformat() if key.end_time else None
        click.echo(json.dumps({"id": key.id, "secret": secret, "end_time": end}, indent=2))
        return
    click.echo(f"key {key.id}, until {render.show_moment(key.end_time)}, shown this once:\n\n  {secret}\n")
    click.echo("a program comes with it in OPENMANAGER_TOKEN, or in the file that OPENMANAGER_TOKEN_FILE names")
