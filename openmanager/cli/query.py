"""`openmanager query`: history, as a plot, a table, CSV or JSON."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import connection, plot, render
from openmanager.config import parse_duration, show_duration
from openmanager.errors import NotFoundError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console

    from openmanager.api.timeseries.v1.timeseries_pb2 import QueryRangeRequest
    from openmanager.client import Client, RangeResult, SeriesName

QUERY_SECONDS = 60.0
POINTS = 150
SHOWN = len(plot.COLOURS)
AGGREGATIONS = (
    "mean", "min", "max", "sum", "count", "first", "last", "stddev", "p50", "p90", "p95", "p99", "rate", "increase",
)  # fmt: skip
GROUPS = ("server", "role", "environment", "all")
_CLOCK = re.compile(r"\d{1,2}:\d\d(:\d\d)?")
# Numbers of these sizes are seconds, milliseconds and nanoseconds of the same epoch.
_EPOCH_UNITS = ((1e11, 10**9), (1e14, 10**6), (float("inf"), 1))


def moment(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """Read an option that is a moment: ISO 8601 (local without a zone), seconds since the epoch, or how long ago."""
    if value is None:
        return None
    try:
        return parse_moment(value, datetime.now(UTC))
    except (ValueError, OverflowError) as err:
        why = f"{value!r} is no time: 2026-07-01T12:00, 12:00, 1782900000, 90m or now is expected"
        raise click.BadParameter(why, ctx, param) from err


def length(ctx: click.Context, param: click.Parameter, value: str | None) -> timedelta | None:
    """Read an option that is a duration above 0."""
    if value is None:
        return None
    try:
        found = parse_duration(value)
    except (ValueError, OverflowError):
        found = timedelta()
    if not found:
        raise click.BadParameter(f"{value!r} is no duration: 30s, 5m, 1h30m or 7d is expected", ctx, param)
    return found


def parse_moment(text: str, now: datetime) -> datetime:
    """Return the moment of a text; ValueError when it is none."""
    if text == "now":
        return now
    if text.replace(".", "", 1).isascii() and text.replace(".", "", 1).isdigit():
        number = float(text)
        unit = next(unit for limit, unit in _EPOCH_UNITS if number < limit)
        return datetime.fromtimestamp(number * unit / 1e9, UTC)
    if _CLOCK.fullmatch(text):
        today = datetime.combine(now.astimezone().date(), time.fromisoformat(text.zfill(5))).astimezone()
        return today if today <= now else today - timedelta(days=1)
    if text[:1].isdigit() and "-" in text:
        found = datetime.fromisoformat(text)
        return found if found.tzinfo else found.astimezone()
    return now - parse_duration(text.removeprefix("-").removesuffix(" ago"))


@click.command(
    epilog=render.examples(
        "query cpu_usage --last 15m",
        "query cpu_usage --group-by role --aggregation p95 --last 24h",
        "query 'system.cpu.*' --server web-01 --start 09:00 --end 10:00",
        "query memory_usage --where 'role = database' --raw --csv > memory.csv",
    ),
)
@click.argument("metrics", nargs=-1, required=True, metavar="METRIC...")
@click.option("--server", "servers", multiple=True, metavar="ID", help="Only this server; may be repeated.")
@click.option("--where", metavar="FILTER", default="", help="Only servers such as “role = web AND labels.rack : r1”.")
@click.option("--last", callback=length, metavar="DURATION", help="From so long ago until now.  [default: 1h]")
@click.option(
    "--start", callback=moment, metavar="TIME", help="From then on: 2026-07-01T12:00, 1782900000 or 90m (ago)."
)
@click.option("--end", callback=moment, metavar="TIME", help="Until then, exclusive.  [default: now]")
@click.option("--step", callback=length, metavar="DURATION", help="Width of a bucket.  [default: by the range]")
@click.option("--aggregation", type=click.Choice(AGGREGATIONS, case_sensitive=False), default="mean", show_default=True)
@click.option("--group-by", type=click.Choice(GROUPS, case_sensitive=False), default="server", show_default=True)
@click.option("--raw", is_flag=True, help="The samples themselves instead of buckets.")
@click.option("--plot", "shape", flag_value="plot", default=True, help="A plot and a summary.  [default]")
@click.option("--table", "shape", flag_value="table", help="Every value, a row for each time.")
@click.option("--csv", "shape", flag_value="csv", help="Every value as time,server,metric,value; streams.")
@click.option("--json", "shape", flag_value="json", help="The reply's messages as JSON, one a line; streams.")
def query(**options: Any) -> None:
    """Show the history of METRICs: keys, names, or globs over them."""
    asked = _question(options)
    show = {"plot": _print_plot, "table": _print_table, "csv": _stream_csv, "json": _stream_json}[options["shape"]]
    connection.run(lambda client: show(client, asked))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What is asked."""

    metrics: Sequence[str]
    servers: Sequence[str]
    where: str
    start: datetime
    end: datetime
    step: timedelta | None
    aggregation: str
    group_by: str

    def request(self) -> QueryRangeRequest:
        from openmanager.client import history

        return history.range_request(
            history.selector(self.metrics, self.servers, self.where),
            start=self.start,
            end=self.end,
            step=self.step,
            aggregation=self.aggregation,
            group_by=self.group_by,
        )


def _question(options: dict[str, Any]) -> _Question:
    now = datetime.now(UTC)
    end = options["end"] or now
    if options["last"] and (options["start"] or options["end"]):
        raise click.UsageError("--last and --start or --end exclude each other")
    if options["raw"] and options["step"]:
        raise click.UsageError("--raw and --step exclude each other")
    start = options["start"] or end - (options["last"] or timedelta(hours=1))
    if start >= end:
        raise click.UsageError(f"the range ends at {render.show_moment(end)}, before it begins")
    step = options["step"] or timedelta(seconds=plot.nice_step((end - start).total_seconds() / POINTS))
    if not options["start"] and not options["raw"]:  # whole buckets: half of the first one would be no mean of it
        start -= timedelta(seconds=start.timestamp() % step.total_seconds())
    return _Question(
        metrics=options["metrics"],
        servers=options["servers"],
        where=options["where"],
        start=start,
        end=end,
        step=None if options["raw"] else step,
        aggregation=options["aggregation"].upper(),
        group_by=options["group_by"].upper(),
    )


# ── for programs ───────────────────────────────────────────────────────────────────────────────────────────────────


async def _stream_json(client: Client, asked: _Question) -> None:
    from openmanager.client import rpc

    request = asked.request()
    request.series_per_message = 0  # a series a line
    async for reply in client.rpc.stream(rpc.QUERY_RANGE, request, seconds=QUERY_SECONDS):
        render.print_json(reply, line=True)


async def _stream_csv(client: Client, asked: _Question) -> None:
    import numpy as np

    from openmanager.client import history

    out = csv.writer(sys.stdout, lineterminator="\n")
    header: tuple[str, ...] = ("time", "server" if asked.group_by == "SERVER" else "group", "metric", "value")
    async for part in history.range_parts(client.rpc, asked.request(), QUERY_SECONDS):
        if header:
            out.writerow(header)
            header = ()
            continue
        there = ~np.isnan(part.values)
        who, metric = part.name.server or part.name.group, part.name.metric
        rows = zip(rfc3339(part.times[there]), part.values[there].tolist(), strict=True)
        out.writerows((moment, who, metric, value) for moment, value in rows)


def rfc3339(times: NDArray[Any]) -> list[str]:
    """Return nanoseconds since the epoch as RFC 3339 in UTC, to the millisecond."""
    import numpy as np

    texts: list[str] = np.datetime_as_string(times.view("datetime64[ns]"), unit="ms").tolist()
    return [f"{text}Z" for text in texts]


# ── for people ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def _answer(client: Client, asked: _Question) -> RangeResult:
    """Return the answer; NotFoundError, with what there is, when no series is chosen."""
    from openmanager.client import history

    found = await history.query_range(client.rpc, asked.request(), QUERY_SECONDS)
    if found.series:
        return found
    wanted = " ".join(asked.metrics)
    globs = [f"*{text.strip('*')}*" for text in asked.metrics if "{" not in text]
    near = (
        {series.metric.partition("{")[0] async for series in client.list_series(globs, limit=1000)} if globs else set()
    )
    hint = f"; there is {', '.join(sorted(near)[:8])}" if near else "; `openmanager servers ID` shows what a server has"
    raise NotFoundError(f"no series of {wanted!r} for these servers{hint}")


async def _print_plot(client: Client, asked: _Question) -> None:
    found = await _answer(client, asked)
    out = render.console()
    lines = _lines(found)[:SHOWN]
    start, end = (int(at.timestamp() * 1e9) for at in (asked.start, asked.end))
    start = min([start, *found.times[:1].tolist()])  # buckets begin at multiples of the step
    out.print(plot.draw(lines, start=start, end=end, width=min(out.width, 160), height=_height(out, len(lines))))
    out.print()
    out.print(_summary_table(found.series, lines))
    out.print()
    _print_remarks(out, found, asked)


def _height(out: Console, series: int) -> int:
    """Return how high a plot may be so that the summary still fits below it."""
    return max(10, min(plot.HEIGHT + 4, out.height - series - 6)) if out.is_terminal else plot.HEIGHT


def _lines(found: RangeResult) -> list[plot.Line]:
    if found.raw:
        return [plot.Line(times=series.times, values=series.values) for series in found.raw]
    return [plot.Line(times=found.times, values=row) for row in found.values]


def _summary_table(names: Sequence[SeriesName], lines: Sequence[plot.Line]) -> Any:
    import numpy as np
    from rich.text import Text

    made = render.table("", "series", "min", "mean", "max", "last", right=("min", "mean", "max", "last"))
    made.columns[1].no_wrap, made.columns[1].overflow = False, "fold"
    for index, (name, line) in enumerate(zip(names, lines, strict=False)):
        there = line.values[np.isfinite(line.values)]
        figures = (there.min(), there.mean(), there.max(), there[-1]) if len(there) else (float("nan"),) * 4
        colour = f"color({plot.COLOURS[index]})"
        made.add_row(Text("━━", style=colour), label(name, names), *(render.show_value(float(f)) for f in figures))
    return made


def label(name: SeriesName, among: Sequence[SeriesName]) -> str:
    """Return what to call a series: its server or group, its metric too unless all have the same."""
    who = name.server or name.group
    return who if len({each.metric for each in among}) == 1 else f"{who} {name.metric}"


def _print_remarks(out: Console, found: RangeResult, asked: _Question) -> None:
    from rich.text import Text

    metrics = sorted({name.metric for name in found.series})
    what = "raw samples"
    if asked.step:
        what = f"{asked.aggregation.lower()} of {show_duration(asked.step)}"
    shown = f"  {SHOWN} of {len(found.series):,} series shown" if len(found.series) > SHOWN else ""
    title = ", ".join(metrics[:3]) + (" …" if len(metrics) > 3 else "")
    out.print(Text.assemble((title, "bold"), f"  {what}", (shown, "yellow")))
    out.print(render.provenance_text(found.provenance))
    if (coverage := render.coverage_text(found.provenance)) is not None:
        out.print(coverage)


async def _print_table(client: Client, asked: _Question) -> None:
    import numpy as np

    found = await _answer(client, asked)
    out = render.console()
    names, lines = found.series[:SHOWN], _lines(found)[:SHOWN]
    times = np.unique(np.concatenate([line.times for line in lines]))
    columns = [_column(line, times) for line in lines]
    heads = [label(name, found.series) for name in names]
    made = render.table("time", *heads, right=tuple(heads))
    for row, nanos in enumerate(times.tolist()):
        moment = datetime.fromtimestamp(nanos / 1e9, UTC)
        made.add_row(render.show_moment(moment), *(render.show_value(column[row]) for column in columns))
    out.print(made)
    out.print()
    _print_remarks(out, found, asked)


def _column(line: plot.Line, times: NDArray[Any]) -> list[float]:
    import numpy as np

    column = np.full(len(times), np.nan)
    column[np.searchsorted(times, line.times)] = line.values
    found: list[float] = column.tolist()
    return found
