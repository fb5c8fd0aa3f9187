"""Recent samples in memory: read as they came, half turned, and turned, the same samples are found."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openmanager_timeseries import head
from openmanager_timeseries.catalog import Catalog
from openmanager_timeseries.head import Chunk, Generation, pieces
from openmanager_timeseries.samples import merge

from openmanager.frame import Frame

SERVERS, METRICS = ("a", "b", "c"), ("x", "y")
NAN = float("nan")


def filled(
    catalog: Catalog, frames: list[tuple[int, int, bool]]
) -> tuple[Generation, dict[tuple[str, str, int], float]]:
    """Return a generation of frames (time, ticks, whether the last value is missing), and what is in it by name."""
    generation = Generation(first=1)
    expected: dict[tuple[str, str, int], float] = {}
    for number, (time, ticks, hole) in enumerate(frames):
        times = np.arange(time, time + ticks)
        values = number * 1000 + np.arange(ticks * 6.0).reshape(ticks, 3, 2)
        values[-1, -1, -1] = NAN if hole else values[-1, -1, -1]
        layout = catalog.layout(SERVERS, METRICS)
        catalog.admit(layout, np.ones((3, 2), bool))
        frame = Frame(times=times, servers=SERVERS, metrics=METRICS, values=values)
        catalog.observe(layout, frame)
        generation.append(layout, frame, number + 1)
        for tick, at in enumerate(times.tolist()):
            for row, server in enumerate(SERVERS):
                for column, metric in enumerate(METRICS):
                    if not np.isnan(values[tick, row, column]):
                        expected[server, metric, at] = values[tick, row, column]
    return generation, expected


def found(catalog: Catalog, generation: Generation, servers: tuple[str, ...], metrics: tuple[str, ...], end: int):
    selection = catalog.select(servers, "", metrics)
    samples = merge(len(selection.ids), list(pieces([generation], selection, 2, end)))
    names = list(zip(*catalog.names(selection.ids), strict=True))
    return {
        (*names[row], time): value
        for row, time, value in zip(samples.rows.tolist(), samples.times.tolist(), samples.values.tolist(), strict=True)
    }


@pytest.mark.parametrize("kept", [0, 1 << 30], ids=["frames as they came", "frames copied"])
@given(
    frames=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 4), st.booleans()), min_size=1, max_size=12),
    turned=st.sets(st.integers(0, 12)),
    servers=st.sampled_from([(), ("b",), ("a", "c")]),
    metrics=st.sampled_from([(), ("y",)]),
    end=st.integers(2, 40),
)
def test_what_is_read_does_not_depend_on_what_is_turned(
    kept: int,
    frames: list[tuple[int, int, bool]],
    turned: set[int],
    servers: tuple[str, ...],
    metrics: tuple[str, ...],
    end: int,
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "_KEPT_BYTES", kept)
        patch.setattr(head, "CHUNK_TICKS", 5)
        catalog = Catalog(10)
        generation, everything = filled(catalog, frames)
        expected = {
            key: value
            for key, value in everything.items()
            if 2 <= key[2] < end and (not servers or key[0] in servers) and (not metrics or key[1] in metrics)
        }
        assert found(catalog, generation, servers, metrics, end) == expected
        for at, chunk in enumerate(generation.chunks):
            if at in turned and chunk.closed:
                chunk.turn()
        assert found(catalog, generation, servers, metrics, end) == expected
        generation.close()
        assert all(chunk.closed for chunk in generation.chunks)
        generation.turn()
        generation.turn()
        assert found(catalog, generation, servers, metrics, end) == expected


def test_full_chunks_are_handed_out_once():
    catalog = Catalog(10)
    generation, _ = filled(catalog, [(time, 1, False) for time in range(1, 2 * head.CHUNK_TICKS + 2)])
    full = generation.take_full()
    assert full == generation.chunks[:2]
    assert generation.take_full() == []
    generation.close()
    assert generation.take_full() == generation.chunks[2:]


def test_bytes_are_counted_as_they_come_and_stay_the_same_when_they_are_turned(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(head, "_KEPT_BYTES", 0)
    catalog = Catalog(10)
    generation = Generation(first=1)
    layout = catalog.layout(SERVERS, METRICS)
    taken = sum(
        generation.append(
            layout, Frame(times=np.array([at]), servers=SERVERS, metrics=METRICS, values=np.ones((1, 3, 2))), at
        )
        for at in range(1, 10)
    )
    assert taken == generation.nbytes == 9 * 6 * 8
    generation.close()
    generation.turn()
    assert generation.nbytes == 9 * 6 * 8


def test_a_reader_beside_the_turning_finds_all_samples(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(head, "_KEPT_BYTES", 0)
    catalog = Catalog(10)
    generation, everything = filled(catalog, [(time, 1, False) for time in range(2, 60)])
    generation.close()
    seen: list[bool] = []
    begun = threading.Event()

    def read() -> None:
        begun.set()
        seen.extend(found(catalog, generation, (), (), 100) == everything for _ in range(200))

    reader = threading.Thread(target=read)
    reader.start()
    begun.wait()
    for chunk in generation.chunks:
        chunk.turn()
    reader.join()
    assert len(seen) == 200
    assert all(seen)


def test_a_layout_of_many_servers_has_shorter_chunks():
    catalog = Catalog(2_000_000)
    small = catalog.layout(SERVERS, METRICS)
    large = catalog.layout(tuple(map(str, range(2000))), tuple(f"m{at}" for at in range(511)))
    assert Chunk(small, 1).capacity > Chunk(large, 1).capacity
    assert Chunk(large, 500).capacity == 500
