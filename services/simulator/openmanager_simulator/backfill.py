"""History as if the fleet had ticked all along: made by other processes, written straight into the tiers.

What is under way is bounded; what is done is known by time, and an interrupted backfill goes on from there.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from openmanager import page
from openmanager.errors import FailedPreconditionError, InvalidArgumentError, Reason, UnavailableError, invalid
from openmanager.frame import NANOS_PER_MILLI
from openmanager.runtime.clock import Clock
from openmanager_simulator.crew import Crew, open_crew, worker_count
from openmanager_simulator.plan import Plan, Tier, Unit, make_plan
from openmanager_simulator.ticker import Settings, Ticker
from openmanager_simulator.worker import Job

PROGRESS_SECONDS = 1.0
# Requests that are sent and not answered: more than are gathered for one file on the other side, which answers a file's
# requests together, and early only when none come for a while.
UNDER_WAY = 64
_HOUR = 3600 * 10**9


class HistoryStore(Protocol):
    """Where history is written to."""

    async def list_tiers(self) -> tuple[int, tuple[Tier, ...]]:
        """Return for how long samples are kept, in nanoseconds, and the rollup tiers, the finest first."""
        ...

    def import_rollups(self, requests: AsyncIterator[bytes]) -> AsyncGenerator[int, None]:
        """Send requests of ImportRollups; yield of each how many buckets were taken."""
        ...

    def import_frames(self, requests: AsyncIterator[bytes]) -> AsyncGenerator[int, None]:
        """Send requests of ImportFrames; yield of each how many samples were taken."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What somebody asks for: [start, end) in nanoseconds, 0 for the last whole hour; with samples if `raw`."""

    start: int
    end: int
    raw: bool
    resume_token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far it has come, in nanoseconds and numbers: everything of [start, end) before `done_time` is durable."""

    start: int
    end: int
    done_time: int
    sample_count: int = 0
    bucket_count: int = 0
    raw_sample_count: int = 0
    done: bool = False
    resume_token: str = ""

    @property
    def done_ratio(self) -> float:
        """The share of the work that is done."""
        return (self.done_time - self.start) / (self.end - self.start) if self.end > self.start else 1.0


class Backfill:
    """Writes the history of the running simulation's fleet, one range at a time."""

    def __init__(
        self, *, ticker: Ticker, store: HistoryStore, clock: Clock, noise: Literal["normal", "table"], schedule: bool
    ) -> None:
        self._ticker = ticker
        self._store = store
        self._clock = clock
        self._noise = noise
        self._schedule = schedule
        self._running = False

    async def run(self, wanted: Wanted) -> AsyncGenerator[Progress, None]:
        """Do it, and yield how far it has come: at once, every second, and when it is done.

        FailedPreconditionError, reason SIMULATION_RUNNING, while another one runs.
        """
        if self._running:
            raise FailedPreconditionError("a backfill is under way", reason=Reason.SIMULATION_RUNNING)
        self._running = True
        try:
            settings = self._ticker.settings
            key = ("backfill", wanted.start, wanted.end, wanted.raw, settings)
            progress = _resumed(key, wanted.resume_token) or self._fresh(wanted)
            job = await self._job(settings, progress, raw=wanted.raw)
            run = _Run(self._store, job, _without_unkept(progress, job.plan, fresh=not wanted.resume_token))
            async with aclosing(run.watched()) as steps:
                async for step in steps:
                    yield step if step.done else replace(step, resume_token=_token(key, step))
        finally:
            self._running = False

    def _fresh(self, wanted: Wanted) -> Progress:
        end = wanted.end or self._clock.now_nanos() // _HOUR * _HOUR
        if wanted.start >= end:
            raise invalid("start_time", "must be before end_time, or, without one, before the last whole hour")
        return Progress(start=wanted.start, end=end, done_time=wanted.start)

    async def _job(self, settings: Settings, progress: Progress, *, raw: bool) -> Job:
        now = self._clock.now_nanos()
        raw_retention, tiers = await self._store.list_tiers()
        interval = settings.interval_millis * NANOS_PER_MILLI
        plan = make_plan(
            start=progress.done_time,
            end=progress.end,
            now=now,
            tiers=tiers,
            raw=raw,
            raw_retention=raw_retention,
            server_count=settings.server_count,
            metric_count=len(self._ticker.catalogue.metrics),
            interval=interval,
        )
        return Job(
            interval=interval,
            metric_count=len(self._ticker.catalogue.metrics),
            seed=settings.seed,
            noise=self._noise,
            schedule=self._schedule,
            faults=self._ticker.faults,
            tiers=tiers,
            now=now,
            plan=plan,
        )


def _without_unkept(progress: Progress, plan: Plan, *, fresh: bool) -> Progress:
    """Return where a plan begins: what no tier would keep needs not be done."""
    begin = plan.segments[0].start if plan.segments else progress.end
    return replace(progress, start=begin if fresh else progress.start, done_time=max(begin, progress.done_time))


class _Run:
    """One call: the units of a plan on their way from the workers to the store."""

    def __init__(self, store: HistoryStore, job: Job, progress: Progress) -> None:
        self._store = store
        self._job = job
        self._progress = progress
        self._crew: Crew
        # In the order of the plan: the units that are not durable yet.
        self._units: deque[_UnderWay] = deque()

    async def watched(self) -> AsyncGenerator[Progress, None]:
        """Work, and yield how far it has come: at once, every second, and at the end."""
        work = asyncio.create_task(self._work())
        try:
            while not work.done():
                yield self._progress
                await asyncio.wait((work,), timeout=PROGRESS_SECONDS)
            work.result()
            yield replace(self._progress, done_time=self._progress.end, done=True)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _work(self) -> None:
        if not self._job.plan.segments:
            return
        units = enumerate(self._job.plan.units())
        async with open_crew(self._job, worker_count()) as self._crew:
            for raw, alike in itertools.groupby(units, key=lambda each: each[1].raw):
                await self._send(alike, raw=raw)

    async def _send(self, units: Iterable[tuple[int, Unit]], *, raw: bool) -> None:
        """Send what is made of some units on one stream."""
        slots, sent = asyncio.Semaphore(UNDER_WAY), deque[_UnderWay]()

        async def requests() -> AsyncIterator[bytes]:
            for number, unit in units:
                under_way = _UnderWay(unit)
                self._units.append(under_way)
                async for request in self._crew.requests(number):
                    await slots.acquire()
                    under_way.unanswered += 1
                    sent.append(under_way)
                    yield request
                under_way.made = True
                self._settle()

        method = self._store.import_frames if raw else self._store.import_rollups
        async with aclosing(method(requests())) as answers:
            async for accepted in answers:
                slots.release()
                sent.popleft().unanswered -= 1
                self._count(**{"raw_sample_count" if raw else "bucket_count": accepted})
                self._settle()
        if self._units:
            raise UnavailableError("the import ended before everything was answered")

    def _samples(self, unit: Unit) -> int:
        ticks = -(-unit.end // self._job.interval) - -(-unit.start // self._job.interval)
        return ticks * unit.server_count * self._job.metric_count

    def _count(self, **more: int) -> None:
        sums = {name: getattr(self._progress, name) + number for name, number in more.items()}
        self._progress = replace(self._progress, **sums)

    def _settle(self) -> None:
        while self._units and self._units[0].made and not self._units[0].unanswered:
            unit = self._units.popleft().unit
            self._count(sample_count=self._samples(unit))
            if unit.ends:
                self._progress = replace(self._progress, done_time=unit.end)


@dataclass(slots=True)
class _UnderWay:
    """A unit whose requests are being sent: how many are not answered, and whether there are no more."""

    unit: Unit
    unanswered: int = 0
    made: bool = False


# ── the token ──────────────────────────────────────────────────────────────────────────────────────────────────────

_TOKEN = ("start", "end", "done_time", "sample_count", "bucket_count", "raw_sample_count")
_DIGITS = 19


def _token(key: tuple[Any, ...], progress: Progress) -> str:
    return page.encode_token(key, [str(getattr(progress, name)) for name in _TOKEN])


def _resumed(key: tuple[Any, ...], token: str) -> Progress | None:
    """Return what a token says; InvalidArgumentError unless it is one of the same request, None when it is empty."""
    try:
        found = page.decode_token(key, token, len(_TOKEN))
    except InvalidArgumentError as err:
        raise _not_ours() from err
    if found is None:
        return None
    if not all(part.isascii() and part.isdigit() and len(part) <= _DIGITS for part in found):
        raise _not_ours()
    numbers: dict[str, Any] = dict(zip(_TOKEN, map(int, found), strict=True))
    progress = Progress(**numbers)
    if not progress.start <= progress.done_time <= progress.end:
        raise _not_ours()
    return progress


def _not_ours() -> InvalidArgumentError:
    return invalid("resume_token", "is not one of this request")
