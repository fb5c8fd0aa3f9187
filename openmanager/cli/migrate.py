"""`openmanager migrate`: raw history from one store to another, while the service stands still."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import folder, render
from openmanager.cli.progress import Bar, show_rate, show_rows
from openmanager.cli.query import length, moment
from openmanager.errors import FailedPreconditionError, UnavailableError

if TYPE_CHECKING:
    from openmanager_timeseries.config import TimeseriesConfig
    from openmanager_timeseries.engines.port import Engine
    from openmanager_timeseries.history import History
    from openmanager_timeseries.migrate import Progress, Scope

BLOCKS = "blocks"
ENGINES = ("influxdb", "victoriametrics")
EXIT_MISMATCH = 1
SHOWN = 20


@click.command(
    epilog=render.examples(
        "migrate --from blocks --to victoriametrics --data-dir ./data --dry-run",
        "VICTORIAMETRICS_WRITE_URL=http://localhost:8428 openmanager migrate --from blocks --to victoriametrics",
        "migrate --from influxdb --to victoriametrics --start 2026-06-01 --end 2026-07-01",
    ).replace("openmanager VICTORIAMETRICS", "VICTORIAMETRICS"),
)
@click.option("--from", "source", type=click.Choice([BLOCKS, *ENGINES]), required=True, help="Where samples are read.")
@click.option("--to", "target", type=click.Choice(ENGINES), required=True, help="Where they are written.")
@folder.data_dir_option
@click.option("--start", callback=moment, metavar="TIME", help="From then on.  [default: the oldest that is kept]")
@click.option("--end", callback=moment, metavar="TIME", help="Until then, exclusive.  [default: all there is]")
@click.option("--window", callback=length, metavar="DURATION", default="1h", show_default=True, help="Copied at once.")
@click.option("--dry-run", is_flag=True, help="Count what would be copied; nothing is written.")
@click.option("--json", "as_json", is_flag=True, help="Print what was moved as JSON.")
def migrate(**options: Any) -> None:
    """Copy the raw samples of one store to another, window by window, and compare both afterwards.

    The service of the data directory must not be running. Engines are found as the service finds them: by INFLUXDB_URL,
    VICTORIAMETRICS_WRITE_URL and the others of `openmanager config`; which series there are is known from the data
    directory. What was interrupted goes on when it is repeated. Exit code 1 when a series is not the same in both.

    Into our own blocks goes what `openmanager export` wrote and `openmanager import` reads.
    """
    if options["source"] == options["target"]:
        raise click.UsageError("--from and --to are the same store")
    with _opened(options["data_dir"]) as timeseries:
        report = asyncio.run(_migrate(timeseries, options))
    if options["as_json"]:
        click.echo(json.dumps(report, indent=2))
    if report["mismatch_count"]:
        sys.exit(EXIT_MISMATCH)


@contextlib.contextmanager
def _opened(data_dir: Path | None) -> Iterator[Path]:
    """Hold the data directory, so that no service opens it; DataDirError when one has."""
    from openmanager.datadir import DataDir

    timeseries = folder.timeseries_folder(data_dir)
    if not timeseries.is_dir():
        raise FailedPreconditionError(f"{timeseries} holds no history: name another with --data-dir")
    if not (timeseries.parent / "VERSION").exists():
        yield timeseries
        return
    with DataDir.open(timeseries.parent):
        yield timeseries


async def _migrate(timeseries: Path, options: dict[str, Any]) -> dict[str, Any]:
    from openmanager_timeseries import migrate as domain
    from openmanager_timeseries.config import TimeseriesConfig
    from openmanager_timeseries.disk import PosixDisk
    from openmanager_timeseries.opening import open_history

    from openmanager.cli import configuration
    from openmanager.frame import ServerInfo
    from openmanager.runtime.clock import SystemClock

    clock = SystemClock()
    configured: TimeseriesConfig = configuration.load().section(TimeseriesConfig)
    config = replace(configured, data_dir=timeseries)
    disk = await asyncio.to_thread(PosixDisk, timeseries / "log")
    between = f"{options['source']} to {options['target']}"
    state = timeseries / f"migration-{options['source']}-{options['target']}.json"
    async with contextlib.AsyncExitStack() as held:
        # What is asked of the engines first fails first.
        source = None if options["source"] == BLOCKS else await _engine(held, options["source"], config)
        target = None if options["dry_run"] else await _engine(held, options["target"], config)
        history = await held.enter_async_context(open_history(config, disk, clock))
        scope = _scope(history, options, domain.begun_range(state, between), clock.now_nanos())
        reader = source or domain.BlockSource(history)
        if target is None:
            return await _shown(domain.count(reader, scope), options, scope, 17)
        migration = domain.Migration(
            source=reader,
            target=target,
            scope=scope,
            info_of=lambda server: history.catalog.infos.get(server) or ServerInfo(id=server),
            between=between,
            state=state,
        )
        return await _shown(migration.run(), options, scope, target.capabilities.digits)


async def _engine(held: contextlib.AsyncExitStack, name: Any, config: TimeseriesConfig) -> Engine:
    """Return an engine that answers."""
    from openmanager_timeseries.migrate import open_patient

    engine = open_patient(config, name)
    held.push_async_callback(engine.close)
    try:
        await engine.check()
    except (UnavailableError, TimeoutError) as err:
        raise UnavailableError(f"{name} does not answer") from err
    return engine


def _scope(history: History, options: dict[str, Any], begun: tuple[int, int] | None, now: int) -> Scope:
    """Return what is to be moved; of a migration that was interrupted, what it was to move."""
    import numpy as np
    from openmanager_timeseries.migrate import Scope

    catalog = history.catalog
    times, _ = catalog.last(np.arange(catalog.count))
    oldest = min([each.about.min_time for each in history.blocks.files if each.about.row_count], default=now)
    kept = now - int(history.config.raw_retention / timedelta(microseconds=1)) * 1000
    start, end = begun or (min(oldest, kept), max(now, int(times.max(initial=0))) + 1_000_000)
    if options["start"]:
        start = _nanos(options["start"])
    if options["end"]:
        end = _nanos(options["end"])
    if start >= end:
        raise click.UsageError(f"the range ends at {render.show_moment(options['end'])}, before it begins")
    return Scope(
        servers=sorted(catalog.servers),
        metrics=sorted(catalog.metrics),
        start=start,
        end=end,
        window=int(options["window"] / timedelta(microseconds=1)) * 1000,
    )


def _nanos(when: datetime) -> int:
    return int(when.timestamp() * 1000) * 1_000_000


# ── showing ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _shown(steps: AsyncIterator[Progress], options: dict[str, Any], scope: Scope, digits: int) -> dict[str, Any]:
    """Go through all steps with a bar, and print what came of it; return that."""
    progress: Progress | None = None
    began, first = time.monotonic(), 0
    windows = len(scope.windows())
    with Bar("counting" if options["dry_run"] else "copying") as bar:
        async for progress in steps:
            comparing = progress.copied_windows == windows and not options["dry_run"]
            done = progress.compared_windows if comparing else progress.copied_windows
            rows = progress.compared_samples if comparing else progress.copied_samples
            if bar.is_shown:
                rate = show_rate(rows - first, time.monotonic() - began)
                bar.show(done, windows, f"{done:,}/{windows:,} windows, {show_rows(rows)}, {rate}")
                if comparing and not progress.compared_windows:
                    bar.retitle("comparing")
                    began, first = time.monotonic(), 0
    report = _report(progress, options, windows, digits)
    if not options["as_json"]:
        _print(progress, report)
    return report


def _report(progress: Progress | None, options: dict[str, Any], windows: int, digits: int) -> dict[str, Any]:
    return {
        "from": options["source"],
        "to": options["target"],
        "dry_run": options["dry_run"],
        "window_count": windows,
        "sample_count": progress.compared_samples if progress else 0,
        "series_count": progress.series_count if progress else 0,
        "refused": dict(progress.refused) if progress else {},
        "digits": digits,
        "checksum": f"{progress.checksum:016x}" if progress else "",
        "mismatch_count": progress.mismatch_count if progress else 0,
    }


def _print(progress: Progress | None, report: dict[str, Any]) -> None:
    from rich.text import Text

    out = render.console()
    names = ("windows", "samples", "series", "refused", "mismatches")
    made = render.table(*names, right=names, title=f"{report['from']} → {report['to']}")
    bad = report["mismatch_count"]
    made.add_row(
        f"{report['window_count']:,}",
        f"{report['sample_count']:,}",
        f"{report['series_count']:,}",
        f"{sum(report['refused'].values()):,}",
        Text(f"{bad:,}", style="bold red" if bad else "green") if not report["dry_run"] else render.NOTHING,
    )
    out.print(made)
    out.print(f"\nchecksum of {report['from']} {report['checksum']}", style="dim")
    for reason, count in report["refused"].items():
        out.print(Text(f"! {render.show_count(count, 'sample')} refused: {reason}", style="yellow"))
    if bad and progress is not None:
        out.print(_mismatches(progress))
        if bad > SHOWN:
            out.print(f"{SHOWN} of {bad:,} series shown", style="dim")
    elif report["dry_run"]:
        out.print("nothing was written: this is what would be copied", style="dim")
    else:
        exactly = "bit for bit" if report["digits"] >= 17 else f"within the {report['digits']} digits that it keeps"
        out.print(Text(f"every series of {report['to']} has the same samples, {exactly}", style="green"))


def _mismatches(progress: Progress) -> Any:
    made = render.table("server", "metric", "source", "target", right=("source", "target"))
    made.columns[1].no_wrap, made.columns[1].overflow = False, "fold"
    for each in list(progress.mismatches.values())[:SHOWN]:
        made.add_row(each.server, each.metric, f"{each.source_count:,}", f"{each.target_count:,}")
    return made
