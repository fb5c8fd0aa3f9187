"""Rules, alerts, silences, holds and entries in a whole mesh of two shards and two gateways."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from conftest import clean_environment, first_tick, free_ports, start_mesh, wait_until
from openmanager_timeseries.checksum import checksums

from openmanager.api.analysis.v1 import alert_pb2, analysis_pb2
from openmanager.api.cache.v1 import cache_pb2
from openmanager.api.metadata.v1 import audit_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.cli import layout
from openmanager.errors import FailedPreconditionError, NotFoundError
from openmanager.runtime.peer import Peer
from openmanager.shard import Shard, shard_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
API = "/openmanager.api"
ALERTS, RULES = f"{API}.analysis.v1.AlertService", f"{API}.analysis.v1.RuleService"
SERVERS, METRICS = 8, 511


@pytest.fixture(scope="module")
def mesh() -> Iterator[tuple[Path, str]]:
    """The data directory, and the addresses of the gateways."""
    folder = Path(tempfile.mkdtemp(prefix="openmanager-test-"))
    base = free_ports(42)
    options = ("--servers", str(SERVERS), "--interval", "1s", "--shards", "2", "--gateways", "2")
    mesh = start_mesh(folder / "data", base, *options)
    try:
        first_tick(mesh, SERVERS * METRICS)
        yield folder / "data", f"127.0.0.1:{base},127.0.0.1:{base + 41}"
    finally:
        mesh.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def peer(mesh: tuple[Path, str]) -> AsyncIterator[Peer]:
    async with Peer("gateway", mesh[1]) as found:
        yield found


async def call(peer: Peer, path: str, request: Any, reply: type[Any]) -> Any:
    return await peer.unary(path, request, reply, seconds=10)


async def told(peer: Peer, request: alert_pb2.WatchAlertsRequest, enough: Any) -> tuple[dict[str, Any], str]:
    """Return the alerts that a watch tells of until there are enough that can be resumed after, and the token."""
    request.progress_interval.FromMilliseconds(200)
    found: dict[str, Any] = {}
    token = ""
    stream = peer.server_stream(f"{ALERTS}/WatchAlerts", request, seconds=30)
    async for data in stream:
        part = alert_pb2.WatchAlertsResponse.FromString(data)
        found |= {each.id: each for each in part.alerts}
        token = part.resume_token or token
        if token and enough(found):
            break
    await stream.aclose()  # type: ignore[attr-defined]
    return found, token


@pytest.mark.timeout(120)
async def test_a_rule_is_known_at_once_and_alerts_of_all_shards_are_listed_watched_and_silenced(peer: Peer):
    rule = alert_pb2.AlertRule(id="cpu")
    rule.selector.metrics.append("cpu_usage")
    rule.threshold.above = 0.1
    await call(peer, f"{RULES}/CreateRule", alert_pb2.CreateRuleRequest(rule=rule), alert_pb2.CreateRuleResponse)

    async def counts_all() -> bool:
        request = alert_pb2.GetRuleRequest(id="cpu")
        return (await call(peer, f"{RULES}/GetRule", request, alert_pb2.GetRuleResponse)).rule.series_count == SERVERS

    await wait_until(counts_all, 30)
    found, token = await told(peer, alert_pb2.WatchAlertsRequest(), lambda found: len(found) == SERVERS)
    assert {shard_of(each.server, 2) for each in found.values()} == {0, 1}

    request, listed = alert_pb2.ListAlertsRequest(page_size=3), list[Any]()
    while True:
        page = await call(peer, f"{ALERTS}/ListAlerts", request, alert_pb2.ListAlertsResponse)
        assert page.total_count == SERVERS
        listed += page.alerts
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert sorted(each.id for each in listed) == sorted(found)
    starts = [each.start_time.ToNanoseconds() for each in listed]
    assert starts == sorted(starts, reverse=True)
    for each in (listed[0], listed[-1]):
        one = await call(peer, f"{ALERTS}/GetAlert", alert_pb2.GetAlertRequest(id=each.id), alert_pb2.GetAlertResponse)
        assert one.alert.server == each.server
    with pytest.raises(NotFoundError):
        await call(peer, f"{ALERTS}/GetAlert", alert_pb2.GetAlertRequest(id="nobody"), alert_pb2.GetAlertResponse)

    silence = alert_pb2.Silence(matcher='rule = "cpu"', comment="known")
    silence.end_time.FromSeconds(int(time.time()) + 3600)
    made = await call(
        peer,
        f"{API}.analysis.v1.SilenceService/CreateSilence",
        alert_pb2.CreateSilenceRequest(silence=silence),
        alert_pb2.CreateSilenceResponse,
    )
    silenced, _ = await told(
        peer,
        alert_pb2.WatchAlertsRequest(resume_token=token),
        lambda found: sum(bool(each.silenced_by) for each in found.values()) == SERVERS,
    )
    assert silenced.keys() == found.keys()
    read = await call(
        peer,
        f"{API}.analysis.v1.SilenceService/GetSilence",
        alert_pb2.GetSilenceRequest(id=made.silence.id),
        alert_pb2.GetSilenceResponse,
    )
    assert read.silence.alert_count == SERVERS


async def test_a_hold_holds_in_every_shard_at_once(peer: Peer):
    policy = timeseries_pb2.UpdateRetentionPolicyRequest()
    policy.policy.holds.add(name="case")
    retention = f"{API}.timeseries.v1.RetentionService"
    await call(peer, f"{retention}/UpdateRetentionPolicy", policy, timeseries_pb2.UpdateRetentionPolicyResponse)
    request = timeseries_pb2.DeleteSeriesRequest()
    request.selector.metrics.append("cpu_usage")
    for _ in range(2):  # by one gateway and the other
        with pytest.raises(FailedPreconditionError) as caught:
            history = f"{API}.timeseries.v1.TimeseriesService"
            await call(peer, f"{history}/DeleteSeries", request, timeseries_pb2.DeleteSeriesResponse)
        assert caught.value.reason == "LEGAL_HOLD"


async def test_detection_is_scored_over_the_servers_of_all_shards(peer: Peer):
    async def scored() -> bool:
        request = analysis_pb2.ScoreDetectionRequest()
        path = f"{API}.analysis.v1.AnalysisService/ScoreDetection"
        try:
            return (await call(peer, path, request, analysis_pb2.ScoreDetectionResponse)).server_count == SERVERS
        except FailedPreconditionError:  # nothing was measured in a whole minute yet
            return False

    await wait_until(scored, 30)


async def test_entries_are_found_wherever_they_are(peer: Peer):
    path = f"{API}.cache.v1.EntryService"
    for key in map(str, range(4)):
        entry = cache_pb2.SetEntryRequest(namespace="test", key=key, value=key.encode())
        await call(peer, f"{path}/SetEntry", entry, cache_pb2.SetEntryResponse)
    assert {shard_of(f"test/{key}", 2) for key in range(4)} == {0, 1}
    for key in map(str, range(4)):
        request = cache_pb2.GetEntryRequest(namespace="test", key=key)
        found = await call(peer, f"{path}/GetEntry", request, cache_pb2.GetEntryResponse)
        assert found.entry.value == key.encode()


# ── backup ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.timeout(180)
@pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not on the PATH")
async def test_a_backup_has_all_shards_and_is_restored_with_the_same_layout(mesh: tuple[Path, str], tmp_path: Path):
    data, _ = mesh
    (tmp_path / "password").write_text("the-password-of-backups")
    environment = {**clean_environment(), "OPENMANAGER_BACKUP_PASSWORD_FILE": str(tmp_path / "password")}

    def done(*arguments: object) -> Any:
        command = [sys.executable, "-m", "openmanager.cli", *map(str, arguments), "--json"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    repository, target = tmp_path / "repository", tmp_path / "target"
    made = await asyncio.to_thread(done, "backup", "--data-dir", data, "--to", repository)
    verified = await asyncio.to_thread(done, "backup", "verify", "--from", repository)
    assert (verified["series_count"], verified["table_count"]) == (made["series_count"], made["table_count"])
    restored = await asyncio.to_thread(done, "restore", "--from", repository, "--to", target)
    assert restored["log"] == made["log"]
    assert layout.held_shards(target) == 2
    positions = 0
    for shard in range(2):
        folder = layout.folder(target, "timeseries", shard, 2)
        Shard(shard, 2).claim(folder)
        Shard(shard, 2).claim(layout.folder(target, "analysis", shard, 2))
        found = checksums(folder)
        assert {shard_of(server, 2) for server in found.table["server"].to_pylist()} == {shard}
        positions += found.position
    assert positions == made["log"]["position"]
    assert sorted(path.name for path in (data / "shards" / "2").iterdir()) == ["0", "1", "backup"]


async def test_an_export_is_written_down_once(peer: Peer):
    series = timeseries_pb2.ExportSeriesRequest()
    series.start_time.FromNanoseconds(time.time_ns() - 600 * 10**9)
    series.end_time.FromNanoseconds(time.time_ns())
    path = f"{API}.timeseries.v1.TimeseriesService/ExportSeries"
    parts = [
        timeseries_pb2.ExportSeriesResponse.FromString(data)
        async for data in peer.server_stream(path, series, seconds=10)
    ]
    # Each shard has been read.
    assert len({part.chunk.resume_token[:2] for part in parts if part.HasField("chunk")}) == 2
    asked = audit_pb2.ListAuditEntriesRequest(filter=f'action = "{path[1:]}"')
    listed = await call(
        peer, f"{API}.metadata.v1.AuditService/ListAuditEntries", asked, audit_pb2.ListAuditEntriesResponse
    )
    assert [(each.via, each.object) for each in listed.entries] == [("gateway", "series")]
