"""Buckets made in pieces are those made at once."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from openmanager_simulator.bucket import Buckets, Tally, coarser

from openmanager.rollup import COLUMNS, coarsen, reduce_samples

GAUGES, COUNTERS, SERVERS = 3, 4, 2
METRICS = GAUGES + COUNTERS


def flat(buckets: Buckets, server: int, metric: int) -> dict[str, list[float]]:
    """Return the buckets of one series as `openmanager.rollup` has them."""
    of = {name: buckets.columns[name][:, server, metric] for name in ("min", "max", "sum", "last")}
    unknown = np.full(len(buckets.times), np.nan)
    for name in ("first", "growth"):
        of[name] = unknown if metric < GAUGES else buckets.columns[name][:, server, metric - GAUGES]
    return of | {"count": buckets.counts.astype(float)}


@given(st.integers(0, 1 << 30), st.integers(1, 60), st.sampled_from([1, 3, 7, 20, 50]), st.sampled_from([2, 3, 12]))
@settings(max_examples=150)
def test_ticks_in_pieces_leave_what_their_samples_leave_bit_for_bit(seed: int, ticks: int, width: int, factor: int):
    random = np.random.default_rng(seed)
    # Not decimals: nothing hides the order of addition. Counters fall often, twice in a bucket too.
    values = random.uniform(0, 1, (SERVERS, ticks, METRICS))
    times = (random.integers(0, 30) + np.arange(ticks)) * int(random.integers(1, 4))
    tally = Tally(times, width, SERVERS, GAUGES, COUNTERS)
    for server in range(SERVERS):
        cuts = sorted({0, ticks, *random.integers(0, ticks + 1, 3).tolist()})
        for begin, end in itertools.pairwise(cuts):
            if begin < end:
                rows = values[server, begin:end]
                tally.add(server, begin, rows[:, :GAUGES], rows[:, GAUGES:])
    fine = tally.finish()
    coarse = coarser(fine, width * factor)
    for server, metric in np.ndindex(SERVERS, METRICS):
        counters = np.full(ticks, metric >= GAUGES)
        cells, columns = reduce_samples(values[server, :, metric], times // width * width, counters)
        for found in (fine, coarse):
            assert found.times.tolist() == cells.tolist()
            own = flat(found, server, metric)
            assert [own[name].tobytes() for name in COLUMNS] == [columns[name].tobytes() for name in COLUMNS]
            cells, columns = coarsen(columns, cells // (width * factor) * (width * factor))
