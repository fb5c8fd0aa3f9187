"""`openmanager version`: what runs here, and at the gateway."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from typing import TYPE_CHECKING

import click

from openmanager.cli import connection, render
from openmanager.version import VERSION

if TYPE_CHECKING:
    from openmanager.client import Client

ASK_SECONDS = 1.0


@click.command(epilog=render.examples("version", "version --json"))
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def version(*, as_json: bool) -> None:
    """Print the versions of this program and of the gateway."""
    target = connection.address()
    found = {
        "openmanager": VERSION,
        "python": platform.python_version(),
        "grpc": metadata.version("grpcio"),
        "protobuf": metadata.version("protobuf"),
        "gateway": _gateway_version(),
    }
    if as_json:
        click.echo(json.dumps({**found, "gateway_address": target}))
        return
    for name, text in found.items():
        shown = f"{text or 'does not answer'} at {target}" if name == "gateway" else text
        click.echo(f"{name:12} {shown}")


def _gateway_version() -> str | None:
    from openmanager.errors import OpenManagerError

    try:
        return connection.run(_ask)
    except OpenManagerError:
        return None


async def _ask(client: Client) -> str:
    from openmanager.api.status.v1 import status_pb2
    from openmanager.client import rpc

    reply = await client.rpc.call(rpc.GET_STATUS, status_pb2.GetStatusRequest(), seconds=ASK_SECONDS)
    return reply.status.version
