"""Messages of the analysis: what is asked, checked, and what was found, as it goes out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from openmanager.api.analysis.v1 import analysis_pb2 as pb
from openmanager.api.frame.v1 import frame_pb2
from openmanager.errors import invalid, missing
from openmanager.frame import EARLIEST_PLAUSIBLE_NANOS, LATEST_PLAUSIBLE_NANOS, check_server_id
from openmanager.runtime import validate
from openmanager_analysis.analyst import MAX_TRENDS, SIGNIFICANT, Scored, SeriesTrend
from openmanager_analysis.anomaly import Anomaly, Blame, Severity
from openmanager_analysis.explanation import explain
from openmanager_analysis.forecast import Forecast
from openmanager_analysis.history import DAY_NANOS, HOUR_NANOS, Selection, Span
from openmanager_analysis.listing import Query
from openmanager_analysis.outlook import Outlook
from openmanager_analysis.risk import HORIZON_SECONDS
from openmanager_analysis.rolling import ExhaustionScore, ForecastScore, PredictionScore
from openmanager_analysis.scoring import Share

HOUR_SECONDS, HOUR_MILLIS = 3_600, 3_600_000
NANOS_PER_MILLI = 1_000_000
MAX_HORIZON_HOURS, DEFAULT_HORIZON_HOURS = 366 * 24, 90 * 24
MAX_HISTORY_DAYS, DEFAULT_HISTORY_DAYS = 5 * 366, 90
MAX_POINTS = 2_000
DEFAULT_TREND_DAYS = 28
DEFAULT_TRENDS = 100
MAX_NAMES = 1_000
_time = validate.Years(EARLIEST_PLAUSIBLE_NANOS, LATEST_PLAUSIBLE_NANOS, "2000–2199").time_of
# Where the quantiles of a forecast stand.
_LOW_95, _LOW_80, _MEDIAN, _HIGH_80, _HIGH_95 = 0, 1, 3, 5, 6


# ── what is asked ──────────────────────────────────────────────────────────────────────────────────────────────────


def selection(selector: frame_pb2.Selector, *, needs_metric: bool = False) -> Selection:
    """Return what a selector chooses; InvalidArgumentError naming what is wrong in it."""
    if needs_metric and not selector.metrics:
        raise missing("selector.metrics")
    for name in ("servers", "metrics"):
        if len(getattr(selector, name)) > MAX_NAMES:
            raise invalid(f"selector.{name}", f"has more than {MAX_NAMES:,} entries")
    servers = tuple(check_server_id(each, "selector.servers") for each in selector.servers)
    return Selection(servers=servers, server_filter=selector.server_filter, metrics=tuple(selector.metrics))


def span(request: Any, now: int, *, default: int, longest: int, step: int) -> Span:
    """Return the range of a request, [start, end) in nanoseconds: the newest `default` where it is not told."""
    end = _time(request, "end_time", now)
    start = _time(request, "start_time", max(end - default, EARLIEST_PLAUSIBLE_NANOS))
    if end <= start:
        raise invalid("end_time", "must be after start_time")
    if end - start > longest:
        raise invalid("start_time", f"must be at most {longest // DAY_NANOS:,} days before end_time")
    return Span(start=start, end=end, step=step)


def step(request: pb.DetectAnomaliesRequest, default: int) -> int:
    """Return the width of buckets in nanoseconds."""
    nanos = request.step.ToNanoseconds()
    if nanos < 0 or nanos % NANOS_PER_MILLI:
        raise invalid("step", "must be a whole number of milliseconds, and not negative")
    return nanos or default


def trend_span(request: pb.AnalyzeTrendRequest, now: int) -> Span:
    """Return the range of a trend, in whole hours."""
    found = span(
        request, now, default=DEFAULT_TREND_DAYS * DAY_NANOS, longest=MAX_HISTORY_DAYS * DAY_NANOS, step=HOUR_NANOS
    )
    start, end = (moment // HOUR_NANOS * HOUR_NANOS for moment in (found.start, found.end))
    return Span(start=start, end=max(end, start + HOUR_NANOS), step=HOUR_NANOS)


def trend_count(request: pb.AnalyzeTrendRequest) -> int:
    """Return how many trends at most."""
    if request.max_trend_count < 0:
        raise invalid("max_trend_count", "must not be negative")
    return min(request.max_trend_count or DEFAULT_TRENDS, MAX_TRENDS)


def limit(request: pb.ForecastCapacityRequest) -> float | None:
    """Return the limit, None for that of each metric."""
    found = request.limit if request.HasField("limit") else None
    if found is not None and not math.isfinite(found):
        raise invalid("limit", "must be finite")
    return found


def horizon_hours(request: pb.ForecastCapacityRequest) -> int:
    """Return how many hours ahead."""
    nanos = request.horizon.ToNanoseconds()
    hours = -(-nanos // HOUR_NANOS) if nanos else DEFAULT_HORIZON_HOURS
    if not 1 <= hours <= MAX_HORIZON_HOURS:
        raise invalid("horizon", "must be 1 hour to 366 days")
    return hours


def history(request: pb.ForecastCapacityRequest, now: int) -> Span:
    """Return how much of the past is looked at."""
    nanos = request.history.ToNanoseconds() or DEFAULT_HISTORY_DAYS * DAY_NANOS
    if not DAY_NANOS <= nanos <= MAX_HISTORY_DAYS * DAY_NANOS:
        raise invalid("history", "must be 1 day to 5 years")
    end = now // HOUR_NANOS * HOUR_NANOS  # an hour that has not ended is no hour
    return Span(start=end - nanos // HOUR_NANOS * HOUR_NANOS, end=end, step=HOUR_NANOS)


def point_count(request: pb.ForecastCapacityRequest) -> int:
    """Return how many points at most."""
    if not 0 <= request.max_point_count <= MAX_POINTS:
        raise invalid("max_point_count", f"must be 0–{MAX_POINTS:,}")
    return request.max_point_count


def severity(value: pb.AnomalySeverity.ValueType) -> Severity:
    """Return the least severity that is meant."""
    return Severity(value or pb.ANOMALY_SEVERITY_INFO)


def listed(request: pb.ListAnomaliesRequest) -> Query:
    """Return which anomalies are asked for."""
    start, end = _time(request, "start_time", 0), _time(request, "end_time", 0)
    if end and end <= start:
        raise invalid("end_time", "must be after start_time")
    return Query(
        page_size=request.page_size,
        page_token=request.page_token,
        filter=request.filter,
        start=start,
        end=end,
        active_only=request.active_only,
    )


# ── what was found ─────────────────────────────────────────────────────────────────────────────────────────────────


def anomaly(found: Anomaly) -> pb.Anomaly:
    """Return an anomaly."""
    message = pb.Anomaly(
        id=found.id,
        server=found.server,
        severity=pb.AnomalySeverity.ValueType(found.severity),
        score=found.score,
        confidence=found.confidence,
        blames=[_blame(each) for each in found.blames],
        explanation=explain(found),
        incident_id=found.incident_id,
    )
    message.start_time.FromNanoseconds(found.start_nanos)
    if found.end_nanos:
        message.end_time.FromNanoseconds(found.end_nanos)
    return message


def _blame(found: Blame) -> pb.Blame:
    message = pb.Blame(
        metric=found.metric,
        value=found.value,
        expected_low=found.low,
        expected_high=found.high,
        score=found.score,
    )
    message.time.FromNanoseconds(found.time_nanos)
    return message


def capacity(found: Outlook, most: int) -> pb.CapacityForecast:
    """Return a forecast with `most` of its points at most."""
    reached, expected = found.exhaustion, found.forecast
    message = pb.CapacityForecast(
        server=found.server,
        metric=found.metric,
        limit=found.limit,
        value=found.value,
        reach_probability=reached.chance,
        method=reached.method,
        capacity_factor=found.need.factor if found.need is not None else 1.0,
        points=_points(expected, most),
        explanation=found.explanation,
    )
    now = int(expected.time_unix_millis[0]) - expected.interval_millis
    if reached.hours is not None:
        _after(message.reach_time, now, reached.hours)
    message.reach_interval_80.CopyFrom(_interval(now, reached.low, reached.high))
    message.reach_interval_95.CopyFrom(_interval(now, reached.low_95, reached.high_95))
    if found.need is not None and found.need.by_unix_millis is not None:
        message.capacity_time.FromMilliseconds(found.need.by_unix_millis)
    if math.isfinite(expected.mase):
        message.back_test_error, message.back_test_coverage = expected.mase, expected.coverage
    for hours, chance in found.chances:
        message.reach_probabilities.add(probability=chance).horizon.FromSeconds(hours * HOUR_SECONDS)
    return message


def risk(server: str, chances: NDArray[np.float64]) -> pb.FailureRisk:
    """Return how likely an anomaly begins on a server."""
    message = pb.FailureRisk(server=server)
    for seconds, chance in zip(HORIZON_SECONDS, chances.tolist(), strict=True):
        message.probabilities.add(probability=chance).horizon.FromSeconds(seconds)
    return message


def trend(found: SeriesTrend) -> pb.Trend:
    """Return a trend."""
    message = pb.Trend(
        server=found.server,
        metric=found.metric,
        slope_per_day=found.slope,
        slope_low=found.low,
        slope_high=found.high,
        p_value=found.p_value,
        direction=_direction(found),
        mean=found.mean,
        hour_profile=found.by_hour.tolist() if np.isfinite(found.by_hour).all() else (),
        weekday_profile=found.by_weekday.tolist() if np.isfinite(found.by_weekday).all() else (),
        hour_strength=_known(found.hour_strength),
        weekday_strength=_known(found.weekday_strength),
        day_count=found.day_count,
    )
    if math.isfinite(found.previous_mean):
        message.previous_mean = found.previous_mean
    for each in found.changes:
        change = message.changes.add(before=each.before, after=each.after)
        change.time.FromMilliseconds(each.time_unix_millis)
    return message


def _direction(found: SeriesTrend) -> pb.TrendDirection.ValueType:
    if found.p_value >= SIGNIFICANT or found.slope == 0:
        return pb.TREND_DIRECTION_STEADY
    return pb.TREND_DIRECTION_UP if found.slope > 0 else pb.TREND_DIRECTION_DOWN


def _known(share: float) -> float:
    """Return a share; 0 where it is not known."""
    return share if math.isfinite(share) else 0.0


def _points(expected: Forecast, most: int) -> list[pb.ForecastPoint]:
    if most == 0:
        return []
    every = -(-len(expected.points) // most)
    points = []
    for row in range(every - 1, len(expected.points), every):
        quantiles = expected.quantiles[row].tolist()
        point = pb.ForecastPoint(
            median=quantiles[_MEDIAN],
            low_80=quantiles[_LOW_80],
            high_80=quantiles[_HIGH_80],
            low_95=quantiles[_LOW_95],
            high_95=quantiles[_HIGH_95],
        )
        point.time.FromMilliseconds(int(expected.time_unix_millis[row]))
        points.append(point)
    return points


def _interval(now_millis: int, low: float | None, high: float | None) -> pb.TimeInterval:
    message = pb.TimeInterval()
    if low is not None:
        _after(message.start_time, now_millis, low)
    if high is not None:
        _after(message.end_time, now_millis, high)
    return message


def _after(stamp: Timestamp, now_millis: int, hours: float) -> None:
    stamp.FromMilliseconds(now_millis + round(hours * HOUR_MILLIS))


def score(found: Scored) -> pb.ScoreDetectionResponse:
    """Return how good the detector was, and what was forecast."""
    detection, rolled = found.detection, found.rolled
    return pb.ScoreDetectionResponse(
        total=_share(detection.total),
        patterns=map(_share, detection.patterns),
        severities=map(_share, detection.severities),
        false_alarm_rate=detection.false_alarm_rate,
        precision=detection.precision,
        server_count=found.server_count,
        anomaly_count=found.anomaly_count,
        forecasts=map(_forecast_score, rolled.forecasts),
        exhaustion=_exhaustion_score(rolled.exhaustion) if rolled.exhaustion is not None else None,
        predictions=map(_prediction_score, rolled.predictions),
        omissions=rolled.omissions,
    )


def _forecast_score(found: ForecastScore) -> pb.ForecastScore:
    return pb.ForecastScore(
        metric=found.metric,
        forecast_count=found.forecast_count,
        relative_error=found.error / found.naive_error if found.naive_error else None,
        coverage_80=found.within_80 / found.value_count,
        coverage_95=found.within_95 / found.value_count,
    )


def _exhaustion_score(found: ExhaustionScore) -> pb.ExhaustionScore:
    reached, other = found.reached_count, found.answer_count - found.reached_count
    return pb.ExhaustionScore(
        answer_count=found.answer_count,
        reached_count=reached,
        median_error=float(np.median(found.errors)) if found.errors else None,
        coverage_80=found.within_80 / reached if reached else None,
        missed_share=found.missed_count / reached if reached else None,
        false_share=found.false_count / other if other else None,
    )


def _prediction_score(found: PredictionScore) -> pb.PredictionScore:
    message = pb.PredictionScore(
        count=len(found.chances), event_count=int(found.came.sum()), brier=found.brier, skill=found.skill
    )
    message.horizon.FromSeconds(found.seconds)
    if found.leads:
        message.lead.FromSeconds(round(float(np.median(found.leads))))
    for count, predicted, observed in found.bins():
        message.bins.add(count=count, predicted=predicted, observed=observed)
    return message


def _share(found: Share) -> pb.DetectionScore:
    message = pb.DetectionScore(name=found.name, fault_count=found.fault_count, found_count=found.found_count)
    if found.delay_nanos is not None:
        _set(message.delay, found.delay_nanos)
    if found.lead_nanos is not None:
        _set(message.lead, found.lead_nanos)
    return message


def _set(duration: Duration, nanos: float) -> None:
    duration.FromNanoseconds(round(nanos))
