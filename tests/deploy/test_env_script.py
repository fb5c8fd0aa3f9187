"""`make env`: scripts/env.sh, run as a user runs it."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

from deploy.composed import EXAMPLE, RAW, ROOT, dotenv, interpolate


def make_env(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(ROOT / "scripts/env.sh")]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, check=False, timeout=10
    )


def test_env_writes_every_variable_and_tells_what_is_next_without_a_secret(tmp_path):
    done = make_env(tmp_path)
    assert done.returncode == 0, done.stderr
    values = dotenv(tmp_path / ".env")
    assert set(values) == set(EXAMPLE)
    assert {name: value for name, value in values.items() if EXAMPLE[name]} == {
        name: value for name, value in EXAMPLE.items() if value
    }
    assert "docker compose up" in done.stdout
    secrets = [value for name, value in values.items() if not EXAMPLE[name]]
    assert all(re.fullmatch(r"[0-9a-f]{64}", secret) for secret in secrets)
    assert not any(secret in done.stdout for secret in secrets)
    interpolate(RAW, values)


def test_env_draws_different_secrets_each_time_for_each_name(tmp_path):
    drawn = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        make_env(tmp_path / name)
        drawn += [value for key, value in dotenv(tmp_path / name / ".env").items() if not EXAMPLE[key]]
    assert len(set(drawn)) == len(drawn)


def test_env_is_readable_by_its_owner_alone(tmp_path):
    make_env(tmp_path)
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600


def test_env_keeps_what_is_there(tmp_path):
    make_env(tmp_path)
    before = (tmp_path / ".env").read_bytes()
    done = make_env(tmp_path)
    assert (done.returncode, (tmp_path / ".env").read_bytes()) == (0, before)


def test_env_names_what_an_older_file_lacks_and_keeps_it(tmp_path):
    (tmp_path / ".env").write_text("REDIS_PASSWORD=\nPOSTGRES_PASSWORD=x\n")
    done = make_env(tmp_path)
    assert done.returncode == 1
    assert "REDIS_PASSWORD" in done.stderr
    assert "POSTGRES_PASSWORD" not in done.stderr
    assert (tmp_path / ".env").read_text() == "REDIS_PASSWORD=\nPOSTGRES_PASSWORD=x\n"


def test_env_does_not_write_through_a_link(tmp_path):
    (tmp_path / ".env").symlink_to(tmp_path / "elsewhere")
    make_env(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_env_writes_nothing_when_there_is_no_randomness(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "od").symlink_to(shutil.which("true") or "/bin/true")
    done = make_env(tmp_path, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "random" in done.stderr
    assert not (tmp_path / ".env").exists()
