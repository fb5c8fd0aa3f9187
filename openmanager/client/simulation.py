"""The simulated fleet and its faults."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta

from openmanager.api.simulator.v1 import simulator_pb2
from openmanager.client import codec, model, rpc
from openmanager.client.rpc import DEADLINE_SECONDS, Away, Rpc, closable
from openmanager.errors import FailedPreconditionError, OpenManagerError, Reason, UnavailableError

# Making ticks at once takes its time: 7 ms each for 25 servers on two shared cores.
ADVANCE_SECONDS = 300.0
# A backfill is given up when it has come no further so long after its stream broke.
RESUME_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillProgress:
    """How far a backfill has come: everything before `done_time` is durable; the last one is `done`."""

    done_time: datetime | None
    sample_count: int
    bucket_count: int
    raw_sample_count: int
    done_ratio: float
    resume_token: str
    done: bool


class Simulator:
    """Steers the simulation."""

    def __init__(self, calls: Rpc) -> None:
        self._calls = calls

    async def get(self, *, seconds: float = DEADLINE_SECONDS) -> model.Simulation:
        """Return the simulation as it is."""
        request = simulator_pb2.GetSimulationRequest()
        return codec.simulation((await self._calls.call(rpc.GET_SIMULATION, request, seconds=seconds)).simulation)

    async def start(
        self,
        *,
        server_count: int = 0,
        interval: timedelta | None = None,
        seed: int | None = None,
        seconds: float = DEADLINE_SECONDS,
    ) -> model.Simulation:
        """Begin to tick; what is not given keeps its value.

        FailedPreconditionError, reason SIMULATION_RUNNING, when it ticks with other values.
        """
        request = simulator_pb2.StartSimulationRequest(server_count=server_count, seed=seed)
        if interval is not None:
            request.interval.CopyFrom(codec.duration(interval))
        return codec.simulation((await self._calls.call(rpc.START_SIMULATION, request, seconds=seconds)).simulation)

    async def stop(self, *, seconds: float = DEADLINE_SECONDS) -> model.Simulation:
        """Stop ticking; what is buffered is still delivered."""
        request = simulator_pb2.StopSimulationRequest()
        return codec.simulation((await self._calls.call(rpc.STOP_SIMULATION, request, seconds=seconds)).simulation)

    async def advance(self, tick_count: int, *, seconds: float = ADVANCE_SECONDS) -> model.Simulation:
        """Make 1–100,000 ticks at once and write them, best in calls that stay well below `seconds`.

        FailedPreconditionError, reason SIMULATION_RUNNING, while it ticks by itself.
        """
        request = simulator_pb2.AdvanceSimulationRequest(tick_count=tick_count)
        return codec.simulation((await self._calls.call(rpc.ADVANCE_SIMULATION, request, seconds=seconds)).simulation)

    async def backfill(
        self,
        start: datetime | int,
        *,
        end: datetime | int | None = None,
        raw: bool = False,
        resume_token: str = "",
        on_away: Away | None = None,
    ) -> AsyncIterator[BackfillProgress]:
        """Make the history of [start, end), until the last whole hour unless given; yield how far it has come.

        With `raw` samples are written too, as far back as they are kept. A stream that breaks is begun again where it
        was, for RESUME_SECONDS; `on_away` hears of every break. FailedPreconditionError, reason SIMULATION_RUNNING,
        while another backfill runs.
        """
        request = simulator_pb2.BackfillHistoryRequest(raw=raw, resume_token=resume_token)
        request.start_time.CopyFrom(codec.timestamp(start, "start"))
        if end is not None:
            request.end_time.CopyFrom(codec.timestamp(end, "end"))
        async with aclosing(closable(backfill_replies(self._calls, request, on_away))) as replies:
            async for reply in replies:
                yield backfill_progress(reply)

    async def list_metrics(self, *, seconds: float = DEADLINE_SECONDS) -> AsyncIterator[model.Metric]:
        """Yield the catalogue of metrics, page after page; `seconds` is for one page."""
        request = simulator_pb2.ListMetricsRequest()
        async for page in self._calls.pages(rpc.LIST_METRICS, request, seconds=seconds):
            for each in page.metrics:
                yield codec.metric(each)


def backfill_progress(message: simulator_pb2.BackfillHistoryResponse) -> BackfillProgress:
    """Return what a message says."""
    return BackfillProgress(
        done_time=codec.moment(message, "done_time"),
        sample_count=message.sample_count,
        bucket_count=message.bucket_count,
        raw_sample_count=message.raw_sample_count,
        done_ratio=message.done_ratio,
        resume_token=message.resume_token,
        done=message.done,
    )


async def backfill_replies(
    calls: Rpc, request: simulator_pb2.BackfillHistoryRequest, on_away: Away | None = None
) -> AsyncIterator[simulator_pb2.BackfillHistoryResponse]:
    """Yield the messages of a backfill, begun again where it was whenever its stream breaks; `request` is changed."""
    now = asyncio.get_running_loop().time
    known, done_nanos = False, 0
    broken: float | None = None

    async def begin() -> AsyncIterator[simulator_pb2.BackfillHistoryResponse]:
        try:
            async for reply in calls.stream(rpc.BACKFILL_HISTORY, request, seconds=None):
                yield reply
        except FailedPreconditionError as err:
            if known and err.reason == Reason.SIMULATION_RUNNING:
                raise UnavailableError("the broken backfill has not ended yet") from err
            raise

    def away(failure: OpenManagerError) -> None:
        nonlocal broken
        broken = now() if broken is None else broken
        if now() - broken > RESUME_SECONDS:
            raise failure
        if on_away is not None:
            on_away(failure)

    async with aclosing(closable(calls.resumed(begin, away))) as replies:
        async for reply in replies:
            known, before, done_nanos = True, done_nanos, reply.done_time.ToNanoseconds()
            broken = broken if done_nanos == before else None
            request.resume_token = reply.resume_token
            yield reply
            if reply.done:
                return


class Faults:
    """Injects faults into the simulation and ends them."""

    def __init__(self, calls: Rpc) -> None:
        self._calls = calls

    async def inject(
        self,
        pattern: str,
        servers: Sequence[str],
        *,
        start: datetime | int | None = None,
        end: datetime | int | None = None,
        severity: float = 0.0,
        request_id: str = "",
        seconds: float = DEADLINE_SECONDS,
    ) -> model.Fault:
        """Inject a fault from `start`, now unless given, to `end`, by the pattern's middle duration unless given.

        `severity` is more than 0 and at most 1; 0 stands for 0.8. Repeated with the same `request_id`, by default a
        new one, it returns what the first call returned.
        """
        wanted = simulator_pb2.Fault(pattern=codec.fault_pattern(pattern), servers=servers, severity=severity)
        if start is not None:
            wanted.start_time.CopyFrom(codec.timestamp(start, "start"))
        if end is not None:
            wanted.end_time.CopyFrom(codec.timestamp(end, "end"))
        request = simulator_pb2.InjectFaultRequest(fault=wanted, request_id=request_id or uuid.uuid4().hex)
        return codec.fault((await self._calls.call(rpc.INJECT_FAULT, request, seconds=seconds)).fault)

    async def list(
        self,
        *,
        start: datetime | int | None = None,
        end: datetime | int | None = None,
        active_only: bool = False,
        limit: int | None = None,
        seconds: float = DEADLINE_SECONDS,
    ) -> AsyncIterator[model.Fault]:
        """Yield faults that touch [start, end), newest start first: the last 24 h unless given."""
        request = simulator_pb2.ListFaultsRequest(active_only=active_only)
        if start is not None:
            request.start_time.CopyFrom(codec.timestamp(start, "start"))
        if end is not None:
            request.end_time.CopyFrom(codec.timestamp(end, "end"))
        async for page in self._calls.pages(rpc.LIST_FAULTS, request, limit=limit, seconds=seconds):
            for each in page.faults:
                yield codec.fault(each)

    async def clear(self, fault_id: str, *, seconds: float = DEADLINE_SECONDS) -> model.Fault:
        """End a fault now; NotFoundError, or FailedPreconditionError with FAULT_ENDED when it is over."""
        request = simulator_pb2.ClearFaultRequest(id=fault_id)
        return codec.fault((await self._calls.call(rpc.CLEAR_FAULT, request, seconds=seconds)).fault)
