"""Failpoints: a process dies at the place and time it is told to, and at no other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from openmanager import failpoint
from openmanager.errors import ConfigurationError

ROOT = Path(failpoint.__file__).parent.parent


def run(text: str, passes: int) -> subprocess.CompletedProcess[str]:
    code = (
        "from openmanager import failpoint\n"
        f"failpoint.arm({text!r})\n"
        f"for at in range({passes}):\n"
        "    failpoint.passed('log.before-ack')\n"
        "    failpoint.passed('log.before-sync')\n"
        "    print(at, flush=True)\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("text", "code", "passed"),
    [
        ("", 0, 5),
        ("log.before-sync", failpoint.EXIT_CODE, 0),
        ("log.before-sync:3", failpoint.EXIT_CODE, 2),
        ("log.before-sync:6", 0, 5),
        ("ledger.after-save:1", 0, 5),
    ],
)
def test_a_process_dies_when_it_passes_a_place_for_the_nth_time(text: str, code: int, passed: int):
    found = run(text, 5)
    assert (found.returncode, len(found.stdout.splitlines())) == (code, passed)


def test_with_a_file_a_process_dies_once_until_the_file_is_deleted(tmp_path: Path):
    text = f"log.before-sync:2:{tmp_path / 'died'}"
    assert run(text, 5).returncode == failpoint.EXIT_CODE
    assert (run(text, 5).returncode, (tmp_path / "died").exists()) == (0, True)
    (tmp_path / "died").unlink()
    assert run(text, 5).returncode == failpoint.EXIT_CODE


@pytest.mark.parametrize("text", ["log", "log.before-sync:0", "log.before-sync:-1", "log.before-sync:x", ":3"])
def test_a_place_that_there_is_not_is_refused_with_those_there_are(text: str):
    with pytest.raises(ConfigurationError, match=r"OPENMANAGER_FAILPOINT .* log\.before-sync"):
        failpoint.arm(text)


def test_every_place_is_in_the_program_and_every_one_in_the_program_has_a_name():
    sources = [*ROOT.joinpath("openmanager").rglob("*.py"), *ROOT.joinpath("services").rglob("*.py")]
    found = {name for path in sources for name in re.findall(r'failpoint\.passed\("([^"]+)"\)', path.read_text())}
    assert found == failpoint.NAMES
