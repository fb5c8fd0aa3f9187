"""Samples on their way to an answer: pieces from head and blocks, merged into one ragged array.

`Piece` is dense: N series over T times. `Ragged` is what everything is computed from: the samples of every row one
after the other, each row ascending in time, without NaN and without duplicates. Of two samples of one series at one
time the one with the higher log position wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray

# What int16 counts.
_FEW_ROWS = 1 << 15

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Samples of `rows` (int64[N]) at `times` (int64[T], ascending): `values` float64[N, T], NaN for none.

    `positions` (int64[T]) are those of the log; they decide between two samples of one time.
    """

    rows: Ints
    times: Ints
    positions: Ints
    values: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Long:
    """Samples one by one: `rows`, `times`, `positions`, `values`, each [K]."""

    rows: Ints
    times: Ints
    positions: Ints
    values: Floats


class Ragged:
    """Samples by row: those of row r are `times[offsets[r]:offsets[r+1]]` and `values[…]`.

    Where all rows have the same times, `times` is not made until somebody wants it: mostly it is the larger half.
    """

    __slots__ = ("_times", "offsets", "shared_times", "values")

    def __init__(self, offsets: Ints, times: Ints | None, values: Floats, *, shared_times: Ints | None = None) -> None:
        self.offsets = offsets
        self.values = values
        self._times = times
        # The times of every row where all rows have the same and there are some, None where they do not: int64[T].
        self.shared_times = shared_times if times is None else _shared(offsets, times)

    @classmethod
    def grid(cls, times: Ints, values: Floats) -> Self:
        """Return the samples of rows that all have the same times: `values` is float64[N, T], not empty."""
        return cls(np.arange(len(values) + 1) * len(times), None, values.ravel(), shared_times=times)

    @property
    def times(self) -> Ints:
        """The time of every sample: int64[K]."""
        if self._times is None:
            assert self.shared_times is not None  # noqa: S101  (one of them is there)
            self._times = np.tile(self.shared_times, len(self.offsets) - 1)
        return self._times

    @property
    def rows(self) -> Ints:
        """The row of every sample: int64[K]."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def _shared(offsets: Ints, times: Ints) -> Ints | None:
    count, rows = int(offsets[1]) if len(offsets) > 1 else 0, len(offsets) - 1
    if count == 0 or count * rows != len(times) or (np.diff(offsets) != count).any():
        return None
    grid = times.reshape(rows, count)
    return grid[0] if (grid[1:] == grid[0]).all() else None


def merge(row_count: int, pieces: Sequence[Piece | Long]) -> Ragged:
    """Return the samples of all pieces, row by row."""
    joined = _join(pieces)
    if joined is not None:
        return _from_dense(row_count, joined)
    return _from_long(row_count, [_to_long(piece) for piece in pieces])


def _join(pieces: Sequence[Piece | Long]) -> Piece | None:
    """Return pieces of the same rows and of disjoint, ascending times as one piece; None when they are not such."""
    dense = [piece for piece in pieces if isinstance(piece, Piece)]
    if not dense or len(dense) != len(pieces):
        return None
    first = dense[0].rows
    for before, after in pairwise(dense):
        if after.times[0] <= before.times[-1] or not (after.rows is first or np.array_equal(after.rows, first)):
            return None
    if len(dense) == 1:
        return dense[0]
    return Piece(
        first,
        np.concatenate([piece.times for piece in dense]),
        np.concatenate([piece.positions for piece in dense]),
        np.concatenate([piece.values for piece in dense], axis=1),
    )


def _from_dense(row_count: int, piece: Piece) -> Ragged:
    rows, values = piece.rows, piece.values
    if (rows[1:] < rows[:-1]).any():
        order = np.argsort(rows, kind="stable")
        rows, values = rows[order], values[order]
    missing = np.isnan(values)
    if len(rows) == row_count and values.size and not missing.any():
        return Ragged.grid(piece.times, values)
    present = ~missing
    counts = np.zeros(row_count, np.int64)
    counts[rows] = np.count_nonzero(present, axis=1)
    offsets = np.concatenate(([0], np.cumsum(counts)))
    return Ragged(offsets, np.broadcast_to(piece.times, values.shape)[present], values[present])


def _to_long(piece: Piece | Long) -> Long:
    if isinstance(piece, Long):
        return piece
    present = ~np.isnan(piece.values)
    shape = piece.values.shape
    return Long(
        np.broadcast_to(piece.rows[:, None], shape)[present],
        np.broadcast_to(piece.times, shape)[present],
        np.broadcast_to(piece.positions, shape)[present],
        piece.values[present],
    )


def _from_long(row_count: int, pieces: Sequence[Long]) -> Ragged:
    if not pieces:
        return Ragged(np.zeros(row_count + 1, np.int64), np.empty(0, np.int64), np.empty(0, np.float64))
    if len(pieces) == 1:
        rows, times, values = pieces[0].rows, pieces[0].times, pieces[0].values
    else:
        rows = np.concatenate([piece.rows for piece in pieces])
        times = np.concatenate([piece.times for piece in pieces])
        values = np.concatenate([piece.values for piece in pieces])
    if not ascend(rows, times):
        # By row alone first: pieces mostly follow each other in time.
        order = order_of(rows, row_count)
        if not ascend(rows[order], times[order]):
            positions = np.concatenate([piece.positions for piece in pieces])
            order = np.lexsort((positions, times, rows))
            order = order[_newest(rows[order], times[order])]
        rows, times, values = rows[order], times[order], values[order]
    return Ragged(np.searchsorted(rows, np.arange(row_count + 1)), times, values)


def ranges(starts: Ints, ends: Ints) -> Ints:
    """Return the numbers of all ranges [start, end), one range after the other."""
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def order_of(rows: Ints, row_count: int) -> Ints:
    """Return what sorts samples by row, stably; 16 bits are sorted by radix."""
    order: Ints = np.argsort(rows.astype(np.int16) if row_count <= _FEW_ROWS else rows, kind="stable")
    return order


def ascend(rows: Ints, times: Ints) -> bool:
    """Say whether samples come by row and time, and none twice."""
    same = rows[1:] == rows[:-1]
    return bool(((rows[1:] > rows[:-1]) | (same & (times[1:] > times[:-1]))).all())


def _newest(rows: Ints, times: Ints) -> Bools:
    """Return which of the samples by row, time and position are the last of their row and time."""
    newest = np.ones(len(rows), np.bool_)
    newest[:-1] = (rows[1:] != rows[:-1]) | (times[1:] != times[:-1])
    return newest
