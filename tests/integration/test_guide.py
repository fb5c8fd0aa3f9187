"""The operator's guide is walked: its commands, one after the other, on a mesh that is lost and brought back."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENT, Mesh, clean_environment, free_ports, start_mesh
from transcript import steps

ROOT = Path(__file__).resolve().parent.parent.parent
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
RESTORED = "openmanager up --data-dir ./restored"


def run(command: str, folder: Path, mesh: Mesh | None = None) -> str:
    """Return what a command prints in a folder; a backup is made of the mesh's data, and not of the usual ones."""
    if mesh is not None and command.startswith("openmanager backup --to"):
        command += f" --data-dir {mesh.data}"
    environment = {
        **clean_environment(),
        "OPENMANAGER_BACKUP_PASSWORD_FILE": str(folder / "password"),
        **({"OPENMANAGER_GATEWAY": mesh.gateway} if mesh else {}),
    }
    program, *arguments = shlex.split(command)
    done = subprocess.run(
        [str(Path(sys.executable).parent / program), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, (command, done.stderr)
    assert done.stdout.strip() or done.stderr.strip(), command
    return done.stdout


@pytest.mark.timeout(240)
@pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not on the PATH")
def test_the_guide_leads_from_a_laptop_to_a_disaster_and_back(tmp_path: Path):
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    (tmp_path / "password").write_text("the password of the backups")
    data = tmp_path / "data"
    mesh = start_mesh(data, free_ports(), "--servers", "3", "--interval", "1s", environment=PATIENT)
    walked = [step.command for step in steps(GUIDE, "openmanager")]
    lost = next(at for at, command in enumerate(walked) if command.startswith("openmanager restore"))
    try:
        for command in walked[:lost]:
            run(command, tmp_path, mesh)
        servers = run("openmanager servers --json", tmp_path, mesh)
    finally:
        mesh.stop(signal.SIGKILL)
    data.rename(tmp_path / "burnt")  # where its last processes may still write

    assert walked[lost + 1 :] == [RESTORED]
    run(walked[lost], tmp_path)
    again = start_mesh(tmp_path / "restored", free_ports(), "--no-simulation", environment=PATIENT)
    try:
        assert names(run("openmanager servers --json", tmp_path, again)) == names(servers)
        assert "cpu_usage" in run("openmanager query cpu_usage --last 15m", tmp_path, again)
        assert "service-down" in run("openmanager alerts rules", tmp_path, again)
    finally:
        again.stop()


def names(document: str) -> set[str]:
    found = set(re.findall(r'"id": ?"([^"]+)"', document))
    assert found
    return found
