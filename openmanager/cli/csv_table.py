"""CSV tables of a time and values, `timestamp,<metric>,…`, and where what is made of them goes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from csv import reader
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openmanager.errors import InvalidArgumentError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

NANOS = 10**9
HOUR_NANOS = 3_600 * NANOS
# Whole nanoseconds in 64 bits end in the year 2262; epoch milliseconds taken for seconds are far beyond.
LATEST_SECONDS = 9_000_000_000.0
MISSING = ["", "NaN", "nan", "NA", "null"]
_RAGGED = re.compile(r"Row #(?P<row>\d+): Expected (?P<expected>\d+) columns, got (?P<got>\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A file: M series of T samples.

    `stamps` are the times as they stand in it, `time_unix_nanos` int64[T] strictly increasing, `values` float64[T, M], NaN
    where there is none; `names` are those of the M columns.
    """

    path: Path
    names: tuple[str, ...]
    stamps: pa.Array
    time_unix_nanos: NDArray[np.int64]
    values: NDArray[np.float64]


def read_table(path: Path) -> Table:
    """Return a file's table; InvalidArgumentError names the file, and the line of it, that is wrong.

    Times are ISO 8601 (UTC, or with their zone) or seconds since 1970; an empty value is missing. Times without a zone may
    go back by one hour, once or more, as clocks do when summer time ends: what follows is an hour later than it says.
    """
    import pyarrow.compute as pc

    columns = _columns(path)
    stamps = columns.column(0).combine_chunks()
    times, is_zoned = _times(path, pc.utf8_trim_whitespace(stamps))
    values = np.column_stack([_numbers(path, columns, place) for place in range(1, columns.num_columns)])
    return Table(
        path=path,
        names=tuple(columns.column_names[1:]),
        stamps=stamps,
        time_unix_nanos=_ordered(path, times if is_zoned else _unfolded(times)),
        values=values,
    )


def write_table(path: Path, columns: Mapping[str, pa.Array | NDArray[Any]]) -> None:
    """Write columns of one length, whole or not at all; NaN is written as empty."""
    import pyarrow as pa
    from pyarrow import csv

    table = pa.table({name: pa.array(column, from_pandas=True) for name, column in columns.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.new")
    try:  # "needed" puts every text into quotes
        csv.write_csv(table, aside, csv.WriteOptions(quoting_style="none", quoting_header="none"))
    except pa.ArrowInvalid:
        csv.write_csv(table, aside, csv.WriteOptions(quoting_style="needed"))
    aside.replace(path)


def place_outputs(paths: Sequence[Path], output_dir: Path) -> list[Path]:
    """Return where what is made of each file goes: below `output_dir` as the files are below the folder they share.

    InvalidArgumentError when one would be written over an input or over another.
    """
    whole = [path.resolve() for path in paths]
    shared = Path(os.path.commonpath([path.parent for path in whole]))
    placed = [output_dir / path.relative_to(shared) for path in whole]
    for path, place in zip(paths, placed, strict=True):
        if place.resolve() in whole:
            raise InvalidArgumentError(f"{path}: --output-dir {output_dir} is where the input is: name another folder")
    if len(set(placed)) < len(placed):
        twice = next(path for path, place in zip(paths, placed, strict=True) if placed.count(place) > 1)
        raise InvalidArgumentError(f"{twice} is named twice")
    return placed


def _columns(path: Path) -> pa.Table:
    """Return every column as text: what it means is decided here, and said by line."""
    import pyarrow as pa
    from pyarrow import csv

    try:
        names = _header(path)
        columns = csv.read_csv(
            path,
            read_options=csv.ReadOptions(use_threads=False, column_names=names, skip_rows=1),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except OSError as error:
        raise InvalidArgumentError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{path}: no text in UTF-8") from error
    except pa.ArrowInvalid as error:
        raise InvalidArgumentError(f"{path}{_why(str(error))}") from error
    if columns.num_rows == 0:
        raise InvalidArgumentError(f"{path} has no rows below its header")
    return columns


def _header(path: Path) -> list[str]:
    """Return the names in the first line."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        names = [name.strip() for name in next(reader(file), [])]
    if len(names) < 2:
        raise InvalidArgumentError(f"{path}: line 1 has to be a header: timestamp,value or timestamp,<metric>,…")
    if _is_number(names[0]) or re.match(r"\d{4}-\d\d-\d\d", names[0]):
        raise InvalidArgumentError(f"{path}: line 1 is no header (timestamp,value) but a sample")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidArgumentError(f"{path}: line 1 names the column {twice!r} twice")
    return names


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _why(text: str) -> str:
    ragged = _RAGGED.search(text)
    if ragged:
        return f", line {ragged['row']}: the header names {ragged['expected']} columns, this line has {ragged['got']}"
    return " has no rows below its header" if "Empty CSV" in text else ": no CSV file in UTF-8"


def _times(path: Path, stamps: pa.Array) -> tuple[NDArray[np.int64], bool]:
    """Return the times, int64[T] in nanoseconds, and whether they are told without regard to a local clock."""
    import pyarrow as pa

    for kind in (pa.timestamp("ns"), pa.timestamp("ns", "UTC")):
        try:
            return stamps.cast(kind).cast(pa.int64()).to_numpy(), kind.tz is not None
        except pa.ArrowInvalid:
            continue
    try:
        seconds = stamps.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        raise InvalidArgumentError(_bad_time(path, stamps)) from None
    wrong = np.flatnonzero(~((seconds >= 0) & (seconds < LATEST_SECONDS)))
    if wrong.size:
        text = stamps[wrong[0]].as_py()
        raise InvalidArgumentError(f"{path}, line {wrong[0] + 2}: {text} is no time in seconds since 1970")
    whole = np.floor(seconds)
    return whole.astype(np.int64) * NANOS + np.rint((seconds - whole) * NANOS).astype(np.int64), True


def _bad_time(path: Path, stamps: pa.Array) -> str:
    """Return a sentence that names the first line whose time is not understood."""
    import pyarrow as pa

    form = pa.timestamp("ns") if _reads(stamps[:1], pa.timestamp("ns")) else pa.timestamp("ns", "UTC")
    if not _reads(stamps[:1], form):
        form = pa.float64()
    low, high = 0, len(stamps)  # the first `low` are understood, the first `high` are not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _reads(stamps[:middle], form) else (low, middle)
    text = str(stamps[low].as_py())[:40]
    return f"{path}, line {low + 2}: {text!r} is no time: ISO 8601 (all with a zone, or none), or seconds since 1970"


def _reads(texts: pa.Array, kind: pa.DataType) -> bool:
    import pyarrow as pa

    try:
        texts.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _numbers(path: Path, columns: pa.Table, place: int) -> NDArray[np.float64]:
    """Return one column, float64[T]."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pc.utf8_trim_whitespace(columns.column(place).combine_chunks())
    texts = pc.if_else(pc.is_in(texts, value_set=pa.array(MISSING)), None, texts)
    try:
        values: NDArray[np.float64] = texts.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        line = next(number for number in range(len(texts)) if not _reads(texts[number : number + 1], pa.float64()))
        text = str(texts[line].as_py())[:40]
        column = columns.column_names[place]
        raise InvalidArgumentError(f"{path}, line {line + 2}, column {column}: {text!r} is no number") from None
    wrong = np.flatnonzero(np.isinf(values))
    if wrong.size:
        column = columns.column_names[place]
        raise InvalidArgumentError(f"{path}, line {wrong[0] + 2}, column {column}: infinite")
    return values


def _unfolded(times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return local times as they went on: later by an hour from where the clock was set back by one, int64[T]."""
    steps = np.diff(times)
    if not np.any(steps <= 0):
        return times
    usual = np.median(steps)
    is_fold = (steps <= 0) & (np.abs(steps + HOUR_NANOS - usual) <= usual / 2)
    hours = np.concatenate([np.zeros(1, np.int64), np.cumsum(is_fold)])
    unfolded: NDArray[np.int64] = times + HOUR_NANOS * hours
    return unfolded


def _ordered(path: Path, times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return times; InvalidArgumentError names the first line that is not later than the one before."""
    wrong = np.flatnonzero(np.diff(times) <= 0)
    if wrong.size:
        what = "has the same time as" if times[wrong[0]] == times[wrong[0] + 1] else "is earlier than"
        raise InvalidArgumentError(f"{path}, line {wrong[0] + 3}, {what} the line before: times have to increase")
    return times
