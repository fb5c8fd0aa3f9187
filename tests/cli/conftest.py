from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import clean_environment

from openmanager.cli.main import main

MESH = Path(__file__).parent.parent / "client" / "mesh.py"


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@contextlib.contextmanager
def another_mesh() -> Iterator[str]:
    """A mesh with ten servers' last hour in another process; metadata and simulator are away."""
    environment = {**clean_environment(), "PYTHONPATH": str(MESH.parent.parent)}
    command = [sys.executable, str(MESH)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "the mesh did not start"
        yield address
        process.communicate("")


@pytest.fixture(scope="session")
def gateway_address() -> Iterator[str]:
    """The mesh of every test that only reads."""
    with another_mesh() as address:
        yield address


@pytest.fixture(scope="module")
def own_gateway() -> Iterator[str]:
    """A mesh of the tests of one module, which write to it."""
    with another_mesh() as address:
        yield address


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns, with nothing of ours in the environment."""
    monkeypatch.delenv("OPENMANAGER_GATEWAY", raising=False)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def run(plain, gateway_address: str, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command against the mesh as the program would."""

    def command(*arguments: str, gateway: str = gateway_address) -> Result:
        code = 0
        try:
            main(["--gateway", gateway, *arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err)

    return command
