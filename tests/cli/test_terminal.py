"""The commands as they run in a terminal, and end."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl

import pytest
from conftest import clean_environment

PROGRAM = (sys.executable, "-m", "openmanager.cli")


class Terminal:
    """A program in a terminal of 80 × 24."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self.master = master
        self.process = process
        self.shown = ""

    def read_until(self, text: str, seconds: float = 15.0) -> None:
        end = time.monotonic() + seconds
        while text not in self.shown:
            left = end - time.monotonic()
            assert left > 0, f"{text!r} did not come: {self.shown}"
            if select.select([self.master], [], [], left)[0]:
                self.shown += os.read(self.master, 65536).decode(errors="replace")

    def end(self) -> int:
        """Wait for the end and return the exit code, with everything that was shown."""
        with contextlib.suppress(OSError):
            while chunk := os.read(self.master, 65536):
                self.shown += chunk.decode(errors="replace")
        return self.process.wait(timeout=10)


@contextlib.contextmanager
def terminal(*arguments: str, **environment: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environ = {**clean_environment(), "TERM": "xterm-256color", **environment}
    environ.pop("COLUMNS", None)
    process = subprocess.Popen(
        [*PROGRAM, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environ, start_new_session=True
    )
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(master)


@pytest.mark.parametrize(
    ("arguments", "sign"), [(("top",), "10 servers"), (("status", "--watch"), "ledger:")], ids=["top", "status"]
)
def test_what_goes_on_takes_the_screen_and_gives_it_back_at_ctrl_c(gateway_address, arguments, sign):
    with terminal("--gateway", gateway_address, *arguments) as screen:
        screen.read_until(sign)
        assert "\x1b[?1049h" in screen.shown
        screen.process.send_signal(signal.SIGINT)
        assert screen.end() == 0
    assert "\x1b[?1049l" in screen.shown
    assert "Traceback" not in screen.shown
    assert "Error" not in screen.shown


def test_states_are_coloured_on_a_terminal_unless_no_color_is_set(gateway_address):
    with terminal("--gateway", gateway_address, "status") as screen:
        assert screen.end() == 1
    assert "\x1b[32mOK" in screen.shown
    with terminal("--gateway", gateway_address, "status", NO_COLOR="1") as screen:
        assert screen.end() == 1
    assert "\x1b[32m" not in screen.shown


def test_a_plot_is_coloured_on_a_terminal(gateway_address):
    with terminal("--gateway", gateway_address, "query", "cpu_usage", "--last", "2h") as screen:
        assert screen.end() == 0
    assert "\x1b[38;5;39m" in screen.shown


def test_a_gateway_that_goes_away_is_told_on_the_screen():
    with terminal("--gateway", "127.0.0.1:1", "top") as screen:
        assert screen.end() == 69
    assert "nothing answers at 127.0.0.1:1" in screen.shown
    assert "\x1b[?1049h" not in screen.shown


def test_a_reader_that_has_seen_enough_ends_a_command_in_silence(gateway_address):
    shell = f"{' '.join(PROGRAM)} --gateway {gateway_address} query '*' --raw --csv --last 2h | head -n 1"
    found = subprocess.run(
        shell, shell=True, env=clean_environment(), capture_output=True, text=True, timeout=30, check=False
    )
    assert (found.stdout, found.stderr) == ("time,server,metric,value\n", "")


def test_a_watch_as_json_is_a_document_a_line_and_ends_quietly(gateway_address):
    process = subprocess.Popen(
        [*PROGRAM, "--gateway", gateway_address, "top", "--json"],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    created, snapshot = (json.loads(process.stdout.readline()) for _ in range(2))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert created["kind"] == "WATCH_KIND_CREATED"
    assert len(snapshot["servers"]) == 10
    assert (process.returncode, err) == (0, "")


def test_ctrl_c_in_the_middle_is_quiet(gateway_address):
    process = subprocess.Popen(
        [*PROGRAM, "--gateway", gateway_address, "status", "--watch", "--json"],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["status"]["services"]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, "")


def test_help_and_errors_come_without_loading_grpc():
    script = (
        "import sys\n"
        "from openmanager.cli import connection, fault, plot, query, render, servers, simulate, status, top, version\n"
        "assert not {'grpc', 'numpy', 'rich', 'plotext', 'google.protobuf'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
