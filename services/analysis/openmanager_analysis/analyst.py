"""Answers questions about stored history: trends, capacity, anomalies, and how good the detector was."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from openmanager.errors import FailedPreconditionError, Reason, ResourceExhaustedError
from openmanager_analysis import crossing, outlook, rolling, scoring
from openmanager_analysis.anomaly import Anomaly, Register, Severity
from openmanager_analysis.history import DAY_NANOS, HOUR_NANOS, Buckets, History, Selection, Span
from openmanager_analysis.lookout import Lookout
from openmanager_analysis.outlook import Outlook
from openmanager_analysis.rolling import Rolled
from openmanager_analysis.scoring import Score
from openmanager_analysis.trend import MIN_DAYS, Change, trend

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from openmanager_analysis.faults import Faults

NANOS_PER_MILLI = 1_000_000
MINUTE_NANOS = 60 * 10**9
MAX_TRENDS, MAX_CAPACITIES, MAX_DETECTED = 1_000, 100, 20_000
MAX_TIMES = 20_000
MAX_CELLS = 10_000_000
MAX_SHOWN = 1_000
MONTH_DAYS = 30
TINY = 1e-9
# A trend is one where chance has so little to say.
SIGNIFICANT = 0.05
# Of the headline metrics: from where on a server is critical, unless told otherwise.
CRITICAL = {"cpu_usage": 85.0, "memory_usage": 90.0, "disk_usage": 90.0}
# Of any other metric: what a percentage should not reach.
DEFAULT_LIMIT = 90.0
T = TypeVar("T")
IsOver = Callable[[], bool]
# Questions that are worked on at once; more wait.
AT_ONCE = 2
# Servers whose forecasts are scored.
MAX_ROLLED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was found of the chosen series, where the samples came from, and how many series had too few."""

    found: Sequence[Any]
    provenance: Any
    skipped_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesTrend:
    """Where a series goes: `slope`, `low` and `high` a day, with the 95 % interval, and the p value of its being chance.

    `mean` is of the range, `previous_mean` of as long a time before it, NaN where that is not known; `by_hour` float64[24]
    and `by_weekday` float64[7] are what these add, and their strengths the share of the variance they explain.
    """

    server: str
    metric: str
    slope: float
    low: float
    high: float
    p_value: float
    mean: float
    previous_mean: float
    by_hour: NDArray[np.float64]
    by_weekday: NDArray[np.float64]
    hour_strength: float
    weekday_strength: float
    changes: tuple[Change, ...]
    day_count: int

    @property
    def movement(self) -> float:
        """By how much it moves in a month, of its mean: what it is ranked by; 0 where that may be chance."""
        return abs(self.slope) * MONTH_DAYS / max(abs(self.mean), TINY) if self.p_value < SIGNIFICANT else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """How good the detector was, of how many servers and anomalies, and how good what was forecast was."""

    detection: Score
    server_count: int
    anomaly_count: int
    rolled: Rolled


class Analyst:
    """Reads history in the name of who asks, and works on it beside the event loop."""

    def __init__(self, history: History, faults: Faults) -> None:
        self._history = history
        self._faults = faults
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def trends(self, selection: Selection, span: Span) -> Answer:
        """Return the SeriesTrend of each chosen series, those that moved most, for what they are, first."""
        buckets = await self._history.buckets(selection, span, most=MAX_TRENDS)
        before = Span(start=2 * span.start - span.end, end=span.start, step=DAY_NANOS)
        earlier = await self._history.buckets(selection, before, most=MAX_TRENDS)
        found = await self._beside(lambda _: _trends(buckets, earlier))
        if buckets.names and not found:
            raise _too_little(len(buckets.names))
        found.sort(key=lambda each: (-each.movement, each.server, each.metric))
        return Answer(found=found, provenance=buckets.provenance, skipped_count=len(buckets.names) - len(found))

    async def capacities(self, selection: Selection, span: Span, limit: float | None, hours: int, now: int) -> Answer:
        """Return the Outlook of each chosen series for so many hours, those that reach the limit first, first.

        Without a limit each metric has its own. `span` is in hours; what comes soon is judged from the samples up to `now`.
        """
        buckets = await self._history.buckets(selection, span, most=MAX_CAPACITIES)
        highest = await self._history.buckets(selection, _near(now), "MAX", most=MAX_CAPACITIES)

        def work(is_over: IsOver) -> Answer:
            rows = dict(zip(highest.names, highest.values, strict=True))

            def plan(name: tuple[str, str], times: NDArray[np.int64], values: NDArray[np.float64]) -> Outlook:
                own = limit_of(name[1]) if limit is None else limit
                planned = outlook.plan(name, times, values, own, hours)
                soon = crossing.chances(rows.get(name, np.empty(0))[None], np.array([own]))[0]
                return replace(planned, chances=outlook.chances(planned.exhaustion, soon, hours))

            return _each(buckets, plan, is_over)

        answer = await self._beside(work)
        answer.found.sort(key=_urgency)  # type: ignore[attr-defined]
        return answer

    async def anomalies(self, selection: Selection, span: Span, severity: Severity) -> Answer:
        """Return the Anomaly of each run that the detector finds in a range, in order of time.

        It knows nothing from before, and takes the last sample of each bucket, as it does while samples arrive.
        """
        if span.count > MAX_TIMES:
            raise ResourceExhaustedError(
                f"{span.count:,} times are asked for, and {MAX_TIMES:,} at most can be looked at: take a larger step",
                reason=Reason.TOO_MANY_BUCKETS,
            )
        most = min(MAX_DETECTED, max(1, MAX_CELLS // span.count))
        buckets = await self._history.buckets(selection, span, "LAST", most=most)
        counters = await self._history.counters(selection)
        found = await self._beside(lambda is_over: detect(buckets, counters, is_over))
        return Answer(found=[each for each in found if each.severity >= severity], provenance=buckets.provenance)

    async def _beside(self, work: Callable[[IsOver], T]) -> T:
        """Do some work beside the event loop, a few at once: the detector needs the processor too.

        `work` asks whether anybody still waits for it.
        """
        is_left = threading.Event()
        async with self._slots:
            try:
                return await asyncio.to_thread(work, is_left.is_set)
            finally:
                is_left.set()

    async def score(self, known: Iterable[Anomaly], start: int, end: int) -> Scored:
        """Return how good the detector was in [start, end), and what would have been forecast in that time."""
        faults = await self._faults.between(start, end)
        found = [each for each in known if each.start_nanos < end and (each.end_nanos or each.last_nanos) > start]
        span = Span(start=start, end=end, step=MINUTE_NANOS)
        buckets = await self._history.buckets(
            Selection(metrics=tuple(CRITICAL)), span, "MAX", most=3 * scoring.MAX_SERVERS
        )
        servers = {server for server, _ in buckets.names}
        faults = [
            each for each in faults if not servers.isdisjoint(each.servers)
        ]  # what nobody felt, nobody could find
        if not faults:
            raise FailedPreconditionError(
                "no fault was recorded in this range, or no server was watched", reason=Reason.TOO_LITTLE_DATA
            )
        result = scoring.score(
            faults, found, crossing=_crossing(buckets), server_count=len(servers), range_nanos=end - start
        )
        recorded = await self._recorded(sorted(servers), start, end)
        rolled = await self._beside(lambda is_over: rolling.roll(recorded, is_over))
        return Scored(detection=result, server_count=len(servers), anomaly_count=len(found), rolled=rolled)

    async def _recorded(self, servers: list[str], start: int, end: int) -> rolling.Recorded:
        """Return what was measured of the headline metrics of a few servers, up to the last whole hour."""
        chosen = Selection(servers=tuple(servers[:: -(-len(servers) // MAX_ROLLED)]), metrics=tuple(CRITICAL))
        most, end = MAX_ROLLED * len(CRITICAL), end // HOUR_NANOS * HOUR_NANOS
        first = min(-(-start // HOUR_NANOS) * HOUR_NANOS, end)
        days, near = (first - many * DAY_NANOS for many in (rolling.HISTORY_DAYS, crossing.HISTORY_DAYS))
        step = crossing.STEP_MINUTES * MINUTE_NANOS
        hours = await self._history.buckets(chosen, Span(start=days, end=end, step=HOUR_NANOS), most=most)
        highest = await self._history.buckets(chosen, Span(start=near, end=end, step=step), "MAX", most=most)
        rows = {name: row for row, name in enumerate(highest.names)}
        names = [name for name in hours.names if name in rows]
        return rolling.Recorded(
            metrics=tuple(metric for _, metric in names),
            limits=np.array([CRITICAL[metric] for _, metric in names]),
            hours=hours.values[[name in rows for name in hours.names]],
            first=int(np.searchsorted(hours.times, first)),
            highest=highest.values[[rows[name] for name in names]],
            near_first=int(np.searchsorted(highest.times, first)),
        )


def detect(buckets: Buckets, counters: frozenset[tuple[str, str]], is_over: IsOver) -> list[Anomaly]:
    """Return what the detector finds in buckets from their first on, in order of time; `counters` only grow.

    It ends early when nobody waits for it any more.
    """
    lookout, register = Lookout(), Register()
    if buckets.names:
        lookout.watch(buckets.names, [name in counters for name in buckets.names])
    for column, time in enumerate(buckets.times.tolist()):
        if is_over():
            break
        for each in lookout.look(time // NANOS_PER_MILLI, buckets.values[:, column]):
            register.see(each)
        register.pass_time(time)
    return sorted(register, key=lambda each: (each.start_nanos, each.server))


def limit_of(metric: str) -> float:
    """Return what a metric must not reach unless told otherwise."""
    return CRITICAL.get(metric, DEFAULT_LIMIT)


def _near(now: int) -> Span:
    """Return what is looked at for what comes soon: whole steps, the last of which is over."""
    step = crossing.STEP_MINUTES * MINUTE_NANOS
    end = now // step * step
    return Span(start=end - crossing.HISTORY_DAYS * DAY_NANOS, end=end, step=step)


def _each(
    buckets: Buckets, work: Callable[[tuple[str, str], NDArray[np.int64], NDArray[np.float64]], T], is_over: IsOver
) -> Answer:
    """Do some work on every series that has enough for it; FailedPreconditionError when none has."""
    found, skipped = [], 0
    times = buckets.times // NANOS_PER_MILLI
    for name, values in zip(buckets.names, buckets.values, strict=True):
        if is_over():
            break
        known = np.flatnonzero(~np.isnan(values))
        inside = slice(known[0], known[-1] + 1) if len(known) else slice(0)
        try:
            found.append(work(name, times[inside], values[inside]))
        except FailedPreconditionError:
            skipped += 1
    if skipped and not found:
        raise _too_little(skipped)
    return Answer(found=found, provenance=buckets.provenance, skipped_count=skipped)


def _too_little(chosen: int) -> FailedPreconditionError:
    what = "the chosen series has" if chosen == 1 else f"all {chosen:,} chosen series have"
    return FailedPreconditionError(f"{what} too few samples to judge by", reason=Reason.TOO_LITTLE_DATA)


def _trends(buckets: Buckets, earlier: Buckets) -> list[SeriesTrend]:
    """Return the trend of every series that has enough days."""
    if not buckets.names:
        return []
    try:
        found = trend(buckets.times // NANOS_PER_MILLI, buckets.values.T)
    except FailedPreconditionError:
        return []
    rows = {name: row for row, name in enumerate(earlier.names)}
    days = np.isfinite(buckets.values).sum(axis=1) // 24
    return [
        SeriesTrend(
            server=server,
            metric=metric,
            slope=float(found.slope[row]),
            low=float(found.low[row]),
            high=float(found.high[row]),
            p_value=float(found.p_value[row]),
            mean=float(np.nanmean(buckets.values[row])),
            previous_mean=_mean(earlier.values[rows[server, metric]]) if (server, metric) in rows else np.nan,
            by_hour=found.by_hour[row],
            by_weekday=found.by_weekday[row],
            hour_strength=float(found.hour_strength[row]),
            weekday_strength=float(found.weekday_strength[row]),
            changes=found.changes[row],
            day_count=int(days[row]),
        )
        for row, (server, metric) in enumerate(buckets.names)
        if days[row] >= MIN_DAYS and np.isfinite(found.slope[row])
    ]


def _mean(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _urgency(found: Outlook) -> tuple[float, float, str, str]:
    hours = found.exhaustion.hours
    return float("inf") if hours is None else hours, -found.exhaustion.chance, found.server, found.metric


def _crossing(buckets: Buckets) -> scoring.Crossing:
    """Return how to find when a server first became critical, by minutes."""
    critical: dict[str, list[NDArray[np.bool_]]] = {}
    for (server, metric), values in zip(buckets.names, buckets.values, strict=True):
        critical.setdefault(server, []).append(values >= CRITICAL.get(metric, np.inf))
    masks = {server: np.logical_or.reduce(some) for server, some in critical.items()}

    def first(server: str, start: int, end: int) -> int | None:
        if server not in masks:
            return None
        inside = slice(*np.searchsorted(buckets.times, [start, end]).tolist())
        found = np.flatnonzero(masks[server][inside])
        return int(buckets.times[inside][found[0]]) if len(found) else None

    return first
