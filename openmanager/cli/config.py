"""`openmanager config`: every setting, its value, and where it came from."""

from __future__ import annotations

import json

import click

from openmanager import suite
from openmanager.cli import configuration
from openmanager.config import Key, Secret, Value, masked, show


@click.group(invoke_without_command=True)
@click.pass_context
def config(ctx: click.Context) -> None:
    """Show and check the configuration."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@config.command("show", epilog="Example: openmanager config show --diff")
@click.option("--diff", is_flag=True, help="Only what is not the default.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show_command(*, diff: bool, as_json: bool) -> None:
    """Print every setting as it would be written in the file, and where its value came from."""
    values = [value for value in configuration.load().values.values() if not diff or value.origin != "default"]
    if as_json:
        rows = {
            f"{value.key.section}.{value.key.name}": {"value": _shown(value), "origin": value.origin}
            for value in values
        }
        click.echo(json.dumps(rows))
        return
    section = ""
    for value in values:
        if value.key.section != section:
            section = value.key.section
            click.echo(f"[{section}]")
        click.echo(f"{value.key.name} = {_literal(value.key, _shown(value))}  # {value.origin}")


@config.command("check")
def check_command() -> None:
    """Say whether the configuration can be used; exit code 78 when it cannot."""
    configuration.load()
    click.echo("the configuration is valid")


@config.command("keys")
def keys_command() -> None:
    """Print every key with its variable and what it means."""
    from openmanager.config import keys

    for key in keys(suite.sections()):
        click.echo(f"{key.section}.{key.name}  {key.variable}\n    {key.doc}")


def _shown(value: Value) -> str:
    """Return a value as it would be written, without the password that the URL of an engine may hold."""
    return masked(show(value.value))


def _literal(key: Key, text: str) -> str:
    """Return a value as TOML: numbers and booleans bare, the rest in quotes."""
    if key.kind is Secret:
        return '"***"' if text else '""'
    return text if key.kind in {int, float, bool} else json.dumps(text)
