"""Tiers: the same answers from buckets as from samples, whatever comes late, is deleted, imported or damaged."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openmanager_simulator.catalogue import load_catalogue
from openmanager_simulator.fleet import make_fleet
from openmanager_simulator.info import metric_infos
from openmanager_simulator.simulation import Simulation
from openmanager_timeseries import keeper as upkeep
from openmanager_timeseries.history import History
from openmanager_timeseries.keeper import Keeper
from openmanager_timeseries.rollup_import import RollupImport
from timeseries.shard import (
    DAY,
    END,
    HOUR,
    MINUTE,
    NOW,
    SECOND,
    NoDisk,
    ask,
    both,
    decimals,
    grid,
    imported,
    opened,
    rolled,
    ticks,
    write,
)

from openmanager.errors import FailedPreconditionError, InvalidArgumentError
from openmanager.frame import Frame, encode, split
from openmanager.rollup import COLUMNS, coarsen, encode_grid, reduce_ticks

EXACT = ("MIN", "MAX", "COUNT", "LAST", "SUM", "MEAN")


# ── equal to samples ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("aggregation", [*EXACT, "RATE", "INCREASE"])
@pytest.mark.parametrize("step", [5 * MINUTE, 15 * MINUTE, HOUR, 2 * HOUR])
async def test_buckets_of_tiers_are_those_of_samples(tmp_path: Path, aggregation: str, step: int):
    async with opened(tmp_path) as history:
        start = END - 3 * HOUR
        counter = np.cumsum(np.random.default_rng(2).integers(0, 9, 1080)).astype(float)
        counter[500:] -= counter[500]  # it was restarted
        for part in np.array_split(np.arange(1080), 9):
            await write(
                history,
                [start + int(at) * 10 * SECOND for at in part],
                load=[decimals(1080)[at] for at in part],
                requests=counter[part].tolist(),
            )
        await rolled(history)
        metric = ("requests",) if aggregation in {"RATE", "INCREASE"} else ()
        for shift in (0, 7 * MINUTE, 11 * SECOND):
            found, samples = await both(history, start + shift, END - shift, step, aggregation, metrics=metric)
            np.testing.assert_allclose(found.values, samples.values, rtol=1e-12)
            assert {part.tier for part in samples.parts} == {"raw"}
            assert {part.tier for part in found.parts} & {"5m", "1h"}
            assert not found.partial_reason


async def test_the_coarsest_tier_that_fits_is_taken_and_the_borders_meet(tmp_path: Path):
    async with opened(tmp_path) as history:
        start = END - 5 * HOUR
        await write(history, ticks(start, 1800), load=decimals(1800))
        await rolled(history)
        await write(history, ticks(END, 12), load=decimals(12))
        found, samples = await both(history, start + 17 * MINUTE, END + 2 * MINUTE, HOUR, "SUM")
        np.testing.assert_allclose(found.values, samples.values, rtol=1e-12)
        parts = [(part.tier, (part.start - start) // MINUTE, (part.end - start) // MINUTE) for part in found.parts]
        assert parts == [("raw", 17, 20), ("5m", 20, 60), ("1h", 60, 300), ("raw", 300, 302)]


@pytest.mark.parametrize("aggregation", ["STDDEV", "P50", "P99"])
async def test_what_buckets_cannot_give_comes_from_samples(tmp_path: Path, aggregation: str):
    async with opened(tmp_path) as history:
        await write(history, ticks(END - HOUR, 360), load=decimals(360))
        await rolled(history)
        found = await ask(history, END - HOUR, END, HOUR, aggregation)
        assert [part.tier for part in found.parts] == ["raw"]
        assert np.isfinite(found.values).all()


async def test_the_last_sample_of_a_group_is_only_known_from_samples(tmp_path: Path):
    async with opened(tmp_path) as history:
        await write(history, [END - HOUR, END - 10 * MINUTE], ("a",), load=[1.0, 2.0])
        await write(history, [END - 20 * MINUTE], ("b",), load=[3.0])
        await rolled(history)
        found = await ask(history, END - HOUR, END, HOUR, "LAST", group_by="ALL")
        assert found.values.tolist() == [[2.0]]
        assert [part.tier for part in found.parts] == ["raw"]


async def test_groups_pool_buckets_as_they_pool_samples(tmp_path: Path):
    async with opened(tmp_path) as history:
        await write(history, ticks(END - HOUR, 100), ("a", "b"), load=decimals(100), requests=list(range(100)))
        await write(history, ticks(END - HOUR, 300, 12 * SECOND), ("c",), load=decimals(300), requests=list(range(300)))
        await rolled(history)
        for aggregation, metric in (("MEAN", "load"), ("COUNT", "load"), ("MAX", "load"), ("INCREASE", "requests")):
            found, samples = await both(
                history, END - HOUR, END, 30 * MINUTE, aggregation, group_by="ALL", metrics=(metric,)
            )
            np.testing.assert_allclose(found.values, samples.values, rtol=1e-12)
            assert {part.tier for part in found.parts} == {"5m"}


writes = st.lists(
    st.tuples(
        st.integers(0, 4 * 3600 // 20),
        st.integers(1, 40),
        st.sampled_from(["a", "b"]),
        st.integers(0, 1000),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


@given(writes)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_order_of_writes_seals_and_restarts_gives_the_buckets_of_the_samples(tmp_path_factory, found):
    """Late, early, overwritten, sealed in between, restarted: the tiers say what the samples say."""
    folder = tmp_path_factory.mktemp("tiers")
    start = END - 4 * HOUR
    half = len(found) // 2
    for part in (found[:half], found[half:]):
        async with opened(folder) as history:
            for at, count, server, seed, seal in part:
                times = ticks(start + at * 20 * SECOND, count, 20 * SECOND)
                grown = np.cumsum(np.random.default_rng(seed).integers(-1, 5, count)).astype(float).tolist()
                await write(history, times, (server,), load=decimals(count, seed), requests=grown)
                if seal:
                    await rolled(history)
            for aggregation in (*EXACT, "INCREASE"):
                metric = ("requests",) if aggregation == "INCREASE" else ("load",)
                answer, samples = await both(history, start, END, HOUR, aggregation, metrics=metric)
                np.testing.assert_allclose(answer.values, samples.values, rtol=1e-12, atol=1e-9)
            if part:
                assert not answer.partial_reason


async def test_a_late_sample_corrects_every_tier(tmp_path: Path):
    async with opened(tmp_path) as history:
        start = END - 3 * HOUR
        await write(history, ticks(start, 1080), load=[1.0] * 1080)
        await rolled(history)
        assert (await ask(history, start, END, HOUR, "MAX")).values.tolist() == [[1.0, 1.0, 1.0]]
        await write(history, [start + 90 * MINUTE + SECOND], load=[9.0])
        late = await ask(history, start, END, HOUR, "MAX")
        assert late.values.tolist() == [[1.0, 9.0, 1.0]]
        assert [part.tier for part in late.parts] == ["1h", "5m", "raw", "5m", "1h"]
        await rolled(history)
        corrected = await ask(history, start, END, HOUR, "MAX")
        assert corrected.values.tolist() == [[1.0, 9.0, 1.0]]
        assert [part.tier for part in corrected.parts] == ["1h"]


async def test_an_overwritten_sample_is_counted_once(tmp_path: Path):
    async with opened(tmp_path) as history:
        await write(history, ticks(END - HOUR, 360), load=[1.0] * 360)
        await rolled(history)
        await write(history, [END - HOUR], load=[5.0])
        await rolled(history)
        assert (await ask(history, END - HOUR, END, HOUR, "COUNT")).values.tolist() == [[360.0]]
        assert (await ask(history, END - HOUR, END, HOUR, "SUM")).values.tolist() == [[364.0]]


# ── beyond raw ─────────────────────────────────────────────────────────────────────────────────────────────────────


def only_tiers(history: History) -> None:
    """Let raw samples be too old: what was rolled up is all there is."""
    for file in history.blocks.files:
        file.path.unlink()
    history.blocks.files = ()
    history.head.drop(-1)
    history.retention.defaults["raw"] = 60 * SECOND


async def test_what_samples_would_be_needed_for_is_refused_with_the_reason(tmp_path: Path):
    async with opened(tmp_path) as history:
        await write(history, ticks(END - 2 * HOUR, 720), load=decimals(720))
        await rolled(history)
        only_tiers(history)
        assert (await ask(history, END - 2 * HOUR, END, HOUR, "MAX")).partial_reason == ""
        for aggregation, step in (("STDDEV", HOUR), ("MAX", MINUTE), ("FIRST", HOUR), ("INCREASE", HOUR)):
            with pytest.raises(FailedPreconditionError, match="only buckets of 5m and 1h are kept there"):
                await ask(history, END - 2 * HOUR, END, step, aggregation)


async def test_a_part_that_cannot_be_answered_makes_the_answer_partial(tmp_path: Path):
    async with opened(tmp_path) as history:
        await write(history, ticks(END - 2 * HOUR, 720), load=decimals(720))
        await rolled(history)
        history.retention.defaults["raw"] = NOW - (END - HOUR)
        found = await ask(history, END - 2 * HOUR, END, MINUTE, "MAX")
        assert "only buckets of 5m and 1h are kept there" in found.partial_reason
        assert np.isnan(found.values[0, :60]).all()
        assert np.isfinite(found.values[0, 60:]).all()


async def test_percentiles_beyond_raw_come_from_sketches_with_their_error(tmp_path: Path):
    async with opened(tmp_path, sketch_metrics="load") as history:
        values = decimals(720)
        await write(history, ticks(END - 2 * HOUR, 720), load=values, requests=list(range(720)))
        await rolled(history)
        exact = await ask(history, END - 2 * HOUR, END, 5 * MINUTE, "P90", metrics=("load",))
        only_tiers(history)
        fine = await ask(history, END - 2 * HOUR, END, 5 * MINUTE, "P90", metrics=("load",))
        # A sketch of 30 samples holds them all.
        np.testing.assert_allclose(fine.values, exact.values, rtol=1e-12)
        assert fine.rank_error == 0.0
        coarse = await ask(history, END - 2 * HOUR, END, 2 * HOUR, "P90", metrics=("load",))
        assert 0.0 < coarse.rank_error < 0.02
        rank = float(np.mean(np.asarray(values) <= coarse.values[0, 0]))
        assert abs(rank - 0.9) <= coarse.rank_error
        with pytest.raises(FailedPreconditionError, match="no sketches are kept"):
            await ask(history, END - 2 * HOUR, END, HOUR, "P90", metrics=("requests",))


async def test_a_late_sample_is_counted_once_in_a_percentile_too(tmp_path: Path):
    async with opened(tmp_path, sketch_metrics="load") as history:
        await write(history, ticks(END - HOUR, 20), load=[1.0] * 20)
        await rolled(history)
        await write(history, ticks(END - HOUR + SECOND, 29), load=[9.0] * 29)
        await rolled(history)
        only_tiers(history)
        found = await ask(history, END - HOUR, END, 5 * MINUTE, "P50")
        assert found.values[0, 0] == 9.0


async def test_a_server_that_is_left_in_the_sketches_alone_does_not_stop_the_tiers(tmp_path: Path):
    async with opened(tmp_path, sketch_metrics="load") as history:
        await write(history, ticks(END - HOUR, 360), servers=("a", "b"), load=[1.0] * 360)
        await rolled(history)
        # As a deletion leaves it that was stopped between the two: the buckets of b are gone, its sketches are there.
        for files in history.roller.tiers:
            files.buckets.replace(files.buckets.files, None)
        await imported(history, "5m", grid(ticks(END - HOUR, 12, 5 * MINUTE), 30, 1.0))
        history.rebuild("1h", END - HOUR, END)
        await rolled(history)
        assert [history.roller.waiting(at) for at in (0, 1)] == [0, 0]


async def test_a_percentile_takes_no_sketch_from_where_samples_answer(tmp_path: Path):
    async with opened(tmp_path, sketch_metrics="load") as history:
        await write(history, ticks(END - HOUR, 360), load=[1.0] * 180 + [9.0] * 180)
        await rolled(history)
        await write(history, [END - 30 * MINUTE + SECOND], load=[9.0])
        history.retention.defaults["raw"] = NOW - (END - 40 * MINUTE)
        found = await ask(history, END - HOUR, END, HOUR, "P50")
        assert (found.values.tolist(), found.rank_error) == ([[9.0]], pytest.approx(0.0, abs=0.02))


async def test_a_percentile_over_the_border_of_raw_is_made_of_both(tmp_path: Path):
    async with opened(tmp_path, sketch_metrics="load") as history:
        values = decimals(120)
        await write(history, ticks(END - HOUR, 120, 30 * SECOND), load=values)
        await rolled(history)
        history.retention.defaults["raw"] = NOW - (END - 30 * MINUTE)
        found = await ask(history, END - HOUR, END, HOUR, "P50")
        assert found.values[0, 0] == pytest.approx(np.percentile(values, 50), rel=1e-12)
        assert {part.tier for part in found.parts} == {"raw", "5m"}


# ── imported buckets ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_imported_buckets_are_readable_at_once_and_after_a_restart(tmp_path: Path):
    start = (END // DAY - 30) * DAY
    async with opened(tmp_path) as history:
        assert await imported(history, "1h", grid(ticks(start, 24, HOUR), 360, 2.5)) == (24, 0)
        found = await ask(history, start, start + DAY, HOUR, "MEAN")
        assert found.values.tolist() == [[2.5] * 24]
    async with opened(tmp_path) as history:
        found = await ask(history, start, start + DAY, 4 * HOUR, "COUNT")
        assert found.values.tolist() == [[1440.0] * 6]
        assert [part.tier for part in found.parts] == ["1h"]
        assert history.catalog.alive == 1


async def test_of_a_bucket_the_one_with_more_samples_stays(tmp_path: Path):
    async with opened(tmp_path) as history:
        start = END - 2 * DAY
        assert await imported(history, "1h", grid([start], 100, 1.0)) == (1, 0)
        assert await imported(history, "1h", grid([start], 100, 2.0)) == (0, 1)
        assert await imported(history, "1h", grid([start], 50, 3.0)) == (0, 1)
        assert await imported(history, "1h", grid([start], 360, 4.0)) == (1, 0)
        assert (await ask(history, start, start + HOUR, HOUR, "MAX")).values.tolist() == [[4.0]]


async def test_a_late_sample_does_not_outvote_an_imported_bucket(tmp_path: Path):
    async with opened(tmp_path) as history:
        start = END - 2 * DAY
        await imported(history, "5m", grid(ticks(start, 12, 5 * MINUTE), 30, 2.0))
        await imported(history, "1h", grid([start], 360, 2.0))
        await write(history, [start + 7 * MINUTE], load=[9.0])
        before = await ask(history, start, start + HOUR, HOUR, "COUNT")
        await rolled(history)
        after = await ask(history, start, start + HOUR, HOUR, "COUNT")
        assert before.values.tolist() == after.values.tolist() == [[360.0]]


async def test_coarser_buckets_that_nobody_sent_are_made_of_the_finer_ones(tmp_path: Path):
    async with opened(tmp_path) as history:
        start = END - 2 * DAY
        await imported(history, "5m", grid(ticks(start, 12, 5 * MINUTE), 30, 2.0))
        assert (await ask(history, start, start + HOUR, HOUR, "SUM")).values.tolist() == [[720.0]]
        await rolled(history)
        found = await ask(history, start, start + HOUR, HOUR, "SUM")
        assert (found.values.tolist(), [part.tier for part in found.parts]) == ([[720.0]], ["1h"])


async def test_buckets_older_than_the_tier_is_kept_are_refused(tmp_path: Path):
    async with opened(tmp_path) as history:
        assert await imported(history, "5m", grid([END - 91 * DAY, END - 89 * DAY], 30, 2.0)) == (1, 1)


@pytest.mark.parametrize(
    ("tier", "time", "message"),
    [
        ("", END, "frame.tier is required"),
        ("7m", END, "frame.tier must be one of 5m, 1h"),
        ("1h", END + MINUTE, "frame.time_unix_nanos must be multiples of 1h"),
    ],
)
async def test_buckets_of_no_tier_are_refused(tmp_path: Path, tier: str, time: int, message: str):
    async with opened(tmp_path) as history:
        with pytest.raises(InvalidArgumentError, match=message):
            RollupImport(history).add(encode_grid(tier, grid([time], 1, 1.0)))


# ── upkeep ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_damaged_file_of_a_tier_is_made_again(tmp_path: Path):
    async with opened(tmp_path) as history:
        await write(history, ticks(END - 2 * HOUR, 720), load=[2.0] * 720)
        await rolled(history)
        paths = [file.path for file in history.roller.tiers[1].buckets.files]
    for path in paths:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        data[-20] ^= 0xFF
        path.write_bytes(data)
    async with opened(tmp_path) as history:
        keeper = Keeper(history, NoDisk())
        await keeper.mend()
        await rolled(history)
        found = await ask(history, END - 2 * HOUR, END, HOUR, "SUM")
        assert (found.values.tolist(), [part.tier for part in found.parts]) == ([[720.0, 720.0]], ["1h"])


async def test_a_damaged_block_is_made_again_from_the_log(tmp_path: Path):
    async with opened(tmp_path) as history:
        await write(history, ticks(END - HOUR, 60), load=decimals(60))
        await history.seal()
        path = history.blocks.files[0].path
    path.write_bytes(path.read_bytes()[:-30])
    async with opened(tmp_path) as history:
        assert (await ask(history, END - HOUR, END, HOUR, "COUNT")).partial_reason
        await Keeper(history, NoDisk()).mend()
        found = await ask(history, END - HOUR, END, HOUR, "COUNT")
        assert (found.values.tolist(), found.partial_reason) == ([[60.0]], "")
        assert not list((tmp_path / "blocks").glob("*.damaged"))


async def test_how_far_the_tiers_have_come_survives_a_restart(tmp_path: Path):
    async with opened(tmp_path) as history:
        await write(history, ticks(END - 2 * HOUR, 720), load=decimals(720))
        await history.seal()
        history.roller.begin(history.roller.next())  # and then the process ends
        history.roller.save(history.roller.snapshot())
    async with opened(tmp_path) as history:
        assert history.roller.waiting(0) > 0
        await rolled(history)
        found, samples = await both(history, END - 2 * HOUR, END, HOUR, "SUM")
        np.testing.assert_allclose(found.values, samples.values, rtol=1e-12)
        assert [part.tier for part in found.parts] == ["1h"]


async def test_a_tier_can_be_made_again_on_demand(tmp_path: Path):
    async with opened(tmp_path) as history:
        await write(history, ticks(END - 2 * HOUR, 720), load=decimals(720))
        await rolled(history)
        assert history.rebuild("1h", END - 2 * HOUR, END) == 2
        assert history.rebuild("", END - 2 * HOUR, END) == 24 + 2
        await rolled(history)
        assert [history.roller.waiting(at) for at in (0, 1)] == [0, 0]
        with pytest.raises(InvalidArgumentError, match="tier must be one of 5m, 1h, or empty"):
            history.rebuild("2h", END - HOUR, END)


async def test_small_files_of_a_tier_become_one(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(upkeep, "ROLL_SECONDS", 1e9)
    async with opened(tmp_path, raw_retention=timedelta(days=30)) as history:
        start = (END // DAY - 2) * DAY
        for hour in range(24):
            await write(history, ticks(start + hour * HOUR, 60, MINUTE), load=decimals(60))
            await rolled(history)
        before = await ask(history, start, start + DAY, HOUR, "SUM")
        files = len(history.roller.tiers[0].buckets.files)
        for _ in range(3):
            await Keeper(history, NoDisk()).merge_files()
        assert len(history.roller.tiers[0].buckets.files) < files
        after = await ask(history, start, start + DAY, HOUR, "SUM")
        assert after.values.tolist() == before.values.tolist()


# ── history that is made ahead ─────────────────────────────────────────────────────────────────────────────────────


async def test_live_ticks_leave_bit_for_bit_what_a_backfill_sends(tmp_path: Path):
    """The simulator makes buckets of ticks without us; those that we make of the same ticks are the same doubles."""
    catalogue, fleet = load_catalogue(), make_fleet(2)
    simulation = Simulation(fleet=fleet, catalogue=catalogue, seed=11, interval_nanos=10 * SECOND)
    counters = np.asarray([metric.kind == "counter" for metric in catalogue.metrics])
    start = END - 2 * HOUR
    values = simulation.values(start // (10 * SECOND), 720)
    keys = tuple(metric.key for metric in catalogue.metrics)
    servers = tuple(server.id for server in fleet)
    async with opened(tmp_path, max_series=10_000) as history:
        for first in range(0, 720, 97):
            part = values[first : first + 97]
            times = np.asarray(ticks(start + first * 10 * SECOND, len(part)), np.int64)
            made = Frame(times=times, servers=servers, metrics=keys, values=part, metric_infos=metric_infos(catalogue))
            for frame in split(made):
                await history.write(encode(frame))
            if first % 2:
                await rolled(history)
        await rolled(history)
        selection = history.catalog.select((), "", keys)
        names = list(zip(*history.catalog.names(selection.ids), strict=True))
        place = [(servers.index(server), keys.index(key)) for server, key in names]
        flat = values.reshape(720, -1)
        fine = [reduce_ticks(flat[at : at + 30], np.tile(counters, 2)) for at in range(0, 720, 30)]
        for files, per_bucket in zip(history.roller.tiers, (1, 12), strict=True):
            found = await history.read_buckets(files, selection, start, END, 10)
            assert len(found.rows) == len(names) * 24 // per_bucket
            for row, (server, metric) in enumerate(place):
                series = {name: np.asarray([each[name][server * 511 + metric] for each in fine]) for name in COLUMNS}
                expected = series if per_bucket == 1 else coarsen(series, np.arange(24) // 12)[1]
                for name in COLUMNS:
                    np.testing.assert_array_equal(found.columns[name][found.rows == row], expected[name], err_msg=name)
