"""Rows as text: CSV and line protocol, a table at a time."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from openmanager.frame import ServerInfo

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

KEY = ("time", "server", "metric")
# The first line of our line protocol: InfluxDB's times are nanoseconds where nobody says otherwise.
PRECISION_COMMENT = b"# openmanager precision="
_MILLIS_A_DAY = 86_400_000


class Csv:
    """Writes rows as `time,server,metric,value`, or with the columns of a rollup tier in the place of `value`."""

    def header(self, names: list[str]) -> bytes:
        """Return the first line, for a table of some columns."""
        return header_line([*KEY, *(name for name in names if name not in KEY)])

    def encode(self, table: pa.Table) -> bytes:
        """Return a line for each row; what is null or NaN is empty."""
        names = [*KEY, *(name for name in table.column_names if name not in KEY)]
        return csv_lines([_no_nan(table.column(name)) for name in names])


class Lines:
    """Writes samples as InfluxDB's line protocol; `infos` say in which environment and role the servers are."""

    def __init__(self, infos: Mapping[str, ServerInfo]) -> None:
        from openmanager_timeseries.line_protocol import LineEncoder

        self._encoder = LineEncoder()
        self._infos = infos

    def header(self, names: list[str]) -> bytes:  # noqa: ARG002
        """Return a comment that says the unit of the times."""
        return PRECISION_COMMENT + b"ms\n"

    def encode(self, table: pa.Table) -> bytes:
        """Return the lines of samples."""
        from openmanager import grid
        from openmanager.cli import rows

        return self._encoder.encode(list(grid.frames(rows.of_table(table))), self._info)

    def _info(self, server: str) -> ServerInfo:
        return self._infos.get(server) or ServerInfo(id=server)


def header_line(names: Sequence[str]) -> bytes:
    """Return the first line of a CSV file."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(names)
    return line.getvalue().encode()


def csv_lines(columns: Sequence[Any]) -> bytes:
    """Return a line for each row of some Arrow columns; null is empty, times are RFC 3339 to the millisecond."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not columns or not len(columns[0]):
        return b""
    fields = [pc.fill_null(_field(column), "") for column in columns]
    fields[-1] = pc.binary_join_element_wise(fields[-1], "\n", "")
    lines = pc.binary_join_element_wise(*fields, ",")
    return b"".join(_text(chunk) for chunk in (lines.chunks if isinstance(lines, pa.ChunkedArray) else [lines]))


def _no_nan(column: Any) -> Any:
    """Return a column with null for NaN."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.if_else(pc.is_nan(column), None, column) if pa.types.is_floating(column.type) else column


def _field(column: Any) -> Any:
    """Return a column as CSV has it: strings."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_timestamp(kind) and kind.tz:
        return rfc3339_array(column)
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return column.cast(pa.string())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
        return _quoted(column)
    return _quoted(pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string()))


def rfc3339_array(times: Any) -> Any:
    """Return an Arrow column of times as RFC 3339 in UTC, to the millisecond: strings."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = times.combine_chunks() if isinstance(times, pa.ChunkedArray) else times
    millis = whole.cast(pa.timestamp("ms", "UTC"), safe=False).cast(pa.int64()).fill_null(0).to_numpy()
    days, day = np.unique(millis // _MILLIS_A_DAY, return_inverse=True)
    dates = np.datetime_as_string(days.astype("datetime64[D]")).astype("S10").view(np.uint8).reshape(-1, 10)
    text = np.empty((len(millis), 24), np.uint8)
    text[:, :10] = dates[day]
    for at, sign in ((10, "T"), (13, ":"), (16, ":"), (19, "."), (23, "Z")):
        text[:, at] = ord(sign)
    within = millis % _MILLIS_A_DAY
    for at, unit, top in ((11, 3_600_000, 24), (14, 60_000, 60), (17, 1000, 60)):
        _digits(text, at, within // unit % top, 2)
    _digits(text, 20, within % 1000, 3)
    offsets = np.arange(len(millis) + 1, dtype=np.int32) * 24
    made = pa.Array.from_buffers(pa.string(), len(millis), [None, pa.py_buffer(offsets), pa.py_buffer(text)])
    return pc.if_else(whole.is_valid(), made, None) if whole.null_count else made


def _digits(text: NDArray[Any], at: int, numbers: NDArray[Any], count: int) -> None:
    import numpy as np

    rest = numbers.astype(np.int32)
    for place in range(at + count - 1, at - 1, -1):
        rest, digit = np.divmod(rest, 10)
        text[:, place] = digit + ord("0")


def _quoted(names: Any) -> Any:
    """Return a column of names as strings, those in quotes that CSV wants there."""
    import pyarrow as pa

    column = names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names
    coded = column if isinstance(column, pa.DictionaryArray) else column.dictionary_encode()
    texts = []
    for name in coded.dictionary.to_pylist():
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow([name])
        texts.append(line.getvalue())
    return pa.array(texts, pa.string()).take(coded.indices)


def _text(array: Any) -> bytes:
    """Return the texts of a string array one after the other."""
    import numpy as np

    _, offsets, data = array.buffers()
    edges = np.frombuffer(offsets, np.int32)[[array.offset, array.offset + len(array)]].tolist()
    return bytes(memoryview(data)[slice(*edges)])
