"""Raw history from our blocks into an engine and from there on, compared sample by sample."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openmanager_timeseries.comparison import compare
from openmanager_timeseries.engines.port import Coded, Engine, Wanted
from openmanager_timeseries.engines.victoriametrics import CAPABILITIES
from openmanager_timeseries.migrate import ATTEMPTS, EXACT, BlockSource, Migration, Scope, begun_range, count
from shard import NOW, SECOND, frame, opened

from engines.stores import Store
from openmanager.errors import UnavailableError
from openmanager.frame import Frame, ServerInfo, encode

HOUR = 3600 * SECOND
METRICS = ("cpu", "memory{state=used}")


def scope(prefix: str, *, hours: int = 3) -> Scope:
    return Scope(
        servers=[f"{prefix}-{k}" for k in range(3)],
        metrics=METRICS,
        start=NOW - hours * HOUR,
        end=NOW + HOUR,
        window=HOUR,
    )


async def filled(history, prefix: str) -> int:
    """Write three hours of three servers, the last of them only to the log; return how many samples there are."""
    servers, metrics = scope(prefix).servers, scope(prefix).metrics
    rng = np.random.default_rng(7)
    total = 0
    for hour in range(3):
        times = NOW - (3 - hour) * HOUR + np.arange(0, 3600, 60) * SECOND
        values = rng.normal(50, 10, (60, 3, 2)).round(3)
        values[rng.random(values.shape) < 0.1] = np.nan
        made = Frame(times=times, servers=tuple(servers), metrics=tuple(metrics), values=values)
        await history.write(encode(made))
        total += made.sample_count
        if hour < 2:
            await history.seal()
    return total


def info(server: str) -> ServerInfo:
    return ServerInfo(id=server, environment="test", role="web")


def migration(history, engine: Engine, store: Store, prefix: str, state: Path) -> Migration:
    async def pause(_: float) -> None:
        await store.settle()

    return Migration(
        source=BlockSource(history),
        target=engine,
        scope=scope(prefix),
        info_of=info,
        between="blocks to it",
        state=state,
        pause=pause,
    )


async def done(moving: Migration):
    async for _ in moving.run():
        pass
    return moving.progress


async def test_every_sample_of_blocks_and_log_is_in_the_engine_afterwards(
    store: Store, engine: Engine, prefix, tmp_path
):
    state = tmp_path / "state.json"
    async with opened(tmp_path / "history") as history:
        total = await filled(history, prefix)
        progress = await done(migration(history, engine, store, prefix, state))
        counted = [each async for each in count(BlockSource(history), scope(prefix))][-1]
    assert (progress.copied_samples, progress.compared_samples) == (total, total)
    assert (progress.series_count, progress.mismatch_count, dict(progress.refused)) == (6, 0, {})
    assert progress.copied_windows == progress.compared_windows == progress.window_count == 5
    assert (counted.copied_samples, counted.series_count, counted.checksum) == (total, 6, progress.checksum)
    assert not state.exists()


async def test_a_migration_that_was_interrupted_goes_on_where_it_was(store: Store, engine: Engine, prefix, tmp_path):
    state = tmp_path / "state.json"
    async with opened(tmp_path / "history") as history:
        total = await filled(history, prefix)
        steps = migration(history, engine, store, prefix, state).run()
        await anext(steps)
        await anext(steps)
        await steps.aclose()
        assert begun_range(state, "blocks to it") == (scope(prefix).start, scope(prefix).end)
        assert begun_range(state, "it to blocks") is None
        resumed = migration(history, engine, store, prefix, state)
        assert resumed.progress.copied_windows == 2
        progress = await done(resumed)
        again = await done(migration(history, engine, store, prefix, state))
    assert (progress.copied_samples, progress.mismatch_count) == (total, 0)
    assert (again.copied_samples, again.mismatch_count, again.checksum) == (total, 0, progress.checksum)


async def test_what_was_known_of_series_outlives_an_interruption_of_the_comparison(
    store: Store, engine: Engine, prefix, tmp_path
):
    state = tmp_path / "state.json"
    async with opened(tmp_path / "history") as history:
        await filled(history, prefix)
        moving = migration(history, engine, store, prefix, state)
        steps = moving.run()
        async for progress in steps:
            if progress.compared_windows == 2:
                break
        await steps.aclose()
        resumed = migration(history, engine, store, prefix, state)
        assert np.array_equal(resumed.progress.seen, moving.progress.seen)
        assert resumed.progress.series_count == 6
        progress = await done(resumed)
    assert progress.compared_windows == progress.window_count


async def test_a_series_that_is_not_the_same_is_named(store: Store, engine: Engine, prefix, tmp_path):
    server = scope(prefix).servers[1]
    extra = frame(-90, {server: {"cpu": 1.5}})
    await engine.write([extra], info)
    await store.settle()
    async with opened(tmp_path / "history") as history:
        await filled(history, prefix)
        progress = await done(migration(history, engine, store, prefix, tmp_path / "state.json"))
    assert progress.mismatch_count == 1
    told = progress.mismatches[server, "cpu"]
    assert told.target_count == told.source_count + 1


async def test_a_store_that_stays_away_ends_a_migration(store: Store, prefix, tmp_path):
    away = store.engine(url="http://127.0.0.1:1")
    pauses = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    async with opened(tmp_path / "history") as history:
        await filled(history, prefix)
        moving = Migration(
            source=BlockSource(history),
            target=away,
            scope=scope(prefix),
            info_of=info,
            between="x",
            state=tmp_path / "state.json",
            pause=pause,
        )
        with pytest.raises(UnavailableError):
            async for _ in moving.run():
                pass
    await away.close()
    assert len(pauses) == ATTEMPTS - 1


# ── comparing ──────────────────────────────────────────────────────────────────────────────────────────────────────

WANTED = Wanted(servers=("a", "b"), metrics=("m", "n"), start=NOW, end=NOW + HOUR)


def coded(rows) -> Coded:
    """Return rows of (server, metric, second, value)."""
    table = np.asarray(rows, np.float64).reshape(-1, 4)
    return Coded(
        servers=WANTED.servers,
        server_codes=table[:, 0].astype(np.int64),
        metrics=WANTED.metrics,
        metric_codes=table[:, 1].astype(np.int64),
        times=NOW + table[:, 2].astype(np.int64) * SECOND,
        values=np.ascontiguousarray(table[:, 3]),
    )


ROWS = [(0, 0, 1, 1.5), (0, 0, 2, 2.5), (0, 1, 1, 1.5), (1, 1, 5, -0.0)]


@given(st.permutations(ROWS))
def test_the_order_of_samples_and_names_does_not_matter(shuffled):
    theirs = coded(shuffled)
    turned = Coded(
        servers=("b", "a"),
        server_codes=1 - theirs.server_codes,
        metrics=theirs.metrics,
        metric_codes=theirs.metric_codes,
        times=theirs.times,
        values=theirs.values,
    )
    found = compare(coded(ROWS), turned, WANTED, EXACT)
    assert (found.keys.tolist(), found.source_counts.tolist()) == ([0, 1, 3], [2, 1, 1])
    assert not found.differs.any()
    assert found.checksum == compare(coded(ROWS), coded(ROWS), WANTED, EXACT).checksum


@pytest.mark.parametrize(
    "changed",
    [
        ROWS[1:],
        [*ROWS, (0, 0, 3, 1.0)],
        [(0, 0, 1, 2.5), (0, 0, 2, 1.5), *ROWS[2:]],
        [(0, 0, 1, np.nextafter(1.5, 2)), *ROWS[1:]],
        [(0, 0, 7, 1.5), *ROWS[1:]],
    ],
    ids=["one is missing", "one more", "values change places", "the last bit", "another time"],
)
def test_any_difference_is_seen(changed):
    found = compare(coded(ROWS), coded(changed), WANTED, EXACT)
    assert found.keys[found.differs].tolist() == [0]


def test_a_series_that_only_one_store_has_differs():
    assert compare(coded(ROWS), coded(ROWS[:3]), WANTED, EXACT).differs.tolist() == [False, False, True]
    assert compare(coded([]), coded(ROWS[2:3]), WANTED, EXACT).differs.tolist() == [True]
    assert compare(coded([]), coded([]), WANTED, EXACT).differs.tolist() == []


def test_values_are_compared_within_the_digits_that_a_store_keeps():
    near = coded([(0, 0, 1, 1.5 + 1e-12), (0, 0, 2, 2.5 - 1e-12), (0, 1, 1, 1.5), (1, 1, 5, 0.0)])
    far = coded([(0, 0, 1, 1.5 + 1e-9), *ROWS[1:]])
    assert not compare(coded(ROWS), near, WANTED, CAPABILITIES).differs.any()
    assert compare(coded(ROWS), near, WANTED, EXACT).differs.tolist() == [True, False, True]
    assert compare(coded(ROWS), far, WANTED, CAPABILITIES).differs.tolist() == [True, False, False]


def test_windows_are_cut_at_multiples_and_parts_cover_every_series():
    wide = Scope(servers=[f"s{k}" for k in range(4500)], metrics=["m", "n"], start=HOUR + 5, end=3 * HOUR, window=HOUR)
    assert wide.windows() == [(HOUR + 5, 2 * HOUR), (2 * HOUR, 3 * HOUR)]
    pairs = [(s, m) for part in wide.parts(0, 1) for s in part.servers for m in part.metrics]
    assert len(pairs) == len(set(pairs)) == 9000


def test_a_state_of_something_else_is_not_gone_on_with(tmp_path):
    state = tmp_path / "state.json"
    state.write_text(json.dumps({"between": "a to b", "scope": {"start": 1, "end": 2}}))
    assert begun_range(state, "a to b") == (1, 2)
    state.write_text("torn")
    assert begun_range(state, "a to b") is None
