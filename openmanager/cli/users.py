"""`openmanager users`: who may come in, and what they may do."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import connection, grants, render
from openmanager.cli.query import length

if TYPE_CHECKING:
    from openmanager.client import Client
    from openmanager.client.people import Invitation, User

_FOR = click.option("--for", "lifetime", callback=length, metavar="DURATION", help="How long it holds.  [default: 7d]")


@click.group(
    invoke_without_command=True,
    epilog=render.examples("users", "users create alice --grant viewer", "users grant alice --grant operator"),
)
@render.json_option
@click.pass_context
def users(ctx: click.Context, *, as_json: bool) -> None:
    """List users; make, invite, change and remove them.

    \b
    Roles:  viewer    sees state, history and inventory
            operator  runs the fleet: inventory, simulations, faults, imports
            admin     does everything, and manages users and keys
            auditor   sees the audit log and who may do what
            service   writes and reads samples: for programs
    """  # noqa: D301  (click's mark for text that keeps its lines)
    if ctx.invoked_subcommand is None:
        connection.run(lambda client: _list(client, as_json=as_json))


@users.command("create", epilog=render.examples("users create alice --grant 'viewer:environment = production'"))
@click.argument("name")
@grants.option
@_FOR
@render.json_option
def create_command(**options: Any) -> None:
    """Create a user and print the invitation, which is shown this once."""
    connection.run(lambda client: _create(client, options))


@users.command("invite", epilog=render.examples("users invite alice"))
@click.argument("name")
@_FOR
@render.json_option
def invite_command(*, name: str, lifetime: timedelta | None, as_json: bool) -> None:
    """Invite a user again, who has lost the password or the first invitation."""
    connection.run(lambda client: _invite(client, name, lifetime, as_json=as_json))


@users.command("show", epilog=render.examples("users show alice"))
@click.argument("name")
@render.json_option
def show_command(*, name: str, as_json: bool) -> None:
    """Show one user."""
    connection.run(lambda client: _show(client, name, as_json=as_json))


@users.command("grant", epilog=render.examples("users grant alice --grant viewer --grant 'operator:role = web'"))
@click.argument("name")
@grants.option
@render.json_option
def grant_command(*, name: str, as_json: bool, **options: Any) -> None:
    """Replace what a user may do; without --grant they may do nothing."""
    connection.run(lambda client: _change(client, name, {"grants": grants.parse(options["grants"])}, as_json=as_json))


@users.command("rename", epilog=render.examples("users rename alice alice.smith"))
@click.argument("name")
@click.argument("new_name")
@render.json_option
def rename_command(*, name: str, new_name: str, as_json: bool) -> None:
    """Give a user another name."""
    connection.run(lambda client: _change(client, name, {"name": new_name}, as_json=as_json))


@users.command("disable", epilog=render.examples("users disable alice"))
@click.argument("name")
@render.json_option
def disable_command(*, name: str, as_json: bool) -> None:
    """Keep a user out: within a minute what they have open has ended."""
    connection.run(lambda client: _change(client, name, {"disabled": True}, as_json=as_json))


@users.command("enable", epilog=render.examples("users enable alice"))
@click.argument("name")
@render.json_option
def enable_command(*, name: str, as_json: bool) -> None:
    """Let a user in again, also one who was locked out by wrong passwords."""
    connection.run(lambda client: _change(client, name, {"disabled": False, "unlock": True}, as_json=as_json))


@users.command("delete", epilog=render.examples("users delete alice --yes"))
@click.argument("name")
@click.option("--yes", is_flag=True, help="Without asking.")
def delete_command(*, name: str, yes: bool) -> None:
    """Remove a user with everything that is personal."""
    if not yes:
        click.confirm(f"Remove {name} for good?", abort=True, err=True)
    connection.run(lambda client: _delete(client, name))


# ── doing it ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def _list(client: Client, *, as_json: bool) -> None:
    from openmanager.api.metadata.v1 import identity_pb2
    from openmanager.client import rpc

    if as_json:
        async for page in client.rpc.pages(rpc.LIST_USERS, identity_pb2.ListUsersRequest()):
            render.print_json(page, line=True)
        return
    found = [each async for each in client.users.list()]
    if not found:
        click.echo("there are no users: make one with `openmanager users create NAME --grant ROLE`")
        return
    made = render.table("name", "state", "may", "signed in")
    for each in found:
        made.add_row(each.name, _state(each), grants.show(each.grants) or "nothing", _when(each))
    render.console().print(made)


def _state(user: User) -> str:
    if user.disabled:
        return "disabled"
    if user.lock_end_time is not None:
        return f"locked until {render.show_moment(user.lock_end_time)}"
    return "active" if user.activated else "invited"


def _when(user: User) -> str:
    return render.show_age(user.sign_in_time) if user.sign_in_time else "never"


async def _create(client: Client, options: dict[str, Any]) -> None:
    user, made = await client.users.create(
        options["name"], grants.parse(options["grants"]), lifetime=options["lifetime"]
    )
    if options["as_json"]:
        _print_invitation_json(user.id, made)
        return
    click.echo(f"{user.name} is made, and may: {grants.show(user.grants) or 'nothing'}")
    _print_invitation(made)


async def _invite(client: Client, name: str, lifetime: timedelta | None, *, as_json: bool) -> None:
    user = await client.users.get(name)
    made = await client.users.invite(user.id, lifetime=lifetime)
    if as_json:
        _print_invitation_json(user.id, made)
    else:
        _print_invitation(made)


def _print_invitation(made: Invitation) -> None:
    click.echo(f"invitation, until {render.show_moment(made.end_time)}, shown this once:\n\n  {made.text}\n")
    click.echo("they take it with `openmanager login --invitation-file FILE`")


def _print_invitation_json(user_id: str, made: Invitation) -> None:
    import json

    shown = {"id": user_id, "invitation": made.text, "invitation_end_time": made.end_time.isoformat()}
    click.echo(json.dumps(shown, indent=2))


async def _show(client: Client, name: str, *, as_json: bool) -> None:
    from openmanager.api.metadata.v1 import identity_pb2
    from openmanager.client import rpc

    if as_json:
        reply = await client.rpc.call(rpc.GET_USER, identity_pb2.GetUserRequest(id=name))
        render.print_json(reply)
        return
    user = await client.users.get(name)
    click.echo(f"{user.name}  {_state(user)}  {user.id}")
    click.echo(f"  may        {grants.show(user.grants) or 'nothing'}")
    click.echo(f"  made       {render.show_moment(user.create_time)}")
    click.echo(f"  signed in  {_when(user)}")


async def _change(client: Client, name: str, changes: dict[str, Any], *, as_json: bool) -> None:
    user = await client.users.get(name)
    await client.users.update(user.id, etag=user.etag, **changes)
    await _show(client, user.id, as_json=as_json)


async def _delete(client: Client, name: str) -> None:
    user = await client.users.get(name)
    await client.users.delete(user.id)
    click.echo(f"{user.name} is removed")
