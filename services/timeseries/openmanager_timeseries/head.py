"""Recent samples in memory, as the log brings them: no file is touched to read them.

Frames are kept in *generations*, each a range of log positions. The open one grows; when it is closed it is sealed into
a block, and the oldest sealed ones are dropped when memory asks for it. Within a generation the frames of one layout
are gathered into chunks: as they came while these grow, series-major some time after they are full, so that reading one
metric of all servers is a copy of contiguous memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from openmanager.frame import Frame
from openmanager_timeseries import span
from openmanager_timeseries.catalog import Selection
from openmanager_timeseries.samples import Bools, Floats, Ints, Piece
from openmanager_timeseries.series_index import Layout
from openmanager_timeseries.span import GAP_NANOS, MAX_DATA_SPANS, Spans

CHUNK_TICKS = 64
_LARGE_CHUNK_BYTES = 64 << 20
_LARGE_CHUNK_TICKS = 16
# A frame from this size on is kept as it is: to copy it would take as long as to receive it.
_KEPT_BYTES = 16 << 10
_TILE_BYTES = 512 << 10  # what a processor's second cache holds
_turning = threading.Lock()


class Chunk:
    """Up to `capacity` ticks of one layout, times ascending. One thread appends, any may read beside it."""

    def __init__(self, layout: Layout, ticks: int) -> None:
        servers, metrics = layout.ids.shape
        size = servers * metrics * 8
        self.layout = layout
        self.capacity = max(ticks, CHUNK_TICKS if size * CHUNK_TICKS <= _LARGE_CHUNK_BYTES else _LARGE_CHUNK_TICKS)
        self.count = 0
        self.closed = False
        self.times = np.empty(self.capacity, np.int64)
        self.positions = np.empty(self.capacity, np.int64)
        # The values in parts float64[T, S, M]: frames as they came, or a single part that small ones are copied to.
        self._room = np.empty((self.capacity, servers, metrics)) if size < _KEPT_BYTES else None
        self._ticks: list[Floats] = [] if self._room is None else [self._room]
        self._series: Floats | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of its values."""
        held = self._room if self._room is not None else self._series
        return held.nbytes if held is not None else self.layout.ids.size * 8 * self.count

    def takes(self, frame: Frame) -> bool:
        """Say whether a frame of the same layout can be appended."""
        if self.closed or self.count + len(frame.times) > self.capacity:
            return False
        return self.count == 0 or bool(frame.times[0] > self.times[self.count - 1])

    def append(self, frame: Frame, position: int) -> None:
        """Append a frame that `takes` was true for; its values are kept, and not to be changed any more."""
        to = slice(self.count, self.count + len(frame.times))
        self.times[to] = frame.times
        self.positions[to] = position
        if self._room is None:
            self._ticks.append(frame.values)
        else:
            self._room[to] = frame.values
        self.count += len(frame.times)
        self.closed = self.count == self.capacity

    def turn(self) -> None:
        """Put the values of a closed chunk in the order of series (blocking, in any thread): they read faster then."""
        with _turning:
            if self._series is not None:
                return
            ticks = self._ticks
            servers, metrics = self.layout.ids.shape
            series = np.empty((metrics, servers, self.count))
            step = max(1, _TILE_BYTES // max(1, 8 * metrics * self.count))
            for first in range(0, servers, step):
                some = slice(first, first + step)
                tile = np.concatenate([part[:, some] for part in ticks])[: self.count]
                series[:, some] = tile.transpose(2, 1, 0)
            # In this order: whoever reads beside it finds one or the other.
            self._series = series
            self._ticks, self._room = [], None
            self.times, self.positions = self.times[: self.count].copy(), self.positions[: self.count].copy()

    def series(self, servers: Ints | slice, metrics: Ints | slice, ticks: slice) -> Floats:
        """Return the values of some servers and metrics (indices into the layout): float64[M', S', T']."""
        parts = self._ticks
        if (series := self._series) is not None:
            return series[metrics][:, servers, ticks]
        if isinstance(metrics, slice) and metrics.stop - metrics.start == 1:  # mostly: no index for every sample
            by_tick = np.concatenate([part[:, :, metrics.start][:, servers] for part in parts])[ticks]
            return np.ascontiguousarray(by_tick.T)[None]
        of_servers, of_metrics = (
            np.arange(self.layout.ids.shape[0])[servers],
            np.arange(self.layout.ids.shape[1])[metrics],
        )
        chosen = [part[:, of_servers[None, :], of_metrics[:, None]] for part in parts]
        return np.ascontiguousarray(np.moveaxis(np.concatenate(chosen)[ticks], 0, 2))


def as_slice(indices: Ints) -> Ints | slice:
    """Return indices that follow each other as a slice, which takes what they are of without a copy."""
    if not len(indices) or (indices[1:] - indices[:-1] != 1).any():
        return indices
    return slice(int(indices[0]), int(indices[-1]) + 1)


@dataclass(slots=True, kw_only=True)
class Generation:
    """The frames of a range of positions; `last` is 0 while it is empty."""

    first: int
    last: int = 0
    opened: float = 0.0
    chunks: list[Chunk] = field(default_factory=list)
    sealed: bool = False
    # The log's running total ahead of its first frame, and at its last one; the samples of its frames.
    before: int = 0
    accepted: int = 0
    sample_count: int = 0
    min_time: int = np.iinfo(np.int64).max
    max_time: int = np.iinfo(np.int64).min
    # The times of its frames, more closely than from the first to the last.
    spans: Spans = ()
    _open: dict[int, Chunk] = field(default_factory=dict)
    _full: list[Chunk] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """The bytes of all values."""
        return sum(chunk.nbytes for chunk in self.chunks)

    def append(self, layout: Layout, frame: Frame, position: int) -> int:
        """Append a frame; return the bytes that were newly taken."""
        chunk = self._open.get(id(layout))
        before = chunk.nbytes if chunk is not None else 0
        if chunk is None or not chunk.takes(frame):
            if chunk is not None:
                self._close(chunk)
            chunk = self._open[id(layout)] = Chunk(layout, len(frame.times))
            self.chunks.append(chunk)
            before = 0
        chunk.append(frame, position)
        if chunk.closed:
            self._close(self._open.pop(id(layout)))
        self.last = position
        self.min_time = min(self.min_time, int(frame.times[0]))
        self.max_time = max(self.max_time, int(frame.times[-1]))
        self._extend(int(frame.times[0]), int(frame.times[-1]) + 1)
        return chunk.nbytes - before

    def _extend(self, start: int, end: int) -> None:
        """Add the time of a frame; mostly it follows on from the last one."""
        if self.spans and self.spans[-1][0] <= start <= self.spans[-1][1] + GAP_NANOS:
            last = self.spans[-1]
            if end > last[1]:
                self.spans = (*self.spans[:-1], (last[0], end))
            return
        self.spans = span.union((*self.spans, (start, end)))
        if len(self.spans) > MAX_DATA_SPANS:
            self.spans = ((self.spans[0][0], self.spans[-1][1]),)

    def _close(self, chunk: Chunk) -> None:
        chunk.closed = True
        self._full.append(chunk)

    def close(self) -> None:
        """Close every chunk."""
        for chunk in self._open.values():
            self._close(chunk)
        self._open.clear()

    def take_full(self) -> list[Chunk]:
        """Return the chunks that were closed since this was last asked: they want to be turned."""
        full, self._full = self._full, []
        return full

    def turn(self) -> None:
        """Turn every chunk of a closed generation that is not turned yet (blocking)."""
        for chunk in self.chunks:
            chunk.turn()


class Head:
    """The generations of one shard, oldest first; the last one is open."""

    def __init__(self, *, first: int, now: float) -> None:
        self.generations = [Generation(first=first, opened=now)]
        self.nbytes = 0

    @property
    def first_position(self) -> int:
        """The oldest position that is held."""
        return self.generations[0].first

    def append(self, layout: Layout, frame: Frame, position: int, accepted: int, samples: int) -> None:
        """Take a frame of the log."""
        generation = self.generations[-1]
        self.nbytes += generation.append(layout, frame, position)
        generation.accepted = accepted
        generation.sample_count += samples

    def rotate(self, now: float) -> Generation | None:
        """Close the open generation and begin another; return the closed one, None when it was empty."""
        generation = self.generations[-1]
        if not generation.last:
            generation.opened = now
            return None
        generation.close()
        self.generations.append(Generation(first=generation.last + 1, opened=now, before=generation.accepted))
        self.recount()
        return generation

    def recount(self) -> None:
        """Count the bytes anew: chunks take another room when they are turned."""
        self.nbytes = sum(each.nbytes for each in self.generations)

    def drop(self, limit: int) -> None:
        """Drop the oldest sealed generations until at most `limit` bytes are held, or none is sealed."""
        while self.nbytes > limit and len(self.generations) > 1 and self.generations[0].sealed:
            del self.generations[0]
            self.recount()


class _Chosen(NamedTuple):
    """What a selection chooses of a layout: indices of servers and metrics, and the row of each pair of them.

    `keep` says which of these pairs are chosen, None where all are; only theirs are the rows.
    """

    servers: Ints | slice
    metrics: Ints | slice
    rows: Ints
    keep: Bools | None


def pieces(generations: Iterable[Generation], selection: Selection, start: int, end: int) -> Iterator[Piece]:
    """Yield the samples of a selection in [start, end) nanoseconds; may run in a thread beside the writer."""
    known: dict[int, _Chosen] = {}
    for generation in generations:
        if generation.max_time < start or generation.min_time >= end:
            continue
        for chunk in tuple(generation.chunks):
            times = chunk.times[: chunk.count]
            ticks = slice(*np.searchsorted(times, (start, end)).tolist())
            if ticks.start >= ticks.stop:
                continue
            layout = chunk.layout
            chosen = known.get(id(layout))
            if chosen is None:
                chosen = known[id(layout)] = _choose(layout, selection)
            if len(chosen.rows):
                values = chunk.series(chosen.servers, chosen.metrics, ticks).reshape(-1, ticks.stop - ticks.start)
                if chosen.keep is not None:
                    values = values[chosen.keep]
                yield Piece(chosen.rows, times[ticks], chunk.positions[ticks], values)


def _choose(layout: Layout, selection: Selection) -> _Chosen:
    # A name that came after the selection was made is not part of it.
    servers = np.flatnonzero(_masked(selection.servers, layout.servers))
    metrics = np.flatnonzero(_masked(selection.metrics, layout.metrics))
    rows = selection.rows_of(layout.ids[servers[:, None], metrics[None, :]].T.ravel())
    keep = rows >= 0
    if keep.all():
        return _Chosen(as_slice(servers), as_slice(metrics), rows, None)
    return _Chosen(as_slice(servers), as_slice(metrics), rows[keep], keep)


def _masked(mask: Bools, indices: Ints) -> Bools:
    inside: Bools = indices < len(mask)
    if len(mask):
        inside &= mask[np.where(inside, indices, 0)]
    return inside
