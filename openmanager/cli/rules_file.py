"""A file of rules: TOML, `[[rules]]` as the proto has them, for people to keep and edit."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import click
from google.protobuf import json_format

from openmanager.errors import InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from openmanager.api.analysis.v1 import alert_pb2
    from openmanager.client import Client

MAX_BYTES = 2**20


def read(file: Path) -> list[alert_pb2.AlertRule]:
    """Return the rules of a file; InvalidArgumentError, naming the rule and the field, for what is no rule."""
    from openmanager.api.analysis.v1 import alert_pb2

    try:
        with file.open("rb") as source:
            data = source.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InvalidArgumentError(f"{file.name} has more than {MAX_BYTES} bytes")
        found = tomllib.loads(data.decode())
    except (OSError, UnicodeDecodeError) as err:
        raise InvalidArgumentError(f"{file} cannot be read as text") from err
    except tomllib.TOMLDecodeError as err:
        raise InvalidArgumentError(f"{file.name} is no TOML: {err}") from err
    except RecursionError as err:
        raise InvalidArgumentError(f"{file.name} is nested too deep") from err
    entries = found.pop("rules", None)
    if found or not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise InvalidArgumentError(f"{file.name} has to hold [[rules]], and nothing else")
    rules = []
    for number, each in enumerate(entries, 1):
        try:
            rules.append(json_format.ParseDict(each, alert_pb2.AlertRule()))
        except json_format.ParseError as err:
            raise InvalidArgumentError(f"rule {number} of {file.name}: {err}") from err
        if not rules[-1].id:
            raise InvalidArgumentError(f"rule {number} of {file.name} has no id")
    ids = [rule.id for rule in rules]
    if twice := sorted({each for each in ids if ids.count(each) > 1}):
        raise InvalidArgumentError(f"{file.name} has the rule {twice[0]!r} more than once")
    return rules


async def apply(client: Client, rules: list[alert_pb2.AlertRule]) -> None:
    """Create the rules, and change those that there are to what the file says; others are left alone."""
    from openmanager.api.analysis.v1 import alert_pb2
    from openmanager.client import rpc

    fields = ("name", "selector", "severity", "labels", "annotations", "inhibitors", "stale_duration")
    for rule in rules:
        request = alert_pb2.UpdateRuleRequest(rule=rule)
        request.update_mask.paths.extend([*fields, rule.WhichOneof("condition") or "threshold"])
        try:
            await client.rpc.call(rpc.UPDATE_RULE, request)
        except NotFoundError:
            await client.rpc.call(rpc.CREATE_RULE, alert_pb2.CreateRuleRequest(rule=rule))
            click.echo(f"{rule.id} is created")
        else:
            click.echo(f"{rule.id} is as in the file")
