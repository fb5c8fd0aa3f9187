"""CSV tables: what is read of them, what is said of a wrong one, and where what is made of them goes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openmanager.cli.csv_table import place_outputs, read_table, write_table
from openmanager.errors import InvalidArgumentError

SECOND = 10**9
FEBRUARY_14 = 1_392_388_020 * SECOND  # 2014-02-14 14:27:00 UTC


def _written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("stamps", "times"),
    [
        (["2014-02-14 14:27:00", "2014-02-14 14:32:00"], [FEBRUARY_14, FEBRUARY_14 + 300 * SECOND]),
        (["2014-02-14T14:27:00Z", "2014-02-14T14:27:00.5Z"], [FEBRUARY_14, FEBRUARY_14 + SECOND // 2]),
        (["2014-02-14T16:27:00+02:00", "2014-02-14T16:28:00+02:00"], [FEBRUARY_14, FEBRUARY_14 + 60 * SECOND]),
        (["2014-02-14", "2014-02-15"], [FEBRUARY_14 - 52_020 * SECOND, FEBRUARY_14 + 34_380 * SECOND]),
        (["0", "60.5"], [0, 60 * SECOND + SECOND // 2]),
        ([" 1392388020", "1392388080 "], [FEBRUARY_14, FEBRUARY_14 + 60 * SECOND]),
    ],
)
def test_times_are_iso_or_seconds_since_1970(tmp_path, stamps, times):
    table = read_table(_written(tmp_path, f"timestamp,value\n{stamps[0]},1\n{stamps[1]},2\n"))

    assert table.time_unix_nanos.tolist() == times
    assert table.stamps.to_pylist() == stamps


def test_an_empty_value_is_missing_and_columns_keep_their_names(tmp_path):
    table = read_table(_written(tmp_path, 'timestamp,cpu,"disk{mount=/,mode=rw}"\r\n1, 1.5 ,\r\n2,NaN,-3e2\r\n'))

    assert table.names == ("cpu", "disk{mount=/,mode=rw}")
    np.testing.assert_array_equal([[1.5, np.nan], [np.nan, -300.0]], table.values)


def test_a_local_clock_that_is_set_back_by_an_hour_goes_on(tmp_path):
    hours = [(hour, minute) for hour in (0, 1, 1, 2) for minute in range(0, 60, 5)]
    rows = "".join(f"2014-11-02 {hour:02}:{minute:02}:00,1\n" for hour, minute in hours)

    table = read_table(_written(tmp_path, f"timestamp,value\n{rows}"))

    assert set(np.diff(table.time_unix_nanos).tolist()) == {300 * SECOND}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timestamp,value\n10,1\n20,2\n20,3\n", ", line 4, has the same time as the line before"),
        ("timestamp,value\n10,1\n20,2\n15,3\n", ", line 4, is earlier than the line before"),
        ("timestamp,value\n2014-02-14 01:00:00,1\nsoon,2\n", ", line 3: 'soon' is no time"),
        ("timestamp,value\n1,1\n,2\n", ", line 3: '' is no time"),
        ("timestamp,value\n1400000000000,1\n", ", line 2: 1400000000000 is no time in seconds since 1970"),
        ("timestamp,value\n-1,1\n", ", line 2: -1 is no time in seconds since 1970"),
        ("timestamp,value\n1,1\n2,high\n", ", line 3, column value: 'high' is no number"),
        ("timestamp,value\n1,1\n2,-inf\n", ", line 3, column value: infinite"),
        ("timestamp,value\n1,1\n2\n", ", line 3: the header names 2 columns, this line has 1"),
        ("timestamp,a,a\n1,1,1\n", ": line 1 names the column 'a' twice"),
        ("2014-02-14 01:00:00,1\n", ": line 1 is no header"),
        ("1,1\n2,2\n", ": line 1 is no header"),
        ("timestamp\n1\n", ": line 1 has to be a header"),
        ("timestamp,value\n", " has no rows below its header"),
        ("", ": line 1 has to be a header"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, text, message):
    path = _written(tmp_path, text)

    with pytest.raises(InvalidArgumentError) as refused:
        read_table(path)

    assert refused.value.message.startswith(f"{path}{message}")


def test_what_is_no_file_of_text_is_said(tmp_path):
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00,\x00\n\x80")

    with pytest.raises(InvalidArgumentError, match="no text in UTF-8"):
        read_table(tmp_path / "b.csv")
    with pytest.raises(InvalidArgumentError, match="cannot be read: No such file or directory"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(InvalidArgumentError, match="cannot be read: Is a directory"):
        read_table(tmp_path)


def test_a_table_is_written_as_people_write_them(tmp_path):
    write_table(tmp_path / "deep" / "out.csv", {"timestamp": ["1", "2"], "score": np.array([0.25, np.nan])})

    assert (tmp_path / "deep" / "out.csv").read_text() == "timestamp,score\n1,0.25\n2,\n"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out.csv"]


def test_outputs_stand_as_their_inputs_do(tmp_path):
    inputs = [tmp_path / "in" / "web" / "a.csv", tmp_path / "in" / "db" / "a.csv"]

    assert place_outputs(inputs, Path("out")) == [Path("out/web/a.csv"), Path("out/db/a.csv")]
    assert place_outputs(inputs[:1], Path("out")) == [Path("out/a.csv")]


def test_no_output_is_written_over_an_input_or_another(tmp_path):
    path = tmp_path / "a.csv"

    with pytest.raises(InvalidArgumentError, match="is where the input is"):
        place_outputs([path], tmp_path)
    with pytest.raises(InvalidArgumentError, match="is named twice"):
        place_outputs([path, path], tmp_path / "out")
