"""What many writers wrote at once, as it goes into a block: the last write by position, and few looks at each chunk."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openmanager_timeseries import block
from openmanager_timeseries.catalog import Catalog
from openmanager_timeseries.head import Chunk, Generation

from openmanager.frame import Frame

# The servers and metrics of each writer: some share both with others.
WRITERS = (
    (("a",), ("x", "y")),
    (("b", "a"), ("y",)),
    (("b", "c"), ("z", "x", "y")),
    (("c",), ("z",)),
)
Written = dict[tuple[str, str, int], float]


def write(catalog: Catalog, generation: Generation, writer: int, times: list[int], values: np.ndarray) -> Written:
    """Append a frame; return what it holds."""
    servers, metrics = WRITERS[writer]
    layout = catalog.layout(servers, metrics)
    catalog.admit(layout, np.ones((len(servers), len(metrics)), bool))
    frame = Frame(times=np.asarray(times, np.int64), servers=servers, metrics=metrics, values=values)
    catalog.observe(layout, frame)
    generation.append(layout, frame, generation.last + 1)
    return {
        (metrics[column], servers[row], times[tick]): float(values[tick, row, column])
        for tick, row, column in zip(*np.nonzero(~np.isnan(values)), strict=True)
    }


def rows(catalog: Catalog, generation: Generation) -> list[tuple[tuple[str, str, int], float]]:
    """Return the rows of a block of a generation, in their order."""
    generation.close()
    generation.turn()
    servers = block._server_names(generation, catalog)
    found = []
    for metrics, of in block._batches(generation, catalog, servers):
        keys = zip(of.metrics.tolist(), of.servers.tolist(), of.times.tolist(), strict=True)
        values = of.values["value"].tolist()
        found += [((metrics[m], servers[s], t), v) for (m, s, t), v in zip(keys, values, strict=True)]
    return found


frames = st.lists(
    st.tuples(
        st.integers(0, len(WRITERS) - 1),
        st.lists(st.integers(1, 30), min_size=1, max_size=4, unique=True).map(sorted),
        st.integers(0, 2**6 - 1),
    ),
    min_size=1,
    max_size=25,
)


@given(frames, st.sampled_from([1, 5, 1 << 20]))
@settings(max_examples=150)
def test_whoever_wrote_when_the_last_write_by_position_is_kept_in_the_order_of_the_block(frames, group_rows: int):
    catalog, generation, expected = Catalog(1000), Generation(first=1), {}
    for number, (writer, times, holes) in enumerate(frames):
        servers, metrics = WRITERS[writer]
        shape = (len(times), len(servers), len(metrics))
        values = number * 1000.0 + np.arange(np.prod(shape)).reshape(shape)
        values[-1].reshape(-1)[[at for at in range(values[-1].size) if holes >> at & 1]] = np.nan
        expected |= write(catalog, generation, writer, times, values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(block.FORMAT), "group_rows", group_rows)
        assert rows(catalog, generation) == sorted(expected.items())


def test_frames_of_writers_that_take_turns_cost_a_look_at_each_chunk_and_not_one_for_every_tick(monkeypatch):
    looks = 0
    series = Chunk.series

    def counted(self: Chunk, *arguments: object) -> object:
        nonlocal looks
        looks += 1
        return series(self, *arguments)

    catalog, generation = Catalog(1000), Generation(first=1)
    for tick in range(300):
        for writer, (servers, metrics) in enumerate(WRITERS):
            write(catalog, generation, writer, [tick], np.full((1, len(servers), len(metrics)), float(tick)))
    monkeypatch.setattr(Chunk, "series", counted)
    assert len(rows(catalog, generation)) == 300 * len(
        {(m, s) for servers, metrics in WRITERS for m in metrics for s in servers}
    )
    assert looks <= 2 * len(generation.chunks)
