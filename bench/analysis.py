"""What the analysis costs, each by the side of its limit: processor time of one core, and bytes of state."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import numpy as np
from openmanager_analysis import crossing
from openmanager_analysis.exhaustion import time_to_limit
from openmanager_analysis.forecast import forecast
from openmanager_analysis.lookout import Lookout
from openmanager_analysis.trend import trend

from bench.pair import PAIRS, Row, at_most

HOUR_MILLIS = 3_600_000
BEGIN_MILLIS = 1_790_000_000_000 // (24 * HOUR_MILLIS) * 24 * HOUR_MILLIS
METRICS = 511
TICK_MILLIS, TICK_SERVERS, TICK_STEP_MILLIS = 20.0, 20, 10_000
STATE_BYTES = 4096
FORECAST_MILLIS, LIMIT_MILLIS, TREND_MILLIS = 2.0, 20.0, 100.0
CROSSING_SERIES, CROSSING_MILLIS = 1_022, 1_022.0


def rows() -> Iterator[Row]:
    """Measure a tick of 20 servers and of 1,000, their state, a forecast, a time to a limit, chances, and the trends of a year."""
    for servers, limit in ((TICK_SERVERS, TICK_MILLIS), (1_000, TICK_STEP_MILLIS / 2)):
        yield _row(f"a tick of {servers * METRICS:,} series", _ticking(servers), limit)
    size = len(_watching(TICK_SERVERS).to_bytes()) / (TICK_SERVERS * METRICS)
    yield at_most("state of a series", (size, STATE_BYTES, size / STATE_BYTES), 1, "B", 1)
    times, values = _hours(28)
    yield _row("a week ahead, of 28 days by the hour", lambda: forecast(times, values, 168), FORECAST_MILLIS)
    yield _row("time to a limit, of 28 days by the hour", lambda: time_to_limit(times, values, 90.0), LIMIT_MILLIS)
    steps = 40 + np.random.default_rng(1).normal(0, 2, (CROSSING_SERIES, crossing.HISTORY_DAYS * crossing.DAY))
    limits = np.full(CROSSING_SERIES, 50.0)
    name = f"chances to pass a limit within hours, {CROSSING_SERIES:,} series"
    yield _row(name, lambda: crossing.chances(steps, limits), CROSSING_MILLIS)
    long, _ = _hours(365)
    many = np.stack([_hours(365, seed)[1] for seed in range(20)], axis=1)
    yield _row("trends of a year by the hour, 20 series", lambda: trend(long, many), TREND_MILLIS)


def _ticking(servers: int) -> Callable[[], object]:
    """Return what looks at one tick after the other; some were before."""
    lookout, random = _watching(servers), np.random.default_rng(1)
    ticks = itertools.cycle([50 + random.normal(0, 1, servers * METRICS) for _ in range(8)])
    moments = itertools.count(BEGIN_MILLIS, TICK_STEP_MILLIS)

    def tick() -> object:
        return lookout.look(next(moments), next(ticks))

    for _ in range(8):
        tick()
    return tick


def _watching(servers: int) -> Lookout:
    lookout = Lookout()
    series = [(f"s{server}", f"m{metric}") for server in range(servers) for metric in range(METRICS)]
    lookout.watch(series, [False] * len(series))
    return lookout


def _hours(days: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return a load by the hour: a daily and a weekly season, growth, noise."""
    hours = np.arange(days * 24)
    random = np.random.default_rng(seed)
    season = 10 * np.sin(2 * np.pi * hours / 24) - 5 * (hours // 24 % 7 >= 5)
    return BEGIN_MILLIS + hours * HOUR_MILLIS, 40 + season + 0.02 * hours + random.normal(0, 2, len(hours))


def _row(name: str, work: Callable[[], object], limit: float) -> Row:
    """Return a row of the median processor time of some calls."""
    spent = []
    for _ in range(PAIRS):
        begin = time.process_time()
        work()
        spent.append(1000 * (time.process_time() - begin))
    median = float(np.median(spent))
    return at_most(name, (median, limit, median / limit), 1, "ms", 1)
