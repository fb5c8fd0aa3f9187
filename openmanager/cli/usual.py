"""What is usual for a series at an hour of the week: drawn around an anomaly, so that one sees how far off it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from openmanager.cli import plot
from openmanager.cli.report_series import read

if TYPE_CHECKING:
    from openmanager.client import Client

HOUR_NANOS = 3600 * 10**9
HOUR = timedelta(hours=1)
DAY, WEEK = 24, 168
SHARE = 0.1
LEARNT_NANOS = 4 * WEEK * HOUR_NANOS
# 1970 began on a Thursday.
MONDAY = 3 * DAY
# So many weeks, days or hours have to be known to speak of an hour of the week, of the day, or of any hour.
LEAST = {WEEK: 2, DAY: 3, 1: 3}
NAMES = {WEEK: "hour of the week", DAY: "hour of the day", 1: "hours before"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Usual:
    """The usual range of each hour of a period: float64[P], P being 168, 24 or 1 hours, of `count` of these periods.

    It is from what 10 % of the hours before stayed above, by their least, to what 90 % stayed below, by their most.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    count: int

    @property
    def name(self) -> str:
        """What it is usual for."""
        return NAMES[len(self.low)]

    def at(self, nanos: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the range at some moments."""
        place = _place(nanos, len(self.low))
        return self.low[place], self.high[place]


def _place(nanos: NDArray[np.int64], period: int) -> NDArray[np.int64]:
    return (nanos // HOUR_NANOS + MONDAY) % period


def learn(least: plot.Line, most: plot.Line) -> Usual | None:
    """Return what is usual, of the least and the most of some hours; None where too few hours are known.

    The finest period of which every hour that is known was seen often enough.
    """
    if not len(least.times) or not np.array_equal(least.times, most.times):
        return None
    for period, times in LEAST.items():
        place = _place(least.times, period)
        counts = np.bincount(place, minlength=period)
        if counts.min() < times:
            continue
        low, high = (
            np.array([np.quantile(line.values[place == hour], share) for hour in range(period)])
            for line, share in ((least, SHARE), (most, 1 - SHARE))
        )
        return Usual(low=low, high=high, count=int(counts.min()))
    return None


async def usual(client: Client, server: str, metrics: list[str], *, end: int, is_counter: bool) -> dict[str, Usual]:
    """Return what was usual for metrics of a server in the four weeks before `end`, nanoseconds since the epoch.

    Of counters it is what they grew by a second, of whole hours.
    """
    end = end // HOUR_NANOS * HOUR_NANOS
    kinds = ("RATE", "RATE") if is_counter else ("MIN", "MAX")
    found = [
        await read(client, server, metrics, start=end - LEARNT_NANOS, end=end, step=HOUR, aggregation=kind)
        for kind in dict.fromkeys(kinds)
    ]
    least, most = found[0], found[-1]
    learnt = {name: learn(least[name], most[name]) for name in least if name in most}
    return {name: each for name, each in learnt.items() if each is not None}
