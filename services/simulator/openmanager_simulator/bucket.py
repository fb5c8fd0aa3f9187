"""Buckets made from ticks while their values are still in the processor's cache, and coarser ones made from them.

The numbers are those of `openmanager.rollup`, bit for bit: sums are made tick by tick in the order of time.
"""

from __future__ import annotations

from collections.abc import Mapping
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

    def __init__(self, times: Ints, width: int, servers: int, gauges: int, counters: int) -> None:
        starts = times // width * width
        self._times, begins, self._counts = np.unique(starts, return_index=True, return_counts=True)
        self._edges = [*begins.tolist(), len(times)]
        self._gauges = gauges
        shape = len(begins), servers, gauges + counters
        self._low, self._high, self._sum, self._last = (np.empty(shape) for _ in range(4))
        self._first = np.empty((len(begins), servers, counters))
        self._falls: list[tuple[Ints, Floats]] = []

    def add(self, server: int, first: int, gauges: Floats, counters: Floats) -> None:
        """Add the values of a server, float64[T, G] and float64[T, C], from tick `first` of the span on.

        Each server's come in the order of time.
        """
        at = int(np.searchsorted(self._edges, first, side="right")) - 1
        self._restarts(server, first, at, counters)
        begin, end = first, first + len(gauges)
        while begin < end:
            stop = min(end, self._edges[at + 1])
            some, fresh = slice(begin - first, stop - first), begin == self._edges[at]
            self._extend((at, server, slice(None, self._gauges)), gauges[some], fresh=fresh)
            self._extend((at, server, slice(self._gauges, None)), counters[some], fresh=fresh)
            if fresh:
                self._first[at, server] = counters[some.start]
            at, begin = at + 1, stop

    def _extend(self, place: tuple[int, int, slice], rows: Floats, *, fresh: bool) -> None:
        low, high, total = self._low[place], self._high[place], self._sum[place]
        if fresh:
            np.minimum.reduce(rows, axis=0, out=low)
            np.maximum.reduce(rows, axis=0, out=high)
            np.add.reduce(rows, axis=0, out=total)
        else:
            np.minimum(low, np.minimum.reduce(rows, axis=0), out=low)
            np.maximum(high, np.maximum.reduce(rows, axis=0), out=high)
            for row in rows:
                total += row
        self._last[place] = rows[-1]

    def _restarts(self, server: int, first: int, at: int, counters: Floats) -> None:
        """Remember what counters had grown to where they fall; between two buckets a fall is nobody's."""
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
    times, begins, lengths = np.unique(starts, return_index=True, return_counts=True)
    spans = [slice(begin, begin + length) for begin, length in zip(begins.tolist(), lengths.tolist(), strict=True)]
    of = fine.columns
    columns = {
        "min": np.stack([np.minimum.reduce(of["min"][span], axis=0) for span in spans]),
        "max": np.stack([np.maximum.reduce(of["max"][span], axis=0) for span in spans]),
        "sum": np.stack([_added(of["sum"][span]) for span in spans]),
        "last": of["last"][[span.stop - 1 for span in spans]],
        "first": of["first"][begins],
        "growth": np.stack([_grown(of, span) for span in spans]),
    }
    gauges = of["min"].shape[2] - of["first"].shape[2]
    return _settled(times, np.add.reduceat(fine.counts, begins), columns, gauges)


def _added(values: Floats) -> Floats:
    """Return the sum of some buckets, added in the order of time."""
    total: Floats = values[0].copy()
    for value in values[1:]:
        total += value
    return total


def _grown(of: Mapping[str, Floats], span: slice) -> Floats:
    """Return what counters grew in some buckets and from each to the next."""
    first, last = of["first"][span], of["last"][span][:, :, -of["first"].shape[2] :]
    grown = of["growth"][span].copy()
    grown[1:] += between(last[:-1], first[1:])
    return _added(grown)


def _settled(times: Ints, counts: Ints, columns: Mapping[str, Floats], gauges: int) -> Buckets:
    """Return buckets whose sums and growths are settled in place, one time after the other: a few stay in the cache."""
    for at, count in enumerate(counts.astype(np.float64)):
        reach = np.maximum(np.abs(columns["min"][at]), np.abs(columns["max"][at]))
        columns["sum"][at] = settle(columns["sum"][at], count, reach)
        columns["growth"][at] = settle(columns["growth"][at], count, reach[:, gauges:])
    return Buckets(times, counts, columns)
