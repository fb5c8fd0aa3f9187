"""`openmanager series`: which series there are, and deleting their samples."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import connection, render, selection
from openmanager.errors import NotFoundError

if TYPE_CHECKING:
    from openmanager.client import Client, Deletion, SeriesInfo

DEFAULT_LIMIT = 100
WIDE = 120
KINDS = {0: "", 1: "gauge", 2: "counter"}
TEMPORALITIES = {0: "", 1: "cumulative", 2: "delta"}


@click.group()
def series() -> None:
    """List series, and delete their samples."""


@series.command("list", epilog=render.examples("series list cpu_usage", "series list 'system.cpu.*' --server web-01"))
@click.argument("metrics", nargs=-1, required=True, metavar="METRIC...")
@selection.series_options
@click.option("--limit", type=click.IntRange(1), default=DEFAULT_LIMIT, show_default=True, help="How many at most.")
@render.json_option
def list_command(**options: Any) -> None:
    """List the series of METRICs: keys, names, or globs over them."""
    connection.run(lambda client: _list(client, options))


@series.command(
    "delete",
    epilog=render.examples(
        "series delete cpu_usage --server web-99",
        "series delete 'test.*' --start 2026-07-01 --end 2026-07-02 --yes",
    ),
)
@click.argument("metrics", nargs=-1, required=True, metavar="METRIC...")
@selection.series_options
@selection.range_options
@click.option("--yes", is_flag=True, help="Delete without asking.")
@render.json_option
def delete_command(**options: Any) -> None:
    """Delete the samples of METRICs (keys, names, or globs over them) from every tier, in a range or all of them.

    First it is shown what would go, and asked. A series under a legal hold is not deleted: see `openmanager retention`.
    """
    start, end = selection.range_of(options)
    connection.run(lambda client: _delete(client, options, start, end))


async def _list(client: Client, options: dict[str, Any]) -> None:
    from openmanager.api.timeseries.v1 import timeseries_pb2
    from openmanager.client import Provenance, codec, history, rpc

    chosen = history.selector(options["metrics"], options["servers"], options["where"])
    request = timeseries_pb2.ListSeriesRequest(selector=chosen)
    found: list[SeriesInfo] = []
    total, about = 0, Provenance()
    async for page in client.rpc.pages(rpc.LIST_SERIES, request, limit=options["limit"]):
        if options["as_json"]:
            render.print_json(page, line=True)
        found.extend(codec.series_info(each) for each in page.series)
        total, about = page.total_count, codec.provenance(page.provenance)
    if options["as_json"]:
        return
    out = render.console()
    if found:
        out.print(_table(found, wide=out.width >= WIDE))
        out.print()
    of = f"{len(found):,} of " if len(found) < total else ""
    out.print(f"{of}{total:,} series" if found else "no series", end=", " if found else ": ")
    out.print(render.provenance_text(about))


def _table(found: list[SeriesInfo], *, wide: bool) -> Any:
    more = ("kind", "description") if wide else ()
    made = render.table("server", "metric", "unit", *more, "last", right=("last",))
    for name in ("metric", "description") if wide else ("metric",):
        column = next(each for each in made.columns if each.header == name)
        column.no_wrap, column.overflow = False, "fold"
    for each in found:
        kind = " ".join(filter(None, (TEMPORALITIES.get(each.info.temporality), KINDS.get(each.info.kind))))
        about = (kind, each.info.description) if wide else ()
        made.add_row(each.server, each.metric, each.info.unit, *about, render.show_age(each.last_time))
    return made


async def _delete(client: Client, options: dict[str, Any], start: datetime | None, end: datetime | None) -> None:
    from openmanager.client import codec, history, rpc
    from openmanager.client.client import DELETE_SECONDS

    chosen = history.selector(options["metrics"], options["servers"], options["where"])
    request = history.delete_request(chosen, start=start, end=end, validate_only=True)
    if not options["yes"]:
        would = codec.deletion(await client.rpc.call(rpc.DELETE_SERIES, request, seconds=DELETE_SECONDS))
        if not would.series_count:
            wanted = " ".join(options["metrics"])
            raise NotFoundError(f"no series of {wanted!r} for these servers; nothing was deleted")
        click.echo(f"{_show(would)} would be deleted, {_range(start, end)}.", err=True)
        click.confirm("Delete them for good?", abort=True, err=True)
    request.validate_only = False
    reply = await client.rpc.call(rpc.DELETE_SERIES, request, seconds=DELETE_SECONDS)
    if options["as_json"]:
        render.print_json(reply)
        return
    done = codec.deletion(reply)
    click.echo(f"{_show(done)} deleted, {render.show_bytes(done.freed_bytes)} freed")


def _show(deletion: Deletion) -> str:
    samples, buckets = (
        render.show_count(deletion.sample_count, "sample"),
        render.show_count(deletion.bucket_count, "bucket"),
    )
    return f"{samples} and {buckets} of {deletion.series_count:,} series"


def _range(start: datetime | None, end: datetime | None) -> str:
    if start is None and end is None:
        return "all there is"
    since = f"from {render.show_moment(start)}" if start else "from the beginning"
    return f"{since} until {render.show_moment(end)}" if end else f"{since} until now"
