from __future__ import annotations

import json
import subprocess
import sys
import tomllib

import pytest
from conftest import clean_environment


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "openmanager.cli", *arguments],
        env={**clean_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_what_is_shown_can_be_used_as_the_file(tmp_path):
    file = tmp_path / "openmanager.toml"
    file.write_text(run("config", "show").stdout)
    shown = tomllib.loads(file.read_text())
    assert shown["simulator"]["interval"] == "10s"
    assert run("config", "check", OPENMANAGER_CONFIG=str(file)).returncode == 0


def test_only_differences_are_shown_with_their_origin_and_no_secret():
    found = run(
        "config", "show", "--diff", DATABASE_URL="postgresql://me:hunter2@db/x", OPENMANAGER_SIMULATOR_SERVERS="7"
    )
    assert "hunter2" not in found.stdout
    assert 'database_url = "***"  # environment' in found.stdout
    assert "servers = 7  # environment" in found.stdout
    assert "interval" not in found.stdout


def test_the_same_as_json():
    found = json.loads(run("config", "show", "--diff", "--json", OPENMANAGER_SIMULATOR_SEED="9").stdout)
    assert found == {"simulator.seed": {"value": "9", "origin": "environment"}}


@pytest.mark.parametrize("variable", ["OPENMANAGER_AUTH", "OPENMANAGER_NOPE", "OPENMANAGER_CACHE_SERVER_TTL"])
def test_a_configuration_that_cannot_be_used_is_one_line_and_exit_code_78(variable: str):
    found = run("config", "check", **{variable: "sometimes"})
    assert found.returncode == 78
    assert len(found.stderr.strip().splitlines()) == 1


def test_every_key_is_explained():
    found = run("config", "keys")
    assert "simulator.interval  OPENMANAGER_SIMULATOR_INTERVAL" in found.stdout
