from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openmanager_timeseries.aggregate import AGGREGATIONS, aggregate, bucket_starts, increases
from openmanager_timeseries.samples import Long, Piece, Ragged, merge

SECOND = 10**9


def ragged(*rows: list[tuple[int, float]]) -> Ragged:
    offsets = np.cumsum([0, *map(len, rows)])
    flat = [sample for row in rows for sample in row]
    return Ragged(
        np.asarray(offsets, np.int64),
        np.asarray([time * SECOND for time, _ in flat], np.int64),
        np.asarray([value for _, value in flat], np.float64),
    )


def computed(samples: Ragged, name: str, *, start: int = 0, end: int = 30, step: int = 10, groups=None, delta=None):
    count = len(samples.offsets) - 1
    return aggregate(
        samples,
        name,
        starts=bucket_starts(start * SECOND, end * SECOND, step * SECOND),
        step=step * SECOND,
        groups=np.arange(count) if groups is None else np.asarray(groups),
        delta=np.zeros(count, bool) if delta is None else np.asarray(delta),
    )


def brute(samples: Ragged, name: str, *, start: int, end: int, step: int) -> np.ndarray:
    """Compute the same, one sample at a time."""
    starts = range(start // step * step, end, step)
    out = np.full((len(samples.offsets) - 1, len(starts)), np.nan)
    for row in range(len(out)):
        part = slice(int(samples.offsets[row]), int(samples.offsets[row + 1]))
        times, values = samples.times[part] / SECOND, samples.values[part]
        grown = [np.nan, *(b - a if b >= a else b for a, b in itertools.pairwise(values))][: len(values)]
        for column, begin in enumerate(starts):
            inside = (times >= begin) & (times < begin + step)
            found, growth = values[inside], np.asarray(grown)[inside]
            growth = growth[~np.isnan(growth)]
            if name in {"RATE", "INCREASE"}:
                if len(growth):
                    out[row, column] = growth.sum() / (step if name == "RATE" else 1)
            elif len(found):
                out[row, column] = {
                    "MEAN": np.mean,
                    "MIN": np.min,
                    "MAX": np.max,
                    "SUM": np.sum,
                    "COUNT": len,
                    "FIRST": lambda v: v[0],
                    "LAST": lambda v: v[-1],
                    "STDDEV": lambda v: np.std(v, ddof=1) if len(v) > 1 else np.nan,
                    "P50": lambda v: np.percentile(v, 50),
                    "P90": lambda v: np.percentile(v, 90),
                    "P95": lambda v: np.percentile(v, 95),
                    "P99": lambda v: np.percentile(v, 99),
                }[name](found)
    return out


rows = st.lists(
    st.dictionaries(st.integers(0, 60), st.floats(-1e6, 1e6), max_size=25).map(lambda found: sorted(found.items())),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("name", AGGREGATIONS)
@given(rows=rows, start=st.integers(0, 20), length=st.integers(1, 50), step=st.integers(1, 25))
@settings(max_examples=40)
def test_buckets_are_what_one_sample_at_a_time_gives(name: str, rows, start: int, length: int, step: int):
    samples = ragged(*rows)
    found = computed(samples, name, start=start, end=start + length, step=step)
    np.testing.assert_allclose(
        found, brute(samples, name, start=start, end=start + length, step=step), rtol=1e-9, atol=1e-6
    )


def test_a_bucket_is_half_open_and_named_by_its_aligned_start():
    samples = ragged([(9, 1.0), (10, 2.0), (19, 3.0), (20, 4.0)])
    assert bucket_starts(5 * SECOND, 25 * SECOND, 10 * SECOND).tolist() == [0, 10 * SECOND, 20 * SECOND]
    assert computed(samples, "SUM").tolist() == [[1.0, 5.0, 4.0]]


def test_an_empty_bucket_is_nan_and_never_zero():
    found = computed(ragged([(0, 1.0), (25, 2.0)]), "COUNT")
    assert np.array_equal(found, [[1.0, np.nan, 1.0]], equal_nan=True)


def test_a_counter_that_restarts_grows_by_what_it_counted_since():
    samples = ragged([(0, 100.0), (5, 110.0), (10, 4.0), (15, 6.0)])
    assert np.array_equal(increases(samples, np.array([False])), [np.nan, 10.0, 4.0, 2.0], equal_nan=True)
    assert computed(samples, "INCREASE", end=20).tolist() == [[10.0, 6.0]]
    assert computed(samples, "RATE", end=20).tolist() == [[1.0, 0.6]]


def test_growth_reaches_back_to_the_sample_before_the_bucket():
    samples = ragged([(8, 1.0), (12, 5.0)])
    assert np.array_equal(computed(samples, "INCREASE", start=10, end=20), [[4.0]])


def test_a_delta_series_is_summed():
    assert computed(ragged([(1, 3.0), (2, 4.0)]), "INCREASE", end=10, delta=[True]).tolist() == [[7.0]]


def test_a_group_pools_samples_but_sums_growth():
    samples = ragged([(0, 1.0), (5, 3.0)], [(0, 10.0), (5, 20.0)])
    assert computed(samples, "MEAN", end=10, groups=[0, 0]).tolist() == [[8.5]]
    assert computed(samples, "INCREASE", end=10, groups=[0, 0]).tolist() == [[12.0]]
    assert computed(samples, "FIRST", end=10, groups=[0, 0]).tolist() == [[1.0]]
    assert computed(samples, "LAST", end=10, groups=[0, 0]).tolist() == [[20.0]]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.floats(-10, 10, allow_nan=False)), max_size=40),
    st.randoms(use_true_random=False),
)
@settings(max_examples=150)
def test_of_two_samples_of_one_time_the_later_position_wins_whatever_order_they_come_in(found, shuffle):
    expected: dict[tuple[int, int], float] = {}
    pieces = []
    for position, (row, time, value) in enumerate(found, 1):
        expected[row, time] = value
        arrays = [np.asarray([each], np.int64) for each in (row, time, position)]
        if position % 2:
            pieces.append(Long(*arrays, np.asarray([value])))
        else:
            pieces.append(Piece(*arrays, np.asarray([[value]])))
    shuffle.shuffle(pieces)
    merged = merge(4, pieces)
    assert [(row, time) for row, time in zip(merged.rows.tolist(), merged.times.tolist(), strict=True)] == sorted(
        expected
    )
    assert merged.values.tolist() == [expected[key] for key in sorted(expected)]


def test_pieces_in_order_are_joined_and_holes_left_out():
    rows = np.array([1, 0])
    first = Piece(rows, np.array([1, 2]), np.array([1, 2]), np.array([[1.0, np.nan], [3.0, 4.0]]))
    second = Piece(rows, np.array([3]), np.array([3]), np.array([[5.0], [np.nan]]))
    merged = merge(3, [first, second])
    assert merged.offsets.tolist() == [0, 2, 4, 4]
    assert merged.times.tolist() == [1, 2, 1, 3]
    assert merged.values.tolist() == [3.0, 4.0, 1.0, 5.0]


@pytest.mark.parametrize("name", sorted(AGGREGATIONS))
def test_the_largest_doubles_are_aggregated_without_a_word(name: str):
    largest = np.finfo(np.float64).max

    found = computed(ragged([(0, -largest), (1, largest), (2, largest), (3, largest)]), name)

    assert found.shape == (1, 3)
