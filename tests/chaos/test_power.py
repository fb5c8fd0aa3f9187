"""A killed process loses what it did not sync, and chaos can plant a bug in a process without a word in its code."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from openmanager_timeseries.disk import PosixDisk
from openmanager_timeseries.log import Cursor, Log, LogOptions

from chaos import inside
from chaos.power import PowerDisk
from openmanager.runtime.clock import SystemClock


def left_in(folder: Path) -> dict[str, bytes]:
    """Return what the next process finds."""
    disk = PowerDisk(folder)
    return {name: disk.read(name, 0, 1 << 20) for name in disk.sizes()}


def test_bytes_wait_for_their_sync_and_are_seen_at_once(tmp_path: Path):
    disk = PowerDisk(tmp_path)
    file = disk.create("a")
    file.append([b"one"])
    file.sync()
    disk.sync()
    file.append([b"two", b"three"])
    assert (disk.read("a", 2, 100), disk.sizes()) == (b"etwothree", {"a": 11})
    assert left_in(tmp_path) == {"a": b"onetwo"}  # half of it went to the kernel
    file.sync()
    assert left_in(tmp_path) == {"a": b"onetwothree"}


def test_a_closed_file_can_be_synced_by_its_name(tmp_path: Path):
    disk = PowerDisk(tmp_path)
    file = disk.create("a")
    file.append([b"one"])
    file.close()
    disk.sync()
    assert left_in(tmp_path) == {"a": b""}
    disk.sync("a")
    assert left_in(tmp_path) == {"a": b"one"}


def test_a_name_waits_for_the_sync_of_its_folder(tmp_path: Path):
    disk = PowerDisk(tmp_path)
    disk.create("a").sync()
    assert disk.sizes() == {"a": 0}
    disk.sync()
    disk.remove("a")
    disk.create("b").sync()
    assert disk.sizes() == {"b": 0}
    with pytest.raises(FileNotFoundError):
        disk.read("a", 0, 1)
    assert left_in(tmp_path) == {"a": b""}


def test_what_is_replaced_is_old_or_new(tmp_path: Path):
    disk = PowerDisk(tmp_path)
    disk.replace("a", b"old")
    disk.replace("a", b"new")
    assert disk.sizes() == {"a": 3}
    assert left_in(tmp_path) == {"a": b"new"}


def test_a_file_is_cut_where_it_waits_and_where_it_is_kept(tmp_path: Path):
    disk = PowerDisk(tmp_path)
    file = disk.create("a")
    file.append([b"kept"])
    file.sync()
    file.append([b"waiting"])
    file.truncate(6)
    assert disk.read("a", 0, 100) == b"keptwa"
    file.truncate(2)
    file.append([b"!"])
    file.sync()
    assert disk.read("a", 0, 100) == b"ke!"


WRITER = """
import asyncio, sys
from pathlib import Path
from openmanager.runtime.clock import SystemClock
from openmanager_timeseries.disk import PosixDisk
from openmanager_timeseries.log import Log, LogOptions

async def main():
    source = await Log.open(PosixDisk(Path(sys.argv[1])), LogOptions(ballast_size=0, reserve=0), SystemClock())
    for number in range(1000):
        await source.append(b"%d" % number, 1)
        print(number, flush=True)

asyncio.run(main())
"""


def run_and_kill(folder: Path, environment: dict[str, str]) -> int:
    with subprocess.Popen([sys.executable, "-c", WRITER, folder], env=environment, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        acknowledged = [child.stdout.readline() for _ in range(20)]
        child.kill()
        return len(acknowledged + child.stdout.readlines())


async def frames_after_a_kill(folder: Path, planted: str) -> tuple[int, int]:
    """Return how many frames a process acknowledged before it was killed, and how many are there."""
    environment = {**os.environ, **inside.environment(planted)}
    acknowledged = await asyncio.to_thread(run_and_kill, folder, environment)
    source = await Log.open(PosixDisk(folder), LogOptions(ballast_size=0, reserve=0), SystemClock())
    try:
        return acknowledged, len(await source.read(Cursor(1)))
    finally:
        await source.close()


async def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path: Path):
    acknowledged, there = await frames_after_a_kill(tmp_path, "")
    assert there in {acknowledged, acknowledged + 1}


@pytest.mark.parametrize("planted", ["sync", "name"])
async def test_a_kill_loses_what_a_planted_bug_does_not_sync(tmp_path: Path, planted: str):
    acknowledged, there = await frames_after_a_kill(tmp_path, planted)
    assert (acknowledged >= 20, there) == (True, 0)


PLANTER = """
import importlib
from chaos.planted import BUGS

for bug in BUGS.values():
    for module, change in bug.changes:
        change(importlib.import_module(module))
"""


def test_every_bug_finds_what_it_changes():
    subprocess.run([sys.executable, "-c", PLANTER], check=True)
