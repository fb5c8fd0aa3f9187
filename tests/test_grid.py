"""Rows as dense grids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmanager import grid
from openmanager.frame import MAX_FRAME_BYTES, encode
from openmanager.grid import MAX_CELLS, MIN_FILL, SMALL_CELLS, Rows

BEGIN = 1_790_000_000_000_000_000


def rows(keys: np.ndarray, values: np.ndarray | None = None) -> Rows:
    """Return rows of (server, metric, second) each."""
    servers, metrics, seconds = keys.T
    return Rows(
        servers=[f"s{k}" for k in range(int(servers.max(initial=-1)) + 1)],
        server_codes=servers,
        metrics=[f"m{k}" for k in range(int(metrics.max(initial=-1)) + 1)],
        metric_codes=metrics,
        times=BEGIN + seconds * 10**9,
        columns={"value": np.arange(len(keys), dtype=np.float64) if values is None else values},
    )


def unpacked(made) -> dict[tuple[str, str, int], float]:
    """Return the samples of frames by server, metric and time; fail when one is there twice."""
    found = {}
    for frame in made:
        for tick, server, metric in np.argwhere(~np.isnan(frame.values)).tolist():
            key = frame.servers[server], frame.metrics[metric], int(frame.times[tick])
            assert key not in found
            found[key] = float(frame.values[tick, server, metric])
    return found


def every(servers: int, metrics: int, ticks: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(servers), np.arange(metrics), np.arange(ticks), indexing="ij"), -1).reshape(
        -1, 3
    )


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 60)), max_size=80))
def test_frames_have_exactly_the_rows_and_the_last_of_two_counts(keys):
    given_rows = rows(np.asarray(keys, np.int64).reshape(-1, 3))
    expected = {
        (f"s{server}", f"m{metric}", BEGIN + second * 10**9): float(at)
        for at, (server, metric, second) in enumerate(keys)
    }
    assert unpacked(grid.frames(given_rows)) == expected


def test_dense_rows_are_few_frames_without_holes():
    keys = every(20, 10, 3600)
    made = list(grid.frames(rows(keys[np.random.default_rng(1).permutation(len(keys))])))
    assert sum(frame.values.size for frame in made) == len(keys)
    assert len(made) == 4
    assert all(np.all(np.diff(frame.times) > 0) for frame in made)


@pytest.mark.parametrize("shape", ["agents that tick at their own times", "a series of its own for each time"])
def test_sparse_rows_are_frames_that_are_not_much_emptier(shape):
    keys = every(20, 5, 100)
    if shape == "agents that tick at their own times":
        keys[:, 2] = keys[:, 2] * 100 + keys[:, 0]
    else:
        count = np.arange(5000)
        keys = np.stack([count, count % 7, count], -1)
    made = list(grid.frames(rows(keys)))
    assert sum(frame.sample_count for frame in made) == len(keys)
    for frame in made:
        assert frame.values.size <= SMALL_CELLS or frame.sample_count >= MIN_FILL * frame.values.size


def test_no_frame_is_larger_than_one_may_be():
    made = list(grid.frames(rows(every(3000, 300, 1))))
    assert max(frame.values.size for frame in made) <= MAX_CELLS
    assert max(len(encode(frame)) for frame in made) <= MAX_FRAME_BYTES


def test_long_names_are_not_too_many_for_a_frame():
    long = rows(every(1, 8000, 1))
    named = Rows(
        servers=long.servers,
        server_codes=long.server_codes,
        metrics=[f"m{k}{{text={'x' * 480}}}" for k in range(8000)],
        metric_codes=long.metric_codes,
        times=long.times,
        columns=long.columns,
    )
    assert max(len(encode(frame)) for frame in grid.frames(named)) <= MAX_FRAME_BYTES


def test_times_are_cut_to_milliseconds():
    keys = np.zeros((2, 3), np.int64)
    finer = rows(keys)
    finer.times[:] += [1_999_999, 1_000_001]
    assert unpacked(grid.frames(finer)) == {("s0", "m0", BEGIN + 10**6): 1.0}


def test_buckets_have_every_column_and_a_count_of_nothing_where_there_is_none():
    keys = np.array([[0, 0, 0], [1, 0, 0], [0, 0, 300]])
    columns = {name: np.full(3, 2.0) for name in ("min", "max", "sum", "count", "last")}
    given_rows = rows(keys)
    made = list(
        grid.rollups(
            Rows(
                servers=given_rows.servers,
                server_codes=given_rows.server_codes,
                metrics=given_rows.metrics,
                metric_codes=given_rows.metric_codes,
                times=given_rows.times,
                columns=columns,
            )
        )
    )
    assert [each.columns["count"].tolist() for each in made] == [[[[2.0], [2.0]], [[2.0], [0.0]]]]
    assert np.isnan(made[0].columns["first"]).all()
    assert np.isnan(made[0].columns["sum"][1, 1, 0])
