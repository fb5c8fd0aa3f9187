"""What reports on series have in common: their samples, their units, and samples as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from openmanager.cli import page, plot, render
from openmanager.cli.chart import dates, shorten
from openmanager.cli.unit import Unit
from openmanager.client.analysis import ANALYSIS_SECONDS
from openmanager.frame import MetricInfo

if TYPE_CHECKING:
    from openmanager.client import Client

# Of so many series there are charts, the most telling ones; the others stand in the tables.
MAX_CHARTS = 20
# Rows of a table beside a chart.
ROWS = 24
COUNTER = 2
_NOTHING = MetricInfo(name="")
_NUMBERS = (
    "now", "chance", "needs", "score", "sure", "mean", "before", "change", "observed", "p", "days", "value", "error",
    "by_hour", "by_weekday", "test",
)  # fmt: skip
_TIMES = ("time", "start", "lasting", "reached", "least", "first", "last")
_WORDS = ("severity", "direction", "interval", "expected", "usual", "range_80", "range_95", "slope_95", "state")
_HEADS = {
    "range_80": "80 % interval", "range_95": "95 % interval", "slope_95": "95 % interval", "p": "p value", "sure": "Confidence",
    "change": "A day", "mean": "Mean", "before": "Mean before", "lasting": "For", "test": "Back-test",
    "by_hour": "By hour", "by_weekday": "By weekday",
}  # fmt: skip

table = partial(
    page.table,
    classes={
        **dict.fromkeys(_NUMBERS, "n"),
        **dict.fromkeys(_TIMES, "t"),
        **dict.fromkeys(_WORDS, "w"),
        **dict.fromkeys(("metric", "server", "what"), "s"),
    },
    heads=_HEADS,
)


@dataclass(frozen=True, slots=True)
class Infos:
    """What is known of series, by server and metric key."""

    found: Mapping[tuple[str, str], MetricInfo] = field(default_factory=dict)
    # Of any server, by the name of the metric without its attributes.
    named: Mapping[str, MetricInfo] = field(default_factory=dict)

    @classmethod
    async def read(cls, client: Client, metrics: Sequence[str], servers: Sequence[str], where: str = "") -> Infos:
        """Ask the store which series of these there are."""
        listed = client.list_series(metrics, servers=servers, where=where, seconds=ANALYSIS_SECONDS)
        found = {(each.server, each.metric): each.info async for each in listed}
        return cls(found, {metric.partition("{")[0]: info for (_, metric), info in found.items()})

    def is_counter(self, server: str, metric: str) -> bool:
        """Whether a series only grows."""
        return self._info(server, metric).kind == COUNTER

    def unit(self, server: str, metric: str, *, is_rate: bool = False) -> Unit:
        """Return the unit of a series; of its growth a second if that is looked at."""
        return Unit.of(metric, self._info(server, metric).unit, is_rate=is_rate)

    def _info(self, server: str, metric: str) -> MetricInfo:
        return self.found.get((server, metric)) or self.named.get(metric.partition("{")[0], _NOTHING)


async def read(
    client: Client,
    server: str,
    metrics: Sequence[str],
    *,
    start: int,
    end: int,
    step: timedelta,
    aggregation: str = "MEAN",
) -> dict[str, plot.Line]:
    """Return the series of a server in [start, end), nanoseconds since the epoch, by metric; without what is not known."""
    if start >= end:
        return {}
    answer = await client.query_range(
        metrics,
        servers=[server],
        start=start,
        end=end,
        step=step,
        aggregation=aggregation,
        seconds=ANALYSIS_SECONDS,
    )
    found = {}
    for name, values in zip(answer.series, answer.values, strict=True):
        known = np.isfinite(values)
        if known.any():
            found[name.metric] = plot.Line(times=answer.times[known], values=values[known])
    return found


def labels(names: Sequence[tuple[str, str]], most: int) -> list[str]:
    """Return what to call series (server, metric) beside each other: by what tells them apart, in so many letters."""
    servers, metrics = {server for server, _ in names}, {metric for _, metric in names}
    if len(metrics) == 1:
        return [shorten(server, most) for server, _ in names]
    return [shorten(metric if len(servers) == 1 else f"{server} {metric}", most) for server, metric in names]


def broken(line: plot.Line) -> tuple[Any, NDArray[np.float64]]:
    """Return the moments and values of a line as a drawing takes them, with NaN where it is broken."""
    breaks = plot.gaps(line.times)
    return dates(np.insert(line.times, breaks, line.times[breaks - 1] + 1)), np.insert(line.values, breaks, np.nan)


def joined(lines: Iterable[plot.Line | None]) -> plot.Line:
    """Return lines one after the other; None is none."""
    some = [each for each in lines if each is not None]
    if not some:
        return plot.Line(times=np.empty(0, np.int64), values=np.empty(0))
    return plot.Line(
        times=np.concatenate([each.times for each in some]), values=np.concatenate([each.values for each in some])
    )


def thinned(length: int, rows: int = ROWS) -> list[slice]:
    """Return at most `rows` runs, about equally long, that `length` samples fall into."""
    edges = np.unique(np.linspace(0, length, min(rows, length) + 1).astype(int)).tolist()
    return [slice(first, last) for first, last in pairwise(edges)]


def line_table(caption: str, line: plot.Line, unit: Unit) -> str:
    """Return a line as a table: of each part of the time its mean and its range."""
    rows = [
        {
            "time": nanos_utc(int(line.times[part.start])),
            "mean": unit.show(float(line.values[part].mean())),
            "interval": unit.show_range(float(line.values[part].min()), float(line.values[part].max())),
        }
        for part in thinned(len(line.times))
    ]
    return table(caption, ("time", "mean", "interval"), rows, "no samples are kept of this time")


def nanos(moment: datetime) -> int:
    """Return a moment in nanoseconds since the epoch, to the millisecond."""
    return int(moment.timestamp() * 1000) * 10**6


def nanos_utc(at: int) -> str:
    """Return a moment of nanoseconds since the epoch as reports show it."""
    return render.show_utc(datetime.fromtimestamp(at // 10**9, UTC))


def fitting_step(nanos: int, points: int, least: int) -> timedelta:
    """Return a usual step in which a range has at most `points` buckets, of at least so many seconds."""
    return timedelta(seconds=max(least, plot.nice_step(nanos / 1e9 / points)))
