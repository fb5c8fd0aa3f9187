"""Deletion: what was deleted is gone, and stays gone, whatever happens before, meanwhile and after."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openmanager_timeseries import deletion, sealed, sealed_store
from openmanager_timeseries.deletion import Deletion, delete_series
from openmanager_timeseries.history import History
from openmanager_timeseries.keeper import Keeper
from openmanager_timeseries.query import EARLIEST_NANOS, LATEST_NANOS
from openmanager_timeseries.retention import Hold, Policy, Selector
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

from openmanager import durable
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    OutOfRangeError,
    Reason,
    UnavailableError,
)

START = END - 4 * HOUR
Key = tuple[str, str, int]


async def delete(
    history: History,
    servers: Sequence[str] = (),
    metrics: Sequence[str] = (),
    start: int = EARLIEST_NANOS,
    end: int = LATEST_NANOS,
    *,
    dry: bool = False,
) -> Deletion:
    chosen = history.catalog.select(tuple(servers), "", tuple(metrics))
    return await delete_series(history, chosen, start, end, dry=dry)


async def samples(history: History, start: int = START - HOUR, end: int = NOW + HOUR) -> dict[Key, float]:
    """Return every sample that a query finds, by server, metric and time."""
    answer = await ask(history, start, end, 0)
    assert (answer.partial_reason, answer.raw is None) == ("", False)
    rows = answer.raw.rows
    return {
        (answer.names[row].server, answer.names[row].metric, time): value
        for row, time, value in zip(rows.tolist(), answer.raw.times.tolist(), answer.raw.values.tolist(), strict=True)
    }


def listed(history: History) -> dict[tuple[str, str], tuple[int, float]]:
    """Return the series that there are, with the newest sample of each."""
    ids = history.catalog.select((), "", ()).ids
    servers, metrics = history.catalog.names(ids)
    times, values = history.catalog.last(ids)
    newest = zip(times.tolist(), values.tolist(), strict=True)
    return dict(zip(zip(servers, metrics, strict=True), newest, strict=True))


def newest(model: dict[Key, float]) -> dict[tuple[str, str], tuple[int, float]]:
    found: dict[tuple[str, str], tuple[int, float]] = {}
    for (server, metric, time), value in sorted(model.items()):
        found[server, metric] = (time, value)
    return found


def on_disk(folder: Path) -> set[Key]:
    """Return the keys of all rows in the Parquet files of a folder; a sketch and a bucket stand at its start."""
    found: set[Key] = set()
    for path in sorted(folder.rglob("*.parquet")):
        if path.name != "catalog.parquet":
            table = pq.read_table(path, columns=["server", "metric", "time"])
            times = table.column("time").cast("int64").to_pylist()
            names = zip(table.column("server").to_pylist(), table.column("metric").to_pylist(), strict=True)
            found |= {(*name, time * 10**6) for name, time in zip(names, times, strict=True)}
    return found


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*")]


async def linger(history: History) -> None:
    """Let the time pass after which no query reads a replaced file any more."""
    history.clock.seconds += sealed_store.LINGER_SECONDS
    await Keeper(history, NoDisk()).delete_replaced()


# ── a model of samples ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Shard:
    """A shard, and what its samples should be."""

    folder: Path
    model: dict[Key, float] = field(default_factory=dict)
    # Whether somebody rolls up beside what the test does.
    kept: bool = False

    async def write(self, history: History, at: int, count: int, server: str, seed: int) -> None:
        times = ticks(START + at * 20 * SECOND, count, 20 * SECOND)
        load = decimals(count, seed)
        grown = np.cumsum(np.random.default_rng(seed).integers(-1, 5, count)).astype(float).tolist()
        await write(history, times, (server,), load=load, requests=grown)
        for time, some, other in zip(times, load, grown, strict=True):
            self.model[server, "load", time], self.model[server, "requests", time] = some, other

    async def delete(self, history: History, servers: tuple, metrics: tuple, start: int, end: int) -> Deletion:
        going = {key for key in self.model if key[0] in servers and key[1] in metrics and start <= key[2] < end}
        told = await delete(history, servers, metrics, start, end, dry=True)
        assert told.samples == len(going)
        done = await delete(history, servers, metrics, start, end)
        assert (done.series, done.samples) == (told.series, told.samples)
        assert done.buckets == told.buckets or self.kept
        assert done.bytes >= 0
        for key in going:
            del self.model[key]
        return done

    async def do(self, history: History, what: str, *more) -> None:
        keeper = Keeper(history, NoDisk())
        match what:
            case "write":
                await self.write(history, *more)
            case "delete":
                servers, metrics, (start, end) = more
                await self.delete(history, servers, metrics, start, end)
            case "seal":
                await history.seal()
            case "roll":
                await rolled(history)
            case "merge":
                await keeper.merge_files()
            case "expire":
                await keeper.expire()
            case "linger":
                await linger(history)
                assert on_disk(self.folder / "blocks") <= self.model.keys()

    async def check(self, history: History) -> None:
        assert await samples(history) == self.model
        assert listed(history) == newest(self.model)
        for aggregation in ("COUNT", "SUM", "INCREASE"):
            metric = ("requests",) if aggregation == "INCREASE" else ("load",)
            answer, from_samples = await both(history, START, END, HOUR, aggregation, metrics=metric)
            np.testing.assert_allclose(answer.values, from_samples.values, rtol=1e-12, atol=1e-9)


times_of_range = st.tuples(st.integers(-50, 4 * 180 + 50), st.integers(1, 4 * 180)).map(
    lambda each: (START + each[0] * 20 * SECOND, START + (each[0] + each[1]) * 20 * SECOND)
)
steps = st.one_of(
    st.tuples(
        st.just("write"), st.integers(0, 4 * 180), st.integers(1, 60), st.sampled_from("abc"), st.integers(0, 1000)
    ),
    st.tuples(
        st.just("delete"),
        st.sampled_from([("a",), ("b",), ("a", "b"), ("a", "b", "c")]),
        st.sampled_from([("load",), ("requests",), ("load", "requests")]),
        st.one_of(times_of_range, st.just((EARLIEST_NANOS, LATEST_NANOS))),
    ),
    st.tuples(st.sampled_from(["seal", "roll", "merge", "restart", "linger", "damage", "expire"])),
)


@given(st.lists(steps, min_size=3, max_size=14))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_what_was_deleted_stays_gone_and_all_else_stays(tmp_path_factory, wanted):
    """Writes, deletions, seals, roll-ups, merges, restarts and damaged blocks in any order."""
    shard = Shard(tmp_path_factory.mktemp("deletion"))
    waiting, whole = list(wanted), False
    while not whole:
        async with opened(shard.folder) as history:
            await Keeper(history, NoDisk()).mend()
            while waiting and (step := waiting.pop(0))[0] not in {"restart", "damage"}:
                await shard.do(history, *step)
                if step[0] != "write":
                    await shard.check(history)
            whole = not waiting and step[0] != "damage"
            await shard.check(history)
            await rolled(history)
            await shard.check(history)
            total = history.ledger.message(history.log)
            for each in total.consumers:
                assert each.delivered_sample_count + each.waiting_sample_count == total.accepted_sample_count
            files = [file.path for file in history.blocks.files]
        assert on_disk(shard.folder / "blocks") <= shard.model.keys()
        if step[0] == "damage" and files:
            break_file(files[len(wanted) % len(files)])
        step = ("restart",)


def break_file(path: Path) -> None:
    """Damage a file so that it cannot be opened."""
    path.write_bytes(path.read_bytes()[:-9])


# ── crashes ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Copies:
    """Copies of a shard's folder from before and after everything that is written to it."""

    def __init__(self, shard: Path, target: Path, monkeypatch) -> None:
        self._shard, self._target = shard, target
        self.made: list[Path] = []
        for module, name in ((durable, "replace"), (sealed, "merge")):
            monkeypatch.setattr(module, name, self._around(getattr(module, name)))

    def _around(self, function):
        def call(*arguments, **more):
            self.take()
            result = function(*arguments, **more)
            self.take()
            return result

        return call

    def take(self) -> None:
        self.made.append(self._target / str(len(self.made)))
        shutil.copytree(self._shard, self.made[-1])


async def test_a_crash_at_any_step_of_a_deletion_leaves_all_or_nothing(tmp_path: Path, monkeypatch):
    shard = Shard(tmp_path / "shard")
    with pytest.MonkeyPatch.context() as patch:
        async with opened(shard.folder) as history:
            for at, server in ((0, "a"), (100, "b"), (50, "a"), (300, "a")):
                await shard.write(history, at, 120, server, at)
                await rolled(history)
            await shard.write(history, 500, 30, "a", 9)
            await history.ledger.save(history.log)
            before = dict(shard.model)
            copies = Copies(shard.folder, tmp_path, patch)
            await shard.delete(history, ("a",), ("load",), START + 17 * MINUTE, END)
            copies.take()
    assert len(copies.made) > 20
    begun = 0
    for folder in copies.made:
        async with opened(folder) as history:
            wanted = shard.model if history.erasures.entries else before
            begun += bool(history.erasures.entries)
            await Keeper(history, NoDisk()).finish_deletions()
            assert await samples(history) == wanted
            assert listed(history) == newest(wanted)
            await rolled(history)
            await Shard(folder, wanted).check(history)
        assert on_disk(folder / "blocks") <= wanted.keys()
        async with opened(folder) as history:
            assert listed(history) == newest(wanted)
            assert all(each.done for each in history.erasures.entries)
    assert 0 < begun < len(copies.made)


async def test_a_deletion_that_the_disk_refuses_is_told_and_carried_out_later(tmp_path: Path, monkeypatch):
    async with opened(tmp_path) as history:
        await write(history, ticks(START, 100), load=decimals(100))
        await rolled(history)

        def full(*_, **__):
            raise OSError(28, "no space")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sealed, "merge", full)
            with pytest.raises(UnavailableError) as failure:
                await delete(history, ["a"])
            assert failure.value.reason == Reason.LOG_UNFIT
        await Keeper(history, NoDisk()).finish_deletions()
        assert (await samples(history), listed(history)) == ({}, {})
        assert history.erasures.entries[0].done


async def test_a_full_disk_leaves_no_half_files(tmp_path: Path, monkeypatch):
    async with opened(tmp_path) as history:
        await write(history, ticks(START, 100), load=decimals(100))
        await rolled(history)

        def full(*_, **__):
            raise OSError(28, "no space")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(durable, "sync", full)
            with pytest.raises(UnavailableError):
                await delete(history, ["a"])
    assert not [name for name in names(tmp_path) if name.endswith(".new")]


async def test_the_deletions_of_the_past_being_damaged_nothing_deleted_comes_back(tmp_path: Path):
    async with opened(tmp_path) as history:
        await write(history, ticks(START, 100), load=decimals(100))
        await write(history, ticks(START, 100), ("b",), load=decimals(100))
        await delete(history, ["a"])
        path = history.blocks.files[0].path
        kept = await samples(history)
    state = tmp_path / "erasures.json"
    state.write_bytes(state.read_bytes().replace(b'"a"', b'"c"'))
    break_file(path)
    async with opened(tmp_path) as history:
        await Keeper(history, NoDisk()).mend()
        answer = await ask(history, START, END, 0)
        assert answer.partial_reason
        assert listed(history).keys() == {("b", "load")}
        await write(history, ticks(END, 3), ("b",), load=[1.0, 2.0, 3.0])
        await delete(history, ["b"], (), END)
    async with opened(tmp_path) as history:
        await Keeper(history, NoDisk()).mend()
        assert history.blocks.quarantined
        assert {key[0] for key in kept} == {"b"}


# ── meanwhile ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_frames_that_arrive_during_a_deletion_survive_it(tmp_path: Path, monkeypatch):
    """Also those of the deleted series and range: what is deleted is what there was."""
    async with opened(tmp_path) as history:
        await write(history, ticks(START, 100), ("a", "b"), load=decimals(100))
        await rolled(history)
        written = []
        plain = deletion.carry_out

        async def carry_out(*arguments):
            await write(history, [START + 5 * SECOND, END], ("a",), load=[7.0, 8.0])
            result = await plain(*arguments)
            await write(history, [START + 6 * SECOND], ("a",), load=[9.0])
            written.append(result)
            return result

        monkeypatch.setattr(deletion, "carry_out", carry_out)
        await delete(history, ["a"])
        expected = {("a", "load", START + 5 * SECOND): 7.0, ("a", "load", START + 6 * SECOND): 9.0}
        expected["a", "load", END] = 8.0
        for _ in range(2):
            found = await samples(history)
            assert {key: value for key, value in found.items() if key[0] == "a"} == expected
            assert listed(history)["a", "load"] == (END, 8.0)
            await rolled(history)
        assert written
    async with opened(tmp_path) as history:
        assert listed(history)["a", "load"] == (END, 8.0)


async def test_a_sample_of_the_same_time_that_came_meanwhile_is_the_newest(tmp_path: Path, monkeypatch):
    async with opened(tmp_path) as history:
        await write(history, [START, START + SECOND], load=[1.0, 2.0])
        plain = deletion.carry_out

        async def carry_out(*arguments):
            await write(history, [START], load=[5.0])
            return await plain(*arguments)

        monkeypatch.setattr(deletion, "carry_out", carry_out)
        await delete(history, ["a"], (), START + SECOND)
        assert listed(history) == {("a", "load"): (START, 5.0)}


async def test_of_two_samples_of_one_time_the_later_one_is_the_newest_again(tmp_path: Path):
    async with opened(tmp_path) as history:
        await write(history, [START, START + MINUTE], ("a",), load=[1.0, 2.0])
        await write(history, [START + HOUR], ("b",), load=[1.0])  # the earlier file reaches farther
        await history.seal()
        await write(history, [START], ("a",), load=[3.0])
        await history.seal()
        await delete(history, ["a"], (), START + MINUTE)
        assert listed(history)["a", "load"] == (START, 3.0)


async def test_a_frame_that_is_under_way_while_its_series_is_deleted_brings_it_back(tmp_path: Path):
    async with opened(tmp_path) as history:
        await write(history, ticks(START, 10), load=decimals(10))
        under_way = asyncio.create_task(write(history, [END], load=[4.0]))
        await asyncio.sleep(0)
        await asyncio.gather(under_way, delete(history, ["a"], (), START, END))
        assert await samples(history) == {("a", "load", END): 4.0}
        assert listed(history) == {("a", "load"): (END, 4.0)}


async def test_a_query_that_was_planned_before_answers_as_of_then(tmp_path: Path):
    async with opened(tmp_path) as history:
        await write(history, ticks(START, 100), load=decimals(100))
        await history.seal()
        history.head.drop(0)
        planned = history._planner.plan(_range())
        await delete(history, ["a"])
        await Keeper(history, NoDisk()).delete_replaced()
        answer = history._planner.compute(planned, _NeverStop())
        assert len(answer.raw.values) == 100
        assert (await ask(history, START, END, 0)).names == []


def _range():
    from dataclasses import replace

    from timeseries.shard import asked

    return replace(asked(0, 0), start=START, end=END)


class _NeverStop:
    def check(self) -> None:
        return


async def test_a_deletion_goes_on_when_its_caller_has_gone(tmp_path: Path, monkeypatch):
    async with opened(tmp_path) as history:
        await write(history, ticks(START, 100), ("a", "b"), load=decimals(100))
        await rolled(history)
        begun, go_on = asyncio.Event(), asyncio.Event()
        plain = deletion.carry_out

        async def carry_out(*arguments):
            begun.set()
            await go_on.wait()
            return await plain(*arguments)

        monkeypatch.setattr(deletion, "carry_out", carry_out)
        task = asyncio.create_task(delete(history, ["a"]))
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert history.changing.locked()
        go_on.set()
        async with asyncio.timeout(10), history.changing:
            assert listed(history).keys() == {("b", "load")}
            assert all(each.done for each in history.erasures.entries)


async def test_upkeep_and_writes_beside_deletions_lose_nothing(tmp_path: Path):
    shard = Shard(tmp_path, kept=True)
    async with opened(shard.folder) as history:
        keeper = Keeper(history, NoDisk())
        done = asyncio.Event()

        async def keep() -> None:
            while not done.is_set():
                for step in (keeper.seal_when_due, keeper.roll_up, keeper.merge_files, keeper.mend, keeper.save):
                    async with history.changing:
                        await step()
                history.clock.seconds += 10 * DAY / SECOND
                await asyncio.sleep(0)

        keeping = asyncio.create_task(keep())
        try:
            for at in range(12):
                await shard.write(history, at * 40, 40, "ab"[at % 2], at)
                if at % 3 == 2:
                    await shard.delete(
                        history, ("a",), ("load",), START + at * 300 * SECOND, START + (at + 30) * 300 * SECOND
                    )
        finally:
            done.set()
            await keeping
        await shard.check(history)
    async with opened(shard.folder) as history:
        await shard.check(history)


# ── what is gone ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_deletion_frees_the_disk(tmp_path: Path):
    async with opened(tmp_path, sketch_metrics="load") as history:
        for seed, server in enumerate("ab"):
            values = np.random.default_rng(seed).normal(size=1440).tolist()
            await write(history, ticks(START, 1440), (server,), load=values)
        await rolled(history)

        def size() -> int:
            return sum(path.stat().st_size for path in tmp_path.rglob("*.parquet") if path.parent != tmp_path)

        await linger(history)
        before = size()
        done = await delete(history, ["a"])
        assert (done.series, done.samples, done.buckets) == (1, 1440, 48 + 4)
        assert size() > before  # a query may still read what was replaced
        await linger(history)
        assert before - size() == done.bytes > 0.3 * before
        assert {key[0] for key in on_disk(tmp_path)} == {"b"}
        deleted = history.retention.deleted
        assert (deleted["raw"].rows, sum(each.bytes for each in deleted.values())) == (1440, done.bytes)
        assert deleted["5m"].rows == 48 + 48  # buckets and sketches


async def test_what_is_told_is_what_is_deleted_also_of_overwritten_samples(tmp_path: Path):
    async with opened(tmp_path) as history:
        await write(history, ticks(START, 60), load=decimals(60))
        await rolled(history)
        await write(history, ticks(START, 30), load=decimals(30, 2))
        await write(history, ticks(START + 300 * SECOND, 60), load=decimals(60, 3))
        told = await delete(history, ["a"], (), START + 100 * SECOND, START + 500 * SECOND, dry=True)
        assert (told.series, told.samples, told.buckets, told.bytes) == (1, 40, 2 + 1, 0)
        assert len(await samples(history)) == 90
        done = await delete(history, ["a"], (), START + 100 * SECOND, START + 500 * SECOND)
        assert (done.series, done.samples, done.buckets) == (1, 40, 2 + 1)
        again = await delete(history, ["a"], (), START + 100 * SECOND, START + 500 * SECOND)
        assert (again.series, again.samples) == (1, 0)


async def test_buckets_at_the_edges_are_computed_again_where_samples_are_kept(tmp_path: Path):
    async with opened(tmp_path) as history:
        await write(history, ticks(START, 720), load=[1.0] * 720)
        await rolled(history)
        await delete(history, ["a"], (), START + 7 * MINUTE, START + 68 * MINUTE)
        await rolled(history)
        hours = await ask(history, START, START + 2 * HOUR, HOUR, "COUNT")
        assert ([part.tier for part in hours.parts], hours.values.tolist()) == (["1h"], [[42.0, 52 * 6.0]])
        fine = await ask(history, START, START + 20 * MINUTE, 5 * MINUTE, "COUNT")
        assert fine.values.tolist()[0][:2] == [30.0, 12.0]
        assert np.isnan(fine.values[0, 2:]).all()


async def test_buckets_at_the_edges_go_whole_where_no_samples_are_kept(tmp_path: Path):
    async with opened(tmp_path) as history:
        day = (END // DAY - 30) * DAY
        await imported(history, "5m", grid(ticks(day, 24, 5 * MINUTE), 30, 2.0))
        await rolled(history)
        await delete(history, ["a"], (), day + 7 * MINUTE, day + 20 * MINUTE)
        await rolled(history)
        fine = await ask(history, day, day + HOUR, 5 * MINUTE, "COUNT")
        assert np.isnan(fine.values[0, 1:4]).all()
        assert fine.values[0, [0, *range(4, 12)]].tolist() == [30.0] * 9
        hours = await ask(history, day, day + 2 * HOUR, HOUR, "COUNT")
        assert hours.values.tolist() == [[270.0, 360.0]]


async def test_percentiles_of_deleted_samples_are_gone_from_the_sketches(tmp_path: Path):
    async with opened(tmp_path, sketch_metrics="load") as history:
        await write(history, ticks(START, 720), load=[1.0] * 360 + [9.0] * 360)
        await rolled(history)
        await delete(history, ["a"], (), START + HOUR + 15 * MINUTE, START + HOUR + 45 * MINUTE)
        await rolled(history)
        history.retention.defaults["raw"] = 60 * SECOND
        found = await ask(history, START, START + 2 * HOUR, 2 * HOUR, "P50")
        assert (found.values.tolist(), found.parts[0].tier) == ([[1.0]], "1h")
        await delete(history, ["a"], (), START, START + HOUR)
        await rolled(history)
        found = await ask(history, START, START + 2 * HOUR, 2 * HOUR, "P50")
        assert found.values.tolist() == [[9.0]]


async def test_a_series_that_has_buckets_alone_goes_and_comes_back(tmp_path: Path):
    day = (END // DAY - 30) * DAY
    async with opened(tmp_path) as history:
        await imported(history, "1h", grid(ticks(day, 24, HOUR), 360, 2.5))
        await delete(history, ["a"], (), day + 23 * HOUR + MINUTE, day + DAY)
        assert listed(history) == {("a", "load"): (day + 22 * HOUR, 2.5)}
        await delete(history, ["a"])
        assert listed(history) == {}
    async with opened(tmp_path) as history:
        assert listed(history) == {}
        await write(history, [END], load=[1.0])
        assert listed(history) == {("a", "load"): (END, 1.0)}


async def test_deletion_passes_over_a_damaged_file_and_the_log_does_not_bring_it_back(tmp_path: Path):
    async with opened(tmp_path) as history:
        for at in range(3):
            await write(history, ticks(START + at * HOUR, 100), ("a", "b"), load=decimals(100, at))
            await rolled(history)
        path = history.blocks.files[1].path
        content = bytearray(path.read_bytes())
        content[4:600] = bytes(596)
        path.write_bytes(content)
        await delete(history, ["a"])
        assert history.blocks.quarantined
        await Keeper(history, NoDisk()).mend()
        found = await samples(history)
        assert ({key[0] for key in found}, len(found)) == ({"b"}, 300)
        await linger(history)
        assert {key[0] for key in on_disk(tmp_path / "blocks")} == {"b"}


# ── holds ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def hold(history: History, *, start: int = 0, end: int = 0, **selector) -> None:
    held = Hold(name="case-7", selector=Selector(**selector), start=start, end=end)
    history.retention.adopt(Policy(holds=(held,)))


async def test_a_legal_hold_refuses_before_anything_changes(tmp_path: Path):
    async with opened(tmp_path) as history:
        await write(history, ticks(START, 100), ("a", "b"), load=decimals(100), requests=decimals(100))
        hold(history, servers=("a",), metrics=("load",), start=START + 300 * SECOND, end=START + 400 * SECOND)
        before = await samples(history)
        for servers, metrics in ((["a"], []), (["a", "b"], ["load"]), (["a"], ["l*"])):
            for dry in (True, False):
                with pytest.raises(FailedPreconditionError, match="case-7") as failure:
                    await delete(history, servers, metrics, START, START + 301 * SECOND, dry=dry)
                assert failure.value.reason == Reason.LEGAL_HOLD
        assert (await samples(history), history.blocks.files, history.erasures.entries) == (before, (), ())
        assert (await delete(history, ["a"], ["load"], START, START + 300 * SECOND)).samples == 30
        assert (await delete(history, ["a"], ["load"], START + 400 * SECOND)).samples == 60
        assert (await delete(history, ["a"], ["requests"])).samples == 100
        assert (await delete(history, ["b"])).samples == 200


async def test_a_hold_keeps_the_whole_bucket_that_cannot_be_computed_again(tmp_path: Path):
    async with opened(tmp_path) as history:
        day = (END // DAY - 30) * DAY
        await imported(history, "1h", grid(ticks(day, 24, HOUR), 360, 2.5))
        hold(history, servers=("a",), start=day + HOUR + 30 * MINUTE)
        with pytest.raises(FailedPreconditionError, match="case-7"):
            await delete(history, ["a"], (), day, day + HOUR + MINUTE)
        assert (await delete(history, ["a"], (), day, day + HOUR)).buckets == 1


async def test_a_hold_that_was_set_while_a_deletion_waited_is_heeded(tmp_path: Path):
    async with opened(tmp_path) as history:
        await write(history, ticks(START, 10), load=decimals(10))
        async with history.changing:
            waiting = asyncio.create_task(delete(history, ["a"]))
            await asyncio.sleep(0)
            hold(history, servers=("a",))
        with pytest.raises(FailedPreconditionError, match="case-7"):
            await waiting


# ── over the wire ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_deletion_needs_a_selector_and_a_range(tmp_path: Path):
    from openmanager_timeseries.service import TimeseriesService

    async with opened(tmp_path) as history:
        service = TimeseriesService(history, history.clock)
        await write(history, ticks(START, 10), load=decimals(10))

        def request(start: int = 0, end: int = 0, **selector) -> pb.DeleteSeriesRequest:
            made = pb.DeleteSeriesRequest()
            made.selector.SetInParent()
            for name, value in selector.items():
                getattr(made.selector, name).extend(value) if name != "server_filter" else setattr(
                    made.selector, name, value
                )
            if start:
                made.start_time.FromNanoseconds(start)
            if end:
                made.end_time.FromNanoseconds(end)
            return made

        for wrong, field_name in (
            (pb.DeleteSeriesRequest(), "selector"),
            (request(), "selector"),
            (request(START, START, servers=["a"]), "end_time"),
            (request(START, START - 1, servers=["a"]), "end_time"),
            (request(server_filter="id ="), "selector.server_filter"),
            (request(metrics=["x{a"]), "selector.metrics"),
            (request(servers=["a"] * 10_001), "selector.servers"),
        ):
            with pytest.raises(InvalidArgumentError) as failure:
                await service.DeleteSeries(wrong, None)
            assert failure.value.field == field_name
        with pytest.raises(OutOfRangeError) as late:
            await service.DeleteSeries(request(end=2**63 - 1, servers=["a"]), None)
        assert late.value.field == "end_time"
        assert (await service.DeleteSeries(request(servers=["nobody"]), None)).series_count == 0
        half = await service.DeleteSeries(request(START, START + 50 * SECOND, servers=["a"]), None)
        assert (half.series_count, half.sample_count) == (1, 5)
        rest = await service.DeleteSeries(request(server_filter="id=a", metrics=["load"]), None)
        assert (rest.series_count, rest.sample_count, rest.freed_bytes > 0) == (1, 5, True)
        listing = await service.ListSeries(pb.ListSeriesRequest(), None)
        assert (listing.total_count, list(listing.series)) == (0, [])
        parts = [part async for part in service.QueryLatest(pb.QueryLatestRequest(), None)]
        assert len(parts) == 1
