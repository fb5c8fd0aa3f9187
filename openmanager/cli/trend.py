"""`openmanager trend`: where metrics go over weeks and years."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import plot, render, report
from openmanager.cli.query import length, moment
from openmanager.cli.season import WEEKDAYS, is_shown, shape
from openmanager.cli.selection import series_options
from openmanager.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openmanager.cli.progress import Bar
    from openmanager.cli.report import Report
    from openmanager.client import Client, Trend

ARROWS = {"UP": ("↑", "red"), "DOWN": ("↓", "green"), "STEADY": ("→", "dim")}
POINTS = 300


@click.command(
    epilog=render.examples(
        "trend cpu_usage --last 90d",
        "trend disk_usage --server web-01 --last 365d",
        "trend 'system.memory.*' --where 'role = database' --json",
        "trend disk_usage --last 90d --html disks.html",
    ),
)
@click.argument("metrics", nargs=-1, required=True, metavar="METRIC...")
@series_options
@click.option("--last", callback=length, metavar="DURATION", help="From so long ago until now.  [default: 28d]")
@click.option("--end", callback=moment, metavar="TIME", help="Until then, exclusive.  [default: now]")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many at most.")
@report.options
@render.json_option
def trend(**options: Any) -> None:
    """Show where METRICs go: slope a day with its interval, changes of level, seasons, and the period before.

    Of one series it is drawn; of several there is a table, those that moved most first.
    """
    report.run(options, lambda client, bar: _trend(client, options, bar))


async def _trend(client: Client, options: dict[str, Any], bar: Bar | None) -> Report | None:
    from openmanager.api.analysis.v1 import analysis_pb2
    from openmanager.client import analysis, codec, history, rpc

    end = options["end"] or datetime.now(UTC)
    start = end - (options["last"] or timedelta(days=28))
    request = analysis_pb2.AnalyzeTrendRequest(
        selector=history.selector(options["metrics"], options["servers"], options["where"]),
        start_time=codec.timestamp(start, "start"),
        end_time=codec.timestamp(end, "end"),
        max_trend_count=options["limit"],
    )
    reply = await client.rpc.call(rpc.ANALYZE_TREND, request, seconds=analysis.ANALYSIS_SECONDS)
    if options["as_json"]:
        render.print_json(reply)
        if bar is None:
            return None
    if not reply.trends and not reply.skipped_count:
        raise NotFoundError(f"no series is chosen by {', '.join(options['metrics'])}: `openmanager series` lists them")
    found = [analysis.trend(each) for each in reply.trends]
    if bar is not None:
        from openmanager.cli import trend_report

        about = codec.provenance(reply.provenance)
        return await trend_report.collect(
            client, options, (start, end), bar, found=found, about=about, skipped=reply.skipped_count
        )
    if len(found) == 1:
        await _print_one(client, found[0], start, end)
    else:
        render.console().print(_table(found))
        click.echo()
        click.echo(f"{len(found):,} series, those that moved most first")
    if reply.skipped_count:
        click.echo(f"{reply.skipped_count:,} more have too few samples to judge by")
    render.console().print(render.provenance_text(codec.provenance(reply.provenance)))
    return None


def _table(found: Sequence[Trend]) -> Any:
    from rich.text import Text

    right = ("mean", "before", "a day", "95 %", "p")
    made = render.table(
        "server", "metric", "", "mean", "before", "a day", "95 %", "p", "hours", "weekdays", right=right
    )
    for each in found:
        arrow, style = ARROWS[each.direction]
        made.add_row(
            each.server,
            each.metric,
            Text(arrow, style=style),
            f"{each.mean:.4g}",
            f"{each.previous_mean:.4g}" if each.previous_mean is not None else render.NOTHING,
            f"{each.slope_per_day:+.3g}",
            f"{each.slope_low:+.3g} … {each.slope_high:+.3g}",
            f"{each.p_value:.2g}",
            shape(each.hour_profile[::3], each.hour_strength),
            shape(each.weekday_profile, each.weekday_strength),
        )
    return made


async def _print_one(client: Client, found: Trend, start: datetime, end: datetime) -> None:
    """Draw one series with its trend, and say it in words."""
    import numpy as np

    console = render.console()
    step = timedelta(seconds=max(3600, plot.nice_step((end - start).total_seconds() / POINTS)))
    past = await client.query_range([found.metric], servers=[found.server], start=start, end=end, step=step)
    values = past.values[0] if len(past.values) else np.empty(0)
    times = past.times[np.isfinite(values)]
    days = (times - times.mean()) / 86_400e9 if len(times) else np.empty(0)
    line = plot.Line(times=times, values=found.mean + found.slope_per_day * days)
    console.print(f"[bold]{found.server} {found.metric}[/]  and its trend")
    edges = [int(moment.timestamp() * 1e9) for moment in (start, end)]
    lines = [plot.Line(times=past.times, values=values), line]
    console.print(plot.draw(lines, start=edges[0], end=edges[1], width=console.width))
    for text in _words(found):
        click.echo(text)


def _words(found: Trend) -> list[str]:
    arrow, _ = ARROWS[found.direction]
    chance = f"p {found.p_value:.2g}"
    words = [
        f"{arrow} {found.slope_per_day:+.3g} a day, 95 % {found.slope_low:+.3g} to {found.slope_high:+.3g} ({chance}); "
        f"mean {found.mean:.4g}"
        + (f", {found.previous_mean:.4g} in the time before" if found.previous_mean is not None else "")
    ]
    words.extend(
        f"level {each.before:.4g} → {each.after:.4g} on {each.time:%d %b %Y}" for each in found.changes if each.time
    )
    if is_shown(found.hour_profile, found.hour_strength):
        line = shape(found.hour_profile, found.hour_strength)
        words.append(f"hours 0–23 UTC  {line}  {found.hour_strength:.0%} of the variance within days")
    if is_shown(found.weekday_profile, found.weekday_strength):
        line = shape(found.weekday_profile, found.weekday_strength)
        words.append(f"{WEEKDAYS[0]}–{WEEKDAYS[-1]}  {line}  {found.weekday_strength:.0%} of the variance within weeks")
    return words
