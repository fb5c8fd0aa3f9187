"""What sensors read: the values of a few servers, computed from their levels, noise and what counters follow.

Gauges are computed in float32, which holds what their sensors resolve, counters in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from openmanager_simulator.catalogue import COUNTER_DRIVERS, DRIVERS, Catalogue

Floats = NDArray[np.float64]
_Float = TypeVar("_Float", np.float32, np.float64)
# What a metric's values are multiplied with, by the column of a server's sizes.
DRIVERS_SIZE = {"one": 0, "memory": 1, "disk": 2}
# A counter's own wiggle stays below the slowest season's growth in one tick, or it would fall.
_WIGGLE = 0.1
# A core's whole time in units of 0.01 %.
_WHOLE = np.float32(1e4)


@dataclass(frozen=True, slots=True, eq=False)
class Counters:
    """What counters follow. `since`: float64[S, T, 4], season and time since the host and since the process started.

    `trouble`: float64[S, T], the seconds of network trouble so far, weighted by severity.
    """

    since: Floats
    trouble: Floats

    def part(self, servers: slice, ticks: slice = slice(None)) -> Counters:
        """Return those of some servers at some ticks."""
        return Counters(self.since[servers, ticks], self.trouble[servers, ticks])


class Sensors:
    """The catalogue as arrays, ready to be read for some ticks of a few servers: the gauges first, then the counters."""

    def __init__(self, catalogue: Catalogue) -> None:
        metrics = catalogue.metrics
        self.columns = len(metrics)
        self.gauges = sum(metric.kind == "gauge" for metric in metrics)
        if any(metric.kind != "gauge" for metric in metrics[: self.gauges]):
            raise ValueError("the catalogue lists its gauges first")
        resolution = catalogue.column("resolution")
        # Decimals are whole numbers divided by a power of ten, so that they are the nearest doubles.
        units = np.where(resolution < 1.0, np.rint(1.0 / resolution), 1.0 / resolution)
        gauge, counter = slice(None, self.gauges), slice(self.gauges, None)
        self._gauge_units, self._counter_units = units[gauge], units[counter]
        self._size = [DRIVERS_SIZE[metric.size] for metric in metrics[gauge]]
        low = np.asarray([-np.inf if m.minimum is None else m.minimum for m in metrics]) * units
        high = np.asarray([np.inf if m.maximum is None else m.maximum for m in metrics]) * units
        if (low[gauge] < 0.0).any() or (low != np.rint(low))[gauge].any() or (high != np.rint(high))[gauge].any():
            raise ValueError("a gauge is bounded by multiples of its resolution, and not below 0")
        self._low, self._high = low[gauge].astype(np.float32), high[gauge].astype(np.float32)
        self._offset = (catalogue.column("offset") * units)[gauge]
        self._scale = (catalogue.column("scale") * units)[gauge]
        self._noise = catalogue.column("noise")[gauge].astype(np.float32)
        self._driver = _one_hot([DRIVERS.index(m.driver) for m in metrics[gauge]], len(DRIVERS)).astype(np.float32)
        self._rate = (catalogue.column("scale") * units)[counter]
        self._wiggle = np.where(catalogue.column("noise") > 0, _WIGGLE, 0.0)[counter]
        self._trouble = (catalogue.column("fault_rate") * units)[counter]
        count = len(COUNTER_DRIVERS)
        self._since = _one_hot(
            [COUNTER_DRIVERS.index(m.driver) + count * m.resets for m in metrics[counter]], 2 * count
        )
        self._shared = _shared_noise(catalogue)
        self._derived = {m.derived: at for at, m in enumerate(metrics) if m.derived}
        self._shares = _states(catalogue, "system.cpu.utilization")
        self._times = _states(catalogue, "system.cpu.time", self.gauges)
        self._memory = _states(catalogue, "system.memory.usage")[0]
        used = [m for m in metrics if m.name == "system.memory.usage"]
        self._memory_used = [m.attributes["state"] for m in used].index("used")
        self._filesystems = _columns(catalogue.where(name="system.filesystem.utilization"))

    def read(
        self,
        gauges: Floats,
        counts: Floats,
        *,
        levels: Floats,
        noise: NDArray[np.float32],
        sizes: Floats,
        counters: Counters,
        interval: float,
    ) -> None:
        """Fill in the values of the gauges, float64[S, T, G], and of the counters, float64[S, T, C].

        `levels` is float64[S, T, 6] in the order of DRIVERS, `noise` float32[S, T, G + C], standard normals, of which
        some are replaced by those that they are shared with; `sizes` float64[S, 3]; `interval` seconds between ticks.
        """
        sources, targets = self._shared
        shared = noise[:, :, targets].reshape(*noise.shape[:2], -1, sources.stop - sources.start)
        shared[:] = noise[:, :, None, sources]
        # In units of their resolution all values are whole, which is why what is derived from them is derived here.
        whole = self._gauge(noise[:, :, : self.gauges], levels, sizes[:, self._size])
        self._derive_shares(whole)
        np.divide(whole, self._gauge_units, out=gauges)
        counted = self._count(noise[:, :, self.gauges :], counters, interval)
        self._derive_times(counted, counters.since[:, :, 1])
        np.divide(counted, self._counter_units, out=counts)

    def _gauge(self, noise: NDArray[np.float32], levels: Floats, sizes: Floats) -> NDArray[np.float32]:
        """Return size · (offset + scale · level · (1 + noise · n)), rounded, in units."""
        scales = (self._scale * sizes).astype(np.float32)[:, None, :]
        # Each sum has one term that is not 0, so that it is exact, and much faster than to look levels up.
        value = np.matmul(levels.astype(np.float32, "C"), self._driver * scales)
        factor = noise * self._noise
        factor += np.float32(1.0)
        value *= factor
        value += (self._offset * sizes).astype(np.float32)[:, None, :]
        # The bounds are whole and not negative: rounding keeps to them, and leaves no −0.0, which no sensor reads.
        np.maximum(value, self._low, out=value)
        np.minimum(value, self._high, out=value)
        np.rint(value, out=value)
        found: NDArray[np.float32] = value
        return found

    def _count(self, noise: NDArray[np.float32], counters: Counters, interval: float) -> Floats:
        """Return rate · (time or season since the start + wiggle) and what faults add, rounded, in units."""
        steady = np.clip(noise, np.float32(-3.0), np.float32(3.0))
        steady *= np.float32(1.0 / 6.0)
        steady += np.float32(0.5)
        steady *= (self._wiggle * interval).astype(np.float32)
        value = np.matmul(np.ascontiguousarray(counters.since), self._since)
        value += steady
        value *= self._rate
        if counters.trouble.any():
            value += self._trouble * counters.trouble[:, :, None]
        if counters.since.min() < 0.0:
            np.maximum(value, 0.0, out=value)
        np.rint(value, out=value)
        found: Floats = value
        return found

    def _derive_shares(self, gauges: NDArray[np.float32]) -> None:
        """Make each core's states its whole time, and the headline percentages what the detailed metrics add up to."""
        shares = _by_state(gauges, *self._shares)
        busy = _added(shares[:, :, :-1])
        if (full := busy >= _WHOLE).any():
            busy[full] = self._within(shares, np.nonzero(full))
        rest = _WHOLE - busy
        shares[:, :, -1] = rest
        idle = np.divide(rest, 1e4, dtype=np.float64).mean(axis=2)
        states = gauges[:, :, self._memory].astype(np.float64)
        memory = states[:, :, self._memory_used] / states.sum(axis=2)
        for name, share in (("cpu", 1.0 - idle), ("memory", memory)):
            gauges[:, :, self._derived[name]] = np.clip(np.rint(share * 1e4), 0.0, 1e4)
        gauges[:, :, self._derived["disk"]] = gauges[:, :, self._filesystems].max(axis=2)

    def _within(self, shares: NDArray[np.float32], at: tuple[NDArray[np.int64], ...]) -> NDArray[np.float32]:
        """Make the busy states of some cores at most the whole, and return their sums: float32[K]."""
        server, tick, core = at
        units = shares[server, tick, :-1, core]
        states = units.astype(np.float64) / 1e4
        taken = states[:, 0] + states[:, 1] + states[:, 2]
        units = np.where(taken[:, None] > 1.0, np.floor(states / taken[:, None] * 1e4), units).astype(np.float32)
        shares[server, tick, :-1, core] = units
        found: NDArray[np.float32] = units.sum(axis=1)
        return found

    def _derive_times(self, counts: Floats, uptime: Floats) -> None:
        """Make the states of each core its whole time."""
        times = _by_state(counts, *self._times)
        idle = np.rint(uptime * 1e2)[:, :, None] - _added(times[:, :, :-1])
        np.maximum(idle, 0.0, out=times[:, :, -1])


def _one_hot(columns: list[int], count: int) -> Floats:
    """Return a matrix that chooses one of `count` numbers for each column: float64[count, len(columns)]."""
    return np.asarray(np.arange(count)[:, None] == np.asarray(columns), np.float64)


def _shared_noise(catalogue: Catalogue) -> tuple[slice, slice]:
    """Return, for metrics that share their noise, the columns it is taken from and those it is copied to, in turn."""
    first: dict[str, int] = {}
    pairs = []
    for at, metric in enumerate(catalogue.metrics):
        if metric.noise_group:
            source = first.setdefault(metric.noise_group, at)
            if source != at:
                pairs.append((source, at))
    columns = np.asarray(pairs, np.int64).reshape(-1, 2)
    sources, targets = _columns(np.unique(columns[:, 0])), _columns(columns[:, 1])
    size = sources.stop - sources.start
    if (columns[:, 0] != sources.start + np.arange(len(columns)) % size).any() or len(columns) % size:
        raise ValueError("the catalogue lists what shares its noise in the same order each time")
    return sources, targets


def _columns(indices: NDArray[np.int64]) -> slice:
    """Return indices that follow each other as a slice, whose view of an array costs nothing."""
    if (np.diff(indices) != 1).any():
        raise ValueError("the catalogue lists what is alike one after the other")
    return slice(int(indices[0]), int(indices[-1]) + 1)


def _states(catalogue: Catalogue, name: str, first: int = 0) -> tuple[slice, int]:
    """Return the columns, from `first` on, of a metric that is listed by state and then by what has the states.

    And how many states there are.
    """
    states = [m.attributes["state"] for m in catalogue.metrics if m.name == name]
    if "idle" in states and states[-1] != "idle":
        raise ValueError("the catalogue lists a metric's idle state last")
    return _columns(catalogue.where(name=name) - first), len(set(states))


def _by_state(values: NDArray[_Float], columns: slice, states: int) -> NDArray[_Float]:
    """Return a view of some columns: […, states, what has them]."""
    return values[:, :, columns].reshape(*values.shape[:2], states, -1)


def _added(states: NDArray[_Float]) -> NDArray[_Float]:
    """Return the sums over the states of [S, T, states, K]; faster than `sum`, which takes them bit by bit."""
    found: NDArray[_Float] = states[:, :, 0] + states[:, :, 1]
    for at in range(2, states.shape[2]):
        found += states[:, :, at]
    return found
