"""Cells of mixed widths give what the samples they were made of give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openmanager_timeseries import aggregate, cell
from openmanager_timeseries.cell import Cells
from openmanager_timeseries.samples import Ragged

from openmanager import rollup

WIDTH = 10
series = st.lists(
    st.dictionaries(st.integers(0, 99), st.integers(-5, 40).map(lambda n: n / 4), max_size=40), min_size=1, max_size=3
)


def ragged(rows: list[dict[int, float]]) -> Ragged:
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    pairs = [pair for row in rows for pair in sorted(row.items())]
    return Ragged(offsets, np.asarray([t for t, _ in pairs], np.int64), np.asarray([v for _, v in pairs], float))


def rolled(samples: Ragged) -> Cells:
    cells = samples.rows * 1000 + samples.times // WIDTH
    found, columns = rollup.reduce_samples(samples.values, cells, np.ones(len(cells), np.bool_))
    return Cells(found // 1000, found % 1000 * WIDTH, columns)


@pytest.mark.parametrize("name", [*cell.NEEDS])
@pytest.mark.parametrize("grouped", [False, True])
@given(rows=series, border=st.integers(0, 10), step=st.sampled_from([10, 20, 50]))
@settings(max_examples=60)
def test_buckets_and_samples_side_by_side_give_what_samples_give(name: str, grouped, rows, border: int, step: int):
    if grouped and name in cell.OF_ONE_SERIES:
        return
    samples = ragged(rows)
    at = border * WIDTH
    early, late = samples.times < at, samples.times >= at
    columns = (*cell.NEEDS[name], "count")
    coarse = rolled(_some(samples, early))
    fine = cell.of_samples(_some(samples, late), columns)
    mixed = cell.joined(
        [Cells(coarse.rows, coarse.times, {c: coarse.columns[c] for c in fine.columns}), fine], tuple(fine.columns)
    )
    starts = np.arange(0, 100, step)
    groups = np.zeros(len(rows), np.int64) if grouped else np.arange(len(rows))
    delta = np.zeros(len(rows), np.bool_)
    found = cell.aggregate(mixed, name, starts=starts, step=step, groups=groups, delta=delta)
    expected = aggregate.aggregate(samples, name, starts=starts, step=step, groups=groups, delta=delta)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-9)


def _some(samples: Ragged, keep: np.ndarray) -> Ragged:
    kept = np.concatenate(([0], np.cumsum(keep)))
    return Ragged(kept[samples.offsets], samples.times[keep], samples.values[keep])


def test_a_bucket_that_counts_more_stands_for_the_samples_in_it():
    def cells(rows: list[tuple[int, int, float]]) -> Cells:
        row, time, count = zip(*rows, strict=True)
        return Cells(np.asarray(row), np.asarray(time) * 10**6, {"count": np.asarray(count, float)})

    fine = cells([(0, 1, 1), (0, 2, 1), (0, 11, 1), (1, 3, 1)])
    coarse = cells([(0, 0, 5), (0, 10, 1), (1, 0, 1), (1, 20, 4)])
    found = cell.outvoted(fine, coarse, WIDTH * 10**6)
    seen = list(zip(found.rows.tolist(), (found.times // 10**6).tolist(), found.columns["count"].tolist(), strict=True))
    assert seen == [(0, 0, 5.0), (0, 11, 1.0), (1, 3, 1.0), (1, 20, 4.0)]
