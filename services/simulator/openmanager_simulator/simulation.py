"""The values of a fleet at any tick, without what came before: the same seed gives the same values everywhere.

Everything is computed in blocks of ticks that begin at multiples of the block's length, so that a value never depends
on the window that was asked for. Levels of a server (processor, memory, disk, network, requests, response) follow the
seasons, its role, slow correlated noise, bursts and faults; metrics follow the levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from openmanager_simulator import noise as streams
from openmanager_simulator import season
from openmanager_simulator.catalogue import COUNTER_DRIVERS, DRIVERS, Catalogue
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

Floats = NDArray[np.float64]
_SLOT_SECONDS = 900
_GIB = float(1 << 30)
# Servers that are computed together.
_CHUNK = 8
# What a metric's values are multiplied with, by the column of `_Servers.sizes`.
DRIVERS_SIZE = {"one": 0, "memory": 1, "disk": 2}
# The mean of a burst's square over its quarter of an hour: its mean width of 0.35 times ∫ (16 (x (1 − x))²)² dx.
_BUMP_SQUARE = 0.35 * 256.0 / 630.0
# A counter's own wiggle stays below the slowest season's growth in one tick, or it would fall.
_WIGGLE = 0.1


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
        self._metrics = _Metrics(catalogue)
        draw = streams.normals if noise == "normal" else streams.table_normals
        count, columns = len(self._fleet), self._metrics.columns
        self._noise = streams.Blocks(lambda block: draw(seed, first_server, count, columns, block), 2)
        self._latents = streams.Blocks(lambda block: streams.latents(seed, first_server, count, block), 2)
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

    def _make(self, block: int, told: _Told) -> Floats:
        times = self.times(block * BLOCK, BLOCK)
        felt = self._felt(told, int(times[0]), int(times[-1]))
        levels = self._levels(block, times, felt)
        return self._metrics.values(
            levels=levels.transpose(1, 0, 2),
            noise=self._noise.get(block),
            servers=self._server,
            counters=self._counters(times, felt),
            interval=self._interval / SECOND,
        )

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

    def _levels(self, block: int, times: NDArray[np.int64], felt: _Felt) -> Floats:
        """Return the levels of the servers: float64[T, S, 6] in the order of DRIVERS."""
        server = self._server
        seconds = times / float(SECOND)
        load = season.factor(seconds)[:, None]
        own, bursts = self._slow(block), self._bursts(times)
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

    def _slow(self, block: int) -> Floats:
        """Return the slow noise of a block: float64[BLOCK, S, 6]."""
        tick = block * BLOCK
        first = tick % LATENT_BLOCK
        return self._latents.get(tick // LATENT_BLOCK)[first : first + BLOCK]

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
        trouble = np.tile(felt.past.trouble, (len(times), 1))
        for hit in felt.now:
            at = self._index[hit.server]
            trouble[:, at] += retransmits(hit, times)
            if hit.pattern is FaultPattern.MEMORY_LEAK:
                end = np.asarray([hit.end_nanos / SECOND])
                since = np.concatenate((season.integral(end), end))
                after = times >= hit.end_nanos
                process[after, at] = np.minimum(process[after, at], whole[after] - since)
        return Counters(np.concatenate((host, process), axis=2).transpose(1, 0, 2), trouble.T)


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


@dataclass(frozen=True, slots=True, eq=False)
class Counters:
    """What counters follow. `since`: float64[S, T, 4], season and time since the host and since the process started.

    `trouble`: float64[S, T], the seconds of network trouble so far, weighted by severity.
    """

    since: Floats
    trouble: Floats

    def part(self, servers: slice) -> Counters:
        """Return those of some servers."""
        return Counters(self.since[servers], self.trouble[servers])


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


class _Metrics:
    """The catalogue as arrays, ready to be computed for a block at once: the gauges first, then the counters.

    Gauges are computed in float32, which holds what their sensors resolve, counters in float64. Servers are taken a few
    at a time, so that the intermediate arrays stay in the processor's cache.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        metrics = catalogue.metrics
        self.columns = len(metrics)
        self._gauges = sum(metric.kind == "gauge" for metric in metrics)
        if any(metric.kind != "gauge" for metric in metrics[: self._gauges]):
            raise ValueError("the catalogue lists its gauges first")
        resolution = catalogue.column("resolution")
        # Decimals are whole numbers divided by a power of ten, so that they are the nearest doubles.
        self._units = np.where(resolution < 1.0, np.rint(1.0 / resolution), 1.0 / resolution)
        self._size = [DRIVERS_SIZE[metric.size] for metric in metrics[: self._gauges]]
        gauge, counter = slice(None, self._gauges), slice(self._gauges, None)
        low = np.asarray([-np.inf if m.minimum is None else m.minimum for m in metrics]) * self._units
        high = np.asarray([np.inf if m.maximum is None else m.maximum for m in metrics]) * self._units
        self._low, self._high = low[gauge].astype(np.float32), high[gauge].astype(np.float32)
        self._offset = (catalogue.column("offset") * self._units)[gauge]
        self._scale = (catalogue.column("scale") * self._units)[gauge]
        self._noise = catalogue.column("noise")[gauge].astype(np.float32)
        self._driver = np.asarray([DRIVERS.index(m.driver) for m in metrics[gauge]])
        self._rate = (catalogue.column("scale") * self._units)[counter]
        self._wiggle = np.where(catalogue.column("noise") > 0, _WIGGLE, 0.0)[counter]
        self._trouble = (catalogue.column("fault_rate") * self._units)[counter]
        self._since = np.asarray(
            [COUNTER_DRIVERS.index(m.driver) + len(COUNTER_DRIVERS) * m.resets for m in metrics[counter]]
        )
        self._shared = _shared_noise(catalogue)
        self._derived = {m.derived: at for at, m in enumerate(metrics) if m.derived}
        self._shares = _states(catalogue, "system.cpu.utilization")
        self._times = _states(catalogue, "system.cpu.time")
        self._memory = _states(catalogue, "system.memory.usage")[0]
        used = [m for m in metrics if m.name == "system.memory.usage"]
        self._memory_used = [m.attributes["state"] for m in used].index("used")
        self._filesystems = _columns(catalogue.where(name="system.filesystem.utilization"))

    def values(
        self, *, levels: Floats, noise: NDArray[np.float32], servers: _Servers, counters: Counters, interval: float
    ) -> Floats:
        """Return the values of a block: float64[T, S, M]. `levels` is float64[S, T, 6], `noise` float32[S, T, M]."""
        whole = np.empty((noise.shape[1], noise.shape[0], noise.shape[2]))
        out = whole.transpose(1, 0, 2)
        for at in range(0, len(out), _CHUNK):
            some = slice(at, at + _CHUNK)
            own = noise[some]
            for source, columns in self._shared:
                own[:, :, columns] = own[:, :, source]
            sizes = servers.sizes[some][:, self._size]
            self._gauge(out[some], own[:, :, : self._gauges], levels[some], sizes)
            self._count(out[some], own[:, :, self._gauges :], counters.part(some), interval)
            self._derive(out[some], counters.part(some).since[:, :, 1])
        return whole

    def _gauge(self, out: Floats, noise: NDArray[np.float32], levels: Floats, sizes: Floats) -> None:
        """Fill in size · (offset + scale · level · (1 + noise · n)), rounded."""
        value = np.take(levels.astype(np.float32), self._driver, axis=2)
        value *= (self._scale * sizes).astype(np.float32)[:, None, :]
        factor = noise * self._noise
        factor += np.float32(1.0)
        value *= factor
        value += (self._offset * sizes).astype(np.float32)[:, None, :]
        np.rint(value, out=value)
        np.maximum(value, self._low, out=value)
        np.minimum(value, self._high, out=value)
        value += np.float32(0.0)  # −0.0 is no reading of a sensor
        np.divide(value, self._units[: self._gauges], out=out[:, :, : self._gauges])

    def _count(self, out: Floats, noise: NDArray[np.float32], counters: Counters, interval: float) -> None:
        """Fill in rate · (time or season since the start + wiggle) and what faults add, rounded."""
        value = np.take(counters.since, self._since, axis=2)
        steady = np.clip(noise, np.float32(-3.0), np.float32(3.0))
        steady *= np.float32(1.0 / 6.0)
        steady += np.float32(0.5)
        steady *= (self._wiggle * interval).astype(np.float32)
        value += steady
        value *= self._rate
        if counters.trouble.any():
            value += self._trouble * counters.trouble[:, :, None]
        np.maximum(value, 0.0, out=value)
        np.rint(value, out=value)
        np.divide(value, self._units[self._gauges :], out=out[:, :, self._gauges :])

    def _derive(self, out: Floats, uptime: Floats) -> None:
        """Make the headline percentages what the detailed metrics add up to, and each core's states its whole time."""
        shares = _by_state(out, *self._shares)
        busy = shares[:, :, :-1].sum(axis=2)
        if (over := busy > 1.0).any():
            within = np.floor(shares[:, :, :-1] / np.maximum(busy, 1.0)[:, :, None] * 1e4) / 1e4
            shares[:, :, :-1] = np.where(over[:, :, None, :], within, shares[:, :, :-1])
            busy = shares[:, :, :-1].sum(axis=2)
        shares[:, :, -1] = np.rint((1.0 - busy) * 1e4) / 1e4
        idle = shares[:, :, -1].mean(axis=2)
        times = _by_state(out, *self._times)
        worked = times[:, :, :-1].sum(axis=2)
        times[:, :, -1] = np.rint(np.maximum(0.0, uptime[:, :, None] - worked) * 1e2) / 1e2
        states = out[:, :, self._memory]
        memory = states[:, :, self._memory_used] / states.sum(axis=2)
        disk = out[:, :, self._filesystems].max(axis=2)
        for name, share in (("cpu", 1.0 - idle), ("memory", memory), ("disk", disk)):
            at = self._derived[name]
            out[:, :, at] = np.clip(np.rint(share * 10_000.0) / 100.0, 0.0, 100.0)


def _shared_noise(catalogue: Catalogue) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return, for metrics that share their noise, the columns it is taken from and those it is copied to."""
    first: dict[str, int] = {}
    pairs = []
    for at, metric in enumerate(catalogue.metrics):
        if metric.noise_group:
            source = first.setdefault(metric.noise_group, at)
            if source != at:
                pairs.append((source, at))
    columns = np.asarray(pairs, np.int64).reshape(-1, 2)
    return [(columns[:, 0], columns[:, 1])] if len(columns) else []


def _columns(indices: NDArray[np.int64]) -> slice:
    """Return indices that follow each other as a slice, whose view of an array costs nothing."""
    if (np.diff(indices) != 1).any():
        raise ValueError("the catalogue lists what is alike one after the other")
    return slice(int(indices[0]), int(indices[-1]) + 1)


def _states(catalogue: Catalogue, name: str) -> tuple[slice, int]:
    """Return the columns of a metric that is listed by state and then by what has the states, and how many states."""
    states = [m.attributes["state"] for m in catalogue.metrics if m.name == name]
    if "idle" in states and states[-1] != "idle":
        raise ValueError("the catalogue lists a metric's idle state last")
    return _columns(catalogue.where(name=name)), len(set(states))


def _by_state(values: Floats, columns: slice, states: int) -> Floats:
    """Return a view of some columns: float64[…, states, what has them]."""
    return values[:, :, columns].reshape(*values.shape[:2], states, -1)
