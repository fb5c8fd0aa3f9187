"""`make env`: scripts/env.sh, run as a user runs it."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

from deploy.composed import EXAMPLE, RAW, ROOT, SECRETS, dotenv, interpolate

DERIVED = {"database_url": "postgres_password", "redis_url": "redis_password"}
# What the .env of the version before had in it, beside what it has now.
BEFORE = (
    "POSTGRES_PASSWORD",
    "REDIS_PASSWORD",
    "INFLUXDB_PASSWORD",
    "INFLUXDB_TOKEN",
    "GRAFANA_PASSWORD",
    "MESH_KEY",
    "IDENTITY_KEY",
    "AUDIT_KEY",
)


def make_env(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(ROOT / "scripts/env.sh")]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, check=False, timeout=10
    )


def secrets(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in (folder / "secrets").iterdir()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_env_writes_every_secret_and_variable_and_tells_what_is_next_without_a_secret(tmp_path):
    done = make_env(tmp_path)
    assert done.returncode == 0, done.stderr
    assert dotenv(tmp_path / ".env") == EXAMPLE
    interpolate(RAW, dotenv(tmp_path / ".env"))
    found = secrets(tmp_path)
    assert set(found) == set(SECRETS)
    drawn = {name: secret for name, secret in found.items() if name not in DERIVED}
    assert [name for name, secret in drawn.items() if not re.fullmatch(r"[0-9a-f]{64}", secret)] == []
    assert [name for name, password in DERIVED.items() if f":{drawn[password]}@" not in found[name]] == []
    assert "docker compose up" in done.stdout
    assert not any(secret in done.stdout + done.stderr for secret in found.values())


def test_env_draws_different_secrets_each_time_for_each_name(tmp_path):
    drawn = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        make_env(tmp_path / name)
        drawn += secrets(tmp_path / name).values()
    assert len(set(drawn)) == len(drawn)


def test_what_env_writes_is_for_its_owner_alone_and_for_whoever_runs_in_a_container(tmp_path):
    make_env(tmp_path)
    assert (mode(tmp_path / ".env"), mode(tmp_path / "secrets")) == (0o600, 0o700)
    assert {mode(file) for file in (tmp_path / "secrets").iterdir()} == {0o444}


def test_env_keeps_what_is_there(tmp_path):
    make_env(tmp_path)
    (tmp_path / ".env").write_text((tmp_path / ".env").read_text().replace("=20\n", "=21\n"))
    before = ((tmp_path / ".env").read_bytes(), secrets(tmp_path))
    done = make_env(tmp_path)
    assert (done.returncode, ((tmp_path / ".env").read_bytes(), secrets(tmp_path))) == (0, before), done.stderr


def test_env_takes_the_secrets_of_an_older_file_along_and_says_what_to_delete_and_to_add(tmp_path):
    older = {name: f"old-{number}" for number, name in enumerate(BEFORE)}
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in older.items()))
    text = (tmp_path / ".env").read_text()
    done = make_env(tmp_path)
    found = secrets(tmp_path)
    assert {name: found[name.lower()] for name in older} == older
    assert found["database_url"] == f"postgresql://openmanager:{older['POSTGRES_PASSWORD']}@postgres:5432/openmanager"
    assert (tmp_path / ".env").read_text() == text
    assert all(f"{name} of .env is not read any more" in done.stdout for name in older)
    assert done.returncode == 1
    assert all(f"lacks a line: {name}={value}\n" in done.stderr for name, value in EXAMPLE.items())
    assert not any(value in done.stdout + done.stderr for value in older.values())


def test_env_refuses_an_older_secret_that_a_url_cannot_hold(tmp_path):
    (tmp_path / ".env").write_text("REDIS_PASSWORD='a b@'\n")
    done = make_env(tmp_path)
    assert (done.returncode, (tmp_path / "secrets").exists()) == (1, False)
    assert "REDIS_PASSWORD of .env" in done.stderr
    assert "a b@" not in done.stderr


def test_env_names_a_secret_that_is_missing_and_makes_none(tmp_path):
    make_env(tmp_path)
    (tmp_path / "secrets" / "redis_url").unlink()
    (tmp_path / "secrets" / "mesh_key").unlink()
    (tmp_path / "secrets" / "mesh_key").touch()
    done = make_env(tmp_path)
    assert done.returncode == 1
    assert set(re.findall(r"secrets/(\w+) is missing or empty", done.stderr)) == {"redis_url", "mesh_key"}
    assert not (tmp_path / "secrets" / "redis_url").exists()


def test_env_does_not_write_through_a_link(tmp_path):
    (tmp_path / ".env").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "secrets").symlink_to(tmp_path / "elsewhere-too")
    make_env(tmp_path)
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "elsewhere-too").exists()


def test_env_writes_nothing_when_there_is_no_randomness(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "od").symlink_to(shutil.which("true") or "/bin/true")
    done = make_env(tmp_path, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "random" in done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bin"]
