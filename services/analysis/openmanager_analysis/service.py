"""The edge of the analysis service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from openmanager.api.analysis.v1 import analysis_pb2 as pb
from openmanager.progress import progress_seconds
from openmanager.runtime.clock import Clock
from openmanager_analysis import wire
from openmanager_analysis.analyst import MAX_SHOWN, Analyst
from openmanager_analysis.anomaly import fitting, gravest
from openmanager_analysis.detection import THRESHOLD
from openmanager_analysis.found import Found
from openmanager_analysis.history import DAY_NANOS, HOUR_NANOS
from openmanager_analysis.listing import list_page
from openmanager_analysis.reach import Reach
from openmanager_analysis.watch import chooser, watch
from openmanager_analysis.watcher import Watcher

MAX_SCORED_DAYS = 31
MAX_RISKS = 100


class AnalysisService:
    """openmanager.api.analysis.v1.AnalysisService."""

    def __init__(self, analyst: Analyst, found: Found, clock: Clock) -> None:
        self._analyst = analyst
        self._found = found
        self._clock = clock

    async def AnalyzeTrend(self, request: pb.AnalyzeTrendRequest, context: Any) -> pb.AnalyzeTrendResponse:  # noqa: ARG002, N802
        """Return where series go."""
        chosen, most = wire.selection(request.selector, needs_metric=True), wire.trend_count(request)
        answer = await self._analyst.trends(chosen, wire.trend_span(request, self._clock.now_nanos()))
        return pb.AnalyzeTrendResponse(
            trends=[wire.trend(each) for each in answer.found[:most]],
            provenance=answer.provenance,
            skipped_count=answer.skipped_count,
        )

    async def ForecastCapacity(  # noqa: N802
        self,
        request: pb.ForecastCapacityRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.ForecastCapacityResponse:
        """Return when series reach a limit."""
        chosen = wire.selection(request.selector, needs_metric=True)
        limit, hours, most = wire.limit(request), wire.horizon_hours(request), wire.point_count(request)
        now = self._clock.now_nanos()
        answer = await self._analyst.capacities(chosen, wire.history(request, now), limit, hours, now)
        return pb.ForecastCapacityResponse(
            forecasts=[wire.capacity(each, most) for each in answer.found],
            provenance=answer.provenance,
            skipped_count=answer.skipped_count,
        )

    async def ScoreDetection(self, request: pb.ScoreDetectionRequest, context: Any) -> pb.ScoreDetectionResponse:  # noqa: ARG002, N802
        """Hold what was found against what was recorded."""
        now = self._clock.now_nanos()
        span = wire.span(request, now, default=DAY_NANOS, longest=MAX_SCORED_DAYS * DAY_NANOS, step=HOUR_NANOS)
        found = await self._found.between(span.start, span.end)
        return wire.score(await self._analyst.score(found, span.start, span.end))


class AnomalyService:
    """openmanager.api.analysis.v1.AnomalyService."""

    def __init__(self, analyst: Analyst, watcher: Watcher, reach: Reach, clock: Clock) -> None:
        self._analyst = analyst
        self._watcher = watcher
        self._reach = reach
        self._clock = clock

    async def DetectAnomalies(self, request: pb.DetectAnomaliesRequest, context: Any) -> pb.DetectAnomaliesResponse:  # noqa: ARG002, N802
        """Run the detector over stored samples."""
        chosen, step = wire.selection(request.selector), wire.step(request, self._watcher.interval_nanos)
        now = self._clock.now_nanos()
        span = wire.span(request, now, default=HOUR_NANOS, longest=366 * DAY_NANOS, step=step)
        answer = await self._analyst.anomalies(chosen, span, wire.severity(request.min_severity))
        return pb.DetectAnomaliesResponse(
            anomalies=[wire.anomaly(each) for each in gravest(answer.found, MAX_SHOWN)],
            provenance=answer.provenance,
            threshold=THRESHOLD,
            total_count=len(answer.found),
        )

    async def ListAnomalies(self, request: pb.ListAnomaliesRequest, context: Any) -> pb.ListAnomaliesResponse:  # noqa: ARG002, N802
        """List what was found."""
        sees = await self._reach.sees()
        found = list_page(self._watcher.register, wire.listed(request), sees)
        risks = () if request.page_token else self._watcher.risks(sees, MAX_RISKS)
        return pb.ListAnomaliesResponse(
            anomalies=[wire.anomaly(each) for each in found.found],
            next_page_token=found.next_page_token,
            total_count=found.total_count,
            provenance=self._watcher.describe(),
            threshold=THRESHOLD,
            risks=[wire.risk(server, chances) for server, chances in risks],
        )

    async def WatchAnomalies(  # noqa: N802
        self,
        request: pb.WatchAnomaliesRequest,
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[pb.WatchAnomaliesResponse]:
        """Stream what is found."""
        chooses, seconds = chooser(request.filter), progress_seconds(request)
        watched = watch(
            self._watcher.register, self._watcher.bell, chooses, fitting, token=request.resume_token, progress=seconds
        )
        async with aclosing(watched) as told:
            async for token, found in told:
                sees = await self._reach.sees()
                seen = [wire.anomaly(each) for each in found if sees(each.server)]
                yield pb.WatchAnomaliesResponse(resume_token=token, anomalies=seen)
