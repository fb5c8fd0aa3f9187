"""`openmanager reshard` is killed: the old folders are used and are what they were, and the next run succeeds."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from openmanager_timeseries.checksum import KEYS, checksums
from test_reshard import filled

from openmanager import failpoint
from openmanager.cli import layout
from openmanager.datadir import DataDir

# So many times at random moments too: more by hand.
KILLS = int(os.environ.get("RESHARD_KILLS", "0"))
RUN = (
    "import sys; from openmanager import failpoint; from openmanager.cli.main import main;"
    "failpoint.arm(sys.argv.pop(1)); main(sys.argv[1:])"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with history in one shard, and a log beyond its blocks."""
    folder = tmp_path_factory.mktemp("reshard") / "data"
    with DataDir.open(folder) as opened:
        asyncio.run(filled(opened.timeseries))
    return folder


def started(data: Path, shards: int, place: str = "") -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-c", RUN, place, "reshard", "--data-dir", str(data), "--shards", str(shards)]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def rows(data: Path, shards: int) -> pa.Table:
    """Return the checksum of all raw samples of every series, sealed or not."""
    folders = [layout.folder(data, "timeseries", index, shards) for index in range(shards)]
    table = pa.concat_tables([checksums(folder).table for folder in folders])
    table = table.filter(pc.is_in(table["tier"], pa.array(["raw", "log"])))
    # Counts and hashes of samples do not depend on where they are.
    summed = table.group_by(KEYS[1:]).aggregate([("row_count", "sum"), ("checksum", "sum")])
    return summed.sort_by([(name, "ascending") for name in KEYS[1:]])


def check(data: Path, old: int, new: int, expected: pa.Table) -> None:
    """Check that the old folders are used and whole after a kill, and then the new ones after another run."""
    assert layout.held_shards(data) == old
    layout.hold_shards(data, old)  # as `up` does
    assert rows(data, old).equals(expected)
    assert started(data, new).wait(60) == 0
    assert layout.held_shards(data) == new
    assert rows(data, new).equals(expected)
    assert rows(data, old).equals(expected)


@pytest.mark.parametrize("place", ["sealed.after-rename:4", "reshard.amid-names", "reshard.before-use"])
def test_after_a_kill_the_old_folders_are_used_and_the_next_run_succeeds(whole: Path, tmp_path: Path, place: str):
    data = tmp_path / "data"
    shutil.copytree(whole, data)
    expected = rows(data, 1)
    assert started(data, 2, place).wait(60) == failpoint.EXIT_CODE
    check(data, 1, 2, expected)


@pytest.mark.skipif(not KILLS, reason="RESHARD_KILLS is not set")
@pytest.mark.timeout(900)
def test_kills_at_random_moments_change_nothing(whole: Path, tmp_path: Path):
    choose = random.Random(KILLS)
    data = tmp_path / "data"
    shutil.copytree(whole, data)
    expected = rows(data, 1)
    old, lasts = 1, 3.0
    for _ in range(KILLS):
        new = choose.choice([count for count in (1, 2, 3) if count != old])
        running = started(data, new)
        time.sleep(choose.uniform(lasts * 0.3, lasts))
        running.kill()
        running.wait(60)
        if layout.held_shards(data) == new:  # it was quicker
            assert rows(data, new).equals(expected)
            old = new
            continue
        began = time.monotonic()
        check(data, old, new, expected)
        lasts = time.monotonic() - began
        old = new
