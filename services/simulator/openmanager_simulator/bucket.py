"""Buckets made from ticks while their values are still in the processor's cache, and coarser ones made from them.

The numbers are those of `openmanager.rollup`, bit for bit: sums are made tick by tick in the order of time.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmanager.rollup import between, settle

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Buckets:
    """The buckets of S servers that have ticks: `times` int64[B], their starts, `counts` int64[B], their ticks.

    `columns` are min, max, sum and last of all metrics, float64[B, S, M], and first and growth of the counters alone,
    which come after the gauges: float64[B, S, C].
    """

    times: Ints
    counts: Ints
    columns: Mapping[str, Floats]


class Tally:
    """Makes the buckets of a span of ticks: `times` int64[T], nanoseconds, of which every server has all."""

    def __init__(self, times: Ints, width: int, servers: int, metrics: int, gauges: int) -> None:
        starts = times // width * width
        self._times, begins, self._counts = np.unique(starts, return_index=True, return_counts=True)
        self._edges = [*begins.tolist(), len(times)]
        self._gauges = gauges
        shape, counters = (len(begins), servers, metrics), (len(begins), servers, metrics - gauges)
        self._low, self._high, self._sum, self._last = (np.empty(shape) for _ in range(4))
        self._first = np.empty(counters)
        self._falls: list[tuple[Ints, Floats]] = []

    def add(self, server: int, first: int, values: Floats) -> None:
        """Add the values of a server, float64[T, M], from tick `first` of the span on: each server's in the order of time."""
        at = int(np.searchsorted(self._edges, first, side="right")) - 1
        self._restarts(server, first, at, values)
        begin, end = first, first + len(values)
        while begin < end:
            stop = min(end, self._edges[at + 1])
            rows = values[begin - first : stop - first]
            self._extend(at, server, rows, fresh=begin == self._edges[at])
            at, begin = at + 1, stop

    def _extend(self, at: int, server: int, rows: Floats, *, fresh: bool) -> None:
        place = at, server
        low, high, total = self._low[place], self._high[place], self._sum[place]
        if fresh:
            np.minimum.reduce(rows, axis=0, out=low)
            np.maximum.reduce(rows, axis=0, out=high)
            np.add.reduce(rows, axis=0, out=total)
            self._first[place] = rows[0, self._gauges :]
        else:
            np.minimum(low, np.minimum.reduce(rows, axis=0), out=low)
            np.maximum(high, np.maximum.reduce(rows, axis=0), out=high)
            for row in rows:
                total += row
        self._last[place] = rows[-1]

    def _restarts(self, server: int, first: int, at: int, values: Floats) -> None:
        """Remember what counters had grown to where they fall; between two buckets a fall is nobody's."""
        counters = values[:, self._gauges :]
        if first > self._edges[at]:
            before = self._last[at, server, self._gauges :]
            metrics = np.flatnonzero(counters[0] < before)
            self._remember(server, np.full(len(metrics), first), metrics, before[metrics])
        fell = counters[1:] < counters[:-1]
        if fell.any():
            ticks, metrics = np.nonzero(fell)
            self._remember(server, first + 1 + ticks, metrics, counters[ticks, metrics])

    def _remember(self, server: int, ticks: Ints, metrics: Ints, lost: Floats) -> None:
        at = np.searchsorted(self._edges, ticks, side="right") - 1
        inside = ticks > np.asarray(self._edges)[at]
        _, servers, counters = self._first.shape
        places = (at * servers + server) * counters + metrics
        self._falls.append((places[inside], lost[inside]))

    def finish(self) -> Buckets:
        """Return the buckets; nothing may be added any more."""
        growth = self._last[:, :, self._gauges :] - self._first
        # In the order of time, for the sum of several depends on it.
        for places, lost in self._falls:
            np.add.at(growth.reshape(-1), places, lost)
        columns = {"min": self._low, "max": self._high, "sum": self._sum, "last": self._last, "first": self._first}
        return _settled(self._times, self._counts, {**columns, "growth": growth}, self._gauges)


def coarser(fine: Buckets, width: int) -> Buckets:
    """Return buckets of `width` nanoseconds made of finer ones, as `openmanager.rollup.coarsen` makes them."""
    starts = fine.times // width * width
    times, begins = np.unique(starts, return_index=True)
    edges = [*begins.tolist(), len(starts)]
    of = fine.columns
    gauges = of["min"].shape[2] - of["first"].shape[2]
    grown = of["growth"].copy()
    inside = np.flatnonzero(starts[1:] == starts[:-1])
    grown[inside + 1] += between(of["last"][inside, :, gauges:], of["first"][inside + 1])
    columns = {
        "min": _reduced(np.minimum, of["min"], edges),
        "max": _reduced(np.maximum, of["max"], edges),
        "sum": _reduced(np.add, of["sum"], edges),
        "last": of["last"][[end - 1 for end in edges[1:]]],
        "first": of["first"][edges[:-1]],
        "growth": _reduced(np.add, grown, edges),
    }
    return _settled(times, np.add.reduceat(fine.counts, edges[:-1]), columns, gauges)


def _reduced(ufunc: np.ufunc, values: Floats, edges: Sequence[int]) -> Floats:
    """Return each group of buckets as one, taken in the order of time: `reduceat` adds in another one."""
    return np.stack([ufunc.reduce(values[begin:end], axis=0) for begin, end in itertools.pairwise(edges)])


def _settled(times: Ints, counts: Ints, columns: Mapping[str, Floats], gauges: int) -> Buckets:
    """Return buckets whose sums and growths are settled in place, one time after the other: a few stay in the cache."""
    for at, count in enumerate(counts.astype(np.float64)):
        reach = np.maximum(np.abs(columns["min"][at]), np.abs(columns["max"][at]))
        columns["sum"][at] = settle(columns["sum"][at], count, reach)
        columns["growth"][at] = settle(columns["growth"][at], count, reach[:, gauges:])
    return Buckets(times, counts, columns)
