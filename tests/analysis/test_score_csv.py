"""`openmanager score-csv`, as it is called."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from openmanager.cli.main import main

START = 1_700_006_400


@pytest.fixture
def run(capsys):
    def command(*arguments):
        code = 0
        try:
            main(["score-csv", *map(str, arguments)])
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command


def write(path, rows, names=("value",)):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("timestamp", *names), *rows])
    return path


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def series(rows, metrics=1, seed=1, first=0):
    values = 50 + np.random.default_rng(seed).normal(size=(rows, metrics))
    return [[START + 300 * (first + row), *(f"{value:.3f}" for value in values[row])] for row in range(rows)]


def test_each_row_gets_a_score_and_an_alarm_in_the_order_of_the_file(run, tmp_path):
    rows = series(900)
    rows[800][1] = "95"
    rows[500][1] = ""
    code, _, err = run(write(tmp_path / "cpu.csv", rows), "--output-dir", tmp_path / "out")
    found = read(tmp_path / "out" / "cpu.csv")
    assert (code, err) == (0, "")
    assert list(found[0]) == ["timestamp", "score", "alarm"]
    assert [str(row[0]) for row in rows] == [row["timestamp"] for row in found]
    assert found[800]["alarm"] == "1"
    assert float(found[500]["score"]) == 0
    assert all(0 <= float(row["score"]) <= 1 for row in found)


def test_several_metrics_get_one_score_and_who_is_to_blame(run, tmp_path):
    names = ("cpu", "memory", "disk")
    rows = series(900, 3)
    rows[800][2] = "95"
    run(write(tmp_path / "web.csv", rows, names), "--output-dir", tmp_path / "out")
    found = read(tmp_path / "out" / "web.csv")
    assert list(found[0]) == ["timestamp", "score", "alarm", "blame"]
    assert found[800]["blame"].split(";")[0] == "memory"


def test_outputs_lie_as_the_inputs_do(run, tmp_path):
    files = [write(tmp_path / "in" / folder / "cpu.csv", series(60)) for folder in ("a", "b/c")]
    run(*files, "--output-dir", tmp_path / "out")
    assert (tmp_path / "out" / "a" / "cpu.csv").exists()
    assert (tmp_path / "out" / "b" / "c" / "cpu.csv").exists()


def test_a_file_with_an_error_is_named_and_the_others_are_done(run, tmp_path):
    bad = write(tmp_path / "bad.csv", [[START, "1"], [START + 300, "many"]])
    empty = write(tmp_path / "empty.csv", [[START, ""], [START + 300, ""]])
    good = write(tmp_path / "good.csv", series(60))
    code, _, err = run(bad, empty, good, "--output-dir", tmp_path / "out")
    assert code == 1
    assert "bad.csv, line 3" in err
    assert "empty.csv" in err
    assert err.count("\n") == 2
    assert len(read(tmp_path / "out" / "good.csv")) == 60


def test_a_history_is_learnt_from_by_name_and_gives_no_rows(run, tmp_path):
    write(tmp_path / "before" / "web.csv", series(600, 3), ("cpu", "extra", "disk"))
    rows = series(60, 2, seed=2, first=600)
    rows[30][2] = "95"
    file = write(tmp_path / "web.csv", rows, ("disk", "cpu"))
    code, _, _ = run(file, "--history", tmp_path / "before", "--output-dir", tmp_path / "out")
    found = read(tmp_path / "out" / "web.csv")
    assert code == 0
    assert len(found) == 60
    assert "1" in {row["alarm"] for row in found[30:33]}
    assert found[30]["blame"].startswith("cpu")


def test_a_history_without_a_metric_of_the_file_is_refused(run, tmp_path):
    before = write(tmp_path / "before.csv", series(60))
    file = write(tmp_path / "web.csv", series(60, 2), ("cpu", "disk"))
    code, _, err = run(file, "--history", before, "--output-dir", tmp_path / "out")
    assert code == 1
    assert "before.csv has no column 'cpu'" in err


def test_the_threshold_is_printed_without_a_file(run):
    code, out, _ = run("--threshold")
    assert (code, float(out)) == (0, 0.5)
