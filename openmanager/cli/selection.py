"""The options that choose series and a range of time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from openmanager.cli import render
from openmanager.cli.query import length, moment

F = TypeVar("F", bound=Callable[..., Any])


def series_options(command: F) -> F:
    """Give a command --server and --where."""
    server = click.option("--server", "servers", multiple=True, metavar="ID", help="Only this server; may be repeated.")
    where = click.option(
        "--where", metavar="FILTER", default="", help="Only servers such as “role = web AND labels.rack : r1”."
    )
    return server(where(command))


def range_options(command: F) -> F:
    """Give a command --last, --start and --end."""
    last = click.option("--last", callback=length, metavar="DURATION", help="From so long ago until now.")
    start = click.option(
        "--start", callback=moment, metavar="TIME", help="From then on: 2026-07-01T12:00, 1782900000 or 90m (ago)."
    )
    end = click.option("--end", callback=moment, metavar="TIME", help="Until then, exclusive.  [default: now]")
    return last(start(end(command)))


def range_of(options: Mapping[str, Any]) -> tuple[datetime | None, datetime | None]:
    """Return the start and the end that the options say, None for what they do not; a usage error when they cannot be."""
    start, end = options["start"], options["end"]
    if options["last"]:
        if start or end:
            raise click.UsageError("--last and --start or --end exclude each other")
        end = datetime.now(UTC)
        return end - options["last"], end
    if start and end and start >= end:
        raise click.UsageError(f"the range ends at {render.show_moment(end)}, before it begins")
    return start, end
