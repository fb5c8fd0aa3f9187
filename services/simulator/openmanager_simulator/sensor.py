"""What sensors read: the values of a few servers, computed from their levels, noise and what counters follow.

Gauges are computed in float32, which holds what their sensors resolve, counters in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmanager_simulator.catalogue import COUNTER_DRIVERS, DRIVERS, Catalogue

Floats = NDArray[np.float64]
# What a metric's values are multiplied with, by the column of a server's sizes.
DRIVERS_SIZE = {"one": 0, "memory": 1, "disk": 2}
# A counter's own wiggle stays below the slowest season's growth in one tick, or it would fall.
_WIGGLE = 0.1


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

    def read(
        self,
        out: Floats,
        *,
        levels: Floats,
        noise: NDArray[np.float32],
        sizes: Floats,
        counters: Counters,
        interval: float,
    ) -> None:
        """Fill in the values of a few servers: float64[S, T, M].

        `levels` is float64[S, T, 6] in the order of DRIVERS, `noise` float32[S, T, M], standard normals, of which some
        are replaced by those that they are shared with; `sizes` float64[S, 3]; `interval` seconds from tick to tick.
        """
        for source, columns in self._shared:
            noise[:, :, columns] = noise[:, :, source]
        self._gauge(out, noise[:, :, : self._gauges], levels, sizes[:, self._size])
        self._count(out, noise[:, :, self._gauges :], counters, interval)
        self._derive(out, counters.since[:, :, 1])

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
