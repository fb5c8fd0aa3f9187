"""Sealed files: merges change no answer, whatever crashes in between; damage is found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openmanager_timeseries import sealed, upkeep
from openmanager_timeseries.block import FORMAT
from openmanager_timeseries.catalog import Catalog
from openmanager_timeseries.sealed import About, Batch, Rows, Sealed
from openmanager_timeseries.sealed_store import LINGER_SECONDS, SealedStore

SECOND = 10**9
HOUR = 3600 * SECOND
START = 1_790_000_000 * SECOND // (24 * HOUR) * 24 * HOUR


@dataclass
class Clock:
    """A clock that is moved by hand."""

    seconds: float = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now_nanos(self) -> int:
        return START


Samples = dict[tuple[str, str, int], float]


def store(folder: Path, clock: Clock | None = None) -> SealedStore:
    catalog = Catalog(1000)
    names = [f"s{at}" for at in range(3)], [f"m{at}" for at in range(5)]
    catalog.restore(
        [server for server in names[0] for _ in names[1]],
        names[1] * 3,
        np.zeros(15, np.int64),
        np.zeros(15),
    )
    made = SealedStore(folder, FORMAT, catalog, clock or Clock())
    made.open()
    return made


def put(target: SealedStore, samples: Samples, first: int | None = None, last: int | None = None) -> Sealed:
    """Seal samples as the next file."""
    metrics = sorted({metric for _, metric, _ in samples})
    servers = sorted({server for server, _, _ in samples})
    batches = []
    for metric in metrics:
        rows = sorted((servers.index(s), t, v) for (s, m, t), v in samples.items() if m == metric)
        codes, times, values = zip(*rows, strict=True)
        batches.append(
            Batch(
                [metric],
                Rows(
                    np.zeros(len(rows), np.int64), np.array(codes), np.array(times), {"value": np.array(values, float)}
                ),
            )
        )
    number = first or target.last + 1
    made = sealed.write(target.folder, FORMAT, About(first=number, last=last or number), servers, batches)
    target.add(made)
    return made


def content(target: SealedStore) -> Samples:
    """Return what a store answers: later files over earlier ones."""
    everything = target._catalog.select((), "", ())
    names = [
        (target._catalog.servers[s], target._catalog.metrics[m])
        for s, m in zip(
            target._catalog.server_of(everything.ids), target._catalog.metric_of(everything.ids), strict=True
        )
    ]
    found: Samples = {}
    for file in target.files:
        for part in target.read(file, everything, 0, 1 << 62, ("value",)):
            for row, time, value in zip(part.rows, part.times, part.values["value"], strict=True):
                found[(*names[row], int(time))] = float(value)
    return found


samples = st.dictionaries(
    st.tuples(
        st.sampled_from(["s0", "s1", "s2"]),
        st.sampled_from(["m0", "m1", "m2", "m3"]),
        st.integers(0, 20).map(lambda at: START + at * 10 * SECOND),
    ),
    st.sampled_from([0.0, -0.0, 12.34, 1 / 3, 2.0**40, 5e-324, 1e300, 7.0, 1e12 + 0.25]),
    min_size=1,
    max_size=30,
)


@given(st.lists(samples, min_size=1, max_size=6), st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_merging_any_neighbours_changes_no_answer(tmp_path_factory, files: list[Samples], data):
    folder = tmp_path_factory.mktemp("sealed")
    target = store(folder)
    expected: Samples = {}
    for each in files:
        put(target, each)
        expected.update(each)
    assert same(content(target), expected)
    while len(target.files) > 1:
        begin = data.draw(st.integers(0, len(target.files) - 2))
        end = data.draw(st.integers(begin + 2, len(target.files)))
        inputs = target.files[begin:end]
        target.replace(inputs, target.merge(inputs))
        assert same(content(target), expected)
        assert same(content(store(folder)), expected)  # a crash before the replaced files were deleted
        target = store(folder)
    assert target.last == len(files)


def same(ours: Samples, expected: Samples) -> bool:
    return {k: np.float64(v).tobytes() for k, v in ours.items()} == {
        k: np.float64(v).tobytes() for k, v in expected.items()
    }


def test_replaced_files_stay_as_long_as_a_query_may_read_them(tmp_path: Path):
    clock = Clock()
    target = store(tmp_path, clock)
    inputs = [put(target, {("s0", "m0", START): 1.0}), put(target, {("s0", "m0", START + SECOND): 2.0})]
    target.replace(inputs, target.merge(inputs))
    clock.seconds = LINGER_SECONDS - 1
    target.delete_replaced()
    assert all(each.path.exists() for each in inputs)
    clock.seconds = LINGER_SECONDS
    target.delete_replaced()
    assert [path.name for path in tmp_path.iterdir()] == [target.files[0].path.name]


def test_a_rewritten_file_keeps_what_it_is_told_to(tmp_path: Path):
    target = store(tmp_path)
    inputs = [put(target, {(server, metric, START): 1.0 for server in ("s0", "s1") for metric in ("m0", "m1")})]
    made = target.merge(inputs, lambda metrics, servers, rows: rows.servers != list(servers).index("s0"))
    target.replace(inputs, made)
    assert (made.about.first, made.about.revision) == (1, 1)
    assert set(content(store(tmp_path))) == {("s1", "m0", START), ("s1", "m1", START)}
    inputs = target.files
    target.replace(inputs, target.merge(inputs, lambda _, __, rows: np.zeros(len(rows.times), bool)))
    assert content(store(tmp_path)) == {}
    assert store(tmp_path).last == 1


def test_a_flipped_bit_anywhere_is_found_or_harmless(tmp_path: Path):
    target = store(tmp_path)
    expected = {("s0", f"m{at % 4}", START + at * SECOND): at / 100 for at in range(400)}
    path = put(target, expected).path
    intact = path.read_bytes()
    generator = np.random.default_rng(1)
    wrong = 0
    for at in [*range(64), *generator.integers(0, len(intact), 200).tolist()]:
        damaged = bytearray(intact)
        damaged[at] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        found = content(store(tmp_path))
        wrong += any(expected.get(key) != value for key, value in found.items())
        for left in tmp_path.glob("*.damaged"):
            left.unlink()
    assert wrong == 0


def test_a_damaged_file_does_not_hold_up_a_merge(tmp_path: Path):
    target = store(tmp_path)
    inputs = [put(target, {("s0", "m0", START + at * SECOND): 0.5}) for at in range(3)]
    content_of = bytearray(inputs[1].path.read_bytes())
    content_of[4:60] = bytes(56)
    inputs[1].path.write_bytes(content_of)
    assert target.merge(inputs) is None
    assert (list(target.files), target.quarantined) == ([inputs[0], inputs[2]], [inputs[1].path.name])
    assert len(content(target)) == 2


@pytest.mark.parametrize("size", [0, 3, 12, 400])
def test_a_file_cut_short_is_set_aside(tmp_path: Path, size: int):
    target = store(tmp_path)
    path = put(target, {("s0", "m0", START): 1.0}).path
    path.write_bytes(path.read_bytes()[:size])
    again = store(tmp_path)
    assert (again.files, again.quarantined, again.last) == ((), [path.name], 1)


def hours(*spans: tuple[float, float]) -> list[Sealed]:
    return [
        Sealed(
            path=Path(),
            about=About(
                first=at + 1,
                last=at + 1,
                min_time=START + int(begin * HOUR),
                max_time=START + int(end * HOUR),
                row_count=1000,
            ),
            size_bytes=0,
            groups=(),
            metadata=None,
        )
        for at, (begin, end) in enumerate(spans)
    ]


def chosen(files: list[Sealed], now: float) -> list[int]:
    return [each.about.first for each in upkeep.next_merge(files, upkeep.BLOCK_WINDOWS, START + int(now * HOUR))]


def test_neighbours_in_a_window_that_is_over_are_merged():
    files = hours((0, 0.2), (0.3, 0.5), (0.6, 0.9), (1, 1.4), (1.5, 1.8))
    assert chosen(files, 1.1) == []
    assert chosen(files, 1.2) == [1, 2, 3]
    assert chosen(files[3:], 2.2) == [4, 5]
    assert chosen(hours((0, 0.9), (1, 1.9), (2, 2.9)), 24.1) == []
    assert chosen(hours((0, 0.9), (1, 1.9), (2, 2.9)), 24.2) == [1, 2, 3]


def test_a_file_with_rows_of_two_windows_divides_them():
    files = hours((0, 0.1), (0.2, 0.3), (-30, 0.4), (0.4, 0.5), (0.5, 0.6))
    assert chosen(files, 2) == [1, 2]
    assert chosen([files[0], *files[2:]], 2) == [4, 5]
    assert chosen([files[0], files[2], files[3]], 48) == []
