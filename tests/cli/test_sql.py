"""SQL over the files of history."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import clean_environment
from openmanager_timeseries import block, rollup_file, sealed
from openmanager_timeseries.sealed import About, Batch, Rows

from openmanager.cli.main import main
from openmanager.rollup import COLUMNS

pytest.importorskip("duckdb", reason="the extra sql is not installed")

BEGIN = 1_782_900_000 * 10**9
SECOND = 10**9
# −0.0, more digits than six, beyond 2³¹ after scaling, whole numbers, and decimals.
ODD = np.array([-0.0, 1 / 3, 5e-324, 1.7976931348623157e308])
WHOLE = np.array([0.0, 1.0, -7.0, 4.0])
DECIMAL = np.array([0.1, 12.34, -0.001, 99.9])
LARGE = np.array([4294967296.5, 1e12, 0.5, -1e13])


def write(
    folder: Path, first: int, metrics: dict[str, np.ndarray], *, start: int = 0, revision: int = 0, last: int = 0
) -> Path:
    """Write a block: of each metric the values of two servers, one a second after BEGIN."""
    folder.mkdir(parents=True, exist_ok=True)
    batches = []
    for metric in sorted(metrics):
        values = np.asarray(metrics[metric], np.float64)
        times = BEGIN + (start + np.arange(len(values))) * SECOND
        rows = Rows(
            np.zeros(2 * len(values), np.int64),
            np.repeat([0, 1], len(values)),
            np.tile(times, 2),
            {"value": np.tile(values, 2)},
        )
        batches.append(Batch([metric], rows))
    about = About(first=first, last=last or first, revision=revision)
    return sealed.write(folder, block.FORMAT, about, ["a-01", "b-02"], batches).path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with two blocks."""
    blocks = tmp_path / "timeseries" / "blocks"
    write(blocks, 1, {"decimal": DECIMAL, "large": LARGE, "odd": ODD, "whole": WHOLE})
    write(blocks, 2, {"whole": WHOLE + 10}, start=4)
    return tmp_path


@pytest.fixture
def ask(data: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Asks by SQL and returns the exit code and what was printed."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TZ", "UTC")

    def command(query: str, *options: str) -> tuple[int, str, str]:
        code = 0
        try:
            main(["sql", "--data-dir", str(data), *options, query])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return command


def values(ask, query: str) -> list[dict]:
    code, out, err = ask(query, "--json")
    assert (code, err) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize(
    ("metric", "expected"), [("odd", ODD), ("whole", WHOLE), ("decimal", DECIMAL), ("large", LARGE)], ids=str
)
def test_every_value_is_the_double_that_was_written(ask, metric, expected):
    rows = values(ask, f"SELECT value FROM samples WHERE metric = '{metric}' AND server = 'a-01' ORDER BY time LIMIT 4")
    assert np.array([row["value"] for row in rows]).tobytes() == expected.tobytes()


def test_samples_have_metric_server_time_and_value(ask):
    rows = values(ask, "SELECT * FROM samples WHERE metric = 'whole' ORDER BY time, server")
    assert len(rows) == 16
    assert rows[0] == {"metric": "whole", "server": "a-01", "time": "2026-07-01T10:00:00.000Z", "value": 0.0}
    assert rows[-1] == {"metric": "whole", "server": "b-02", "time": "2026-07-01T10:00:07.000Z", "value": 14.0}


def test_of_two_rows_of_one_series_and_time_that_of_the_later_file_counts(ask, data):
    blocks = data / "timeseries" / "blocks"
    write(blocks, 3, {"whole": np.array([70.0, 71.0])}, start=3)
    rows = values(ask, "SELECT value FROM samples WHERE metric = 'whole' AND server = 'b-02' ORDER BY time")
    assert [row["value"] for row in rows] == [0.0, 1.0, -7.0, 70.0, 71.0, 11.0, 3.0, 14.0]
    assert values(ask, "SELECT count(*) AS n FROM samples") == [{"n": 2 * (4 * 4 + 4)}]


def test_files_that_were_merged_or_corrected_but_not_yet_deleted_are_not_read(ask, data):
    blocks = data / "timeseries" / "blocks"
    write(blocks, 1, {"whole": WHOLE + 100}, revision=1)
    assert values(ask, "SELECT count(*) AS n, max(value) AS top FROM samples") == [{"n": 16, "top": 104.0}]
    write(blocks, 1, {"merged": WHOLE}, last=2)
    assert values(ask, "SELECT DISTINCT metric FROM samples") == [{"metric": "merged"}]


def test_a_damaged_file_is_said_and_left_out(ask, data):
    path = write(data / "timeseries" / "blocks", 9, {"whole": WHOLE}, start=90)
    path.write_bytes(path.read_bytes()[:-20])
    code, out, err = ask("SELECT count(*) AS n FROM samples", "--csv")
    assert (code, out, err) == (0, "n\n40\n", f"{path.name} is damaged and left out\n")


def test_buckets_of_every_tier_have_a_view(ask, data):
    folder = data / "timeseries" / "tiers" / "5m"
    folder.mkdir(parents=True)
    columns = {name: np.array([1.5, 2.25]) for name in COLUMNS} | {
        "count": np.array([30.0, 29.0]),
        "min": np.array([1 / 3, -0.0]),
        "first": np.full(2, np.nan),
        "growth": np.full(2, np.nan),
    }
    rows = Rows(np.zeros(2, np.int64), np.zeros(2, np.int64), BEGIN + np.array([0, 300]) * SECOND, columns)
    sealed.write(folder, rollup_file.ROLLUPS, About(first=1, last=1), ["a-01"], [Batch(["cpu"], rows)])
    expected = {"min": 1 / 3, "max": 1.5, "sum": 1.5, "count": 30, "last": 1.5, "first": None, "growth": None}
    found = values(ask, "SELECT * FROM tier_5m ORDER BY time")
    assert found[0] == {"metric": "cpu", "server": "a-01", "time": "2026-07-01T10:00:00.000Z", **expected}
    assert str(found[1]["min"]) == "-0.0"
    newer = Rows(rows.metrics[:1], rows.servers[:1], rows.times[:1], {k: v[:1] + 1 for k, v in columns.items()})
    sealed.write(folder, rollup_file.ROLLUPS, About(first=2, last=2), ["a-01"], [Batch(["cpu"], newer)])
    found = values(ask, "SELECT count, first, max FROM tier_5m ORDER BY time")
    assert found == [{"count": 31, "first": None, "max": 2.5}, {"count": 29, "first": None, "max": 2.25}]
    assert ask("SELECT 1 FROM samples", "--tier", "5m")[0] == 1
    code, _, err = ask("SELECT 1", "--tier", "7m")
    assert (code, err) == (1, "openmanager: there is no tier '7m' here; there is raw, 5m\n")


def test_an_answer_is_a_table_csv_or_json(ask):
    query = "SELECT server, min(time) AS since, avg(value) AS mean FROM samples WHERE metric = 'whole' GROUP BY server ORDER BY 1"
    code, out, _ = ask(query)
    assert code == 0
    assert re.search(r"^server +since +mean$", out, re.MULTILINE)
    assert re.search(r"^a-01 +2026-07-01 \d\d:00:00 +4.50$", out, re.MULTILINE)
    assert out.endswith("\n2 rows\n")
    rows = list(csv.reader(io.StringIO(ask(query, "--csv")[1])))
    assert rows == [
        ["server", "since", "mean"],
        ["a-01", "2026-07-01T10:00:00.000Z", "4.5"],
        ["b-02", "2026-07-01T10:00:00.000Z", "4.5"],
    ]


def test_odd_answers_are_printed_too(ask):
    query = "SELECT NULL AS nothing, true AS yes, [1, 2] AS list, 'a,\"b' AS text, DATE '2026-07-01' AS day, 7 AS seven"
    row = values(ask, query)[0]
    assert row == {"nothing": None, "yes": True, "list": [1, 2], "text": 'a,"b', "day": "2026-07-01", "seven": 7}
    rows = list(csv.reader(io.StringIO(ask(query, "--csv")[1])))
    assert rows[1] == ["", "true", "[1, 2]", 'a,"b', "2026-07-01", "7"]
    assert ask(query)[0] == 0


def test_a_table_ends_where_nobody_reads_on(ask):
    _, out, _ = ask("SELECT * FROM range(1500)")
    assert "1,000 of 1,500 rows; --csv has them all" in out
    assert len(ask("SELECT * FROM range(1500)", "--csv")[1].splitlines()) == 1501


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_blob('/proc/self/environ')",
        "SELECT * FROM read_parquet('{block}')",
        "SELECT * FROM glob('/*')",
        "COPY samples TO '{out}'",
        "COPY (SELECT 1) TO '{block}' (FORMAT parquet, USE_TMP_FILE false)",
        "WITH x AS (COPY (SELECT 1) TO '{block}' (FORMAT parquet, USE_TMP_FILE false)) SELECT 1",
        "SELECT * FROM query('WITH x AS (COPY (SELECT 1) TO ''{block}'' (FORMAT parquet)) SELECT 1')",
        "EXPLAIN ANALYZE COPY samples TO '{out}'",
        "EXPORT DATABASE '{out}'",
        "IMPORT DATABASE '{out}'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "ATTACH '{out}'",
        "ATTACH '{out}' AS other (READ_ONLY)",
        "CREATE SECRET (TYPE s3)",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "RESET lock_configuration",
        "SET temp_directory = '{out}'",
        "PRAGMA enable_profiling; SET profiling_output = '{out}'",
        "SELECT getenv('HOME')",
        "SELECT * FROM clean_environment",
    ],
)
def test_nothing_but_the_views_can_be_reached(ask, data, tmp_path, query):
    blocks = sorted((data / "timeseries" / "blocks").iterdir())
    before = [path.read_bytes() for path in blocks]
    out = tmp_path / "out"
    code, printed, err = ask(query.format(block=blocks[0], out=out))
    assert code == 1, printed
    assert err.startswith("openmanager: ")
    assert "Traceback" not in err
    assert "root" not in printed
    assert [path.read_bytes() for path in sorted((data / "timeseries" / "blocks").iterdir())] == before
    assert not out.exists()


def test_a_query_that_is_none_says_where(ask):
    code, out, err = ask("SELEC 1")
    assert (code, out) == (1, "")
    assert 'syntax error at or near "SELEC"' in err


def test_a_folder_without_history_is_one_sentence(tmp_path, ask):
    code, out, err = ask("SELECT 1", "--data-dir", str(tmp_path / "empty"))
    folder = tmp_path / "empty" / "timeseries"
    assert (code, out, err) == (1, "", f"openmanager: {folder} holds no history: name another with --data-dir\n")


def test_files_that_are_merged_while_they_are_read_are_looked_for_again(ask, data, monkeypatch):
    from openmanager.cli import database

    connect = database.connect
    calls = []

    def merged_in_between(*arguments):
        made = connect(*arguments)
        calls.append(made)
        if len(calls) == 1:
            blocks = data / "timeseries" / "blocks"
            old = sorted(blocks.iterdir())
            write(blocks, 1, {"merged": WHOLE}, last=2)
            for path in old:
                path.unlink()
        return made

    monkeypatch.setattr(database, "connect", merged_in_between)
    assert ask("SELECT count(value) AS n FROM samples", "--csv")[:2] == (0, "n\n8\n")
    assert len(calls) == 2


def test_a_missing_extra_is_one_sentence_that_says_how_to_get_it(data):
    script = (
        "import sys\nsys.modules['duckdb'] = None\n"
        f"from openmanager.cli.main import main\nmain(['sql', '--data-dir', {str(data)!r}, 'SELECT 1'])"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], env=clean_environment(), capture_output=True, text=True, timeout=30, check=False
    )
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == "openmanager: openmanager sql needs DuckDB: pip install 'openmanager[sql]'\n"


def test_ctrl_c_ends_a_query_that_takes_for_ever(data):
    query = "SELECT range AS n FROM range(1000000000000000) WHERE range < 50000"
    process = subprocess.Popen(
        [sys.executable, "-m", "openmanager.cli", "sql", "--data-dir", str(data), "--json", query],
        env={**clean_environment(), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert [json.loads(process.stdout.readline())["n"] for _ in range(20_000)] == list(range(20_000))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
