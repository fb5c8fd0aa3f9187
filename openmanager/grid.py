"""Rows to grids: samples one by one, as files and engines hold them, to the dense arrays that frames are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmanager.frame import NANOS_PER_MILLI, Frame
from openmanager.rollup import COLUMNS, Grid

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# A grid is emptier than this only when it is small: a cell without a sample takes as much room as one with.
MIN_FILL = 0.25
SMALL_CELLS = 1024
# Half a frame, so that there is room for its names.
MAX_CELLS = 256 << 10
MAX_NAME_BYTES = 1 << 20
# Distinct numbers are found by a mask up to so many, and by sorting beyond.
MAX_MASK = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """K samples: `server_codes` and `metric_codes` int64[K], indices into the names, `times` int64[K] nanoseconds.

    `columns` float64[K] by name; a sample has one, `value`.
    """

    servers: Sequence[str]
    server_codes: Ints
    metrics: Sequence[str]
    metric_codes: Ints
    times: Ints
    columns: Mapping[str, Floats]


def frames(rows: Rows) -> Iterator[Frame]:
    """Yield frames of at most 4 MiB with the samples of rows; of two of one series and millisecond the later row counts."""
    for grid in grids(rows):
        yield Frame(times=grid.times, servers=grid.servers, metrics=grid.metrics, values=grid.columns["value"])


def rollups(rows: Rows) -> Iterator[Grid]:
    """Yield the buckets of rows, whose columns are those of `openmanager.rollup`, in at most 4 MiB each."""
    missing = {name: np.full(len(rows.times), np.nan) for name in COLUMNS if name not in rows.columns}
    whole = replace(rows, columns={**rows.columns, **missing})
    for grid in grids(whole, max_cells=MAX_CELLS // len(COLUMNS)):
        columns = {**grid.columns, "count": np.nan_to_num(grid.columns["count"])}
        yield replace(grid, columns=columns)


def grids(rows: Rows, *, max_cells: int = MAX_CELLS) -> Iterator[Grid]:
    """Yield the rows as grids of at most `max_cells` cells, NaN in few of them; of rows of one place the last counts."""
    whole = rows.times - rows.times % NANOS_PER_MILLI
    waiting = [np.arange(len(whole))] if len(whole) else []
    while waiting:
        chosen = waiting.pop()
        piece = _Piece(rows, whole, chosen)
        if piece.is_dense(max_cells):
            yield piece.grid(rows)
        else:
            upper = piece.upper_half()
            waiting += [chosen[upper], chosen[~upper]]


class _Piece:
    """Some of the rows, and where each stands among the distinct times, servers and metrics of them all."""

    def __init__(self, rows: Rows, whole: Ints, chosen: Ints) -> None:
        self.chosen = chosen
        self.axes = [
            np.unique(whole[chosen], return_inverse=True),
            _distinct(rows.server_codes[chosen], len(rows.servers)),
            _distinct(rows.metric_codes[chosen], len(rows.metrics)),
        ]
        self.shape = tuple(len(found) for found, _ in self.axes)
        self.cells = int(np.prod(self.shape))
        names = (rows.servers, rows.metrics)
        self.name_bytes = sum(
            len(some[code]) + 4
            for some, (codes, _) in zip(names, self.axes[1:], strict=True)
            for code in codes[: MAX_NAME_BYTES // 4].tolist()
        )

    def is_dense(self, max_cells: int) -> bool:
        if self.cells > max_cells or (self.name_bytes > MAX_NAME_BYTES and max(self.shape[1:]) > 1):
            return False
        return self.cells <= SMALL_CELLS or len(self.chosen) >= MIN_FILL * self.cells

    def upper_half(self) -> NDArray[np.bool_]:
        """Return which rows are in the upper half of the axis whose halving leaves the fullest grids: bool[K]."""
        axis = self._axis()
        upper: NDArray[np.bool_] = self.axes[axis][1] >= self.shape[axis] // 2
        return upper

    def _axis(self) -> int:
        if self.name_bytes > MAX_NAME_BYTES:
            return 1 if self.shape[1] >= self.shape[2] else 2
        if len(self.chosen) < MIN_FILL * self.cells:
            emptiness, axis = max((self._emptiness(a, b), b) for a, b in ((0, 1), (0, 2), (1, 2)))
            if emptiness > 1:
                return axis
        # Whole times stay together as long as one of them fits.
        return 0 if self.shape[0] > 1 else int(np.argmax(self.shape))

    def _emptiness(self, first: int, second: int) -> float:
        """Return how many places two axes have for each pair of them that occurs."""
        places = self.shape[first] * self.shape[second]
        pairs = self.axes[first][1] * self.shape[second] + self.axes[second][1]
        if places > MAX_MASK:
            return places / len(np.unique(pairs))
        present = np.zeros(places, np.bool_)
        present[pairs] = True
        return places / int(np.count_nonzero(present))

    def grid(self, rows: Rows) -> Grid:
        times, servers, metrics = self.axes
        at = (times[1], servers[1], metrics[1])
        columns = {}
        for name, values in rows.columns.items():
            columns[name] = np.full(self.shape, np.nan)
            columns[name][at] = values[self.chosen]
        return Grid(
            times=times[0],
            servers=tuple(rows.servers[code] for code in servers[0].tolist()),
            metrics=tuple(rows.metrics[code] for code in metrics[0].tolist()),
            columns=columns,
        )


def _distinct(codes: Ints, count: int) -> tuple[Any, Any]:
    """Return the distinct codes, ascending, and the place of each row's among them."""
    present = np.zeros(count, np.bool_)
    present[codes] = True
    found = np.flatnonzero(present)
    place = np.zeros(count, np.int64)
    place[found] = np.arange(len(found))
    return found, place[codes]
