"""The edge of the simulator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from openmanager import page
from openmanager.api.frame.v1 import frame_pb2
from openmanager.api.simulator.v1 import simulator_pb2 as pb
from openmanager.errors import Reason, ResourceExhaustedError, invalid, missing
from openmanager.frame import check_server_id, check_text, encode, length_delimited
from openmanager.runtime import validate
from openmanager.runtime.clock import Clock
from openmanager.runtime.edge import unbounded
from openmanager_simulator.backfill import Backfill, Progress, Wanted
from openmanager_simulator.catalogue import Metric
from openmanager_simulator.fault import Fault, FaultPattern
from openmanager_simulator.faults import FaultDesk, FaultRequest
from openmanager_simulator.fleet import MAX_SERVERS
from openmanager_simulator.schedule import DAY
from openmanager_simulator.season import FIRST_DAY, LAST_DAY
from openmanager_simulator.ticker import Settings, Ticker

MAX_TICKS = 100_000
MAX_FAULT_SERVERS = 1000
MAX_RANGE_DAYS = 400
_MILLI = 1_000_000
_HOUR_MILLIS = 3_600_000
_time = validate.Years(FIRST_DAY * DAY, LAST_DAY * DAY, "2000–2099").time_of


class SimulatorService:
    """openmanager.api.simulator.v1.SimulatorService."""

    def __init__(self, ticker: Ticker, backfill: Backfill) -> None:
        self._ticker = ticker
        self._backfill = backfill

    async def GetSimulation(self, request: pb.GetSimulationRequest, context: Any) -> pb.GetSimulationResponse:  # noqa: ARG002, N802
        """Return the simulation."""
        return pb.GetSimulationResponse(simulation=_simulation(self._ticker))

    async def StartSimulation(self, request: pb.StartSimulationRequest, context: Any) -> pb.StartSimulationResponse:  # noqa: ARG002, N802
        """Begin to tick."""
        await self._ticker.start(_settings(request, self._ticker.settings))
        return pb.StartSimulationResponse(simulation=_simulation(self._ticker))

    async def StopSimulation(self, request: pb.StopSimulationRequest, context: Any) -> pb.StopSimulationResponse:  # noqa: ARG002, N802
        """Stop ticking."""
        await self._ticker.stop()
        return pb.StopSimulationResponse(simulation=_simulation(self._ticker))

    @unbounded
    async def AdvanceSimulation(  # noqa: N802
        self,
        request: pb.AdvanceSimulationRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.AdvanceSimulationResponse:
        """Make ticks at once."""
        if not 1 <= request.tick_count <= MAX_TICKS:
            raise invalid("tick_count", f"must be 1–{MAX_TICKS}")
        await self._ticker.advance(request.tick_count)
        return pb.AdvanceSimulationResponse(simulation=_simulation(self._ticker))

    async def ListMetrics(self, request: pb.ListMetricsRequest, context: Any) -> pb.ListMetricsResponse:  # noqa: ARG002, N802
        """List the catalogue."""
        metrics = self._ticker.catalogue.metrics
        first, end, token = _page(len(metrics), request.page_size, request.page_token, ("metrics",))
        return pb.ListMetricsResponse(
            metrics=[_metric(metric) for metric in metrics[first:end]], next_page_token=token, total_count=len(metrics)
        )

    async def StreamFrames(self, request: pb.StreamFramesRequest, context: Any) -> AsyncIterator[bytes]:  # noqa: ARG002, N802
        """Stream the frames of a range."""
        start, end = _time(request, "start_time", None), _time(request, "end_time", None)
        if end <= start:
            raise invalid("end_time", "must be after start_time")
        async for frame in self._ticker.frames_between(start, end):
            yield length_delimited(1, encode(frame))

    async def BackfillHistory(  # noqa: N802
        self,
        request: pb.BackfillHistoryRequest,
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[pb.BackfillHistoryResponse]:
        """Write the history of a range."""
        async with aclosing(self._backfill.run(_wanted(request))) as steps:
            async for step in steps:
                yield _progress(step)


class FaultService:
    """openmanager.api.simulator.v1.FaultService."""

    def __init__(self, desk: FaultDesk, clock: Clock) -> None:
        self._desk = desk
        self._clock = clock

    async def InjectFault(self, request: pb.InjectFaultRequest, context: Any) -> pb.InjectFaultResponse:  # noqa: ARG002, N802
        """Inject a fault."""
        check_text("request_id", request.request_id, 64)
        wanted = _fault_request(request, self._clock.now_nanos())
        fault = self._desk.inject(wanted, request.request_id, request.fault.SerializeToString(deterministic=True))
        return pb.InjectFaultResponse(fault=_fault(fault))

    async def ListFaults(self, request: pb.ListFaultsRequest, context: Any) -> pb.ListFaultsResponse:  # noqa: ARG002, N802
        """List faults."""
        now = self._clock.now_nanos()
        start, end = _time(request, "start_time", now - DAY), _time(request, "end_time", now)
        if request.active_only:
            start, end = now, now + 1
        if end - start > MAX_RANGE_DAYS * DAY:
            raise invalid("start_time", f"must be at most {MAX_RANGE_DAYS} days before end_time")
        # Times that were not given move with the clock; the token is bound to what was.
        key = (request.start_time.SerializeToString(), request.end_time.SerializeToString(), request.active_only)
        first = _first(request.page_token, key)
        size = page.page_size(request.page_size)
        faults, total = await asyncio.to_thread(self._desk.page, start, max(start, end), first, size)
        more = first + len(faults) < total and faults
        return pb.ListFaultsResponse(
            faults=map(_fault, faults),
            next_page_token=page.encode_token(key, [str(first + len(faults))]) if more else "",
            total_count=total,
        )

    async def ClearFault(self, request: pb.ClearFaultRequest, context: Any) -> pb.ClearFaultResponse:  # noqa: ARG002, N802
        """End a fault."""
        if not request.id:
            raise missing("id")
        return pb.ClearFaultResponse(fault=_fault(self._desk.clear(request.id)))


# ── proto → domain ─────────────────────────────────────────────────────────────────────────────────────────────────


def _settings(request: pb.StartSimulationRequest, now: Settings) -> Settings:
    interval = request.interval.ToNanoseconds() if request.HasField("interval") else 0
    millis = interval // _MILLI or now.interval_millis
    if interval % _MILLI or not 100 <= millis <= _HOUR_MILLIS:
        raise invalid("interval", "must be 100 ms–1 h in whole milliseconds")
    if request.server_count < 0:
        raise invalid("server_count", "must not be negative")
    if request.server_count > MAX_SERVERS:
        raise ResourceExhaustedError(
            f"server_count is more than {MAX_SERVERS}", reason=Reason.OVERLOADED, field="server_count"
        )
    if request.seed < 0:
        raise invalid("seed", "must not be negative")
    return Settings(
        server_count=request.server_count or now.server_count,
        interval_millis=millis,
        seed=request.seed if request.HasField("seed") else now.seed,
    )


def _wanted(request: pb.BackfillHistoryRequest) -> Wanted:
    start, end = _time(request, "start_time", None), _time(request, "end_time", 0)
    if end and end <= start:
        raise invalid("end_time", "must be after start_time")
    return Wanted(start=start, end=end, raw=request.raw, resume_token=request.resume_token)


def _page(count: int, size: int, token: str, key: tuple[Any, ...]) -> tuple[int, int, str]:
    """Return the first index, the end and the next token of a page of a list that does not change its order."""
    first = _first(token, key)
    end = min(count, first + page.page_size(size))
    return first, end, page.encode_token(key, [str(end)]) if end < count else ""


def _first(token: str, key: tuple[Any, ...]) -> int:
    after = page.decode_token(key, token)
    if after and not (after[0].isascii() and after[0].isdigit() and len(after[0]) < 10):
        raise invalid("page_token", "is not one of this method")
    return int(after[0]) if after else 0


def _fault_request(request: pb.InjectFaultRequest, now: int) -> FaultRequest:
    fault = request.fault
    if not request.HasField("fault"):
        raise missing("fault")
    if not fault.pattern:
        raise missing("fault.pattern")
    if not 1 <= len(fault.servers) <= MAX_FAULT_SERVERS:
        raise invalid("fault.servers", f"must name 1–{MAX_FAULT_SERVERS} servers")
    if not 0 <= fault.severity <= 1:
        raise invalid("fault.severity", "must be more than 0 and at most 1")
    return FaultRequest(
        pattern=FaultPattern(pb.FaultPattern.Name(fault.pattern).removeprefix("FAULT_PATTERN_").lower()),
        servers=tuple(check_server_id(server, "fault.servers") for server in fault.servers),
        start_nanos=_time(fault, "start_time", now),
        end_nanos=_time(fault, "end_time", 0) or None,
        severity=fault.severity or None,
    )


# ── domain → proto ─────────────────────────────────────────────────────────────────────────────────────────────────


def _simulation(ticker: Ticker) -> pb.Simulation:
    progress = ticker.progress
    message = pb.Simulation(
        running=progress.running,
        server_count=ticker.settings.server_count,
        metric_count=len(ticker.catalogue.metrics),
        seed=ticker.settings.seed,
        tick_count=progress.tick_count,
        buffered_frame_count=len(progress.waiting),
        dropped_frame_count=progress.dropped_frame_count,
        acknowledged_sample_count=progress.acknowledged_sample_count,
        last_error=progress.last_error,
    )
    message.interval.FromMilliseconds(ticker.settings.interval_millis)
    if progress.last_tick_nanos:
        message.last_tick_time.FromNanoseconds(progress.last_tick_nanos)
    return message


def _progress(progress: Progress) -> pb.BackfillHistoryResponse:
    message = pb.BackfillHistoryResponse(
        sample_count=progress.sample_count,
        bucket_count=progress.bucket_count,
        raw_sample_count=progress.raw_sample_count,
        done_ratio=progress.done_ratio,
        resume_token=progress.resume_token,
        done=progress.done,
    )
    message.done_time.FromNanoseconds(progress.done_time)
    return message


def _metric(metric: Metric) -> pb.Metric:
    return pb.Metric(
        key=metric.key,
        unit=metric.unit,
        kind=frame_pb2.MetricKind.Value(f"METRIC_KIND_{metric.kind.upper()}"),
        description=metric.description,
        minimum=metric.minimum,
        maximum=metric.maximum,
        resolution=metric.resolution,
    )


def _fault(fault: Fault) -> pb.Fault:
    message = pb.Fault(
        id=fault.id,
        pattern=pb.FaultPattern.Value(f"FAULT_PATTERN_{fault.pattern.upper()}"),
        servers=fault.servers,
        severity=fault.severity,
        seed=fault.seed,
        root=fault.root or "",
        origin=fault.origin,
    )
    message.start_time.FromNanoseconds(fault.start_nanos)
    message.end_time.FromNanoseconds(fault.end_nanos)
    return message
