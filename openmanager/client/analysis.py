"""What the history says: anomalies, trends, forecasts, and how good the detector is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from openmanager.api.analysis.v1 import analysis_pb2 as pb
from openmanager.client import codec, history, rpc
from openmanager.client.rpc import DEADLINE_SECONDS, Away, Rpc

# Long ranges of many series are read and computed.
ANALYSIS_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """A metric that an anomaly shows in, at its most unusual: `value` where `low` to `high` was expected."""

    metric: str
    value: float
    low: float
    high: float
    score: float
    time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Anomaly:
    """A run of times at which a server was unlike what is usual for it; `end_time` is None while it goes on.

    `severity` is INFO, WARNING or CRITICAL; `score` and `confidence` are in [0, 1]; `blames` the most unusual first.
    """

    id: str
    server: str
    start_time: datetime | None
    end_time: datetime | None
    severity: str
    score: float
    confidence: float
    blames: tuple[Blame, ...]
    explanation: str
    incident_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelChange:
    """A change of level, from `before` to `after`."""

    time: datetime | None
    before: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """Where a series goes: its slope a day with the 95 % interval, and `direction` STEADY, UP or DOWN at a p of 0.05.

    `hour_profile` has 24 values and `weekday_profile` 7, Monday first, or none; the strengths are in [0, 1].
    """

    server: str
    metric: str
    slope_per_day: float
    slope_low: float
    slope_high: float
    p_value: float
    direction: str
    mean: float
    previous_mean: float | None
    changes: tuple[LevelChange, ...]
    hour_profile: tuple[float, ...]
    weekday_profile: tuple[float, ...]
    hour_strength: float
    weekday_strength: float
    day_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastPoint:
    """What is expected of one time: the median, and the 80 % and 95 % intervals."""

    time: datetime | None
    median: float
    low_80: float
    high_80: float
    low_95: float
    high_95: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityForecast:
    """When a series reaches its limit; None: not within the horizon, an end of an interval too.

    `reach_probability` is that of reaching it within the horizon; `capacity_factor` by how much the capacity has to be
    multiplied, from `capacity_time` on, so that the limit holds to it with a probability of 90 %. `back_test_error` below 1
    is better than “as a day before”. `reach_probabilities` are by horizon, those of single samples (an hour, 6 and 24) first.
    """

    server: str
    metric: str
    limit: float
    value: float
    reach_time: datetime | None
    reach_80: tuple[datetime | None, datetime | None]
    reach_95: tuple[datetime | None, datetime | None]
    reach_probability: float
    method: str
    capacity_factor: float
    capacity_time: datetime | None
    points: tuple[ForecastPoint, ...]
    back_test_error: float | None
    back_test_coverage: float | None
    explanation: str
    reach_probabilities: tuple[tuple[timedelta, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRisk:
    """How likely an anomaly begins on a server: `probabilities` within 15 minutes, an hour and 6 hours."""

    server: str
    probabilities: tuple[tuple[timedelta, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastScore:
    """How good forecasts of a metric a day ahead were: their error over that of the last day again, and what intervals held."""

    metric: str
    forecast_count: int
    relative_error: float | None
    coverage_80: float
    coverage_95: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExhaustionScore:
    """How good times to a threshold were; None where there was nothing to take it of."""

    answer_count: int
    reached_count: int
    median_error: float | None
    coverage_80: float | None
    missed_share: float | None
    false_share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionScore:
    """How good probabilities within a horizon were: `skill` is 1 at best, 0 for the share that came, said always.

    `bins` are how many there were of about a size, their mean, and the share of them that came.
    """

    horizon: timedelta
    count: int
    event_count: int
    brier: float
    skill: float | None
    lead: timedelta | None
    bins: tuple[tuple[int, float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionScore:
    """How many of some faults were found; medians of the time to the first alarm, and from it to the threshold."""

    name: str
    fault_count: int
    found_count: int
    delay: timedelta | None
    lead: timedelta | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionScores:
    """How good the detector was, and what was forecast; `false_alarm_rate` is in runs a server and day.

    `exhaustion` is None, and `forecasts` and `predictions` are empty, where there was too little: `omissions` say so.
    """

    total: DetectionScore
    patterns: tuple[DetectionScore, ...]
    severities: tuple[DetectionScore, ...]
    false_alarm_rate: float
    precision: float | None
    server_count: int
    anomaly_count: int
    forecasts: tuple[ForecastScore, ...]
    exhaustion: ExhaustionScore | None
    predictions: tuple[PredictionScore, ...]
    omissions: tuple[str, ...]


class Analysis:
    """Asks the analysis service."""

    def __init__(self, calls: Rpc) -> None:
        self._calls = calls

    async def trends(
        self,
        metrics: Sequence[str] | str,
        *,
        servers: Sequence[str] | str = (),
        where: str = "",
        start: datetime | int | None = None,
        end: datetime | int | None = None,
        seconds: float = ANALYSIS_SECONDS,
    ) -> list[Trend]:
        """Return where each chosen series goes in [start, end), by default 28 days, those that moved most first."""
        request = pb.AnalyzeTrendRequest(selector=history.selector(metrics, servers, where), max_trend_count=1000)
        _set_range(request, start, end)
        reply = await self._calls.call(rpc.ANALYZE_TREND, request, seconds=seconds)
        return [trend(each) for each in reply.trends]

    async def capacities(
        self,
        metrics: Sequence[str] | str,
        *,
        limit: float | None = None,
        servers: Sequence[str] | str = (),
        where: str = "",
        horizon: timedelta = timedelta(days=90),
        past: timedelta = timedelta(days=90),
        points: int = 0,
        seconds: float = ANALYSIS_SECONDS,
    ) -> list[CapacityForecast]:
        """Return when each chosen series reaches a limit, the first to do so first, and `points` of its forecast.

        Without a limit it is that of the metric: 85 for cpu_usage, else 90.
        """
        request = pb.ForecastCapacityRequest(
            selector=history.selector(metrics, servers, where), limit=limit, max_point_count=points
        )
        request.horizon.FromTimedelta(horizon)
        request.history.FromTimedelta(past)
        reply = await self._calls.call(rpc.FORECAST_CAPACITY, request, seconds=seconds)
        return [capacity(each) for each in reply.forecasts]

    async def detect(
        self,
        metrics: Sequence[str] | str = (),
        *,
        servers: Sequence[str] | str = (),
        where: str = "",
        start: datetime | int | None = None,
        end: datetime | int | None = None,
        step: timedelta | None = None,
        seconds: float = ANALYSIS_SECONDS,
    ) -> list[Anomaly]:
        """Run the detector over stored samples of [start, end), by default the last hour."""
        request = pb.DetectAnomaliesRequest(selector=history.selector(metrics, servers, where))
        _set_range(request, start, end)
        if step is not None:
            request.step.CopyFrom(codec.duration(step))
        reply = await self._calls.call(rpc.DETECT_ANOMALIES, request, seconds=seconds)
        return [anomaly(each) for each in reply.anomalies]

    async def anomalies(
        self,
        *,
        where: str = "",
        start: datetime | int | None = None,
        end: datetime | int | None = None,
        active_only: bool = False,
        limit: int = 100,
        seconds: float = DEADLINE_SECONDS,
    ) -> list[Anomaly]:
        """Return what was found as samples arrived, newest first."""
        request = pb.ListAnomaliesRequest(filter=where, active_only=active_only)
        _set_range(request, start, end)
        pages = self._calls.pages(rpc.LIST_ANOMALIES, request, limit=limit, seconds=seconds)
        return [anomaly(each) async for page in pages for each in page.anomalies]

    async def risks(self, *, seconds: float = DEADLINE_SECONDS) -> list[FailureRisk]:
        """Return on which servers an anomaly is likely to begin, the likeliest first."""
        reply = await self._calls.call(rpc.LIST_ANOMALIES, pb.ListAnomaliesRequest(page_size=1), seconds=seconds)
        return [risk(each) for each in reply.risks]

    async def watch(self, *, where: str = "", on_away: Away | None = None) -> AsyncIterator[Anomaly]:
        """Yield those that go on, and then each that begins, changes or ends, for ever."""
        async for reply in self._calls.watched(rpc.WATCH_ANOMALIES, pb.WatchAnomaliesRequest(filter=where), on_away):
            for each in reply.anomalies:
                yield anomaly(each)

    async def score(
        self,
        *,
        start: datetime | int | None = None,
        end: datetime | int | None = None,
        seconds: float = ANALYSIS_SECONDS,
    ) -> DetectionScores:
        """Hold what was found in [start, end), by default a day, against the faults that were recorded."""
        request = pb.ScoreDetectionRequest()
        _set_range(request, start, end)
        return scores(await self._calls.call(rpc.SCORE_DETECTION, request, seconds=seconds))


def _set_range(request: Any, start: datetime | int | None, end: datetime | int | None) -> None:
    for name, moment in (("start", start), ("end", end)):
        if moment is not None:
            getattr(request, f"{name}_time").CopyFrom(codec.timestamp(moment, name))


def anomaly(message: pb.Anomaly) -> Anomaly:
    """Return an anomaly."""
    return Anomaly(
        id=message.id,
        server=message.server,
        start_time=codec.moment(message, "start_time"),
        end_time=codec.moment(message, "end_time"),
        severity=pb.AnomalySeverity.Name(message.severity).removeprefix("ANOMALY_SEVERITY_"),
        score=message.score,
        confidence=message.confidence,
        blames=tuple(map(_blame, message.blames)),
        explanation=message.explanation,
        incident_id=message.incident_id,
    )


def _blame(message: pb.Blame) -> Blame:
    return Blame(
        metric=message.metric,
        value=message.value,
        low=message.expected_low,
        high=message.expected_high,
        score=message.score,
        time=codec.moment(message, "time"),
    )


def trend(message: pb.Trend) -> Trend:
    """Return a trend."""
    return Trend(
        server=message.server,
        metric=message.metric,
        slope_per_day=message.slope_per_day,
        slope_low=message.slope_low,
        slope_high=message.slope_high,
        p_value=message.p_value,
        direction=pb.TrendDirection.Name(message.direction).removeprefix("TREND_DIRECTION_"),
        mean=message.mean,
        previous_mean=message.previous_mean if message.HasField("previous_mean") else None,
        changes=tuple(
            LevelChange(time=codec.moment(each, "time"), before=each.before, after=each.after)
            for each in message.changes
        ),
        hour_profile=tuple(message.hour_profile),
        weekday_profile=tuple(message.weekday_profile),
        hour_strength=message.hour_strength,
        weekday_strength=message.weekday_strength,
        day_count=message.day_count,
    )


def capacity(message: pb.CapacityForecast) -> CapacityForecast:
    """Return a forecast."""
    return CapacityForecast(
        server=message.server,
        metric=message.metric,
        limit=message.limit,
        value=message.value,
        reach_time=codec.moment(message, "reach_time"),
        reach_80=_interval(message.reach_interval_80),
        reach_95=_interval(message.reach_interval_95),
        reach_probability=message.reach_probability,
        method=message.method,
        capacity_factor=message.capacity_factor,
        capacity_time=codec.moment(message, "capacity_time"),
        points=tuple(map(_point, message.points)),
        back_test_error=message.back_test_error if message.HasField("back_test_error") else None,
        back_test_coverage=message.back_test_coverage if message.HasField("back_test_coverage") else None,
        explanation=message.explanation,
        reach_probabilities=_probabilities(message.reach_probabilities),
    )


def risk(message: pb.FailureRisk) -> FailureRisk:
    """Return how likely an anomaly begins on a server."""
    return FailureRisk(server=message.server, probabilities=_probabilities(message.probabilities))


def _probabilities(messages: Iterable[pb.HorizonProbability]) -> tuple[tuple[timedelta, float], ...]:
    return tuple((each.horizon.ToTimedelta(), each.probability) for each in messages)


def _interval(message: pb.TimeInterval) -> tuple[datetime | None, datetime | None]:
    return (
        codec.moment(message, "start_time"),
        codec.moment(message, "end_time"),
    )


def _point(message: pb.ForecastPoint) -> ForecastPoint:
    return ForecastPoint(
        time=codec.moment(message, "time"),
        median=message.median,
        low_80=message.low_80,
        high_80=message.high_80,
        low_95=message.low_95,
        high_95=message.high_95,
    )


def scores(message: pb.ScoreDetectionResponse) -> DetectionScores:
    """Return how good the detector was."""
    return DetectionScores(
        total=_score(message.total),
        patterns=tuple(map(_score, message.patterns)),
        severities=tuple(map(_score, message.severities)),
        false_alarm_rate=message.false_alarm_rate,
        precision=message.precision if message.HasField("precision") else None,
        server_count=message.server_count,
        anomaly_count=message.anomaly_count,
        forecasts=tuple(map(_forecast_score, message.forecasts)),
        exhaustion=_exhaustion_score(message.exhaustion) if message.HasField("exhaustion") else None,
        predictions=tuple(map(_prediction_score, message.predictions)),
        omissions=tuple(message.omissions),
    )


def _optional(message: Any, name: str) -> float | None:
    return getattr(message, name) if message.HasField(name) else None


def _forecast_score(message: pb.ForecastScore) -> ForecastScore:
    return ForecastScore(
        metric=message.metric,
        forecast_count=message.forecast_count,
        relative_error=_optional(message, "relative_error"),
        coverage_80=message.coverage_80,
        coverage_95=message.coverage_95,
    )


def _exhaustion_score(message: pb.ExhaustionScore) -> ExhaustionScore:
    shares = ("median_error", "coverage_80", "missed_share", "false_share")
    return ExhaustionScore(
        answer_count=message.answer_count,
        reached_count=message.reached_count,
        **{name: _optional(message, name) for name in shares},
    )


def _prediction_score(message: pb.PredictionScore) -> PredictionScore:
    return PredictionScore(
        horizon=message.horizon.ToTimedelta(),
        count=message.count,
        event_count=message.event_count,
        brier=message.brier,
        skill=_optional(message, "skill"),
        lead=message.lead.ToTimedelta() if message.HasField("lead") else None,
        bins=tuple((each.count, each.predicted, each.observed) for each in message.bins),
    )


def _score(message: pb.DetectionScore) -> DetectionScore:
    return DetectionScore(
        name=message.name,
        fault_count=message.fault_count,
        found_count=message.found_count,
        delay=message.delay.ToTimedelta() if message.HasField("delay") else None,
        lead=message.lead.ToTimedelta() if message.HasField("lead") else None,
    )
