"""From the first start to the verified audit, as the README tells it, and what nobody may do on the way."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Mesh, clean_environment, running_mesh
from test_readme import README
from transcript import blocks

PASSWORD = "correct horse battery staple"
HOME = "~/.local/share/openmanager"
REQUIRED = {"OPENMANAGER_AUTH": "required", "OPENMANAGER_METADATA_AUDIT_CHECKPOINT_INTERVAL": "300ms"}


@pytest.fixture(scope="module")
def guarded() -> Iterator[Mesh]:
    """A mesh that asks everybody for credentials."""
    with running_mesh(environment=REQUIRED) as running:
        yield running


class Person:
    """Somebody at a terminal, with a home of their own."""

    def __init__(self, mesh: Mesh, home: Path) -> None:
        self.mesh = mesh
        self.home = home
        home.mkdir()

    def run(self, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        own = {"OPENMANAGER_GATEWAY": self.mesh.gateway, "XDG_CONFIG_HOME": str(self.home), **environment}
        return subprocess.run(
            [str(Path(sys.executable).parent / "openmanager"), *arguments],
            cwd=self.home,
            env={**clean_environment(), **own},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def told(self, *arguments: str, stdin: str = "", **environment: str) -> str:
        done = self.run(*arguments, stdin=stdin, **environment)
        assert done.returncode == 0, (arguments, done.stderr)
        return done.stdout

    def refused(self, *arguments: str, **environment: str) -> str:
        done = self.run(*arguments, **environment)
        assert done.returncode == 1, (arguments, done.stdout, done.stderr)
        return done.stderr


@pytest.mark.timeout(120)
def test_from_the_first_start_to_the_verified_audit(guarded: Mesh, tmp_path: Path):
    admin = Person(guarded, tmp_path / "admin")
    invitation = guarded.data / "credentials" / "admin-invitation"
    said_at_start = next(line for line in guarded.process.stdout if "access" in line)
    assert f"the administrator's invitation is in {invitation}" in said_at_start
    lines = "".join(blocks("shell", README)).replace("\\\n", " ").splitlines()
    commands = [line.removeprefix("$ openmanager ") for line in lines if line.startswith("$ openmanager ")]
    said = {}
    for command in commands:
        # The mesh of the tests has three servers in one environment.
        words = shlex.split(command.replace(HOME, str(guarded.data)).replace("environment = aws", "role = web"))
        said[" ".join(words[:2])] = admin.told(*words, stdin=f"{PASSWORD}\n")
    assert "are as they were" in said["audit verify"]
    report = (admin.home / "report.html").read_text()
    assert "alice" in report
    assert "agent of web-01" in report
    # Alice sees some servers and changes nothing.
    alice = Person(guarded, tmp_path / "alice")
    (alice.home / "invitation").write_text(re.search(r"omi_\S+", said["users create"])[0])
    alice.told("login", "--invitation-file", "invitation", stdin=f"{PASSWORD}\n")
    assert "viewer over servers where role = web" in alice.told("whoami")
    fleet = json.loads(admin.told("servers", "--json"))["servers"]
    seen = json.loads(alice.told("servers", "--json"))["servers"]
    assert [each["id"] for each in seen] == [each["id"] for each in fleet if each["role"] == "web"] != []
    beyond = next(each["id"] for each in fleet if each["role"] != "web")
    assert "there is no such server" in alice.refused("servers", beyond)
    # Analysis asks others for her, and is told what she would be.
    detected = json.loads(alice.told("anomalies", "detect", "cpu_usage", "--last", "10m", "--json"))
    assert {each["server"] for each in detected["anomalies"]} <= {each["id"] for each in seen}
    assert detected["provenance"]["source"]
    assert "this needs the permission operate" in alice.refused("simulate", "stop")
    assert "this needs the permission audit" in alice.refused("audit", "list")
    # The agent's key reads what it may, and not once it is revoked.
    secret = re.search(r"omk_(\w{16})_\S+", said["keys create"])
    assert "service over servers where id = web-01" in alice.told("whoami", OPENMANAGER_TOKEN=secret[0])
    admin.told("keys", "revoke", secret[1])
    assert "signed out" in alice.told("logout")
    assert "the gateway asks who you are" in alice.refused("servers")


@pytest.mark.timeout(120)
def test_no_secret_is_where_others_can_read_it(guarded: Mesh, tmp_path: Path):
    admin = Person(guarded, tmp_path / "admin")
    secrets = [
        (guarded.data / "credentials" / name).read_text().strip()
        for name in ("mesh", "identity", "valkey", "postgresql", "audit-key.pem")
    ]
    family = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    logs = "".join(file.read_text(errors="replace") for file in (guarded.data / "logs").iterdir())
    shown = admin.run("config", "show", OPENMANAGER_MESH_KEY=secrets[0], OPENMANAGER_METADATA_IDENTITY_KEY=secrets[1])
    for secret in secrets:
        part = secret.splitlines()[1] if secret.startswith("-----") else secret
        assert part not in family
        assert part not in logs
        assert part not in shown.stdout + shown.stderr
    for file in (guarded.data / "credentials").iterdir():
        assert file.stat().st_mode & 0o077 == 0, file
    assert (guarded.data / "credentials").stat().st_mode & 0o077 == 0
