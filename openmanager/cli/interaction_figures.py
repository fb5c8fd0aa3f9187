"""Statistics of interactions for people: a table, and a plot of how many there were when."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from openmanager.cli import render

if TYPE_CHECKING:
    from rich.table import Table

    from openmanager.client import Client, InteractionStatistics

GROUPS = {"model-intent": "MODEL_AND_INTENT", "model": "MODEL", "intent": "INTENT", "all": "ALL"}
NANOS = 10**9
PLOT_HEIGHT = 12


async def show_statistics(client: Client, options: Mapping[str, Any], start: datetime, end: datetime) -> None:
    """Print statistics of [start, end)."""
    from openmanager.client import InteractionGroupBy, interaction, rpc
    from openmanager.client.interactions import statistics_request

    by = InteractionGroupBy(GROUPS[options["by"]])
    replies = {}
    for step in {None, options["step"]}:
        request = statistics_request(options["filter_"], start=start, end=end, step=step, group_by=by)
        if step is not None or not (options["as_json"] and options["step"]):
            replies[step] = await client.rpc.call(rpc.GET_INTERACTION_STATISTICS, request)
    if options["as_json"]:
        render.print_json(replies[options["step"]])
        return
    whole = [interaction.statistics(each) for each in replies[None].statistics]
    whole.sort(key=lambda each: -each.interaction_count)
    out = render.console()
    if not whole:
        out.print("nothing was recorded in this time", style="dim")
        return
    if options["step"]:
        parts = [interaction.statistics(each) for each in replies[options["step"]].statistics]
        out.print(_plot(whole, parts, (start, end), options["step"], out.width))
    out.print(_table(whole, plotted=bool(options["step"]), width=out.width))


def _name(each: InteractionStatistics) -> tuple[str, str]:
    return each.model, each.intent


def _plot(
    whole: Sequence[InteractionStatistics],
    parts: Sequence[InteractionStatistics],
    bounds: tuple[datetime, datetime],
    step: timedelta,
    width: int,
) -> Any:
    """Draw how many there were in each bucket, 0 where none was, of as many groups as there are colours."""
    import numpy as np

    from openmanager.cli import plot

    start, end = (round(moment.timestamp() * NANOS) for moment in bounds)
    size = round(step.total_seconds() * NANOS)
    times = np.arange(start // size * size, end, size, dtype=np.int64)
    counts: dict[tuple[str, str], Any] = defaultdict(lambda: np.zeros(len(times)))
    for each in parts:
        if each.start_time is not None:
            at = (round(each.start_time.timestamp() * NANOS) - int(times[0])) // size
            counts[_name(each)][at] = each.interaction_count
    lines = [plot.Line(times=times, values=counts[_name(each)]) for each in whole[: len(plot.COLOURS)]]
    return plot.draw(lines, start=int(times[0]), end=end, width=width, height=PLOT_HEIGHT)


def _table(whole: Sequence[InteractionStatistics], *, plotted: bool, width: int) -> Table:
    from rich.text import Text

    from openmanager.cli import plot

    figures = ("count", "rated", "rating", "conf", "p50", "p95", "tokens in", "out")
    shown = figures if width >= 100 else figures[:6]
    made = render.table("", "model", "intent", *shown, right=shown)
    for at, each in enumerate(whole):
        colour = f"color({plot.COLOURS[at]})" if plotted and at < len(plot.COLOURS) else "default"
        cells = (
            f"{each.interaction_count:,}",
            f"{each.rated_count:,}",
            _figure(each.mean_rating, 1),
            _figure(each.mean_confidence, 2),
            _seconds(each.latency_p50),
            _seconds(each.latency_p95),
            f"{each.prompt_token_count:,}",
            f"{each.response_token_count:,}",
        )
        mark = Text("━━" if plotted else "", style=colour)
        made.add_row(mark, each.model or render.NOTHING, each.intent or render.NOTHING, *cells[: len(shown)])
    return made


def _figure(value: float | None, digits: int) -> str:
    return render.NOTHING if value is None else f"{value:.{digits}f}"


def _seconds(length: timedelta | None) -> str:
    if length is None:
        return render.NOTHING
    return render.show_length(length) if not 1 <= length.total_seconds() < 100 else f"{length.total_seconds():.1f} s"
