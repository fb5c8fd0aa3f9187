"""Ticks: at every epoch multiple of the interval the next values of the fleet, as frames for a writer.

While the mesh is away frames wait, a bounded number of them; then the oldest are dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from openmanager.errors import FailedPreconditionError, OpenManagerError, Reason
from openmanager.frame import Frame, split
from openmanager.runtime.clock import Clock
from openmanager.runtime.peer import backoff
from openmanager_simulator.catalogue import Catalogue
from openmanager_simulator.fault import Fault
from openmanager_simulator.fleet import Server, make_fleet
from openmanager_simulator.info import metric_infos, server_infos
from openmanager_simulator.memory import available_bytes, check_fits
from openmanager_simulator.simulation import Simulation

# What is known of servers and metrics goes with the first tick and with every so many after it.
INFO_TICKS = 60
# Ticks that are made at once for a stream or an advance: a frame of the default fleet stays well below its limit.
BATCH_BYTES = 1 << 20
_NANOS_PER_MILLI = 1_000_000

# INVALID_ARGUMENT, FAILED_PRECONDITION, OUT_OF_RANGE, UNIMPLEMENTED: the frame would be refused again.
_FINAL = {3, 9, 11, 12}
# A tick that is so many intervals late is not made any more.
CATCH_UP_TICKS = 32

log = logging.getLogger(__name__)


class Writer(Protocol):
    """Where frames go."""

    async def write(self, frame: Frame) -> int:
        """Write a frame and return the accepted samples; an OpenManagerError when it was not."""
        ...

    async def import_frames(self, frames: Iterator[Frame]) -> int:
        """Write frames whose times may lie in the future; return the accepted samples."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is simulated: servers, milliseconds between ticks, seed."""

    server_count: int
    interval_millis: int
    seed: int


@dataclass(slots=True, kw_only=True)
class Progress:
    """What has been done since the process started; times in nanoseconds."""

    running: bool = False
    tick_count: int = 0
    last_tick_nanos: int = 0
    dropped_frame_count: int = 0
    acknowledged_sample_count: int = 0
    last_error: str = ""
    waiting: deque[Frame] = field(default_factory=deque)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """What settings make. It is replaced as one: whoever is in the middle of a stream goes on with the one it began with."""

    interval_nanos: int
    fleet: tuple[Server, ...]
    catalogue: Catalogue
    simulation: Simulation
    servers: tuple[str, ...]
    metrics: tuple[str, ...]

    def batches(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """Yield the first tick, and the number, of what is made at once."""
        size = max(1, BATCH_BYTES // (len(self.servers) * len(self.metrics) * 8))
        for tick in range(first, first + count, size):
            yield tick, min(size, first + count - tick)

    def frames(self, tick: int, count: int, *, infos: bool) -> list[Frame]:
        """Return the frames of some ticks, with what is known of servers and metrics or without it (in a thread)."""
        whole = Frame(
            times=self.simulation.times(tick, count),
            servers=self.servers,
            metrics=self.metrics,
            values=self.simulation.values(tick, count),
            server_infos=server_infos(self.fleet) if infos else (),
            metric_infos=metric_infos(self.catalogue) if infos else (),
        )
        return list(split(whole))


class Ticker:
    """The running simulation of one fleet."""

    def __init__(
        self,
        *,
        settings: Settings,
        catalogue: Catalogue,
        writer: Writer,
        clock: Clock,
        jitter: random.Random,
        buffer_frames: int,
        make: Callable[[Settings, tuple[Server, ...], Sequence[Fault]], Simulation],
        available: Callable[[], int] = available_bytes,
    ) -> None:
        self.settings = settings
        self.catalogue = catalogue
        self.progress = Progress()
        self._writer = writer
        self._clock = clock
        self._jitter = jitter
        self._buffer_frames = buffer_frames
        self._make = make
        self._available = available
        self._faults: tuple[Fault, ...] = ()
        self._ready = asyncio.Event()
        self._ticking: asyncio.Task[None] | None = None
        self._info_in = 0
        # Starting, stopping and advancing exclude each other.
        self._changing = asyncio.Lock()
        self._advancing = False
        self._made = self._build(settings)

    def _build(self, settings: Settings) -> _Made:
        fleet = make_fleet(settings.server_count)
        return _Made(
            interval_nanos=settings.interval_millis * _NANOS_PER_MILLI,
            fleet=fleet,
            catalogue=self.catalogue,
            simulation=self._make(settings, fleet, self._faults),
            servers=tuple(server.id for server in fleet),
            metrics=tuple(metric.key for metric in self.catalogue.metrics),
        )

    @property
    def interval_nanos(self) -> int:
        """The nanoseconds between ticks."""
        return self._made.interval_nanos

    @property
    def fleet(self) -> tuple[Server, ...]:
        """The servers."""
        return self._made.fleet

    @property
    def simulation(self) -> Simulation:
        """What makes their values."""
        return self._made.simulation

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The injected faults."""
        return self._faults

    def set_faults(self, faults: Sequence[Fault]) -> None:
        """Replace the injected faults, from the next tick on."""
        self._faults = tuple(faults)
        self.simulation.set_faults(self._faults)

    # ── running ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self, settings: Settings) -> None:
        """Begin to tick.

        FailedPreconditionError when it ticks with other settings, or is advanced; ResourceExhaustedError for a fleet that
        the memory is too small for.
        """
        self._check_not_advancing()
        async with self._changing:
            if self.progress.running:
                if settings != self.settings:
                    raise FailedPreconditionError("stop the simulation first", reason=Reason.SIMULATION_RUNNING)
                return
            if settings.server_count > self.settings.server_count:
                check_fits(settings.server_count, len(self.catalogue.metrics), self._available())
            if settings != self.settings:
                faults = self._faults
                self._made = await asyncio.to_thread(self._build, settings)
                self.settings, self._info_in = settings, 0
                if faults is not self._faults:
                    self.simulation.set_faults(self._faults)
            self.progress.running = True
            self._ticking = asyncio.create_task(self._tick_forever())

    async def stop(self) -> None:
        """Stop ticking; what waits is still delivered."""
        if self._advancing:
            return  # nothing ticks
        async with self._changing:
            if self._ticking is not None:
                self._ticking.cancel()
                await asyncio.gather(self._ticking, return_exceptions=True)
                self._ticking = None
            self.progress.running = False

    def _check_not_advancing(self) -> None:
        if self._advancing:
            raise FailedPreconditionError("the simulation is being advanced", reason=Reason.SIMULATION_RUNNING)

    async def _tick_forever(self) -> None:
        last = 0
        while True:
            now = self._clock.now_nanos()
            here = now // self.interval_nanos
            # A machine that was too slow for a moment catches up; one that slept, or whose clock was set, goes on.
            due = last + 1 if here - CATCH_UP_TICKS <= last <= here else here + 1
            await asyncio.sleep(max(0, due * self.interval_nanos - now) / 1e9)
            try:
                infos = self._info_in <= 0
                frames = await asyncio.to_thread(self._made.frames, due, 1, infos=infos)
            except Exception as err:
                self.progress.last_error = f"a tick could not be made: {type(err).__name__}"
                log.exception("tick %d could not be made", due)
            else:
                self._info_in = INFO_TICKS if infos else self._info_in - 1
                for frame in frames:
                    self._buffer(frame)
                self.progress.tick_count += 1
                self.progress.last_tick_nanos = due * self.interval_nanos
            last = due

    def _buffer(self, frame: Frame) -> None:
        self.progress.waiting.append(frame)
        while len(self.progress.waiting) > self._buffer_frames:
            self.progress.waiting.popleft()
            self.progress.dropped_frame_count += 1
        self._ready.set()

    async def deliver(self) -> None:
        """Write what waits, oldest first, for ever."""
        attempt = 0
        while True:
            while not self.progress.waiting:
                self._ready.clear()
                await self._ready.wait()
            frame = self.progress.waiting[0]
            try:
                accepted = await self._writer.write(frame)
            except OpenManagerError as err:
                self._failed(frame, err)
                await asyncio.sleep(backoff(attempt, self._jitter.random(), cap=2.0).total_seconds())
                attempt += 1
                continue
            attempt = 0
            self.progress.last_error = ""
            self.progress.acknowledged_sample_count += accepted
            self._done(frame)

    def _failed(self, frame: Frame, err: OpenManagerError) -> None:
        if not self.progress.last_error:
            log.warning("frames wait: %s", err)
        self.progress.last_error = err.message
        self._info_in = 0
        if err.code in _FINAL:
            self.progress.dropped_frame_count += 1
            self._done(frame)

    def _done(self, frame: Frame) -> None:
        # It may have been dropped for a newer one while it was being written.
        if self.progress.waiting and self.progress.waiting[0] is frame:
            self.progress.waiting.popleft()

    # ── on demand ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def advance(self, count: int) -> None:
        """Make ticks at once, following on from the last one, and write them; nobody else's meanwhile."""
        self._check_not_advancing()
        if self.progress.running:
            raise FailedPreconditionError("stop the simulation first", reason=Reason.SIMULATION_RUNNING)
        self._advancing = True
        try:
            async with self._changing:
                await self._advance(count)
        finally:
            self._advancing = False

    async def _advance(self, count: int) -> None:
        last = self.progress.last_tick_nanos or self._clock.now_nanos()
        first = last // self.interval_nanos + (1 if self.progress.last_tick_nanos else 0)
        for tick, some in self._made.batches(first, count):
            frames = await asyncio.to_thread(self._made.frames, tick, some, infos=tick == first)
            self.progress.acknowledged_sample_count += await self._writer.import_frames(iter(frames))
            self.progress.tick_count += some
            self.progress.last_tick_nanos = (tick + some - 1) * self.interval_nanos

    async def frames_between(self, start: int, end: int) -> AsyncIterator[Frame]:
        """Yield the frames of [start, end) nanoseconds without writing them."""
        made = self._made
        first = -(-start // made.interval_nanos)
        last = -(-end // made.interval_nanos)
        for tick, some in made.batches(first, max(0, last - first)):
            for frame in await asyncio.to_thread(made.frames, tick, some, infos=tick == first):
                yield frame
