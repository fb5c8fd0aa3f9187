"""`openmanager export`: history as a file, for other programs."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import connection, render, selection, sink
from openmanager.cli.part import PartFile, told
from openmanager.cli.progress import Bar, show_rate, show_rows
from openmanager.errors import NotFoundError, OpenManagerError

if TYPE_CHECKING:
    from openmanager.api.timeseries.v1.timeseries_pb2 import ExportHeader, ExportSeriesRequest
    from openmanager.client import Client
    from openmanager.frame import ServerInfo

FORMATS = {".parquet": "parquet", ".csv": "csv", ".lp": "line-protocol"}
STDOUT = "-"


@click.command(
    epilog=render.examples(
        "export cpu_usage --last 24h --output cpu.parquet",
        "export '*' --where 'role = database' --start 2026-07-01 --end 2026-07-08 --output week.csv",
        "export '*' --last 90d --tier 1h --output hours.parquet",
        "export 'system.cpu.*' --last 1h --output - --format line-protocol | gzip > cpu.lp.gz",
    ),
)
@click.argument("metrics", nargs=-1, required=True, metavar="METRIC...")
@selection.series_options
@selection.range_options
@click.option(
    "--tier", metavar="NAME", default="raw", show_default=True, help="raw, or a rollup tier such as 5m or 1h."
)
@click.option("--output", "-o", required=True, metavar="FILE", help="Where to; - is standard output.")
@click.option(
    "--format",
    "form",
    type=click.Choice(list(FORMATS.values())),
    help="The format.  [default: by FILE's name, else csv]",
)
@click.option("--resume", is_flag=True, help="Go on with an export to FILE that was interrupted.")
@click.option("--force", is_flag=True, help="Overwrite FILE, and what an interrupted export left.")
@click.option("--json", "as_json", is_flag=True, help="Print what was exported as JSON.")
def export(**options: Any) -> None:
    """Write the samples of METRICs (keys, names, or globs over them) to a file.

    Rows come by metric, server and time. Parquet holds them best; `openmanager import` reads all three formats. What is
    interrupted goes on with --resume.
    """
    job = _job(options)
    summary = connection.run(lambda client: _export(client, job))
    if options["as_json"]:
        click.echo(json.dumps(summary, indent=2), err=job.path is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What is to be exported, and where to; without a path to standard output."""

    request: ExportSeriesRequest
    path: Path | None
    form: str
    resume: bool
    force: bool
    quiet: bool


def _job(options: dict[str, Any]) -> _Job:
    from openmanager.client import history

    start, end = selection.range_of(options)
    if start is None and not options["resume"]:
        raise click.UsageError("--last or --start is needed")
    output = options["output"]
    path = None if output == STDOUT else Path(output)
    form = options["form"] or (FORMATS.get(path.suffix, "") if path else "csv")
    if not form:
        raise click.UsageError(f"{output} ends in none of {', '.join(FORMATS)}: say which --format it is")
    if form == "line-protocol" and options["tier"] != "raw":
        raise click.UsageError("line protocol has no room for rollups: export them as parquet or csv")
    if path is None and options["resume"]:
        raise click.UsageError("what went to standard output cannot be resumed")
    request = history.export_request(
        history.selector(options["metrics"], options["servers"], options["where"]),
        start=start or datetime.fromtimestamp(0, UTC),
        end=end or datetime.now(UTC),
        tier=options["tier"],
    )
    return _Job(
        request=request,
        path=path,
        form=form,
        resume=options["resume"],
        force=options["force"],
        quiet=options["as_json"],
    )


async def _export(client: Client, job: _Job) -> dict[str, Any]:
    from openmanager.client import history

    with told(job.path):
        out = await _open_sink(client, job)
    began = time.monotonic()
    header: ExportHeader | None = None
    try:
        with Bar("exporting") as bar:
            meter = _Meter(bar, out, began)
            async for reply in history.export_parts(client.rpc, job.request, meter.away):
                if reply.HasField("header"):
                    header = reply.header
                    meter.series_count = header.series_count
                    _check(header, job)
                    continue
                with told(job.path):
                    await asyncio.to_thread(out.take, reply.chunk)
                meter.show(reply.chunk.done_series_count)
            bar.show(1, 1, show_rows(out.row_count), title="finishing")
            with told(job.path):
                await asyncio.to_thread(out.finish)
    except (asyncio.CancelledError, OpenManagerError):
        if job.path and PartFile.is_there(job.path):
            click.echo(f"{job.path} is not whole: the same command with --resume goes on", err=True)
        raise
    finally:
        out.close()
    return _told(job, out, header, time.monotonic() - began)


class _Meter:
    """Shows how far an export is."""

    def __init__(self, bar: Bar, out: sink.Sink, began: float) -> None:
        self._bar = bar
        self._out = out
        self._began = began
        self._first_rows = out.row_count
        self.series_count = 0

    def show(self, done: int) -> None:
        """Show that so many series are whole."""
        rate = show_rate(self._out.row_count - self._first_rows, time.monotonic() - self._began)
        rows, size = show_rows(self._out.row_count), render.show_bytes(self._out.size_bytes)
        words = f"{done:,}/{self.series_count:,} series, {rows}, {size}, {rate}"
        self._bar.show(done, self.series_count or None, words, title="exporting")

    def away(self, err: OpenManagerError) -> None:
        """Show that the gateway is waited for."""
        self._bar.retitle(f"waiting: {err.message}")


def _check(header: ExportHeader, job: _Job) -> None:
    if not header.series_count:
        wanted = " ".join(job.request.selector.metrics)
        raise NotFoundError(
            f"no series of {wanted!r} for these servers; `openmanager series list '*'` shows what there is"
        )


def _told(job: _Job, out: sink.Sink, header: ExportHeader | None, seconds: float) -> dict[str, Any]:
    """Say what was exported, unless a program asked for it as JSON; return it."""
    from google.protobuf.json_format import MessageToDict
    from rich.console import Console

    from openmanager.client import codec

    count = header.series_count if header else 0
    if header is not None and not job.quiet:
        err = Console(stderr=True, highlight=False)
        if job.path:
            click.echo(
                f"{show_rows(out.row_count)} of {count:,} series in {job.path}, "
                f"{render.show_bytes(out.size_bytes)}, {seconds:.1f} s",
                err=True,
            )
        if job.path or header.provenance.degraded or header.provenance.partial:
            err.print(render.provenance_text(codec.provenance(header.provenance)))
    return {
        "file": str(job.path or STDOUT),
        "format": job.form,
        "tier": job.request.tier,
        "row_count": out.row_count,
        "series_count": count,
        "size_bytes": out.size_bytes,
        "seconds": round(seconds, 3),
        "provenance": MessageToDict(header.provenance, preserving_proto_field_name=True) if header else {},
    }


# ── where they go ──────────────────────────────────────────────────────────────────────────────────────────────────


async def _open_sink(client: Client, job: _Job) -> sink.Sink:
    text: sink.Text | None = None
    if job.form == "csv":
        from openmanager.cli.text import Csv

        text = Csv()
    elif job.form == "line-protocol":
        from openmanager.cli.text import Lines

        text = Lines(await _infos(client))
    if job.path is None:
        return sink.TextSink(sink.Stdout(), text, job.request.tier) if text else sink.ParquetSink(job.request.tier)
    part = _open_part(job, job.path)
    return sink.TextSink(part, text, job.request.tier) if text else sink.ParquetFileSink(part, job.request.tier)


async def _infos(client: Client) -> dict[str, ServerInfo]:
    """Return what is known of the servers; nothing when nobody is there to ask."""
    from openmanager.frame import ServerInfo

    try:
        return {
            server.id: ServerInfo(id=server.id, environment=server.environment, role=server.role)
            async for server in client.list_servers()
        }
    except OpenManagerError:
        click.echo("the servers' environments and roles are not known and left out", err=True)
        return {}


def _open_part(job: _Job, path: Path) -> PartFile:
    """Open the file; with --resume the request is that of the interrupted export, whose range may have been relative."""
    from google.protobuf.json_format import MessageToDict, ParseDict

    from openmanager.api.timeseries.v1 import timeseries_pb2

    state = {"request": MessageToDict(job.request), "format": job.form, "rows": 0, "token": ""}
    part = PartFile.open(path, state, resume=job.resume, force=job.force)
    if not job.resume:
        return part
    begun = ParseDict(part.state["request"], timeseries_pb2.ExportSeriesRequest())
    same = (begun.selector, begun.tier, part.state["format"]) == (job.request.selector, job.request.tier, job.form)
    if not same:
        raise part.refuse()
    job.request.CopyFrom(begun)
    job.request.resume_token = part.state["token"]
    return part
