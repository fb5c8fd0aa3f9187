"""`forecast-csv` and `exhaust-csv`: many files in, an answer for each, and a word about those that are wrong."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from openmanager.cli.main import main


@pytest.fixture
def run(plain, capsys):
    """Runs a command, and returns its exit code and what it said on standard error."""

    def command(*arguments: object) -> tuple[int, str]:
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        return code, capsys.readouterr().err

    return command


def _write(path: Path, values: list[object], *, start: int = 1_700_000_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (f"{start + 3600 * row},{value}\n" for row, value in enumerate(values))
    path.write_text("timestamp,value\n" + "".join(rows))
    return path


def _waves(count: int) -> list[object]:
    return ["" if hour % 50 == 7 else round(50 + 20 * math.sin(hour / 24 * 2 * math.pi), 3) for hour in range(count)]


def test_each_file_gets_a_forecast_of_its_name(run, tmp_path):
    files = [_write(tmp_path / "in" / name, _waves(400)) for name in ("a.csv", "deep/b.csv")]

    code, err = run("forecast-csv", *files, "--horizon", 30, "--output-dir", tmp_path / "out")

    assert (code, err) == (0, "")
    for name in ("a.csv", "deep/b.csv"):
        lines = (tmp_path / "out" / name).read_text().splitlines()
        assert lines[0] == "step,q0.025,q0.1,q0.25,q0.5,q0.75,q0.9,q0.975"
        rows = [[float(cell) for cell in line.split(",")] for line in lines[1:]]
        assert [row[0] for row in rows] == list(range(1, 31))
        assert all(row[1:] == sorted(row[1:]) for row in rows)
        assert rows[0][4] == pytest.approx(50 + 20 * math.sin(400 / 24 * 2 * math.pi), abs=1)


def test_the_hours_to_a_limit_are_one_row(run, tmp_path):
    grows = _write(tmp_path / "in" / "grows.csv", [40 + 0.05 * hour + math.sin(hour) / 5 for hour in range(600)])
    stays = _write(tmp_path / "in" / "stays.csv", [40 + math.sin(hour) / 5 for hour in range(600)])

    code, err = run("exhaust-csv", grows, stays, "--limit", 90, "--output-dir", tmp_path / "out")

    assert (code, err) == (0, "")
    header, row = (tmp_path / "out" / "grows.csv").read_text().splitlines()
    hours, low, high = map(float, row.split(","))
    assert header == "hours,low,high"
    assert low <= hours <= high
    assert hours == pytest.approx(400, rel=0.05)
    assert (tmp_path / "out" / "stays.csv").read_text() == "hours,low,high\n,,\n"


def test_an_interval_ends_at_the_horizon(run, tmp_path):
    grows = _write(tmp_path / "in" / "grows.csv", [40 + 0.05 * hour + 2 * math.sin(hour * hour) for hour in range(300)])

    run("exhaust-csv", grows, "--limit", 90, "--horizon-days", 29.5, "--output-dir", tmp_path / "out")

    hours, low, high = (tmp_path / "out" / "grows.csv").read_text().splitlines()[1].split(",")
    assert hours == "" or float(hours) <= 708
    assert low == high == "" or float(low) <= float(high) <= 708


def test_a_file_that_is_wrong_is_named_and_the_others_are_done(run, tmp_path):
    files = [
        _write(tmp_path / "in" / "good.csv", _waves(100)),
        _write(tmp_path / "in" / "text.csv", [1, "x", 3]),
        _write(tmp_path / "in" / "few.csv", [1, 2, 3]),
        tmp_path / "in" / "none.csv",
    ]
    (tmp_path / "in" / "two.csv").write_text("timestamp,a,b\n" + "".join(f"{row},1,2\n" for row in range(20)))

    code, err = run(
        "forecast-csv", *files, tmp_path / "in" / "two.csv", "--horizon", 5, "--output-dir", tmp_path / "out"
    )

    told = err.splitlines()
    assert code == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.csv"]
    assert len(told) == 4
    assert "text.csv, line 3, column value: 'x' is no number" in told[0]
    assert "few.csv: there are 3 valid samples, and 8 are the least to judge by" in told[1]
    assert "none.csv cannot be read" in told[2]
    assert "two.csv has 2 columns of values, and one is asked for" in told[3]


@pytest.mark.parametrize("options", [("--horizon", "0"), ("--horizon", "x"), ()])
def test_a_horizon_that_cannot_be_is_a_usage_error(run, tmp_path, options):
    file = _write(tmp_path / "in" / "a.csv", _waves(100))

    code, err = run("forecast-csv", file, *options, "--output-dir", tmp_path / "out")

    assert code == 2
    assert "--horizon" in err


def test_an_output_that_cannot_be_written_is_one_sentence(run, tmp_path):
    source = _write(tmp_path / "in" / "a.csv", _waves(400))
    (tmp_path / "out").write_text("a file")

    code, said = run("forecast-csv", source, "--horizon", 2, "--output-dir", tmp_path / "out")

    assert (code, said) == (1, f"openmanager: {source}: {tmp_path / 'out' / 'a.csv'}: file exists\n")
