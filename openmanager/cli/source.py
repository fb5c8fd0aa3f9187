"""Files of samples or buckets as rows, a piece at a time; what is wrong with them in one sentence."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from openmanager.cli import rows
from openmanager.errors import InvalidArgumentError
from openmanager.frame import EARLIEST_PLAUSIBLE_NANOS, LATEST_PLAUSIBLE_NANOS, ServerInfo, check_server_id
from openmanager.metric import check_key

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray
    from openmanager_timeseries.line_reader import Parsed

    from openmanager.grid import Rows

FORMATS = {".parquet": "parquet", ".csv": "csv", ".lp": "line-protocol", ".txt": "line-protocol"}
PRECISIONS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
# So many rows, or bytes of text, are made frames of at once.
PIECE_ROWS = 512 << 10
PIECE_BYTES = 8 << 20
LINE_BYTES = 4 << 20
KEY = ("time", "server", "metric")
BUCKET = ("min", "max", "sum", "count", "last")
OF_COUNTERS = ("first", "growth")
_PLACE = re.compile(
    r"(?:In CSV column #(?P<column>\d+): )?(?:CSV parse error: )?Row #(?P<row>\d+): (?P<why>.*)", re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some rows of a file; `share` of the file, 0–1, are read with them. `infos` is what they tell of servers.

    `malformed_count` lines were not understood, `malformed` says why the first was not; of `text_count` fields with text
    nothing is kept.
    """

    rows: Rows
    share: float
    infos: tuple[ServerInfo, ...] = ()
    malformed_count: int = 0
    malformed: str = ""
    text_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file: its format, the unit of its whole-number times, and the tier of its rows (empty: not told)."""

    path: Path
    form: str
    precision: str = "ns"
    tier: str = ""

    @property
    def is_samples(self) -> bool:
        """Whether its rows are samples."""
        return self.tier in {"", "raw"}


def open_source(path: Path, form: str, precision: str, tier: str) -> Source:
    """Return what a file is; InvalidArgumentError when that cannot be said.

    An empty precision is what the file says, or nanoseconds.
    """
    name = path.name.removesuffix(".gz")
    form = form or FORMATS.get(Path(name).suffix, "")
    if not form:
        raise InvalidArgumentError(f"{path} ends in none of {', '.join(FORMATS)}: say which --format it is")
    if path.suffix == ".gz" and form == "parquet":
        raise InvalidArgumentError(f"{path}: Parquet is compressed in itself, unpack it first")
    if not path.is_file():
        raise InvalidArgumentError(f"{path}: {'is no file' if path.exists() else 'there is no such file'}")
    found = Source(path=path, form=form, precision=precision or "ns", tier=tier)
    if form == "parquet":
        return _parquet_source(found)
    if form == "csv":
        return _csv_source(found)
    return found if precision else replace(found, precision=_told_precision(found))


def pieces(source: Source) -> Generator[Piece]:
    """Yield the rows of a file (blocking); InvalidArgumentError that names the file and the place."""
    read = {"parquet": _parquet, "csv": _csv, "line-protocol": _lines}[source.form]
    try:
        yield from read(source)
    except OSError as err:
        raise InvalidArgumentError(f"{source.path}: {(err.strerror or str(err)).lower()}") from err


# ── Parquet ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _parquet_source(source: Source) -> Source:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(source.path)
    except pa.ArrowException as err:
        raise InvalidArgumentError(f"{source.path}: it is no Parquet file, or cut short") from err
    told = json.loads((schema.metadata or {}).get(b"openmanager", b"{}"))
    found = _with_tier(source, schema.names, str(told.get("tier", "")))
    for name in (*KEY, *_numbers(found, schema.names)):
        _check_type(found, schema.field(name))
    return found


def _with_tier(source: Source, names: Sequence[str], told: str) -> Source:
    """Return the source with its tier; InvalidArgumentError when it lacks a column or nobody says which tier it is."""
    wanted = KEY if "value" in names else (*KEY, *BUCKET)
    missing = [name for name in wanted if name not in names]
    if missing:
        raise InvalidArgumentError(
            f"{source.path} has no column {missing[0]!r} but {', '.join(names) or 'none at all'}: "
            f"{', '.join(KEY)} and value are expected, or the columns of a rollup tier"
        )
    if "value" in names:
        if not source.is_samples:
            raise InvalidArgumentError(f"{source.path} has samples and no buckets of the tier {source.tier}")
        return replace(source, tier="raw")
    tier = source.tier or told
    if tier in {"", "raw"}:
        raise InvalidArgumentError(f"{source.path} has buckets: say of which tier with --tier, such as --tier 5m")
    return replace(source, tier=tier)


def _numbers(source: Source, names: Sequence[str]) -> list[str]:
    return ["value"] if source.is_samples else [name for name in (*BUCKET, *OF_COUNTERS) if name in names]


def _check_type(source: Source, field: pa.Field) -> None:
    import pyarrow as pa

    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if field.name == "time":
        fits, wanted = pa.types.is_timestamp(kind) or pa.types.is_integer(kind), "times or whole numbers"
    elif field.name in KEY:
        fits, wanted = pa.types.is_string(kind) or pa.types.is_large_string(kind), "text"
    else:
        fits, wanted = pa.types.is_floating(kind) or pa.types.is_integer(kind), "numbers"
    if not fits:
        raise InvalidArgumentError(f"{source.path}: the column {field.name} holds {kind} where {wanted} are expected")


def _parquet(source: Source) -> Iterator[Piece]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source.path, read_dictionary=["server", "metric"], pre_buffer=False) as file:
            columns = [*KEY, *_numbers(source, file.schema_arrow.names)]
            total, done = file.metadata.num_rows, 0
            for batch in file.iter_batches(PIECE_ROWS, columns=columns):
                found = _rows(source, pa.Table.from_batches([batch]), done, "row", 1)
                done += len(batch)
                yield Piece(rows=found, share=done / total)
    except pa.ArrowException as err:
        raise InvalidArgumentError(f"{source.path}: it is damaged: {_first_line(err)}") from err


# ── CSV ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _csv_source(source: Source) -> Source:
    with _opened(source) as (file, _):
        names, _ = _csv_head(file)
    if not names:
        raise InvalidArgumentError(f"{source.path} is empty: a line “time,server,metric,value” is expected first")
    return _with_tier(source, names, "")


def _csv_head(file: Any) -> tuple[list[str], list[str]]:
    """Return the names of the columns, and the fields of the first row."""
    lines = iter(file.read(1 << 16).decode("utf-8-sig", "replace").splitlines())
    reader = csv.reader(lines)
    return next(reader, []), next(reader, [])


def _csv(source: Source) -> Iterator[Piece]:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    with _opened(source) as (file, _):
        names, first = _csv_head(file)
    texts = pa.dictionary(pa.int32(), pa.string())
    numbers = _numbers(source, names)
    at = names.index("time")
    is_whole = at < len(first) and first[at].removeprefix("-").isdigit()
    types = {
        "time": pa.int64() if is_whole else pa.timestamp("ns", "UTC"),
        "server": texts,
        "metric": texts,
        **dict.fromkeys(numbers, pa.float64()),
    }
    with _opened(source) as (file, share):
        done = 0
        try:
            reader = arrow_csv.open_csv(
                file,
                # Only without threads does an error say its row.
                read_options=arrow_csv.ReadOptions(block_size=PIECE_BYTES, use_threads=False),
                convert_options=arrow_csv.ConvertOptions(
                    column_types=types, include_columns=[*KEY, *numbers], strings_can_be_null=False
                ),
            )
            for batch in reader:
                found = _rows(source, pa.Table.from_batches([batch]), done, "line", 2)
                done += len(batch)
                yield Piece(rows=found, share=share())
        except pa.ArrowException as err:
            raise InvalidArgumentError(_csv_error(source, names, str(err))) from err


def _csv_error(source: Source, names: Sequence[str], told: str) -> str:
    """Return Arrow's error of a CSV file in our words."""
    found = _PLACE.match(told)
    if found is None:
        return f"{source.path}: {_first_line(told)}"
    place = f"{source.path}, line {found['row']}"
    why = _first_line(found["why"])
    if why.startswith("CSV conversion error"):
        why = why.split(": ", 1)[-1]
    if found["column"] is not None:
        place += f", column {([*KEY, *_numbers(source, names)])[int(found['column'])]}"
    if "zone offset" in why:
        why = f"{why.split(' in ', 1)[-1].split('. ', 1)[0]} has no zone: 2026-07-01T12:00:00Z is expected"
    return f"{place}: {why[:200]}"


def _first_line(err: object) -> str:
    return str(err).splitlines()[0][:200]


# ── line protocol ──────────────────────────────────────────────────────────────────────────────────────────────────


def _told_precision(source: Source) -> str:
    """Return the unit of times that the first line of our own files says, else nanoseconds."""
    from openmanager.cli.text import PRECISION_COMMENT

    with _opened(source) as (file, _):
        first = bytes(file.read(64)).partition(b"\n")[0]
    told = first.removeprefix(PRECISION_COMMENT).decode("ascii", "replace").strip()
    return told if first.startswith(PRECISION_COMMENT) and told in PRECISIONS else "ns"


def _lines(source: Source) -> Iterator[Piece]:
    from openmanager_timeseries.line_reader import parse

    number, rest = 1, b""
    with _opened(source) as (file, share):
        while data := file.read(LINE_BYTES):
            whole, newline, left = (rest + data).rpartition(b"\n")
            rest = left
            if newline:
                yield _parsed(source, parse(whole, precision=source.precision, first_line=number), share())
                number += whole.count(b"\n") + 1
    if rest:
        yield _parsed(source, parse(rest, precision=source.precision, first_line=number), 1.0)


def _parsed(source: Source, found: Parsed, share: float) -> Piece:
    from openmanager.grid import Rows

    samples = found.samples
    for nanos in (
        samples.times.min(initial=EARLIEST_PLAUSIBLE_NANOS),
        samples.times.max(initial=EARLIEST_PLAUSIBLE_NANOS),
    ):
        if not EARLIEST_PLAUSIBLE_NANOS <= nanos <= LATEST_PLAUSIBLE_NANOS:
            raise InvalidArgumentError(
                f"{source.path}: the time {int(nanos) // PRECISIONS[source.precision]} is not between 2000 and 2200: "
                "--precision says what whole numbers mean"
            )
    made = Rows(
        servers=samples.servers,
        server_codes=samples.server_codes,
        metrics=samples.metrics,
        metric_codes=samples.metric_codes,
        times=samples.times,
        columns={"value": samples.values},
    )
    first = next((f"line {each.line} {each.reason}" for each in found.errors), "")
    return Piece(
        rows=made,
        share=share,
        infos=found.infos,
        malformed_count=found.error_count,
        malformed=first,
        text_count=found.text_count,
    )


# ── what all have in common ────────────────────────────────────────────────────────────────────────────────────────


class _opened:  # noqa: N801  (a context manager)
    """A file to be read, unpacked where its name ends in .gz, and how much of it was read."""

    def __init__(self, source: Source) -> None:
        import pyarrow as pa

        self._file: BinaryIO = source.path.open("rb")
        self._size = source.path.stat().st_size
        is_packed = source.path.suffix == ".gz"
        self._stream = pa.CompressedInputStream(pa.PythonFile(self._file), "gzip") if is_packed else self._file

    def __enter__(self) -> tuple[Any, Any]:
        return self._stream, lambda: self._file.tell() / max(1, self._size)

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._file.close()


def _rows(source: Source, table: pa.Table, before: int, unit: str, first: int) -> Rows:
    """Return the checked rows of a table that comes after `before` rows; `unit` and `first` say how rows are counted."""
    import numpy as np
    import pyarrow as pa

    def place(at: int) -> str:
        return f"{source.path}, {unit} {before + at + first}"

    for name in KEY:
        if table.column(name).null_count:
            at = int(np.flatnonzero(table.column(name).is_null().to_numpy())[0])
            raise InvalidArgumentError(f"{place(at)}: it has no {name}")
    if pa.types.is_integer(table.schema.field("time").type):
        times = _whole_times(table.column("time").cast(pa.int64()).to_numpy(), PRECISIONS[source.precision])
    else:
        times = table.column("time").cast(pa.timestamp("ns", "UTC"), safe=False).cast(pa.int64()).to_numpy()
    outside = np.flatnonzero((times < EARLIEST_PLAUSIBLE_NANOS) | (times > LATEST_PLAUSIBLE_NANOS))
    if len(outside):
        shown = table.column("time")[int(outside[0])]
        hint = ": --precision says what whole numbers mean" if pa.types.is_integer(shown.type) else ""
        raise InvalidArgumentError(f"{place(int(outside[0]))}: the time {shown} is not between 2000 and 2200{hint}")
    found = rows.of_table(
        table.set_column(table.column_names.index("time"), "time", pa.array(times).cast(pa.timestamp("ns", "UTC")))
    )
    servers = _checked(found.servers, found.server_codes, lambda name: check_server_id(name, "server"), place)
    metrics = _checked(found.metrics, found.metric_codes, _checked_key, place)
    return _without_nan(replace(found, servers=servers, metrics=metrics))


def _whole_times(numbers: NDArray[Any], unit: int) -> NDArray[Any]:
    import numpy as np

    limit = np.iinfo(np.int64).max // unit
    return np.where(np.abs(numbers) > limit, -1, numbers) * unit


def _checked_key(key: str) -> str:
    check_key(key)
    return key


def _checked(names: Sequence[str], codes: NDArray[Any], check: Any, place: Any) -> list[str]:
    """Return the names as they are taken; InvalidArgumentError with the place of the first row whose name is not."""
    import numpy as np

    out = []
    for code, name in enumerate(names):
        try:
            out.append(check(name))
        except InvalidArgumentError as err:
            at = np.flatnonzero(codes == code)
            if len(at):
                raise InvalidArgumentError(f"{place(int(at[0]))}: {err.message}") from err
            out.append(name)  # a name that Arrow kept and no row has
    return out


def _without_nan(found: Rows) -> Rows:
    """Return the rows that are samples."""
    import numpy as np

    values = found.columns.get("value")
    if values is None or not (gone := np.isnan(values)).any():
        return found
    kept = ~gone
    return replace(
        found,
        server_codes=found.server_codes[kept],
        metric_codes=found.metric_codes[kept],
        times=found.times[kept],
        columns={"value": values[kept]},
    )
