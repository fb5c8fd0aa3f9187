"""Grants as options and as text: `viewer`, or `operator:environment = staging`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from openmanager.client.people import Grant

ROLES = ("viewer", "operator", "admin", "auditor", "service")

F = TypeVar("F", bound=Callable[..., Any])

_OPTION = click.option(
    "--grant",
    "grants",
    multiple=True,
    metavar="ROLE[:FILTER]",
    help="A role, over all servers or those of a filter, such as “viewer:environment = staging”; may be repeated.",
)


def option(command: F) -> F:
    """Give a command the option."""
    return _OPTION(command)


def parse(texts: Sequence[str]) -> list[Grant]:
    """Return the grants of an option; a usage error for a role that there is not."""
    from openmanager.client.people import Grant

    found = []
    for text in texts:
        role, _, server_filter = text.partition(":")
        if role.strip() not in ROLES:
            raise click.BadParameter(f"{role.strip()!r} is none of {', '.join(ROLES)}", param_hint="--grant")
        found.append(Grant(role.strip(), server_filter.strip()))
    return found


def show(grants: Iterable[Any]) -> str:
    """Return grants as one text."""
    return "; ".join(f"{each.role}:{each.server_filter}" if each.server_filter else each.role for each in grants)
