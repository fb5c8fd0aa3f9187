"""`openmanager up` as a user meets it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import child, clean_environment, environment, free_ports, start_mesh, wait_until

from openmanager import suite
from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.status.v1 import status_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.cli import up
from openmanager.config import Secret, keys
from openmanager.errors import OpenManagerError
from openmanager.runtime.peer import Peer

STATUS = "/openmanager.api.gateway.v1.GatewayService/GetStorageStatus"
LEDGER = "/openmanager.api.timeseries.v1.LogService/GetLedger"
OPTIONS = ("--servers", "2", "--interval", "200ms", "--seed", "3")


async def ledger(address: str) -> status_pb2.Ledger:
    async with Peer("timeseries", address) as peer:
        reply = await peer.unary(LEDGER, timeseries_pb2.GetLedgerRequest(), timeseries_pb2.GetLedgerResponse, seconds=5)
    return reply.ledger


def descendants(parent: int) -> set[int]:
    """Return the processes whose session a child of `parent` leads, by the environment they were started with."""
    found = {parent}
    while True:
        more = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) in found:
                        more.add(int(entry.name))
                except OSError:
                    continue
        if more <= found:
            return found - {parent}
        found |= more


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.timeout(90)
async def test_up_serves_stops_in_time_and_finds_its_history_again(tmp_path: Path):
    base = free_ports()
    mesh = start_mesh(tmp_path / "data", base, *OPTIONS)
    assert f"127.0.0.1:{base}" in mesh.screen or "is up" in mesh.screen

    async def has_frames() -> bool:
        return (await ledger(mesh.address("timeseries"))).accepted_sample_count >= 5 * 2 * 511

    await wait_until(has_frames)
    async with Peer("gateway", mesh.gateway) as peer:
        board = await peer.unary(
            STATUS, gateway_pb2.GetStorageStatusRequest(), gateway_pb2.GetStorageStatusResponse, seconds=5
        )
    assert {service.service: service.reason for service in board.services} == dict.fromkeys(
        ("gateway", "timeseries", "cache", "metadata", "analysis", "simulator"), ""
    )
    before = await ledger(mesh.address("timeseries"))
    children = descendants(mesh.process.pid)
    assert mesh.stop() < 12
    assert mesh.process.returncode == 0
    assert not [pid for pid in children if is_alive(pid)]

    again = start_mesh(tmp_path / "data", base, *OPTIONS, "--no-simulation")
    after = await ledger(again.address("timeseries"))
    again.stop()
    assert after.accepted_sample_count >= before.accepted_sample_count
    assert after.head_position >= before.head_position


@pytest.mark.timeout(90)
async def test_killing_every_process_at_once_loses_nothing_and_leaves_nothing(tmp_path: Path):
    base = free_ports()
    for _ in range(2):
        mesh = start_mesh(tmp_path / "data", base, *OPTIONS)

        async def has_frames(address: str = mesh.address("timeseries")) -> bool:
            try:
                return (await ledger(address)).accepted_sample_count > 0
            except OpenManagerError:
                return False

        await wait_until(has_frames)
        acknowledged = await ledger(mesh.address("timeseries"))
        children = descendants(mesh.process.pid)
        for pid in (mesh.process.pid, *children):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        mesh.stop(signal.SIGKILL)
        end = time.monotonic() + 5
        while any(is_alive(pid) for pid in children):
            assert time.monotonic() < end
        again = start_mesh(tmp_path / "data", base, *OPTIONS, "--no-simulation")
        found = await ledger(again.address("timeseries"))
        again.stop()
        assert found.accepted_sample_count >= acknowledged.accepted_sample_count
        assert found.head_position >= acknowledged.head_position


def test_a_service_is_told_where_its_own_secrets_are_and_no_others(mesh):
    told = {name: environment(child(mesh, f"serve\0{name}")) for name in suite.NAMES}
    holders = {
        variable: {name for name in told if f"{variable}_FILE" in told[name]}
        for variable in ("DATABASE_URL", "REDIS_URL", "OPENMANAGER_METADATA_IDENTITY_KEY", "OPENMANAGER_MESH_KEY")
    }
    assert holders == {
        "DATABASE_URL": {"metadata"},
        "REDIS_URL": {"cache"},
        "OPENMANAGER_METADATA_IDENTITY_KEY": {"metadata"},
        "OPENMANAGER_MESH_KEY": set(suite.NAMES),
    }
    files = [Path(told["metadata"]["DATABASE_URL_FILE"]), Path(told["cache"]["REDIS_URL_FILE"])]
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]


def test_secrets_in_the_environment_of_up_go_to_their_service_alone():
    secrets = {key.variable: key.section for key in keys(suite.sections()) if key.kind is Secret}
    given = {
        *secrets,
        *(f"{variable}_FILE" for variable in secrets),
        "OPENMANAGER_TOKEN",
        "OPENMANAGER_TOKEN_FILE",
        "PATH",
    }
    for name in suite.NAMES:
        own = {variable for variable, section in secrets.items() if section in {"server", name}}
        assert set(up._of_service(name, dict.fromkeys(given, "x"))) == {*own, *(f"{each}_FILE" for each in own), "PATH"}


def test_no_process_leaves_a_core_dump_which_would_hold_passwords(mesh):
    limits = [Path(f"/proc/{pid}/limits").read_text() for pid in descendants(mesh.process.pid)]
    assert len(limits) > len(suite.NAMES) + 2
    assert all(re.search(r"^Max core file size +0 +0 ", text, re.MULTILINE) for text in limits)


def run_up(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "openmanager.cli", "up", *options],
        env={**clean_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_taken_port_is_one_line_and_exit_code_78(tmp_path: Path):
    base = free_ports()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", base + 2))
        taken.listen()
        found = run_up("--data-dir", str(tmp_path), "--gateway", f"127.0.0.1:{base}")
    assert found.returncode == 78
    assert f"127.0.0.1:{base + 2}, the address of cache, is taken" in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_an_unknown_key_is_one_line_and_exit_code_78(tmp_path: Path):
    file = tmp_path / "openmanager.toml"
    file.write_text("[simulator]\nserver = 3\n")
    found = run_up("--data-dir", str(tmp_path / "data"), OPENMANAGER_CONFIG=str(file))
    assert found.returncode == 78
    assert "unknown key simulator.server; did you mean simulator.servers?" in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
    found = run_up("--data-dir", str(tmp_path / "data"), OPENMANAGER_SIMULATOR_SERVER="3")
    assert found.returncode == 78
    assert "unknown variable OPENMANAGER_SIMULATOR_SERVER" in found.stderr


def test_a_newer_data_directory_is_one_line_and_exit_code_78(tmp_path: Path):
    (tmp_path / "VERSION").write_text("99\n")
    found = run_up("--data-dir", str(tmp_path), "--gateway", f"127.0.0.1:{free_ports()}")
    assert found.returncode == 78
    assert "99" in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_an_address_that_is_not_loopback_is_refused(tmp_path: Path):
    found = run_up("--data-dir", str(tmp_path), "--gateway", f"0.0.0.0:{free_ports()}")
    assert found.returncode == 78
    assert "not a loopback address" in found.stderr


def test_a_data_directory_in_use_is_one_line_and_exit_code_78(mesh):
    found = run_up("--data-dir", str(mesh.data), "--gateway", f"127.0.0.1:{free_ports()}")
    assert found.returncode == 78
    assert "use" in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_protobuf_in_python_is_one_line_and_exit_code_78_before_any_file_is_touched(tmp_path: Path):
    found = subprocess.run(
        [sys.executable, "-m", "openmanager.cli", "serve", "timeseries"],
        env={
            **clean_environment(),
            "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python",
            "OPENMANAGER_ALLOW_INSECURE": "1",
            "OPENMANAGER_TIMESERIES_DATA_DIR": str(tmp_path / "data"),
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert found.returncode == 78
    assert "protobuf runs without its C implementation" in found.stderr
    assert not (tmp_path / "data").exists()


def test_serving_without_credentials_must_be_asked_for():
    found = subprocess.run(
        [sys.executable, "-m", "openmanager.cli", "serve", "cache"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert found.returncode == 78
    assert "OPENMANAGER_ALLOW_INSECURE=1" in found.stderr
