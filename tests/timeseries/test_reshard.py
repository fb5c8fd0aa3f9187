"""History is split anew, and is the same: 1 → 2 → 3 → 1."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from openmanager_timeseries.config import TimeseriesConfig
from openmanager_timeseries.disk import PosixDisk
from openmanager_timeseries.history import History
from openmanager_timeseries.opening import open_history
from openmanager_timeseries.query import RangeQuery
from openmanager_timeseries.reshard import UNFINISHED, reshard

from openmanager.errors import ConfigurationError, DataLossError, FailedPreconditionError
from openmanager.frame import Frame, MetricInfo, ServerInfo, encode
from openmanager.runtime.clock import SystemClock
from openmanager.shard import Shard, shard_of

SERVERS = tuple(f"host-{number:02d}" for number in range(10))
METRICS = ("cpu_usage", "net_bytes_total")
MINUTE = 60 * 10**9
TICKS = 150
NOW = SystemClock().now_nanos() // (60 * MINUTE) * 60 * MINUTE
CONFIG = TimeseriesConfig(ballast_size=1 << 20, tiers="5m:90d,1h:1825d", raw_retention=timedelta(days=14))


def folder_config(folder: Path) -> TimeseriesConfig:
    return replace(CONFIG, data_dir=folder)


class Shards:
    """Open histories of some shards."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.histories: list[History] = []

    async def open(self, folders: list[Path]) -> None:
        for index, folder in enumerate(folders):
            shard = Shard(index, len(folders))
            shard.claim(folder)
            opened = open_history(folder_config(folder), PosixDisk(folder / "log"), SystemClock(), shard)
            self.histories.append(await self._stack.enter_async_context(opened))

    async def answers(self) -> dict[tuple[str, str, str], np.ndarray]:
        """Return what is answered of each series, of all servers together."""
        found: dict[tuple[str, str, str], np.ndarray] = {}
        for history in self.histories:
            for aggregation, step in (("MEAN", 0), ("MAX", 5 * MINUTE), ("P90", 60 * MINUTE), ("SUM", 60 * MINUTE)):
                asked = RangeQuery(
                    servers=(),
                    server_filter="",
                    metrics=(),
                    start=NOW - TICKS * MINUTE,
                    end=NOW,
                    step=step,
                    aggregation=aggregation,
                    group_by="SERVER",
                )
                answer = await history.query_range(asked, 10.0)
                assert answer.partial_reason == ""
                for row, name in enumerate(answer.names):
                    values = answer.values[row] if answer.raw is None else answer.raw.values[_row(answer.raw, row)]
                    found[name.server, name.metric, f"{aggregation} {step}"] = values
        return found

    def infos(self) -> dict[str, ServerInfo]:
        return {server: info for history in self.histories for server, info in history.catalog.infos.items()}


def _row(raw, row: int) -> slice:
    return slice(int(raw.offsets[row]), int(raw.offsets[row + 1]))


async def filled(folder: Path) -> None:
    """Write some frames: two blocks, a late sample that overwrites, and a log beyond the blocks."""
    random = np.random.default_rng(3)
    values = np.round(random.uniform(0, 100, (TICKS, len(SERVERS), len(METRICS))), 1)
    values[:, :, 1] = np.cumsum(values[:, :, 1], axis=0)
    times = NOW - MINUTE * np.arange(TICKS, 0, -1, dtype=np.int64)
    async with AsyncExitStack() as stack:
        shards = Shards(stack)
        await shards.open([folder])
        (history,) = shards.histories
        for part in (slice(0, 60), slice(60, 120), slice(120, TICKS)):
            frame = Frame(
                times=times[part],
                servers=SERVERS,
                metrics=METRICS,
                values=values[part],
                server_infos=tuple(
                    ServerInfo(id=server, role="web", labels={"rack": server[-1]}) for server in SERVERS
                ),
                metric_infos=(MetricInfo(name="net_bytes_total", kind=2, unit="By"),),
            )
            await history.write(encode(frame))
            if part.stop < TICKS:
                async with history.changing:
                    await history.seal()
        late = Frame(times=times[10:11], servers=SERVERS[2:4], metrics=METRICS[:1], values=np.full((1, 2, 1), 99.5))
        await history.write(encode(late))


async def test_one_shard_becomes_two_then_three_then_one_with_the_same_answers(tmp_path: Path):
    await filled(tmp_path / "first")
    folders = [tmp_path / "first"]
    async with AsyncExitStack() as stack:
        shards = Shards(stack)
        await shards.open(folders)
        expected, infos = await shards.answers(), shards.infos()
    assert len(infos) == len(SERVERS)
    for count in (2, 3, 1):
        targets = [tmp_path / f"{count}-{index}" for index in range(count)]
        found = await reshard(folders, targets, CONFIG, SystemClock(), lambda _: None)
        assert sum(found.server_counts) == len(SERVERS)
        async with AsyncExitStack() as stack:
            shards = Shards(stack)
            await shards.open(targets)
            answers = await shards.answers()
            assert answers.keys() == expected.keys()
            for name, values in expected.items():
                # Sums of what is sealed and of what is not differ in the last place.
                np.testing.assert_allclose(
                    answers[name], values, rtol=0 if name[2] == "MEAN 0" else 1e-12, err_msg=str(name)
                )
            assert shards.infos() == infos
            for index, history in enumerate(shards.histories):
                assert {shard_of(server, count) for server in history.catalog.servers} <= {index}
                assert history.ledger.unbalanced() == []
                assert history.log.state.accepted == sum(file.about.row_count for file in history.blocks.files) > 0
        folders = targets


async def test_a_shard_takes_writes_after_it_was_split_off_and_none_of_servers_of_others(tmp_path: Path):
    await filled(tmp_path / "first")
    targets = [tmp_path / str(index) for index in range(2)]
    await reshard([tmp_path / "first"], targets, CONFIG, SystemClock(), lambda _: None)
    own = next(server for server in SERVERS if shard_of(server, 2) == 1)
    other = next(server for server in SERVERS if shard_of(server, 2) == 0)
    async with AsyncExitStack() as stack:
        shards = Shards(stack)
        await shards.open(targets)
        frame = Frame(times=np.array([NOW]), servers=(own,), metrics=METRICS[:1], values=np.ones((1, 1, 1)))
        accepted = await shards.histories[1].write(encode(frame))
        assert accepted.position > shards.histories[1].blocks.last
        with pytest.raises(FailedPreconditionError, match="shard 0 of 2 owns") as caught:
            await shards.histories[1].write(encode(replace(frame, servers=(own, other), values=np.ones((1, 2, 1)))))
        assert caught.value.reason == "WRONG_SHARD"


async def test_folders_of_another_shard_or_in_use_are_refused(tmp_path: Path):
    await filled(tmp_path / "first")
    targets = [tmp_path / str(index) for index in range(2)]
    await reshard([tmp_path / "first"], targets, CONFIG, SystemClock(), lambda _: None)
    with pytest.raises(ConfigurationError, match="holds shard 1 of 2 and cannot be used as shard 0 of 2"):
        await reshard([targets[1], targets[0]], [tmp_path / "x"], CONFIG, SystemClock(), lambda _: None)
    with pytest.raises(FailedPreconditionError, match="is not empty"):
        await reshard(targets, [tmp_path / "first"], CONFIG, SystemClock(), lambda _: None)
    with pytest.raises(FailedPreconditionError, match="holds no history"):
        await reshard([tmp_path / "nothing"], [tmp_path / "x"], CONFIG, SystemClock(), lambda _: None)
    with pytest.raises(ConfigurationError, match="holds shard 0 of 1 and cannot be used as shard 0 of 3"):
        Shard(0, 3).claim(tmp_path / "first")


async def test_what_was_interrupted_begins_again_and_what_differs_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    await filled(tmp_path / "first")
    left = tmp_path / ("0" + UNFINISHED)
    left.mkdir()
    (left / "half").write_text("of it")
    targets = [tmp_path / str(index) for index in range(2)]
    monkeypatch.setattr(Shard, "owns", lambda *_: True)
    monkeypatch.setattr("openmanager_timeseries.reshard.shards_of", lambda names, _: np.zeros(len(names), np.int64))
    await reshard([tmp_path / "first"], targets, CONFIG, SystemClock(), lambda _: None)
    assert not left.exists()
    # Rows that nobody owns are missed.
    monkeypatch.setattr("openmanager_timeseries.reshard.shards_of", lambda names, _: np.full(len(names), 7))
    with pytest.raises(DataLossError, match="are not what they were"):
        await reshard([tmp_path / "first"], [tmp_path / "x", tmp_path / "y"], CONFIG, SystemClock(), lambda _: None)
    assert not (tmp_path / "x").exists()
