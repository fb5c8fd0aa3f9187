"""`openmanager reshard`: history in another number of shards, while nothing runs."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openmanager import failpoint
from openmanager.cli import layout, render
from openmanager.errors import FailedPreconditionError

if TYPE_CHECKING:
    from openmanager_timeseries.reshard import Resharded


@click.command(
    epilog=render.examples(
        "reshard --data-dir ./data --shards 2",
        "reshard --from /srv/timeseries --to /srv/0/timeseries --to /srv/1/timeseries",
    ),
)
@click.option(
    "--data-dir",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="The data directory of `openmanager up`; with --shards.",
)
@click.option("--shards", type=click.IntRange(1, layout.MAX_LOCAL_SHARDS), help="How many shards it is to have.")
@click.option(
    "--from",
    "sources",
    multiple=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder of a time-series service, once for each shard, in order; instead of --data-dir.",
)
@click.option(
    "--to",
    "targets",
    multiple=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="A new folder, once for each new shard, in order.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was split as JSON.")
def reshard(**options: Any) -> None:
    """Split the history of some shards anew, into new folders; the old ones stay until you delete them.

    Nothing may be running. Every series of every tier is compared before the new folders are used; who is interrupted
    before begins again. What detectors have learnt and which alerts are open does not go along.
    """
    in_place = options["data_dir"] is not None or options["shards"] is not None
    if in_place == bool(options["sources"] or options["targets"]):
        raise click.UsageError("either --data-dir and --shards are needed, or --from and --to")
    if in_place:
        if options["data_dir"] is None or options["shards"] is None:
            raise click.UsageError("--data-dir and --shards are needed together")
        found, targets = _in_place(options["data_dir"], options["shards"])
    else:
        if not options["sources"] or not options["targets"]:
            raise click.UsageError("--from and --to are needed together")
        targets = options["targets"]
        found = _run(options["sources"], targets)
    if options["as_json"]:
        click.echo(
            json.dumps(
                {"series_count": found.series_count, "row_count": found.row_count, "shards": _rows(found, targets)}
            )
        )
        return
    click.echo(f"{found.series_count:,} series of all tiers with {found.row_count:,} rows are the same as before.")
    for index, row in enumerate(_rows(found, targets)):
        click.echo(f"shard {index}: {row['server_count']:,} servers in {row['folder']}")


def _rows(found: Resharded, targets: tuple[Path, ...]) -> list[dict[str, Any]]:
    return [
        {"server_count": count, "folder": str(folder)}
        for count, folder in zip(found.server_counts, targets, strict=True)
    ]


def _in_place(data_dir: Path, shards: int) -> tuple[Resharded, tuple[Path, ...]]:
    """Give a data directory another number of shards."""
    from openmanager.datadir import DataDir

    held = layout.held_shards(data_dir)
    if held is None:
        raise FailedPreconditionError(f"{data_dir} holds no history: name another with --data-dir")
    if held == shards:
        raise FailedPreconditionError(f"{data_dir} holds {held} shard{'s' if held != 1 else ''} already")
    with DataDir.open(data_dir) as data:
        sources, targets = (
            tuple(layout.folder(data.path, "timeseries", index, count) for index in range(count))
            for count in (held, shards)
        )
        for index, folder in enumerate(targets):  # from before, or of a split that was interrupted: not what is used
            _set_aside(folder)
            _set_aside(layout.folder(data.path, "analysis", index, shards))
        found = _run(sources, targets)
        os.sync()  # new folders in new folders: all are durable before they are used
        failpoint.passed("reshard.before-use")
        layout.use_shards(data.path, shards)
    return found, targets


def _set_aside(folder: Path) -> None:
    """Make room for a folder: one that holds something, from before or of a split that was interrupted, stays beside it."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    for number in range(1, 1000):
        place = folder.with_name(f"{folder.name}.before-{number}")
        if not place.exists():
            folder.rename(place)
            return


def _run(sources: tuple[Path, ...], targets: tuple[Path, ...]) -> Resharded:
    from openmanager_timeseries.config import TimeseriesConfig
    from openmanager_timeseries.reshard import reshard as split

    from openmanager.cli import configuration
    from openmanager.runtime.clock import SystemClock

    config: TimeseriesConfig = configuration.load().section(TimeseriesConfig)
    for folder in targets:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return asyncio.run(split(sources, targets, config, SystemClock(), lambda text: click.echo(text, err=True)))
