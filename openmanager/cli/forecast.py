"""`openmanager forecast`: what a metric is expected to do, and when it reaches a limit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import plot, render, report
from openmanager.cli.query import length
from openmanager.cli.selection import series_options
from openmanager.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openmanager.cli.progress import Bar
    from openmanager.cli.report import Report
    from openmanager.client import CapacityForecast, Client

POINTS, MAX_POINTS = 400, 2000
# So many days of the past are drawn beside so many of what is expected.
PAST_SHARE = 0.5


@click.command(
    epilog=render.examples(
        "forecast disk_usage --limit 90",
        "forecast cpu_usage --server web-01 --horizon 7d",
        "forecast memory_usage --where 'role = database' --json",
        "forecast disk_usage --html disks.html --png disks.png",
    ),
)
@click.argument("metrics", nargs=-1, required=True, metavar="METRIC...")
@series_options
@click.option("--limit", type=float, help="What must not be reached.  [default: 85 for cpu_usage, else 90]")
@click.option("--horizon", callback=length, metavar="DURATION", help="How far ahead, to 366d.  [default: 90d]")
@click.option("--history", "past", callback=length, metavar="DURATION", help="How much of the past.  [default: 90d]")
@report.options
@render.json_option
def forecast(**options: Any) -> None:
    """Forecast METRICs by hours: when each reaches the limit, how sure that is, and what would have to be added.

    Of one series the past and what is expected are drawn, with the 80 % interval; of several there is a table, the most
    urgent first.
    """
    report.run(options, lambda client, bar: _forecast(client, options, bar))


async def _forecast(client: Client, options: dict[str, Any], bar: Bar | None) -> Report | None:
    from openmanager.api.analysis.v1 import analysis_pb2
    from openmanager.client import analysis, codec, history, rpc

    selector = history.selector(options["metrics"], options["servers"], options["where"])
    request = analysis_pb2.ForecastCapacityRequest(
        selector=selector, limit=options["limit"], max_point_count=MAX_POINTS if bar is not None else POINTS
    )
    for field, value in (("horizon", options["horizon"]), ("history", options["past"])):
        if value is not None:
            getattr(request, field).CopyFrom(codec.duration(value))
    reply = await client.rpc.call(rpc.FORECAST_CAPACITY, request, seconds=analysis.ANALYSIS_SECONDS)
    if options["as_json"]:
        render.print_json(reply)
        if bar is None:
            return None
    if not reply.forecasts and not reply.skipped_count:
        raise NotFoundError(f"no series is chosen by {', '.join(options['metrics'])}: `openmanager series` lists them")
    found = [analysis.capacity(each) for each in reply.forecasts]
    if bar is not None:
        from openmanager.cli import forecast_report

        about = codec.provenance(reply.provenance)
        return await forecast_report.collect(
            client, options, bar, found=found, about=about, skipped=reply.skipped_count
        )
    if len(found) == 1:
        await _print_fan(client, found[0])
    else:
        render.console().print(_table(found))
        click.echo()
        urgent = sum(each.reach_time is not None for each in found)
        limits = " or ".join(f"{limit:g}" for limit in sorted({each.limit for each in found}))
        click.echo(f"{render.show_count(len(found), 'series')[:-1]}, {urgent} of them reach {limits}")
    if reply.skipped_count:
        click.echo(f"{reply.skipped_count:,} more have too few samples to judge by")
    render.console().print(render.provenance_text(codec.provenance(reply.provenance)))
    return None


def _table(found: Sequence[CapacityForecast]) -> Any:
    from rich.text import Text

    made = render.table(
        "server",
        "metric",
        "now",
        "reached in",
        "80 %",
        "chance",
        "in 1h",
        "in 24h",
        "needs",
        right=("now", "chance", "in 1h", "in 24h", "needs"),
    )
    for each in found:
        soon = each.reach_time is not None
        made.add_row(
            each.server,
            each.metric,
            f"{each.value:.4g}",
            Text(_ahead(each.reach_time), style="bold red" if soon else "dim"),
            f"{_ahead(each.reach_80[0])} – {_ahead(each.reach_80[1])}" if soon or each.reach_80[0] else render.NOTHING,
            f"{each.reach_probability:.0%}",
            *(_chance(each, timedelta(hours=hours)) for hours in (1, 24)),
            f"+{each.capacity_factor - 1:.0%}" if soon and each.capacity_factor > 1 else render.NOTHING,
        )
    return made


def _chance(found: CapacityForecast, horizon: timedelta) -> str:
    """Return how likely the limit is reached within a horizon."""
    chance = dict(found.reach_probabilities).get(horizon)
    return f"{chance:.0%}" if chance is not None else render.NOTHING


def _ahead(moment: datetime | None) -> str:
    if moment is None:
        return "not within"
    return render.show_length(max(moment - datetime.now(UTC), timedelta()))


async def _print_fan(client: Client, found: CapacityForecast) -> None:
    """Draw the past, the median and the 80 % interval."""
    import numpy as np

    console = render.console()
    times = np.array([int(each.time.timestamp() * 1e9) for each in found.points if each.time is not None])
    if len(times):
        ahead = int(times[-1] - times[0])
        start = int(times[0] - ahead * PAST_SHARE)
        past = await client.query_range(
            [found.metric], servers=[found.server], start=start, end=int(times[0]), step=_step(ahead)
        )
        lines = [
            plot.Line(times=past.times, values=past.values[0] if len(past.values) else np.empty(0)),
            *(
                plot.Line(times=times, values=np.array([getattr(each, name) for each in found.points]))
                for name in ("median", "low_80", "high_80")
            ),
        ]
        console.print(f"[bold]{found.server} {found.metric}[/]  past, median, 80 % interval")
        console.print(plot.draw(lines, start=start, end=int(times[-1]), width=console.width))
    click.echo(found.explanation)
    if found.reach_probabilities:
        said = ", ".join(
            f"{chance:.0%} in {render.show_length(within)}" for within, chance in found.reach_probabilities
        )
        click.echo(f"chance to reach {found.limit:g}: {said}")
    if found.back_test_error is not None and found.back_test_coverage is not None:
        click.echo(
            f"in the past such forecasts missed by {found.back_test_error:.2f} of what “as a day before” missed by, and "
            f"{found.back_test_coverage:.0%} came within the 80 % interval"
        )


def _step(ahead_nanos: int) -> timedelta:
    return timedelta(seconds=max(3600, plot.nice_step(ahead_nanos / 1e9 / POINTS)))
