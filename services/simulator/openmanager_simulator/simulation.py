"""The values of a fleet at any tick, without what came before: the same seed gives the same values everywhere.

Everything is computed in blocks of ticks that begin at multiples of the block's length, so that a value never depends
on the window that was asked for. Levels of a server (processor, memory, disk, network, requests, response) follow the
seasons, its role, slow correlated noise, bursts and faults; metrics follow the levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from openmanager_simulator import noise as streams
from openmanager_simulator import season
from openmanager_simulator.catalogue import Catalogue
from openmanager_simulator.fault import (
    CPU_CAP,
    DISK_CAP,
    MEMORY_CAP,
    RESPONSE_CAP,
    SECOND,
    Fault,
    FaultPattern,
    Hit,
    effect,
    hits,
    retransmits,
)
from openmanager_simulator.fleet import Server, roles
from openmanager_simulator.noise import BLOCK, LATENT_BLOCK
from openmanager_simulator.schedule import Past, Schedule
from openmanager_simulator.sensor import Counters, Sensors

Floats = NDArray[np.float64]
_SLOT_SECONDS = 900
_GIB = float(1 << 30)
# Servers that are computed together, and blocks of one server: what there is of them in between stays in the cache.
_CHUNK = 16
_RUN = 8
# Blocks of slow noise that are made at once where many will be needed: each costs the same steps as one.
_LATENT_RUN = 16
# The mean of a burst's square over its quarter of an hour: its mean width of 0.35 times ∫ (16 (x (1 − x))²)² dx.
_BUMP_SQUARE = 0.35 * 256.0 / 630.0


class Simulation:
    """The fleet, or the part of it that begins at `first_server`, at ticks of `interval_nanos` since the epoch."""

    def __init__(
        self,
        *,
        fleet: Sequence[Server],
        catalogue: Catalogue,
        seed: int,
        interval_nanos: int,
        faults: Sequence[Fault] = (),
        schedule: bool = True,
        noise: Literal["normal", "table"] = "normal",
        first_server: int = 0,
    ) -> None:
        self._fleet = tuple(fleet)
        self._catalogue = catalogue
        self._seed = seed
        self._interval = interval_nanos
        self._schedule = schedule
        self._first = first_server
        self._index = {server.id: at for at, server in enumerate(self._fleet)}
        self._server = _Servers(self._fleet, seed, first_server)
        self._sensors = Sensors(catalogue)
        columns = self._sensors.columns
        self._noise = streams.Normals(seed) if noise == "normal" else streams.TableNormals(seed, columns)
        count = len(self._fleet)
        self._latents = streams.Blocks(lambda block: streams.latents(seed, first_server, count, block), 2)
        self._latent_runs = streams.Blocks(
            lambda run: streams.latents(seed, first_server, count, run * _LATENT_RUN, _LATENT_RUN), 2
        )
        self._told = self._tell(faults)

    def set_faults(self, faults: Sequence[Fault]) -> None:
        """Replace the faults that are not scheduled, and those that were and have been cleared."""
        # One assignment: whoever computes a block meanwhile finishes it with the faults it began with, and keeps it
        # where nobody looks any more.
        self._told = self._tell(faults)

    def _tell(self, faults: Sequence[Fault]) -> _Told:
        schedule = None
        if self._schedule:
            cleared = frozenset(fault.id for fault in faults if fault.origin == "scheduled")
            schedule = Schedule(self._seed, self._first, len(self._fleet), cleared)
        found = tuple(hit for fault in faults for hit in hits(fault) if hit.server in self._index)
        told = _Told(found, schedule)
        told.values = streams.Blocks(lambda block: self._make(block, told), 2)
        return told

    def times(self, tick: int, count: int) -> NDArray[np.int64]:
        """Return the times of ticks in nanoseconds: int64[T]."""
        return np.arange(tick, tick + count, dtype=np.int64) * self._interval

    def values(self, tick: int, count: int) -> Floats:
        """Return the values of ticks: float64[T, S, M]."""
        told = self._told
        blocks = range(tick // BLOCK, (tick + count - 1) // BLOCK + 1)
        parts: list[Floats] = []
        for block in blocks:
            first = max(tick - block * BLOCK, 0)
            last = min(tick + count - block * BLOCK, BLOCK)
            parts.append(told.values.get(block)[first:last])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def pieces(self, tick: int, count: int) -> Iterator[Piece]:
        """Yield the values of ticks piece by piece: all of a server's in the order of time, then the next one's.

        They are those of `values`, in much less time where nothing needs the whole fleet at once. The arrays of a piece
        hold until the next one is asked for.
        """
        first, last = tick // BLOCK, (tick + count - 1) // BLOCK + 1
        levels, counters = self._inputs(first, last - first, self._told)
        places = self._noise.places(self._first, len(self._fleet), first, last - first)
        scratch = _Scratch.of(1, min(_RUN, last - first) * BLOCK, self._sensors)
        for server in range(len(self._fleet)):
            some = slice(server, server + 1)
            for block in range(first, last, _RUN):
                at, size = block - first, min(_RUN, last - block)
                ticks, own = slice(at * BLOCK, (at + size) * BLOCK), scratch.part(1, size * BLOCK)
                self._noise.fill(places[some, at : at + size], own.noise)
                self._read(own, some, levels[some, ticks], counters.part(some, ticks))
                begin, end = max(tick - block * BLOCK, 0), min(tick + count - block * BLOCK, size * BLOCK)
                yield Piece(server, block * BLOCK + begin, own.gauges[0, begin:end], own.counts[0, begin:end])

    def _make(self, block: int, told: _Told) -> Floats:
        levels, counters = self._inputs(block, 1, told)
        places = self._noise.places(self._first, len(self._fleet), block, 1)
        whole = np.empty((BLOCK, len(self._fleet), self._sensors.columns))
        out = whole.transpose(1, 0, 2)
        scratch = _Scratch.of(min(_CHUNK, len(out)), BLOCK, self._sensors)
        for at in range(0, len(out), _CHUNK):
            some = slice(at, min(at + _CHUNK, len(out)))
            own = scratch.part(some.stop - at, BLOCK)
            self._noise.fill(places[some], own.noise)
            room = _Scratch(own.noise, out[some, :, : self._sensors.gauges], out[some, :, self._sensors.gauges :])
            self._read(room, some, levels[some], counters.part(some))
        return whole

    def _read(self, own: _Scratch, servers: slice, levels: Floats, counters: Counters) -> None:
        """Fill in the values of some servers whose noise is drawn."""
        self._sensors.read(
            own.gauges,
            own.counts,
            levels=levels,
            noise=own.noise,
            sizes=self._server.sizes[servers],
            counters=counters,
            interval=self._interval / SECOND,
        )

    def _inputs(self, block: int, count: int, told: _Told) -> tuple[Floats, Counters]:
        """Return the levels of the servers at some blocks of ticks, float64[S, T, 6], and what their counters follow."""
        times = self.times(block * BLOCK, count * BLOCK)
        felt = self._felt(told, int(times[0]), int(times[-1]))
        levels, counters = self._levels(self._slow(block, count), times, felt), self._counters(times, felt)
        if count > 1 and any(hit.pattern is FaultPattern.NETWORK_LATENCY for hit in felt.now):
            # Its seconds are added to what is left of earlier ones, and which those are depends on the block.
            blocks = np.split(times, count)
            felts = [self._felt(told, int(ticks[0]), int(ticks[-1])) for ticks in blocks]
            parts = [self._trouble(ticks, each) for ticks, each in zip(blocks, felts, strict=True)]
            counters = Counters(counters.since, np.concatenate(parts, axis=1))
        return levels.transpose(1, 0, 2), counters

    def _felt(self, told: _Told, start: int, end: int) -> _Felt:
        """Return what servers feel at some time in [start, end], and what is left of what was over before."""
        now = [hit for hit in told.hits if hit.start_nanos <= end and hit.end_nanos > start]
        past = Past.nothing(len(self._fleet))
        if told.schedule is not None:
            scheduled = told.schedule.hits(start, end)
            now += [hit for hit in scheduled if hit.server in self._index and hit.end_nanos > start]
            past = told.schedule.past(start)
        trouble, restart = past.trouble.copy(), past.restart.copy()
        for hit in told.hits:
            if hit.end_nanos <= start:
                at = self._index[hit.server]
                trouble[at] += retransmits(hit, np.asarray([start]))[0]
                if hit.pattern is FaultPattern.MEMORY_LEAK:
                    restart[at] = max(restart[at], hit.end_nanos)
        return _Felt(now, Past(trouble, restart))

    # ── levels ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _levels(self, own: Floats, times: NDArray[np.int64], felt: _Felt) -> Floats:
        """Return the levels of the servers: float64[T, S, 6] in the order of DRIVERS; `own` is their slow noise."""
        server = self._server
        seconds = times / float(SECOND)
        load = season.factor(seconds)[:, None]
        bursts = self._bursts(times)
        # How far the processor is from what the season asks of it, in standard deviations: what others correlate with.
        z_cpu = (0.2 * server.volatility * own[:, :, 0] + bursts - 1.0) / server.cpu_deviation
        z_memory = server.cpu_memory * z_cpu + server.cpu_memory_rest * own[:, :, 1]
        z_disk = server.memory_disk * z_memory + server.memory_disk_rest * own[:, :, 2]
        z_response = server.cpu_response * z_cpu + server.cpu_response_rest * own[:, :, 5]
        cpu = server.cpu * load * (1.0 + 0.2 * server.volatility * own[:, :, 0]) * bursts
        memory = server.memory * (1.0 + 0.1 * (load - 1.0)) + 4.0 * server.volatility * z_memory
        disk = server.disk_at(seconds) + 0.15 * z_disk
        network = np.maximum(0.05, load * (1.0 + 0.15 * own[:, :, 3]))
        requests = np.maximum(0.05, load * (1.0 + 0.15 * own[:, :, 4]))
        factor = np.ones_like(cpu)
        fault = np.zeros((3, *cpu.shape))
        for hit in felt.now:
            at, does = self._index[hit.server], effect(hit, times)
            fault[:, :, at] += (does.cpu, does.memory, does.disk)
            factor[:, at] = np.minimum(RESPONSE_CAP, factor[:, at] * does.response)
            network[:, at] = np.maximum(0.05, network[:, at] + does.network)
            requests[:, at] = np.maximum(0.05, requests[:, at] + does.network)
        np.minimum(fault, np.asarray((CPU_CAP, MEMORY_CAP, DISK_CAP))[:, None, None], out=fault)
        cpu = saturated(np.maximum(1.0, cpu) + fault[0])
        memory += fault[1]
        disk += fault[2]
        busy = np.maximum(0.0, cpu - 30.0) / 35.0
        response = server.response * (1.0 + busy * busy) * np.maximum(0.3, 1.0 + 0.1 * z_response) * factor
        return np.stack(
            (cpu, saturated(np.maximum(2.0, memory)), np.clip(disk, 1.0, 99.5), network, requests, response), axis=2
        )

    def _slow(self, block: int, count: int) -> Floats:
        """Return the slow noise of some blocks of ticks: float64[T, S, 6]."""
        tick, end = block * BLOCK, (block + count) * BLOCK
        size, made = (LATENT_BLOCK, self._latents) if count == 1 else (_LATENT_RUN * LATENT_BLOCK, self._latent_runs)
        parts = []
        while tick < end:
            at, first = divmod(tick, size)
            parts.append(made.get(at)[first : first + end - tick])
            tick += len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _bursts(self, times: NDArray[np.int64]) -> Floats:
        """Return the factor of bursts on the processor: float64[T, S]; each fills part of a quarter of an hour."""
        slots = times // (_SLOT_SECONDS * SECOND)
        share = (times - slots * (_SLOT_SECONDS * SECOND)) / float(_SLOT_SECONDS * SECOND)
        out = np.ones((len(times), len(self._fleet)))
        for slot in np.unique(slots).tolist():
            draws = self._server.burst_draws(int(slot))
            at = np.flatnonzero(slots == slot)
            x = (share[at][:, None] - draws[1] * 0.5) / (0.2 + 0.3 * draws[2])
            bump = np.where((x > 0.0) & (x < 1.0), 16.0 * (x * (1.0 - x)) ** 2, 0.0)
            burst = np.where(draws[0] < self._server.burst_probability, self._server.burst - 1.0, 0.0)
            out[at] = 1.0 + burst * bump
        return out

    # ── counters ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _counters(self, times: NDArray[np.int64], felt: _Felt) -> Counters:
        """Return what counters follow at times."""
        seconds = times / float(SECOND)
        whole = np.stack((season.integral(seconds), seconds), axis=1)
        boot = self._server.boot_seconds
        started = np.maximum(boot, felt.past.restart / float(SECOND))
        host = whole[:, None, :] - np.stack((season.integral(boot), boot), axis=1)[None, :, :]
        process = whole[:, None, :] - np.stack((season.integral(started), started), axis=1)[None, :, :]
        for hit in felt.now:
            if hit.pattern is FaultPattern.MEMORY_LEAK:
                at = self._index[hit.server]
                end = np.asarray([hit.end_nanos / SECOND])
                since = np.concatenate((season.integral(end), end))
                after = times >= hit.end_nanos
                process[after, at] = np.minimum(process[after, at], whole[after] - since)
        since = np.concatenate((host, process), axis=2).transpose(1, 0, 2)
        return Counters(since, self._trouble(times, felt))

    def _trouble(self, times: NDArray[np.int64], felt: _Felt) -> Floats:
        """Return the seconds of network trouble up to times: float64[S, T]."""
        trouble = np.tile(felt.past.trouble, (len(times), 1))
        for hit in felt.now:
            trouble[:, self._index[hit.server]] += retransmits(hit, times)
        return trouble.T


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Some ticks of a server, from `tick` on: its gauges float64[T, G] and its counters float64[T, C]."""

    server: int
    tick: int
    gauges: Floats
    counts: Floats


@dataclass(frozen=True, slots=True, eq=False)
class _Scratch:
    """Room for some ticks of a few servers, used again and again: while it is in the cache it costs little."""

    noise: NDArray[np.float32]
    gauges: Floats
    counts: Floats

    @classmethod
    def of(cls, servers: int, ticks: int, sensors: Sensors) -> _Scratch:
        """Return room for so many."""
        shape, gauges = (servers, ticks), sensors.gauges
        noise = np.empty((*shape, sensors.columns), np.float32)
        return cls(noise, np.empty((*shape, gauges)), np.empty((*shape, sensors.columns - gauges)))

    def part(self, servers: int, ticks: int) -> _Scratch:
        """Return room for fewer."""
        some = slice(servers), slice(ticks)
        return _Scratch(self.noise[some], self.gauges[some], self.counts[some])


@dataclass(slots=True, eq=False)
class _Told:
    """The faults that a simulation was told of, and the blocks of values that were made with them."""

    hits: tuple[Hit, ...]
    schedule: Schedule | None
    values: streams.Blocks = field(init=False)


@dataclass(frozen=True, slots=True, eq=False)
class _Felt:
    """The hits of a block of ticks, and what is left of earlier ones."""

    now: list[Hit]
    past: Past


def saturated(percent: Floats) -> Floats:
    """Return a level that approaches 100 softly from 70 on: x + 30·y/(30 + y) with y what is above 70."""
    above = np.maximum(0.0, percent - 70.0)
    return np.minimum(percent, 70.0) + 30.0 * above / (30.0 + above)


class _Servers:
    """What differs from server to server: arrays over S."""

    def __init__(self, fleet: Sequence[Server], seed: int, first: int) -> None:
        found = [roles()[server.role] for server in fleet]
        draws = np.stack([streams.generator("server", seed, first + at).random(8) for at in range(len(fleet))])
        self._seed = seed
        self._first = first
        self._count = len(fleet)
        self._burst_days = streams.Blocks(self._burst_day, 2)
        spread = 1.0 + 0.2 * (draws[:, 0] - 0.5)
        self.cpu = np.asarray([role.cpu for role in found]) * spread
        self.memory = np.asarray([role.memory for role in found]) * (1.0 + 0.1 * (draws[:, 1] - 0.5))
        self.volatility = np.asarray([role.volatility for role in found])
        self.burst = np.asarray([role.burst for role in found])
        self.burst_probability = np.asarray([role.burst_probability for role in found])
        steady, bursts = 0.2 * self.volatility, (self.burst - 1.0) ** 2 * self.burst_probability
        self.cpu_deviation = np.sqrt(steady * steady + _BUMP_SQUARE * bursts)
        self.response = 20.0 + 60.0 * draws[:, 2]
        for name in ("cpu_memory", "cpu_response", "memory_disk"):
            share = np.asarray([getattr(role, name) for role in found])
            setattr(self, name, share)
            setattr(self, f"{name}_rest", np.sqrt(1.0 - share * share))
        self._disk = np.asarray([role.disk for role in found])
        # Points a day; from its base a disk fills to 85 % in weeks or months and is then cleaned up.
        self._growth = 0.15 + 0.85 * draws[:, 3]
        self._phase = draws[:, 4]
        memory = _GIB * 2.0 ** (4.0 + np.floor(draws[:, 5] * 4.0))
        disk = _GIB * 2.0 ** (8.0 + np.floor(draws[:, 6] * 4.0))
        self.sizes = np.stack((np.ones(len(found)), memory, disk), axis=1)
        # Hosts were started in 2020, each on its own day.
        self.boot_seconds = 1_577_836_800.0 + np.floor(draws[:, 7] * 365.0) * 86_400.0

    cpu_memory: Floats
    cpu_memory_rest: Floats
    cpu_response: Floats
    cpu_response_rest: Floats
    memory_disk: Floats
    memory_disk_rest: Floats

    def disk_at(self, seconds: Floats) -> Floats:
        """Return how full the disks are at times, in percent: float64[T, S]; growing, and cleaned up when nearly full."""
        room = 85.0 - self._disk
        cycles = seconds[:, None] / 86_400.0 * self._growth / room + self._phase
        return self._disk + room * (cycles - np.floor(cycles))

    def burst_draws(self, slot: int) -> Floats:
        """Return three uniform numbers for each server in a quarter of an hour: float64[3, S]."""
        day, part = divmod(slot, 96)
        found: Floats = self._burst_days.get(day)[part]
        return found

    def _burst_day(self, day: int) -> Floats:
        """Return the draws of a day: float64[96, 3, S]."""
        draws = [
            streams.generator("burst", self._seed, self._first + at, day).random((96, 3)) for at in range(self._count)
        ]
        return np.stack(draws, axis=2)
