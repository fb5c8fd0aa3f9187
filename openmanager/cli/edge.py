"""`openmanager edge`: what Envoy has to know of us."""

from __future__ import annotations

import json
from pathlib import Path

import click

from openmanager import suite
from openmanager.cli import configuration, render

DESCRIPTORS, PUBLIC_KEYS = "descriptors.binpb", "jwks.json"


@click.command(epilog=render.examples("edge /etc/openmanager/edge"))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
def edge(folder: Path) -> None:
    """Write what Envoy has to know of the suite into DIR.

    \b
    descriptors.binpb    the contracts, and how each method is asked by HTTP
    jwks.json            what access tokens are verified with, where there is an identity key

    Neither is secret, and both are of this version: write them again with every new one. See docs/edge.md.
    """  # noqa: D301  (click's mark for text that keeps its lines)
    from openmanager_metadata.config import MetadataConfig
    from openmanager_metadata.keyring import Keyring

    from openmanager.authority import write
    from openmanager.descriptor import descriptor_set

    secret = configuration.load().section(MetadataConfig).identity_key
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    suite.load_protos()
    write(folder / DESCRIPTORS, descriptor_set(suite.PUBLIC), 0o444)
    click.echo(f"{folder / DESCRIPTORS} is written")
    if secret.reveal():
        write(folder / PUBLIC_KEYS, json.dumps(Keyring(secret).public_keys()).encode(), 0o444)
        click.echo(f"{folder / PUBLIC_KEYS} is written")
