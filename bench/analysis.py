"""What the analysis costs, each by the side of its limit: processor time of one core, and bytes of state."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import numpy as np
from openmanager_analysis import crossing
from openmanager_analysis.alerting.engine import Alerting
from openmanager_analysis.alerting.rule import Rule, Threshold
from openmanager_analysis.collector import Names
from openmanager_analysis.exhaustion import time_to_limit
from openmanager_analysis.forecast import forecast
from openmanager_analysis.history import Selection
from openmanager_analysis.lookout import Lookout
from openmanager_analysis.trend import trend

from bench.pair import PAIRS, Row, at_most
from openmanager.frame import Frame

HOUR_MILLIS = 3_600_000
BEGIN_MILLIS = 1_790_000_000_000 // (24 * HOUR_MILLIS) * 24 * HOUR_MILLIS
METRICS = 511
RULES_MILLIS = 5.0
TICK_MILLIS, TICK_SERVERS, TICK_STEP_MILLIS = 20.0, 20, 10_000
STATE_BYTES = 4096
FORECAST_MILLIS, LIMIT_MILLIS, TREND_MILLIS = 2.0, 20.0, 100.0
CROSSING_SERIES, CROSSING_MILLIS = 1_022, 1_022.0


def rows() -> Iterator[Row]:
    """Measure ticks of 20 servers and of 1,000, their state, rules, a forecast, times to a limit, chances, a year's trends."""
    for servers, limit in ((TICK_SERVERS, TICK_MILLIS), (1_000, TICK_STEP_MILLIS / 2)):
        yield _row(f"a tick of {servers * METRICS:,} series", _ticking(servers), limit)
    name = f"a tick of {TICK_SERVERS * METRICS:,} series, 100 rules"
    yield _row(name, _judging(TICK_SERVERS, 100), RULES_MILLIS)
    size = sum(each.nbytes for each in _watching(TICK_SERVERS).arrays().values()) / (TICK_SERVERS * METRICS)
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


def _judging(servers: int, rules: int) -> Callable[[], object]:
    """Return what judges one tick after the other by rules of which each looks at a tenth of the series."""
    alerting, random = Alerting(Names(most=servers * METRICS), 0, lambda _: None), np.random.default_rng(1)
    condition = Threshold(bound=1e9, is_above=True, clear=1e9, hold_nanos=60 * 10**9)
    alerting.adopt(
        [
            Rule(id=f"r{n}", name=f"r{n}", condition=condition, selection=Selection(metrics=(f"m{n % 9 + 1}*",)))
            for n in range(rules)
        ],
        0,
    )
    names = tuple(f"s{n}" for n in range(servers)), tuple(f"m{n}" for n in range(METRICS))
    values = 50 + random.normal(0, 1, (1, servers, METRICS))
    moments = itertools.count(1)

    def tick() -> None:
        number = next(moments)
        time_nanos = (BEGIN_MILLIS + number * TICK_STEP_MILLIS) * 10**6
        frame = Frame(times=np.array([time_nanos]), servers=names[0], metrics=names[1], values=values)
        alerting.take(frame, time_nanos, number)

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
