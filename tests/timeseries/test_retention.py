"""Retention: what is too old goes, for each series by its rule, and what is held stays."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openmanager_timeseries import evidence, sealed_store
from openmanager_timeseries.history import History
from openmanager_timeseries.keeper import EXPIRE_SECONDS, Keeper
from openmanager_timeseries.retention import Hold, Policy, Rule, Selector, check
from timeseries.shard import (
    DAY,
    END,
    HOUR,
    MINUTE,
    NOW,
    NoDisk,
    ask,
    decimals,
    grid,
    imported,
    opened,
    rolled,
    ticks,
    write,
)

from openmanager import durable
from openmanager.audit import Record, check_record
from openmanager.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError

MIDNIGHT = END // DAY * DAY


def adopt(history: History, *rules: Rule, holds: tuple[Hold, ...] = ()) -> None:
    history.retention.adopt(check(Policy(rules=rules, holds=holds), history.retention))


def rule(days: float, tier: str = "", **selector) -> Rule:
    return Rule(tier=tier, selector=Selector(**selector), retention=int(days * DAY))


async def expire(history: History) -> Keeper:
    """Let retention look, and the time pass after which what was replaced is deleted from disk."""
    keeper = Keeper(history, NoDisk())
    await keeper.expire()
    history.clock.seconds += sealed_store.LINGER_SECONDS
    await keeper.delete_replaced()
    return keeper


def rows(folder: Path) -> set[tuple[str, str, int]]:
    """Return the keys of all rows in a folder's files."""
    found = set()
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path, columns=["server", "metric", "time"])
        times = table.column("time").cast("int64").to_pylist()
        found |= set(
            zip(
                table.column("server").to_pylist(),
                table.column("metric").to_pylist(),
                [time * 10**6 for time in times],
                strict=True,
            )
        )
    return found


async def fill(history: History, days: int = 13, *, servers=("a", "b")) -> None:
    """Write a few samples at six each evening, each day a block, and roll them up."""
    for day in range(days, 0, -1):
        await write(history, ticks(MIDNIGHT - day * DAY + 18 * HOUR, 6), servers, load=[1.0] * 6, requests=[2.0] * 6)
        await rolled(history)


def age(key: tuple[str, str, int]) -> int:
    """Return how many days old a row is."""
    return (MIDNIGHT - key[2]) // DAY + 1


# ── what goes ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_every_tier_has_its_own_retention(tmp_path: Path):
    async with opened(tmp_path, tiers="5m:8d,1h:10d", sketch_metrics="load") as history:
        await fill(history)
        history.retention.defaults["raw"] = 4 * DAY
        await expire(history)
        for folder, days in (("blocks", 4), ("tiers/5m", 8), ("sketches/5m", 8), ("tiers/1h", 10)):
            assert {age(key) for key in rows(tmp_path / folder)} == set(range(1, days + 1)), folder
        deleted = history.retention.deleted
        assert [deleted[name].rows for name in ("raw", "5m", "1h")] == [9 * 24, 5 * 4 + 5 * 2, 3 * 4 + 3 * 2]
        assert all(each.bytes > 0 for each in deleted.values())


class Told:
    """An audit log that takes events, unless it is away."""

    def __init__(self, *, away: bool = False) -> None:
        self.away = away
        self.records: list[Record] = []

    async def event(self, record: Record) -> int:
        if self.away:
            raise UnavailableError("the audit log does not answer")
        check_record(replace(record, via="timeseries"))
        self.records.append(record)
        return len(self.records)


async def test_of_what_retention_deletes_there_is_evidence_until_the_audit_log_has_it(tmp_path: Path):
    async with opened(tmp_path, tiers="5m:8d,1h:10d", sketch_metrics="load") as history:
        await fill(history)
        history.retention.defaults["raw"] = 4 * DAY
        keeper = await expire(history)
        await evidence.tell_waiting(history.retention.evidence, history.retention.save, Told(away=True))
        assert len(history.retention.evidence.document()) == 3
        await keeper.expire()
        deleted = {name: each.rows for name, each in history.retention.deleted.items()}
    async with opened(tmp_path, tiers="5m:8d,1h:10d", sketch_metrics="load") as history:
        auditor = Told()
        await evidence.tell_waiting(history.retention.evidence, history.retention.save, auditor)
        said = {each.object: each.details for each in auditor.records}
        assert {name: int(said[f"tiers/{name}"]["rows"]) for name in deleted} == deleted
        raw = said["tiers/raw"]
        assert (raw["why"], raw["policy_version"]) == ("policy", "default")
        assert raw["first_time"] < raw["last_time"] < raw["began"] <= raw["ended"]
    async with opened(tmp_path, tiers="5m:8d,1h:10d", sketch_metrics="load") as history:
        assert history.retention.evidence.document() == []


async def test_the_last_rule_that_matches_counts(tmp_path: Path):
    async with opened(tmp_path) as history:
        await fill(history)
        adopt(
            history,
            rule(3, "raw"),
            rule(6, "raw", metrics=("load",)),
            rule(9, "raw", servers=("a",)),
            rule(2, "raw", servers=("a",), metrics=("req*",)),
            rule(1, "5m"),
        )
        await expire(history)
        kept: dict[tuple[str, str], int] = {}
        for key in rows(tmp_path / "blocks"):
            kept[key[:2]] = max(kept.get(key[:2], 0), age(key))
        assert kept == {("a", "load"): 9, ("a", "requests"): 2, ("b", "load"): 6, ("b", "requests"): 3}
        assert {age(key) for key in rows(tmp_path / "tiers" / "5m")} == {1}
        assert {age(key) for key in rows(tmp_path / "tiers" / "1h")} == set(range(1, 14))


async def test_a_rule_for_every_tier_keeps_for_longer_too_and_admits_what_it_keeps(tmp_path: Path):
    async with opened(tmp_path) as history:
        late = [NOW - 20 * DAY]
        await write(history, late, load=[1.0])
        assert history.log.state.accepted == 0
        adopt(history, rule(30, metrics=("load",)))
        await write(history, late, load=[1.0])
        await write(history, [NOW - 31 * DAY], load=[1.0])
        assert history.log.state.accepted == 1
        await rolled(history)
        await expire(history)
        assert rows(tmp_path / "blocks") == {("a", "load", late[0])}
        found = await ask(history, NOW - 25 * DAY, NOW, 0)
        assert (found.raw.times.tolist(), found.partial_reason) == (late, "")


async def test_files_are_written_anew_once_and_what_went_is_counted_once(tmp_path: Path):
    async with opened(tmp_path) as history:
        await fill(history, 8)
        adopt(history, rule(3, "raw", metrics=("load",)))
        before = {file.path: file.size_bytes for file in history.blocks.files}
        keeper = await expire(history)
        after = [file.path.name for file in history.blocks.files]
        size = sum(path.stat().st_size for path in (tmp_path / "blocks").iterdir())
        gone = history.retention.deleted["raw"]
        assert (gone.rows, gone.bytes) == (5 * 12, sum(before.values()) - size)
        reads = []
        plain = history.retention.expire
        history.retention.expire = lambda *arguments: reads.append(arguments) or plain(*arguments)
        for _ in range(3):
            history.clock.seconds += EXPIRE_SECONDS
            await keeper.expire()
        assert (reads, [file.path.name for file in history.blocks.files]) == ([], after)
        state = (tmp_path / "retention.json").read_bytes()
    async with opened(tmp_path) as history:
        await expire(history)
        assert (tmp_path / "retention.json").read_bytes() == state
        assert (history.retention.deleted["raw"].rows, len(history.retention.policy.rules)) == (5 * 12, 1)
        assert [file.path.name for file in history.blocks.files] == after


async def test_a_file_of_which_nothing_is_kept_is_not_back_after_a_restart(tmp_path: Path):
    async with opened(tmp_path) as history:
        await fill(history, 6)
        adopt(history, rule(3, "raw"))
        await Keeper(history, NoDisk()).expire()
        assert history.retention.deleted["raw"].rows == 3 * 24
    async with opened(tmp_path) as history:
        assert {age(key) for key in rows(tmp_path / "blocks")} == {1, 2, 3}
        await Keeper(history, NoDisk()).expire()
        assert history.retention.deleted["raw"].rows == 3 * 24


async def test_the_newest_block_goes_empty_so_that_the_log_does_not_bring_it_back(tmp_path: Path):
    async with opened(tmp_path) as history:
        await fill(history, 2)
        last = history.blocks.last
        adopt(history, rule(0.1, "raw"))
        await expire(history)
        await expire(history)
        assert ([file.about.row_count for file in history.blocks.files], history.blocks.last) == ([0], last)
    async with opened(tmp_path) as history:
        assert history.head.first_position == last + 1
        assert rows(tmp_path / "blocks") == set()
        await write(history, [NOW], load=[1.0])
        await rolled(history)
        await expire(history)
        assert [file.about.row_count for file in history.blocks.files] == [1]


async def test_a_block_that_the_tiers_still_need_is_not_deleted(tmp_path: Path):
    async with opened(tmp_path) as history:
        await write(history, ticks(END - 2 * DAY, 10), load=decimals(10))
        await history.seal()
        adopt(history, rule(1, "raw"))
        await expire(history)
        assert len(rows(tmp_path / "blocks")) == 10
        await rolled(history)
        history.clock.seconds += EXPIRE_SECONDS
        await write(history, [NOW], load=[1.0])
        await history.seal()
        await expire(history)
        assert len(rows(tmp_path / "blocks")) == 1
        found = await ask(history, END - 2 * DAY, END - 2 * DAY + HOUR, HOUR, "COUNT")
        assert found.values.tolist() == [[10.0]]


async def test_a_damaged_file_does_not_keep_the_others_from_expiring(tmp_path: Path):
    async with opened(tmp_path) as history:
        await fill(history, 6)
        adopt(history, rule(3, "raw", metrics=("load",)))
        path = history.blocks.files[1].path
        content = bytearray(path.read_bytes())
        content[4:400] = bytes(396)
        path.write_bytes(content)
        await expire(history)
        assert len(history.blocks.quarantined) == 1
        assert {age(key) for key in rows(tmp_path / "blocks") if key[1] == "load"} == {1, 2, 3}


async def test_on_a_full_disk_whole_files_go_all_the_same(tmp_path: Path, monkeypatch):
    async with opened(tmp_path) as history:
        await fill(history, 8)
        adopt(history, rule(3, "raw"))
        keeper = Keeper(history, NoDisk())

        def full(*_, **__):
            raise OSError(28, "no space")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(durable, "sync", full)
            patch.setattr(durable, "replace", full)
            with pytest.raises(OSError, match="no space"):
                await keeper.expire()
            history.clock.seconds += sealed_store.LINGER_SECONDS
            await keeper.delete_replaced()
        assert {age(key) for key in rows(tmp_path / "blocks")} == {1, 2, 3}


async def test_the_last_day_s_answers_say_what_is_gone_as_it_goes(tmp_path: Path):
    """What queries call kept is what the files hold, up to the size of a file."""
    async with opened(tmp_path) as history:
        await fill(history)
        for days in (9, 6, 3):
            adopt(history, rule(days, "raw"))
            history.clock.seconds += EXPIRE_SECONDS
            await expire(history)
            now = history.clock.nanos
            assert history.retention.kept_from("raw", now) == now - days * DAY
            assert max(map(age, rows(tmp_path / "blocks"))) == days
            found = await ask(history, now - days * DAY, now, 0)
            assert found.partial_reason == ""
            older = await ask(history, now - (days + 2) * DAY, now, 0)
            assert "only buckets of 5m and 1h are kept there" in older.partial_reason
            with pytest.raises(FailedPreconditionError, match="widen the step"):
                await ask(history, now - (days + 2) * DAY, now - days * DAY, 0)


async def test_a_series_that_is_kept_for_a_shorter_time_is_missed_by_name_of_its_own(tmp_path: Path):
    async with opened(tmp_path, tiers="") as history:
        await fill(history)
        adopt(history, rule(3, metrics=("load",)))
        await expire(history)
        short = await ask(history, NOW - 8 * DAY, NOW, 0, metrics=("load",))
        assert "kept for a limited time" in short.partial_reason
        whole = await ask(history, NOW - 8 * DAY, NOW, 0, metrics=("requests",))
        assert whole.partial_reason == ""
        both = await ask(history, NOW - 8 * DAY, NOW, 0)
        assert "some of the series are kept for a shorter time" in both.partial_reason
        recent = await ask(history, NOW - 2 * DAY, NOW, 0)
        assert recent.partial_reason == ""


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "raw", "5m", "1h"]),
            st.sampled_from([(), ("a",), ("b",)]),
            st.sampled_from([(), ("load",), ("requests",)]),
            st.sampled_from([2, 4, 7, 12, 40]),
        ),
        max_size=5,
    ),
    st.lists(st.tuples(st.sampled_from([("a",), ("b",)]), st.integers(1, 10), st.integers(1, 4)), max_size=2),
)
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_what_stays_is_what_the_rules_and_holds_say(tmp_path_factory, rules, holds):
    folder = tmp_path_factory.mktemp("retention")
    async with opened(folder, tiers="5m:8d,1h:10d") as history:
        await fill(history)
        made = [rule(days, tier, servers=servers, metrics=metrics) for tier, servers, metrics, days in rules]
        held = tuple(
            Hold(
                name=f"h{at}",
                selector=Selector(servers=servers),
                start=MIDNIGHT - (first + length) * DAY,
                end=MIDNIGHT - first * DAY,
            )
            for at, (servers, first, length) in enumerate(holds)
        )
        adopt(history, *made, holds=held)
        await expire(history)
        for tier, default in (("raw", 14), ("5m", 8), ("1h", 10)):
            found = rows(folder / "blocks" if tier == "raw" else folder / "tiers" / tier)
            for server, metric, day in itertools.product("ab", ("load", "requests"), range(1, 14)):
                kept = default
                for each, servers, metrics, days in rules:
                    if each in {"", tier} and server in (servers or "ab") and metric in (metrics or (metric,)):
                        kept = days
                is_held = any(server in servers and first < day <= first + length for servers, first, length in holds)
                there = any(key[:2] == (server, metric) and age(key) == day for key in found)
                assert there == (day <= kept or is_held), (tier, server, metric, day)


# ── holds ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_hold_outlives_every_retention_until_it_is_released(tmp_path: Path):
    async with opened(tmp_path) as history:
        await fill(history)
        held = Hold(name="x", selector=Selector(servers=("a",)), start=MIDNIGHT - 10 * DAY, end=MIDNIGHT - 8 * DAY)
        adopt(history, rule(2), holds=(held,))
        await expire(history)
        for folder in ("blocks", "tiers/5m", "tiers/1h"):
            assert {(key[0], age(key)) for key in rows(tmp_path / folder) if age(key) > 2} == {("a", 9), ("a", 10)}
    async with opened(tmp_path) as history:
        history.clock.nanos += 400 * DAY
        await expire(history)
        assert {(key[0], age(key)) for key in rows(tmp_path / "blocks")} == {("a", 9), ("a", 10)}
        adopt(history, rule(2))
        history.clock.seconds += EXPIRE_SECONDS
        await expire(history)
        await expire(history)
        assert rows(tmp_path / "blocks") == rows(tmp_path / "tiers" / "1h") == set()


async def test_a_bucket_of_which_a_part_is_held_is_held(tmp_path: Path):
    async with opened(tmp_path) as history:
        await imported(history, "1h", grid(ticks(END - 10 * DAY, 4, HOUR), 60, 1.0))
        held = Hold(
            name="x",
            selector=Selector(),
            start=END - 10 * DAY + HOUR + 30 * MINUTE,
            end=END - 10 * DAY + 2 * HOUR + 1,
        )
        adopt(history, rule(1), holds=(held,))
        await expire(history)
        assert sorted(key[2] for key in rows(tmp_path / "tiers" / "1h")) == ticks(END - 10 * DAY + HOUR, 2, HOUR)


async def test_a_hold_that_is_set_while_files_are_looked_at_is_heeded(tmp_path: Path):
    async with opened(tmp_path) as history:
        await fill(history, 6)
        adopt(history, rule(2, "raw"))
        plain, loop = history.retention.expire, asyncio.get_running_loop()

        def expiring(*arguments):
            history.retention.expire = plain
            loop.call_soon_threadsafe(
                lambda: adopt(history, rule(2, "raw"), holds=(Hold(name="x", selector=Selector()),))
            )
            return plain(*arguments)

        history.retention.expire = expiring
        await expire(history)
        await expire(history)
        assert {age(key) for key in rows(tmp_path / "blocks")} == set(range(1, 7))


async def test_what_many_store_at_once_is_stored_whole_and_the_newest_last(tmp_path: Path):
    async with opened(tmp_path) as history:
        await fill(history, 1)
        async with asyncio.TaskGroup() as saving:
            for days in range(1, 9):
                adopt(history, rule(days))
                saving.create_task(history.retention.save())
    async with opened(tmp_path) as history:
        assert history.retention.policy.rules == (rule(8),)
        assert history.retention.certain


async def test_nothing_is_deleted_while_nobody_knows_what_is_held(tmp_path: Path):
    async with opened(tmp_path) as history:
        await fill(history, 6)
        adopt(history, rule(2), holds=(Hold(name="x", selector=Selector()),))
        await history.retention.save()
    state = tmp_path / "retention.json"
    state.write_bytes(state.read_bytes().replace(b'"name": "x"', b'"name": "y"'))
    async with opened(tmp_path) as history:
        history.retention.defaults["raw"] = 2 * DAY
        await expire(history)
        assert {age(key) for key in rows(tmp_path / "blocks")} == set(range(1, 7))
        await history.retention.save()
    async with opened(tmp_path) as history:
        assert not history.retention.certain
        adopt(history, rule(2))
        await expire(history)
        assert {age(key) for key in rows(tmp_path / "blocks")} == {1, 2}


# ── what may be asked for ──────────────────────────────────────────────────────────────────────────────────────────

A_RULE, A_HOLD = rule(3), Hold(name="x", selector=Selector())


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (Policy(rules=(replace(A_RULE, tier="7m"),)), "policy.rules.tier"),
        (Policy(rules=(replace(A_RULE, retention=0),)), "policy.rules.retention"),
        (Policy(rules=(replace(A_RULE, retention=-DAY),)), "policy.rules.retention"),
        (Policy(rules=(replace(A_RULE, retention=MINUTE - 1),)), "policy.rules.retention"),
        (Policy(rules=(replace(A_RULE, retention=101 * 366 * DAY),)), "policy.rules.retention"),
        (
            Policy(rules=(replace(A_RULE, selector=Selector(server_filter="role =")),)),
            "policy.rules.selector.server_filter",
        ),
        (Policy(rules=(replace(A_RULE, selector=Selector(metrics=("x{a",))),)), "policy.rules.selector.metrics"),
        (Policy(rules=(A_RULE,) * 101), "policy.rules"),
        (Policy(holds=tuple(replace(A_HOLD, name=f"x{at}") for at in range(101))), "policy.holds"),
        (Policy(holds=(A_HOLD, A_HOLD)), "policy.holds.name"),
        (Policy(holds=(replace(A_HOLD, name=""),)), "policy.holds.name"),
        (Policy(holds=(replace(A_HOLD, name="X"),)), "policy.holds.name"),
        (Policy(holds=(replace(A_HOLD, name="x\n"),)), "policy.holds.name"),
        (Policy(holds=(replace(A_HOLD, name="x" * 64),)), "policy.holds.name"),
        (Policy(holds=(replace(A_HOLD, start=END, end=END),)), "policy.holds.end_time"),
        (Policy(holds=(replace(A_HOLD, start=END, end=END - 1),)), "policy.holds.end_time"),
        (Policy(holds=(replace(A_HOLD, reason="y" * 1001),)), "policy.holds.reason"),
        (Policy(holds=(replace(A_HOLD, reason="\0"),)), "policy.holds.reason"),
        (
            Policy(holds=(replace(A_HOLD, selector=Selector(server_filter="x=1")),)),
            "policy.holds.selector.server_filter",
        ),
        (Policy(etag="e" * 65), "policy.etag"),
    ],
)
async def test_a_policy_that_may_not_be_is_refused_by_its_field(tmp_path: Path, policy: Policy, field: str):
    async with opened(tmp_path) as history:
        with pytest.raises(InvalidArgumentError) as failure:
            check(policy, history.retention)
        assert (failure.value.field, failure.value.message.startswith(field)) == (field, True)


async def test_the_longest_and_the_shortest_policy_may_be(tmp_path: Path):
    async with opened(tmp_path, raw_retention=timedelta(days=30)) as history:
        until = Hold(name="a" + "-" * 62, selector=Selector(), end=-DAY, reason="y" * 1000)
        adopt(history, rule(1 / 1440), rule(36_600), holds=(until,))
        assert history.retention.kept_from("raw", NOW) == NOW - 36_600 * DAY
        await write(history, [NOW - 20 * 366 * DAY], load=[1.0])
        await rolled(history)
        await expire(history)
        assert len(rows(tmp_path / "blocks")) == 1
        assert np.isfinite((await ask(history, NOW - 20 * 366 * DAY, NOW - 19 * 366 * DAY, DAY, "MAX")).values).any()
