"""Backups in S3-compatible storage: a real server of it, that is killed and comes back."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Mesh, free_ports
from test_backup import Place, place  # noqa: F401  (a fixture)

SERVER = os.environ.get("TEST_MOTO_SERVER") or shutil.which("moto_server")
KEY, SECRET = "an-access-key", "a-secret-key-of-s3"
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not on the PATH"),
    pytest.mark.skipif(SERVER is None, reason="moto_server is neither on the PATH nor named by TEST_MOTO_SERVER"),
]


@pytest.fixture(scope="module")
def storage() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process of a server, and a repository's place in it."""
    port = free_ports(1)
    assert SERVER is not None
    command = [SERVER, "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < end, "the server did not start"
            time.sleep(0.1)
        yield process, f"s3:http://127.0.0.1:{port}/backups"
        process.send_signal(signal.SIGCONT)
        process.kill()


def test_a_mesh_is_backed_up_to_s3_and_restored_from_it(
    mesh: Mesh,
    place: Place,  # noqa: F811
    storage: tuple[subprocess.Popen[bytes], str],
    tmp_path: Path,
):
    _, where = storage
    (tmp_path / "secret").write_text(SECRET)
    keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY_FILE": str(tmp_path / "secret")}
    other = Place(tmp_path, {**place.environment, **keys, "OPENMANAGER_BACKUP_REPOSITORY": f"{where}/one"})
    made = other.done("backup", "--data-dir", str(mesh.data))
    assert [each["snapshot"] for each in other.done("backup", "list")["backups"]] == [made["snapshot"]]
    assert other.done("backup", "verify")["series_count"] == made["series_count"]
    found = other.done("restore", "--to", str(tmp_path / "target"))
    assert (found["log"], found["table_count"]) == (made["log"], made["table_count"])


def test_storage_that_hangs_for_a_while_costs_time_alone(
    mesh: Mesh,
    place: Place,  # noqa: F811
    storage: tuple[subprocess.Popen[bytes], str],
):
    process, where = storage
    keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    other = Place(place.folder, {**place.environment, **keys})
    process.send_signal(signal.SIGSTOP)
    resume = subprocess.Popen(["sh", "-c", f"sleep 8; kill -CONT {process.pid}"])
    try:
        made = other.done("backup", "--data-dir", str(mesh.data), "--to", f"{where}/other")
    finally:
        process.send_signal(signal.SIGCONT)
        resume.wait()
    assert made["series_count"] > 0
