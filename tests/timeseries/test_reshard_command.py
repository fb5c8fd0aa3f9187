"""`openmanager reshard`: a data directory, or folders, in another number of shards."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from test_reshard import SERVERS, filled

from openmanager.cli import layout
from openmanager.cli.reshard import reshard
from openmanager.datadir import DataDir, DataDirError
from openmanager.errors import FailedPreconditionError


def command(*arguments: object) -> Result:
    return CliRunner().invoke(reshard, [*map(str, arguments)], catch_exceptions=True)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with history in one shard."""
    with DataDir.open(tmp_path / "data") as opened:
        asyncio.run(filled(opened.timeseries))
    return tmp_path / "data"


def test_a_data_directory_gets_two_shards_and_one_again(data: Path):
    assert layout.held_shards(data) == 1
    with pytest.raises(DataDirError, match="holds 1 shard and not 2: stop everything, and run `openmanager reshard"):
        layout.hold_shards(data, 2)
    found = command("--data-dir", data, "--shards", 2)
    assert found.exit_code == 0, found.output
    assert "series of all tiers with" in found.stdout
    assert layout.held_shards(data) == 2
    layout.hold_shards(data, 2)
    assert (data / "timeseries" / "blocks").is_dir()  # stays until somebody deletes it
    back = command("--data-dir", data, "--shards", 1, "--json")
    assert back.exit_code == 0, back.output
    told = json.loads(back.stdout)
    assert [each["server_count"] for each in told["shards"]] == [len(SERVERS)]
    assert layout.held_shards(data) == 1
    assert (data / "timeseries.before-1").is_dir()


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ((), "either --data-dir and --shards are needed, or --from and --to"),
        (("--data-dir", "x"), "--data-dir and --shards are needed together"),
        (("--data-dir", "x", "--shards", "2", "--from", "y"), "either --data-dir and --shards are needed"),
        (("--from", "x"), "--from and --to are needed together"),
        (("--data-dir", "x", "--shards", "9"), "9 is not in the range"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: tuple[str, ...], wrong: str):
    found = command(*arguments)
    assert (found.exit_code, wrong in found.output) == (2, True)


def test_what_holds_no_history_or_has_so_many_shards_is_refused(tmp_path: Path, data: Path):
    for found in (
        command("--data-dir", tmp_path / "nothing", "--shards", 2),
        command("--data-dir", data, "--shards", 1),
    ):
        assert isinstance(found.exception, FailedPreconditionError)


def test_a_damaged_note_of_the_shards_is_refused(tmp_path: Path):
    (tmp_path / "SHARDS").write_text("many")
    with pytest.raises(DataDirError, match="does not hold a number of shards"):
        layout.held_shards(tmp_path)
