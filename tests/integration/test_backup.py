"""Backup and restore as a user runs them: of a mesh under load, killed at any point, into an empty folder."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import Mesh, clean_environment, free_ports, start_mesh, wait_until

from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.errors import OpenManagerError
from openmanager.frame import Frame, encode_write_request
from openmanager.runtime.peer import Peer

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not on the PATH"),
]
PROGRAM = (sys.executable, "-m", "openmanager.cli")
WRITE = "/openmanager.api.gateway.v1.GatewayService/WriteFrame"
QUERY = "/openmanager.api.timeseries.v1.TimeseriesService/QueryRange"
LEDGER = "/openmanager.api.timeseries.v1.LogService/GetLedger"
METRICS = tuple(f"m{at}" for at in range(20))
PASSWORD = "the-password-of-backups"
KILLS = int(os.environ.get("BACKUP_KILLS", "4"))
MILLI = 1_000_000


@dataclass(frozen=True)
class Place:
    """A repository in a folder, and the environment of those who use it."""

    folder: Path
    environment: Mapping[str, str]

    @property
    def repository(self) -> str:
        return str(self.folder / "repository")

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PROGRAM, *arguments],
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def done(self, *arguments: str) -> dict:
        """Run a command that succeeds, and return what it says as JSON."""
        result = self.run(*arguments, "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    def back_up(self, mesh: Mesh) -> dict:
        return self.done("backup", "--data-dir", str(mesh.data), "--to", self.repository)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("backup")
    secret = folder / "password"
    secret.write_text(PASSWORD)
    return Place(folder, {**clean_environment(), "OPENMANAGER_BACKUP_PASSWORD_FILE": str(secret)})


@pytest.fixture(scope="module")
def backed_up(mesh: Mesh, place: Place) -> dict:
    """A backup of the mesh that every test may read."""
    return place.back_up(mesh)


@contextmanager
def restored(place: Place, name: str, snapshot: str = "latest") -> Iterator[Mesh]:
    """A mesh that was started from a backup."""
    target = place.folder / name
    place.done("restore", "--from", place.repository, "--to", str(target), "--snapshot", snapshot)
    mesh = start_mesh(target, free_ports(), "--no-simulation")
    try:
        yield mesh
    finally:
        mesh.stop()
        shutil.rmtree(target)


async def write(address: str, acknowledged: dict[int, float], stop: asyncio.Event) -> None:
    """Write frames as fast as they are acknowledged, remembering every one that was."""
    async with Peer("gateway", address) as peer:
        for number in range(1 << 30):
            if stop.is_set():
                return
            now = max(time.time_ns() // MILLI * MILLI, max(acknowledged, default=0) + MILLI)
            values = np.full((1, 1, len(METRICS)), float(number))
            frame = Frame(times=np.array([now]), servers=("under-load",), metrics=METRICS, values=values)
            with suppress(OpenManagerError):
                await peer.unary(WRITE, encode_write_request(frame), gateway_pb2.WriteFrameResponse, seconds=5)
                acknowledged[now] = float(number)


async def series(mesh: Mesh, until: int) -> dict[tuple[str, str], tuple[int, str]]:
    """Return how many samples a mesh has of every series before a time, and the checksum of them."""
    request = timeseries_pb2.QueryRangeRequest()
    request.start_time.FromNanoseconds(until - 3600 * 10**9)
    request.end_time.FromNanoseconds(until)
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    async with Peer("timeseries", mesh.address("timeseries")) as peer:
        async for data in peer.server_stream(QUERY, request, seconds=30):
            part = timeseries_pb2.QueryRangeResponse.FromString(data).series
            if part.server:
                known = found.setdefault((part.server, part.metric), [])
                known += zip(part.time_unix_nanos, part.values, strict=True)
    return {key: (len(each), hashlib.sha256(repr(each).encode()).hexdigest()) for key, each in found.items()}


async def under_load(mesh: Mesh, work) -> tuple[dict[int, float], int, object]:
    """Do work while somebody writes; return what was acknowledged, the newest time of that before it, and what it gave."""
    acknowledged: dict[int, float] = {}
    stop = asyncio.Event()
    writing = asyncio.create_task(write(mesh.gateway, acknowledged, stop))

    async def many() -> bool:
        return len(acknowledged) >= 20

    try:
        await wait_until(many, 30)
        before = max(acknowledged)
        result = await asyncio.to_thread(work)
    finally:
        stop.set()
        await writing
    return acknowledged, before, result


async def test_a_mesh_restored_from_a_backup_under_load_gives_equal_answers(mesh: Mesh, place: Place):
    for command in (
        ("interactions", "record", "Why is it slow?", "Its disk is full.", "--session", "backed-up"),
        ("users", "create", "backed-up", "--grant", "viewer"),
    ):
        result = place.run("--gateway", mesh.gateway, *command)
        assert result.returncode == 0, result.stderr
    acknowledged, before, made = await under_load(mesh, lambda: place.back_up(mesh))
    # A moment that everything before is in the backup of: what is written later is later in time.
    end = before + MILLI
    with restored(place, "equal", made["snapshot"]) as other:
        expected, found = await series(mesh, end), await series(other, end)
        assert ("under-load", "m7") in expected
        assert found == expected
        assert found["under-load", "m7"][0] >= sum(at < end for at in acknowledged)
        async with Peer("timeseries", other.address("timeseries")) as peer:
            reply = await peer.unary(
                LEDGER, timeseries_pb2.GetLedgerRequest(), timeseries_pb2.GetLedgerResponse, seconds=5
            )
        assert reply.ledger.accepted_sample_count == made["log"]["accepted_sample_count"]
        assert {row.name: row.damaged_sample_count for row in reply.ledger.consumers if row.damaged_sample_count} == {}
        assert "Its disk is full." in place.run("--gateway", other.gateway, "interactions", "show", "latest").stdout
        assert "backed-up" in place.run("--gateway", other.gateway, "users").stdout
        log = place.folder / "audit.log"
        assert place.run("--gateway", other.gateway, "audit", "export", str(log), "--force").returncode == 0
        vouched = [
            "--checkpoints",
            str(other.data / "audit-checkpoints.jsonl"),
            "--key",
            str(other.data / "audit-public.pem"),
        ]
        verdict = place.run("audit", "verify", str(log), *vouched)
        assert verdict.returncode == 0, verdict.stdout + verdict.stderr
        listed = place.run("--gateway", other.gateway, "audit", "list").stdout
        assert "audit.log_restored" not in listed


def test_killed_at_any_point_it_leaves_the_good_backups_good_and_the_next_one_is_made(
    mesh: Mesh, place: Place, backed_up: dict
):
    generator = random.Random(5)
    for _ in range(KILLS):
        process = subprocess.Popen(
            [*PROGRAM, "backup", "--data-dir", str(mesh.data), "--to", place.repository],
            env=dict(place.environment),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(generator.uniform(0.3, 1.3 * backed_up["seconds"]))
        process.send_signal(signal.SIGKILL)
        process.wait()
    after = place.back_up(mesh)
    listed = [each["snapshot"] for each in place.done("backup", "list", "--from", place.repository)["backups"]]
    assert listed[-1] == after["snapshot"]
    assert backed_up["snapshot"] in listed
    # This looks through all of them, and compares one as a whole.
    good = place.done("backup", "verify", "--from", place.repository, "--snapshot", backed_up["snapshot"])
    assert (good["series_count"], good["table_count"]) == (backed_up["series_count"], backed_up["table_count"])
    assert sorted(
        path.name for path in (mesh.data / "timeseries" / "backup").iterdir() if path.name != "checksums"
    ) == ["lock"]


def test_nothing_starts_from_a_restore_that_was_killed_and_the_same_command_finishes_it(
    place: Place, backed_up: dict, tmp_path: Path
):
    target = tmp_path / "killed"
    command = ["restore", "--from", place.repository, "--to", str(target), "--snapshot", backed_up["snapshot"]]
    process = subprocess.Popen([*PROGRAM, *command], env=dict(place.environment), stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (target / ".restore" / "manifest.json").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.wait()
    result = place.run("up", "--data-dir", str(target), "--gateway", f"127.0.0.1:{free_ports()}")
    assert (result.returncode, "holds a restore that has not ended" in result.stderr) == (78, True)
    result = place.run("backup", "--data-dir", str(target), "--to", place.repository)
    assert (result.returncode, "holds a restore that has not ended" in result.stderr) == (78, True)
    before = place.done(*command)
    assert not (target / "RESTORING").exists()
    # Of a mesh that does not run, which is the same.
    after = place.done("backup", "--data-dir", str(target), "--to", place.repository)
    assert after["log"] == before["log"]
    assert (after["series_count"], after["table_count"]) == (before["series_count"], before["table_count"])
    # And again, now that everything is known.
    again = place.done("backup", "--data-dir", str(target), "--to", place.repository)
    assert again["added_bytes"] < again["total_bytes"] / 5


def test_a_damaged_repository_is_found(place: Place, backed_up: dict, tmp_path: Path):
    copy = shutil.copytree(place.repository, tmp_path / "repository")
    for pack in (copy / "data").rglob("*"):
        if pack.is_file():
            pack.chmod(0o600)
            data = bytearray(pack.read_bytes())
            data[len(data) // 3] ^= 1
            pack.write_bytes(data)
    result = place.run("backup", "verify", "--from", str(copy), "--quick", "--read-all")
    assert (result.returncode, "the repository is damaged" in result.stderr) == (1, True)
    result = place.run("restore", "--from", str(copy), "--to", str(tmp_path / "target"))
    assert result.returncode == 1
    assert (tmp_path / "target" / "RESTORING").exists()
