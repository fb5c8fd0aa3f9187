"""`openmanager login`, `logout` and `whoami`: being somebody at a gateway."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from openmanager.cli import connection, render, session

if TYPE_CHECKING:
    from openmanager.client import Client
    from openmanager.client.people import Tokens


@click.command(
    epilog=render.examples(
        "login alice", "login --invitation-file ./invitation", "login alice --password-file ./password"
    )
)
@click.argument("name", required=False)
@click.option(
    "--invitation-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where an invitation is: choose a password with it.",
)
@click.option(
    "--password-file", type=click.Path(path_type=Path), metavar="FILE", help="Where the password is; else asked."
)
def login(name: str | None, invitation_file: Path | None, password_file: Path | None) -> None:
    """Sign in to the gateway, by name and password, or for the first time by an invitation.

    The session is kept for twelve hours, in a file that only you can read, until `openmanager logout`.
    """
    if invitation_file is not None:
        invitation = _read(invitation_file, "--invitation-file")
        password = _password("A password of your own, 12 characters or more", password_file, confirm=True)
        who, tokens = connection.run(lambda client: _accept(client, invitation, password))
    else:
        who = name or click.prompt("Name", err=True)
        password = _password("Password", password_file, confirm=False)
        tokens = connection.run(lambda client: client.sessions.begin(who, password))
    session.keep(connection.address(), tokens)
    click.echo(f"signed in as {who} until {render.show_moment(tokens.session_end_time)}")


@click.command(epilog=render.examples("logout"))
def logout() -> None:
    """End the session with the gateway."""
    gateway = connection.address()
    if gateway not in session.load():
        click.echo("nobody is signed in here")
        return
    try:
        connection.run(lambda client: client.sessions.end())
    finally:
        session.forget(gateway)
    click.echo("signed out")


@click.command(epilog=render.examples("whoami", "whoami --json"))
@render.json_option
def whoami(*, as_json: bool) -> None:
    """Show who you are at the gateway and what you may do."""
    connection.run(lambda client: _whoami(client, as_json=as_json))


async def _whoami(client: Client, *, as_json: bool) -> None:
    from openmanager.api.metadata.v1 import identity_pb2
    from openmanager.client import rpc

    reply = await client.rpc.call(rpc.GET_IDENTITY, identity_pb2.GetIdentityRequest())
    if as_json:
        render.print_json(reply)
        return
    out = render.console()
    out.print(reply.identity.subject, highlight=False)
    for grant in reply.identity.grants:
        over = f"servers where {grant.server_filter}" if grant.server_filter else "all servers"
        out.print(f"  {grant.role} over {over}", highlight=False)
    out.print(f"  may: {', '.join(reply.permissions) or 'nothing'}", highlight=False)


async def _accept(client: Client, invitation: str, password: str) -> tuple[str, Tokens]:
    user, tokens = await client.users.accept(invitation, password)
    return user.name, tokens


def _password(question: str, file: Path | None, *, confirm: bool) -> str:
    if file is not None:
        return _read(file, "--password-file")
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    return str(click.prompt(question, hide_input=True, confirmation_prompt=confirm, err=True))


def _read(file: Path, option: str) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as err:
        raise click.BadParameter("cannot be read", param_hint=option) from err
