"""Cells: buckets of several tiers, and samples as the smallest of them, on their way to an answer.

A cell is what `openmanager.rollup` leaves of some samples of a series: columns by name. A sample is a cell that counts
one. Cells of a series never overlap in time, so that those of a wider bucket can be put together from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from openmanager import rollup
from openmanager_timeseries.samples import Bools, Floats, Ints, Ragged, ascend, order_of

# What each aggregation is made of. Those that are not here need the samples themselves.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "MEAN": ("sum", "count"),
    "MIN": ("min",),
    "MAX": ("max",),
    "SUM": ("sum",),
    "COUNT": ("count",),
    "LAST": ("last",),
    "FIRST": ("first",),
    "RATE": ("sum", "count", "last", "first", "growth"),
    "INCREASE": ("sum", "count", "last", "first", "growth"),
}
# The time of a cell's first and last sample is not known: of several series nobody can say whose came last.
OF_ONE_SERIES = frozenset({"FIRST", "LAST"})
# These know of counters only.
OF_COUNTERS = frozenset({"FIRST", "RATE", "INCREASE"})


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Cells: `rows` int64[K], the row of a selection, `times` int64[K], and columns float64[K]."""

    rows: Ints
    times: Ints
    columns: Mapping[str, Floats]

    def take(self, at: Ints | Bools) -> Cells:
        """Return some of the cells."""
        return Cells(self.rows[at], self.times[at], {name: column[at] for name, column in self.columns.items()})


def of_samples(samples: Ragged, names: Sequence[str]) -> Cells:
    """Return each sample as a cell."""
    values = samples.values
    constant = {"count": np.ones(len(values)), "growth": np.zeros(len(values))}
    return Cells(samples.rows, samples.times, {name: constant.get(name, values) for name in names})


def joined(parts: Sequence[Cells], names: Sequence[str]) -> Cells:
    """Return all cells by row and time; of two of one row and time the later part's."""
    parts = [part for part in parts if len(part.rows)]
    if not parts:
        return Cells(np.empty(0, np.int64), np.empty(0, np.int64), {name: np.empty(0) for name in names})
    if len(parts) == 1:
        whole = Cells(parts[0].rows, parts[0].times, {name: parts[0].columns[name] for name in names})
    else:
        rows = np.concatenate([part.rows for part in parts])
        times = np.concatenate([part.times for part in parts])
        whole = Cells(rows, times, {name: np.concatenate([part.columns[name] for part in parts]) for name in names})
    if ascend(whole.rows, whole.times):
        return whole
    # By row alone first: parts mostly follow each other in time. Stable: later parts stay behind earlier ones.
    order = order_of(whole.rows, int(whole.rows.max()) + 1)
    if not ascend(whole.rows[order], whole.times[order]):
        order = np.lexsort((whole.times, whole.rows))
    whole = whole.take(order)
    last = np.ones(len(order), np.bool_)
    last[:-1] = (whole.rows[1:] != whole.rows[:-1]) | (whole.times[1:] != whole.times[:-1])
    return whole if last.all() else whole.take(last)


def outvoted(fine: Cells, coarse: Cells, width: int) -> Cells:
    """Return fine cells, and instead of those in a coarse one that counts more samples that one.

    Both have the column `count`; the coarse cells are buckets of `width`.
    """
    if not len(coarse.rows):
        return fine
    old = _keys(coarse.rows, coarse.times)
    order = np.argsort(old)
    old = old[order]
    new = _keys(fine.rows, fine.times // width * width)
    at = np.minimum(np.searchsorted(old, new), len(old) - 1)
    hit = old[at] == new
    counted = np.bincount(at[hit], fine.columns["count"][hit], len(old))
    wins = counted < coarse.columns["count"][order]
    stays = ~(hit & wins[at])
    return joined([fine.take(stays), coarse.take(order[wins])], tuple(fine.columns))


def _keys(rows: Ints, times: Ints) -> Ints:
    return rows << 44 | (times // 1_000_000) & (1 << 44) - 1


def aggregate(cells: Cells, name: str, *, starts: Ints, step: int, groups: Ints, delta: Bools) -> Floats:
    """Return the aggregate of every group and bucket, as `aggregate.aggregate` does of samples: float64[G, B].

    `cells` come by row and time and have the columns that `NEEDS` says.
    """
    group_count = int(groups.max(initial=-1)) + 1
    out = np.full((group_count, len(starts)), np.nan)
    columns = dict(cells.columns)
    if name in {"RATE", "INCREASE"}:
        columns["grown"] = _grown(cells, delta)
    buckets = (cells.times - (int(starts[0]) if len(starts) else 0)) // step
    inside = (buckets >= 0) & (buckets < len(starts))
    if name in {"RATE", "INCREASE"}:
        inside &= ~np.isnan(columns["grown"])
    if name == "FIRST":
        inside &= ~np.isnan(columns["first"])
    places = groups[cells.rows] * len(starts) + buckets
    if not inside.all():
        places, columns = places[inside], {key: column[inside] for key, column in columns.items()}
    if not len(places):
        return out
    if (places[1:] < places[:-1]).any():
        order = np.argsort(places, kind="stable")
        places, columns = places[order], {key: column[order] for key, column in columns.items()}
    begins = np.flatnonzero(np.concatenate(([True], places[1:] != places[:-1])))
    out.ravel()[places[begins]] = _REDUCE[name](columns, begins, np.append(begins[1:], len(places)) - 1)
    return out / (step / 1e9) if name == "RATE" else out


def _grown(cells: Cells, delta: Bools) -> Floats:
    """Return what each cell adds to the growth of its series: NaN where nothing is known of it."""
    columns = cells.columns
    grown = columns["growth"].copy()
    same = cells.rows[1:] == cells.rows[:-1]
    gap = rollup.between(columns["last"][:-1], columns["first"][1:])
    grown[1:] += np.where(same, gap, 0.0)
    # The first sample of all has none before it to grow from.
    first = np.ones(len(grown), np.bool_)
    first[1:] = ~same
    grown[first & (columns["count"] == 1)] = np.nan
    return np.where(delta[cells.rows], columns["sum"], grown)


def _added(values: Floats, begins: Ints) -> Floats:
    """Return the sum of what begins at each place."""
    return values if len(begins) == len(values) else np.add.reduceat(values, begins)


_Reduce = Callable[[Mapping[str, Floats], Ints, Ints], Floats]
_REDUCE: dict[str, _Reduce] = {
    "MEAN": lambda of, begins, _: _added(of["sum"], begins) / _added(of["count"], begins),
    "MIN": lambda of, begins, _: np.minimum.reduceat(of["min"], begins),
    "MAX": lambda of, begins, _: np.maximum.reduceat(of["max"], begins),
    "SUM": lambda of, begins, _: _added(of["sum"], begins),
    "COUNT": lambda of, begins, _: _added(of["count"], begins),
    "LAST": lambda of, _, ends: of["last"][ends],
    "FIRST": lambda of, begins, _: of["first"][begins],
    "INCREASE": lambda of, begins, _: _added(of["grown"], begins),
    "RATE": lambda of, begins, _: _added(of["grown"], begins),
}
