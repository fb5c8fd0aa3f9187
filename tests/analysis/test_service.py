"""The analysis service behind a gateway: trends, capacity, anomalies, and who sees them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from client.mesh import LocalMesh
from conftest import clean_environment, wait_until
from openmanager_analysis.module import module as analysis

from openmanager.api.analysis.v1 import analysis_pb2
from openmanager.client import Client, ServiceStatus, rpc
from openmanager.errors import FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError
from openmanager.frame import Frame, MetricInfo, ServerInfo

HOUR = 3_600 * 10**9
DAYS = 12
SERVERS = ("web-1", "web-2")


def hours(days: int = DAYS) -> Frame:
    """Return hourly samples that end now: a disk that fills by 3 a day from 40 on, and a processor with a daily season."""
    end = time.time_ns() // HOUR * HOUR
    times = end - HOUR * np.arange(days * 24 - 1, -1, -1, dtype=np.int64)
    age = (times - times[0]) / (24 * HOUR)
    random = np.random.default_rng(1)
    values = np.empty((len(times), 2, 2))
    values[:, :, 0] = 40 + 3 * age[:, None] + random.normal(0, 0.2, (len(times), 2))
    values[:, 1, 0] = 40 + random.normal(0, 0.2, len(times))
    season = 20 * np.sin(2 * np.pi * (times // HOUR % 24) / 24)
    values[:, :, 1] = 50 + season[:, None] + random.normal(0, 1, (len(times), 2))
    infos = tuple(ServerInfo(id=server, environment="production") for server in SERVERS)
    return Frame(times=times, servers=SERVERS, metrics=("disk_usage", "cpu_usage"), values=values, server_infos=infos)


@contextlib.asynccontextmanager
async def opened(folder: Path, *setting: object) -> AsyncIterator[tuple[LocalMesh, Client]]:
    """Serve the analysis behind a gateway, with one more setting where one is given: its place and its value."""
    settings = {("analysis", "data_dir"): folder / "analysis", ("analysis", "interval"): "1s"}
    settings |= dict([setting]) if setting else {}
    mesh = LocalMesh(folder / "timeseries", settings)
    await mesh.start(analysis)
    try:
        async with Client(mesh.gateway) as client:
            yield mesh, client
    finally:
        await mesh.stop()


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with opened(tmp_path) as (_, client):
        await client.write_frame(hours())
        yield client


async def test_a_trend_has_its_interval_and_its_season(client: Client):
    disk, still = await client.analysis.trends("disk_usage", start=datetime.now(UTC) - timedelta(days=DAYS - 1))

    assert (disk.server, disk.direction, still.direction) == ("web-1", "UP", "STEADY")
    assert disk.slope_low <= 3 <= disk.slope_high
    assert disk.slope_per_day == pytest.approx(3, abs=0.2)
    assert disk.p_value < 0.01
    (cpu, _) = await client.analysis.trends("cpu_usage", start=datetime.now(UTC) - timedelta(days=DAYS - 1))
    assert np.argmax(cpu.hour_profile) == pytest.approx(6, abs=1)
    assert cpu.hour_strength > 0.9


async def test_capacity_says_when_how_sure_and_what_to_add(client: Client):
    fills, stays = await client.analysis.capacities(
        "disk_usage", limit=90, horizon=timedelta(days=30), past=timedelta(days=DAYS), points=10
    )

    assert (fills.server, stays.server) == SERVERS
    assert fills.reach_time is not None
    assert fills.reach_time - datetime.now(UTC) == pytest.approx(timedelta(days=(90 - 76) / 3), abs=timedelta(days=1))
    assert fills.reach_80[0] is not None
    assert fills.reach_80[0] <= fills.reach_time
    assert fills.capacity_factor > 1.2
    assert len(fills.points) == 10
    assert all(each.low_95 <= each.low_80 <= each.median <= each.high_80 <= each.high_95 for each in fills.points)
    assert "reaches 90 in" in fills.explanation
    assert (stays.reach_time, stays.capacity_factor) == (None, 1.0)
    assert "does not reach 90" in stays.explanation


async def test_how_likely_a_limit_is_reached_is_said_by_horizon(tmp_path: Path):
    end = time.time_ns() // HOUR * HOUR
    times = end - HOUR // 6 * np.arange(6 * 24 * 8, 0, -1, dtype=np.int64)
    random = np.random.default_rng(1)
    values = 50 + random.normal(0, 1, (len(times), 2, 1))
    values[-30:, 1, 0] = np.linspace(52, 83, 30)
    async with opened(tmp_path) as (_, client):
        await client.write_frame(Frame(times=times, servers=SERVERS, metrics=("cpu_usage",), values=values))
        found = {
            each.server: each for each in await client.analysis.capacities("cpu_usage", horizon=timedelta(days=30))
        }
        by_default = await client.analysis.capacities("cpu_usage", limit=85, horizon=timedelta(hours=6))
        code, shown, _ = await openmanager(client, "forecast", "cpu_usage", "--server", "web-2")
        _, table, _ = await openmanager(client, "forecast", "cpu_usage")

    calm, rising = (dict(found[server].reach_probabilities) for server in SERVERS)
    horizons = [timedelta(hours=hours) for hours in (1, 6, 24, 7 * 24, 30 * 24)]
    assert list(calm) == list(rising) == horizons
    assert found["web-1"].limit == 85
    assert calm[horizons[2]] < 0.05
    # How likely depends on the hour of the day that it is now; that it is far likelier does not.
    assert rising[horizons[0]] > 10 * calm[horizons[0]]
    assert list(rising.values()) == sorted(rising.values())
    assert [len(each.reach_probabilities) for each in by_default] == [2, 2]
    assert (code, "chance to reach 85" in shown, "in 24h" in table) == (0, True, True)


async def test_hourly_samples_tell_nothing_of_the_next_hours_and_that_is_not_made_up(client: Client):
    fills, _ = await client.analysis.capacities("disk_usage", limit=90, horizon=timedelta(days=30))
    (week, soon), (month, late) = fills.reach_probabilities
    assert (week, month) == (timedelta(days=7), timedelta(days=30))
    assert soon <= late == pytest.approx(fills.reach_probability)


async def test_servers_are_told_by_how_likely_an_anomaly_begins(tmp_path: Path):
    async with opened(tmp_path) as (_, client):
        await wait_until(lambda: written_and_learnt(client))
        (risk,) = await client.analysis.risks()
        reply = await client.rpc.call(rpc.LIST_ANOMALIES, analysis_pb2.ListAnomaliesRequest(filter="server = other"))

    assert risk.server == "live"
    assert [horizon for horizon, _ in risk.probabilities] == [
        timedelta(minutes=15),
        timedelta(hours=1),
        timedelta(hours=6),
    ]
    chances = [chance for _, chance in risk.probabilities]
    assert chances == sorted(chances)
    assert 0 < chances[0] < chances[2] < 0.2
    assert [each.server for each in reply.risks] == ["live"]


async def test_too_little_or_too_much_is_an_error_and_no_made_up_number(client: Client):
    now = time.time_ns()
    young = Frame(
        times=np.array([now // HOUR * HOUR]), servers=("young",), metrics=("level",), values=np.ones((1, 1, 1))
    )
    await client.write_frame(young)

    with pytest.raises(FailedPreconditionError, match="too few samples"):
        await client.analysis.capacities("level", limit=90)
    with pytest.raises(FailedPreconditionError, match="too few samples"):
        await client.analysis.trends("level")
    with pytest.raises(InvalidArgumentError) as refused:
        await client.analysis.trends(())
    assert refused.value.field == "selector.metrics"
    with pytest.raises(InvalidArgumentError) as refused:
        await client.analysis.capacities("disk_usage", limit=float("nan"))
    assert refused.value.field == "limit"
    with pytest.raises(ResourceExhaustedError):
        await client.analysis.detect(start=now - 24 * 3600 * 10**9, step=timedelta(milliseconds=1))
    assert await client.analysis.trends("nothing_like_it") == []
    assert await client.analysis.anomalies() == []


async def test_what_was_learnt_and_where_the_log_was_survive_a_restart(tmp_path: Path):
    async with opened(tmp_path) as (mesh, client):
        await wait_until(lambda: written_and_learnt(client))
        seen = await seen_time(client)
    assert (tmp_path / "analysis" / "detector.state").exists()
    async with opened(tmp_path) as (mesh, client):
        assert await seen_time(client) >= seen
        assert mesh.addresses["analysis"]


@pytest.mark.parametrize("metric", ["disk_usage", "cpu_usage"])
@pytest.mark.parametrize("command", ["trend", "forecast"])
async def test_a_command_draws_one_series_and_lists_several(client: Client, command: str, metric: str):
    code, one, _ = await openmanager(client, command, metric, "--server", "web-1")
    assert code == 0
    assert f"web-1 {metric}" in one
    assert any("\u2800" < each < "\u2900" for each in one)  # braille

    code, several, _ = await openmanager(client, command, metric)
    assert code == 0
    assert [server in several for server in SERVERS] == [True, True]
    code, document, _ = await openmanager(client, command, metric, "--json")
    assert {"provenance", "skipped_count"} <= set(json.loads(document))


async def test_a_command_says_what_is_wrong(client: Client):
    assert await openmanager(client, "trend", "nothing_like_it") == (
        1,
        "",
        "openmanager: no series is chosen by nothing_like_it: `openmanager series` lists them\n",
    )
    assert (await openmanager(client, "anomalies", "--filter", "colour = red"))[0] == 1
    code, shown, _ = await openmanager(client, "anomalies", "detect", "disk_usage", "--last", "3d", "--step", "1h")
    assert (code, "from " in shown) == (0, True)


@pytest.mark.parametrize(
    ("command", "title", "said"),
    [
        (("trend", "disk_usage"), "Trend of disk_usage", "web-1 disk_usage goes up: +"),
        (("forecast", "disk_usage", "--horizon", "30d"), "Forecast of disk_usage", "disk_usage is at 7"),
    ],
)
async def test_a_report_has_a_chart_and_words_for_each_series(
    client: Client, tmp_path: Path, command: tuple[str, ...], title: str, said: str
):
    files = {"--html": tmp_path / "report.html", "--png": tmp_path / "report.png"}
    options = [str(each) for pair in files.items() for each in pair]
    code, out, err = await openmanager(client, *command, *options)

    assert (code, out) == (0, ""), err
    page = files["--html"].read_text()
    assert f"<h1>{title}</h1>" in page
    assert [f"{server} disk_usage</h2>" in page for server in SERVERS] == [True, True]
    assert said in page
    assert page.count("<img ") == page.count("<details>") + 1  # an overview, whose table is always shown
    assert "disk_usage of all servers" in page
    assert "95 %" in page
    assert files["--png"].read_bytes().startswith(b"\x89PNG")
    # With --json both come.
    code, document, _ = await openmanager(client, *command, "--json", "--html", str(files["--html"]))
    assert (code, {"provenance", "skipped_count"} <= set(json.loads(document))) == (0, True)


async def test_a_report_of_anomalies_shows_what_was_usual_and_what_came(client: Client, tmp_path: Path):
    minute = 60 * 10**9
    times = time.time_ns() // minute * minute - minute * np.arange(8 * 60 - 1, -1, -1, dtype=np.int64)
    values = np.random.default_rng(2).normal(50, 1, (len(times), 6, 1))
    values[-90:-30, 2, 0] += 40
    infos = tuple(ServerInfo(id=f"db-{k}", environment="production") for k in range(6))
    names = tuple(each.id for each in infos)
    told = (MetricInfo(name="queue", unit="{job}"),)
    frame = Frame(times=times, servers=names, metrics=("queue",), values=values, server_infos=infos, metric_infos=told)
    await client.write_frame(frame)
    path = tmp_path / "anomalies.html"

    options = ("detect", "queue", "--last", "8h", "--step", "1m", "--html", str(path))
    code, _, err = await openmanager(client, "anomalies", *options)

    page = path.read_text()
    assert (code, "anomalies, " in err) == (0, True)
    assert "2. db-2: " in page
    assert re.search(r"queue 9\d(\.\d+)? job where 4\d(\.\d+)? to 5\d(\.\d+)? job was expected", page)
    assert "Metrics to blame, each at its most unusual" in page
    assert "the detector over stored history: queue of all servers" in page
    assert ">unusual</td>" in page

    code, _, _ = await openmanager(client, "anomalies", "--html", str(path))
    assert (code, "Nothing was unlike what is usual." in path.read_text()) == (0, True)


async def openmanager(client: Client, *arguments: str) -> tuple[int, str, str]:
    """Run a command as a user would, on a terminal of 100 columns."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "openmanager"),
        "--gateway",
        client.rpc.peer.target,
        *arguments,
        env={**clean_environment(), "COLUMNS": "100"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def written_and_learnt(client: Client) -> bool:
    """Write the sample of now, and say whether the detector has looked at one."""
    now = time.time_ns() // 10**6 * 10**6
    values = np.full((1, 1, 1), 50.0)
    await client.write_frame(Frame(times=np.array([now]), servers=("live",), metrics=("m",), values=values))
    return await seen_time(client) > 0


async def seen_time(client: Client) -> float:
    reply = await client.rpc.call(rpc.LIST_ANOMALIES, analysis_pb2.ListAnomaliesRequest())
    return float(reply.provenance.as_of_time.ToNanoseconds())


async def test_series_beyond_the_most_are_told_of_in_the_status(tmp_path: Path):
    async with opened(tmp_path, ("analysis", "max_series"), 1) as (_, client):
        await wait_until(lambda: warned(client))
        detector, _ = (await analysis_row(client)).storages
        assert (detector.name, detector.item_count) == ("detector", 1)
        assert detector.warnings == ("more than 1 series: samples of the others are not looked at",)


async def warned(client: Client) -> bool:
    """Write the samples of now, and say whether the status warns of them."""
    now = time.time_ns() // 10**6 * 10**6
    await client.write_frame(
        Frame(times=np.array([now]), servers=("live",), metrics=("m", "n"), values=np.ones((1, 1, 2)))
    )
    return bool((await analysis_row(client)).storages[0].warnings)


async def analysis_row(client: Client) -> ServiceStatus:
    board = await client.storage_status()
    return next(each for each in board.services if each.service == "analysis")
