"""Sealed files: immutable Parquet files that anybody can read, of samples or of rollups.

Rows are sorted by metric, server and time. A file is named by the sequence numbers it covers (of samples: log
positions) and by its revision; of two rows of one series and time the one in the file of higher numbers counts, so that
a correction is a new file, and a merge of neighbours changes no answer. Its metadata says which times it holds and
which metrics stand in which row group, so that a query reads no more than it needs. Every page has a checksum, and the
name ends in that of the metadata.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from crc32c import crc32c
from numpy.typing import NDArray

from openmanager import durable, failpoint
from openmanager_timeseries import span
from openmanager_timeseries.catalog import Catalog, Selection
from openmanager_timeseries.samples import Bools, Ints, ranges
from openmanager_timeseries.span import Spans

SUFFIX = ".parquet"
NEW = ".new"
_KEY = b"openmanager"
_TAIL = struct.Struct("<I4s")
_NANOS_PER_MILLI = 1_000_000
_NAMES = pa.dictionary(pa.int32(), pa.string())
KEY_FIELDS = (
    pa.field("metric", _NAMES, nullable=False),
    pa.field("server", _NAMES, nullable=False),
    pa.field("time", pa.timestamp("ms", tz="UTC"), nullable=False),
)
_KEY_NAMES = [field.name for field in KEY_FIELDS]

Values = Mapping[str, Any]  # columns, each an array [K]


class Format(Protocol):
    """What differs between files of samples and files of rollups."""

    schema: pa.Schema
    # Options of the writer for the columns after the key.
    options: Mapping[str, Mapping[str, Any]]
    # The columns that a row has, and of those the ones that may be read alone.
    names: tuple[str, ...]
    group_rows: int

    def encode(self, values: Values, starts: Ints) -> list[pa.Array]:
        """Return the columns after the key; the rows of a series begin at each of `starts`."""
        ...

    def stored(self, names: Sequence[str]) -> list[str]:
        """Return the columns of a file that hold some columns of a row."""
        ...

    def decode(self, table: pa.Table, names: Sequence[str]) -> dict[str, Any]:
        """Return columns of a row from those of a file."""
        ...


class Rows(NamedTuple):
    """Rows: `metrics` and `servers` int64[K], indices into names kept elsewhere, `times` int64[K], and columns."""

    metrics: Ints
    servers: Ints
    times: Ints
    values: Values

    def take(self, at: Ints | Bools | slice) -> Rows:
        """Return some of the rows."""
        return Rows(self.metrics[at], self.servers[at], self.times[at], {k: v[at] for k, v in self.values.items()})


class Batch(NamedTuple):
    """The rows of some metrics, sorted; all of a metric's rows of a file are in one batch, keys ascending over them."""

    metrics: Sequence[str]
    rows: Rows


class Found(NamedTuple):
    """What was read, series by series: `of` int64[N], rows of a selection, and how many rows each has, at least one.

    `times` is int64[K], and so are the columns long.
    """

    of: Ints
    counts: Ints
    times: Ints
    values: Values

    @property
    def rows(self) -> Ints:
        """The row of the selection of every row: int64[K]."""
        return np.repeat(self.of, self.counts)


class Group(NamedTuple):
    """A row group as it is asked: run r is of the series `ids[r]`, −1 for an unknown one, and has rows from `begins[r]` on.

    `ids` int64[N], `begins` int64[N + 1], `times` int64[K], columns [K]; `low` and `high` are the first and last time.
    """

    ids: Ints
    begins: Ints
    times: Ints
    values: Values
    low: int
    high: int

    @property
    def nbytes(self) -> int:
        """The bytes of its arrays."""
        arrays = (self.ids, self.begins, self.times, *self.values.values())
        return sum(array.nbytes for array in arrays)

    def find(self, selection: Selection, start: int, end: int) -> Found | None:
        """Return the rows of a selection in [start, end), None where there are none."""
        rows = selection.rows_of(self.ids)
        runs = np.flatnonzero(rows >= 0)
        if not len(runs) or self.low >= end or self.high < start:
            return None
        begins, ends = self.begins[runs], self.begins[runs + 1]
        at = _rows_at(runs, begins, ends)
        found = Found(rows[runs], ends - begins, self.times[at], {k: v[at] for k, v in self.values.items()})
        return found if start <= self.low and self.high < end else _between(found, start, end)


def _rows_at(runs: Ints, begins: Ints, ends: Ints) -> Ints | slice:
    """Return where the rows of some runs are, which begin and end there; a slice, which copies nothing, if it can be."""
    if len(runs) and runs[-1] - runs[0] == len(runs) - 1:
        return slice(int(begins[0]), int(ends[-1]))
    return ranges(begins, ends)


def _between(found: Found, start: int, end: int) -> Found | None:
    keep = (found.times >= start) & (found.times < end)
    counts = np.add.reduceat(keep, np.cumsum(found.counts) - found.counts, dtype=np.int64)
    some = counts > 0
    if not some.any():
        return None
    return Found(found.of[some], counts[some], found.times[keep], {k: v[keep] for k, v in found.values.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a file says of itself. Times are nanoseconds: `min_time` and `max_time` are those of its rows."""

    first: int
    last: int
    revision: int = 0
    # Of samples: how many the log had accepted up to `last`.
    accepted: int = 0
    min_time: int = 0
    max_time: int = 0
    row_count: int = 0
    # The times of the rows more closely; empty where it is all between the first and the last.
    spans: Spans = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sealed:
    """A file. `groups`: for every row group its metric keys."""

    path: Path
    about: About
    size_bytes: int
    groups: tuple[tuple[str, ...], ...]
    metadata: pq.FileMetaData

    @property
    def spans(self) -> Spans:
        """The times of its rows."""
        if self.about.row_count == 0:
            return ()
        return self.about.spans or ((self.about.min_time, self.about.max_time + 1),)

    def group_bytes(self, index: int, columns: int) -> int:
        """Return how much memory the rows of a row group take, about, with so many columns."""
        rows: int = self.metadata.row_group(index).num_rows
        return rows * 8 * (1 + columns)

    def meets(self, start: int, end: int) -> bool:
        """Say whether it has rows in [start, end), or about there."""
        return any(low < end and high > start for low, high in self.spans)


class Name(NamedTuple):
    """What a file's name says: its numbers, its revision, and the CRC-32C of its metadata."""

    first: int
    last: int
    revision: int
    checksum: int

    def __str__(self) -> str:
        return f"{self.first:020d}-{self.last:020d}-{self.revision}-{self.checksum:08x}{SUFFIX}"

    @classmethod
    def parse(cls, text: str) -> Name:
        """Return the parts of a name; ValueError when it is none."""
        first, last, revision, checksum = text.removesuffix(SUFFIX).split("-")
        return cls(int(first), int(last), int(revision), int(checksum, 16))


def _footer_checksum(path: Path) -> int:
    """Return the CRC-32C of a file's metadata, with its length, from its end; ValueError when it has none."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL.size))
        length, magic = _TAIL.unpack(file.read(_TAIL.size).rjust(_TAIL.size))
        if magic != b"PAR1" or length + _TAIL.size > size:
            raise ValueError("the file is cut short")
        file.seek(size - _TAIL.size - length)
        return crc32c(file.read())


# ── writing ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Writer:
    """Gathers batches into row groups of one file."""

    def __init__(self, writer: pq.ParquetWriter, kind: Format, servers: Sequence[str]) -> None:
        self._writer = writer
        self._kind = kind
        self._servers = pa.array(servers, pa.string())
        self._waiting: list[Batch] = []
        self._waiting_rows = 0
        self.groups: list[list[str]] = []
        self.row_count = 0
        self.min_time = np.iinfo(np.int64).max
        self.max_time = np.iinfo(np.int64).min
        self._slots: set[int] = set()

    def add(self, batch: Batch) -> None:
        if not len(batch.rows.times):
            return
        self._waiting.append(batch)
        slots = batch.rows.times // span.GAP_NANOS
        first = int(slots.min())
        seen = np.zeros(int(slots.max()) - first + 1, np.bool_)
        seen[slots - first] = True
        self._slots.update((np.flatnonzero(seen) + first).tolist())
        self.row_count += len(batch.rows.times)
        self.min_time = min(self.min_time, int(batch.rows.times.min()))
        self.max_time = max(self.max_time, int(batch.rows.times.max()))
        self._waiting_rows += len(batch.rows.times)
        if self._waiting_rows >= self._kind.group_rows:
            self.flush()

    def spans(self, width: int) -> Spans:
        """Return the times of the rows: what is no farther apart than buckets of `width` is one span."""
        slots = np.sort(np.fromiter(self._slots, np.int64, len(self._slots)))
        if not len(slots):
            return ()
        breaks = np.flatnonzero(np.diff(slots) > max(1, width // span.GAP_NANOS))
        starts, ends = slots[np.append(0, breaks + 1)], slots[np.append(breaks, len(slots) - 1)] + 1
        whole = [(start * span.GAP_NANOS, end * span.GAP_NANOS) for start, end in zip(starts, ends, strict=True)]
        whole = whole if len(whole) <= span.MAX_DATA_SPANS else [(whole[0][0], whole[-1][1])]
        return span.clip(tuple((int(a), int(b)) for a, b in whole), int(self.min_time), int(self.max_time) + 1)

    def flush(self) -> None:
        if not self._waiting:
            return
        metrics = [key for batch in self._waiting for key in batch.metrics]
        rows = _concatenated(self._waiting)
        starts = np.flatnonzero(
            np.concatenate(([True], (rows.metrics[1:] != rows.metrics[:-1]) | (rows.servers[1:] != rows.servers[:-1])))
        )
        columns = [
            pa.DictionaryArray.from_arrays(rows.metrics.astype(np.int32), pa.array(metrics, pa.string())),
            pa.DictionaryArray.from_arrays(rows.servers.astype(np.int32), self._servers),
            pa.array(rows.times // _NANOS_PER_MILLI).cast(KEY_FIELDS[2].type),
            *self._kind.encode(rows.values, starts),
        ]
        table = pa.Table.from_arrays(columns, schema=self._kind.schema)
        self._writer.write_table(table, row_group_size=len(table))
        self.groups.append(metrics)
        self._waiting, self._waiting_rows = [], 0


def _concatenated(batches: Sequence[Batch]) -> Rows:
    if len(batches) == 1:
        return batches[0].rows
    firsts = np.cumsum([0, *(len(batch.metrics) for batch in batches[:-1])])
    return Rows(
        np.concatenate([batch.rows.metrics + first for batch, first in zip(batches, firsts, strict=True)]),
        np.concatenate([batch.rows.servers for batch in batches]),
        np.concatenate([batch.rows.times for batch in batches]),
        {name: np.concatenate([batch.rows.values[name] for batch in batches]) for name in batches[0].rows.values},
    )


def write(  # noqa: PLR0917
    folder: Path, kind: Format, about: About, servers: Sequence[str], batches: Iterable[Batch], width: int = 1
) -> Sealed:
    """Write a file: aside, synced, renamed.

    `about` says what the rows do not: numbers and revision. `width` is that of buckets in nanoseconds, 1 for samples.
    """
    aside = folder / f"{about.first:020d}-{about.last:020d}-{about.revision}{NEW}"
    try:
        _write(aside, kind, about, servers, batches, width)
        durable.sync(aside)
        path = folder / str(Name(about.first, about.last, about.revision, _footer_checksum(aside)))
        failpoint.passed("sealed.before-rename")
        aside.replace(path)
        failpoint.passed("sealed.after-rename")
    except BaseException:
        aside.unlink(missing_ok=True)  # on a full disk half a file is in the way of what makes room
        raise
    durable.sync(folder)
    return open_sealed(path)


def _write(  # noqa: PLR0917
    aside: Path, kind: Format, about: About, servers: Sequence[str], batches: Iterable[Batch], width: int
) -> None:
    with pq.ParquetWriter(
        aside,
        kind.schema,
        compression={**dict.fromkeys(_KEY_NAMES, "zstd"), **kind.options["compression"]},
        compression_level={"time": 9},
        use_dictionary=["metric", "server", *kind.options["dictionary"]],
        column_encoding={"time": "DELTA_BINARY_PACKED", **kind.options["encoding"]},
        write_statistics=["time"],
        write_page_checksum=True,
        max_rows_per_page=1 << 20,  # the limit is a page's bytes
    ) as writer:
        groups = _Writer(writer, kind, servers)
        for batch in batches:
            groups.add(batch)
        groups.flush()
        whole = replace(
            about,
            row_count=groups.row_count,
            min_time=int(groups.min_time) if groups.row_count else 0,
            max_time=int(groups.max_time) if groups.row_count else 0,
            spans=span.intersection(about.spans, groups.spans(width)) if about.spans else (),
        )
        text = {name: getattr(whole, name) for name in About.__slots__}
        text["groups"] = groups.groups
        writer.add_key_value_metadata({_KEY: json.dumps(text, separators=(",", ":")).encode()})


# ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────────


def open_sealed(path: Path) -> Sealed:
    """Return what a file says of itself; pa.ArrowException, KeyError, TypeError or ValueError when it is none of ours."""
    name = Name.parse(path.name)
    if _footer_checksum(path) != name.checksum:
        raise ValueError("the metadata is not what was written")
    metadata = pq.read_metadata(path)
    text = json.loads(metadata.metadata[_KEY])
    groups = tuple(tuple(keys) for keys in text.pop("groups"))
    text.pop("source", None)  # older files have it
    text["spans"] = tuple((int(low), int(high)) for low, high in text.get("spans", ()))
    about = About(**text)
    if metadata.num_row_groups != len(groups) or metadata.num_rows != about.row_count:
        raise ValueError("the row groups are not those that the metadata names")
    if (about.first, about.last, about.revision) != name[:3]:
        raise ValueError("the file has the name of another")
    return Sealed(path=path, about=about, size_bytes=path.stat().st_size, groups=groups, metadata=metadata)


class Reader:
    """Reads one file, a row group at a time."""

    def __init__(self, sealed: Sealed, kind: Format) -> None:
        self.sealed = sealed
        self._kind = kind
        self._file = pq.ParquetFile(
            sealed.path, metadata=sealed.metadata, pre_buffer=False, page_checksum_verification=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def group(self, index: int, names: Sequence[str]) -> tuple[Sequence[str], Sequence[str], Rows]:
        """Return a row group: the names of metrics and of servers that its codes stand for, and its rows."""
        table = self.table(index, names)
        (metrics, metric_codes), (servers, server_codes) = codes(table, "metric"), codes(table, "server")
        return metrics, servers, Rows(metric_codes, server_codes, _times(table), self._kind.decode(table, names))

    def table(self, index: int, names: Sequence[str]) -> pa.Table:
        """Return the columns of a row group that hold its keys and some columns of its rows."""
        table = self._file.read_row_group(index, columns=[*_KEY_NAMES, *self._kind.stored(names)], use_threads=False)
        if len(table) != self.sealed.metadata.row_group(index).num_rows:
            raise pa.ArrowInvalid("a row group is not as long as the metadata says")
        return table

    def asked(self, index: int, names: Sequence[str], catalog: Catalog, only: Selection | None = None) -> Group:
        """Return a row group by series, or what a selection chooses of it."""
        table = self.table(index, names)
        (metrics, metric_codes), (servers, server_codes) = (_dictionary(table, name) for name in _KEY_NAMES[:2])
        changes = (metric_codes[1:] != metric_codes[:-1]) | (server_codes[1:] != server_codes[:-1])
        firsts = np.flatnonzero(np.append(True, changes)) if len(table) else np.empty(0, np.int64)
        ids = catalog.find((servers, server_codes[firsts]), (metrics, metric_codes[firsts]))
        begins = np.append(firsts, len(table))
        if only is not None:
            runs = np.flatnonzero(only.rows_of(ids) >= 0)
            starts, ends = begins[runs], begins[runs + 1]
            at = _rows_at(runs, starts, ends)
            table = table.slice(at.start, at.stop - at.start) if isinstance(at, slice) else table.take(at)
            ids, begins = ids[runs], np.append(0, np.cumsum(ends - starts))
        times = _times(table)
        low, high = (int(times.min()), int(times.max())) if len(times) else (0, 0)
        return Group(ids, begins, times, self._kind.decode(table, names), low, high)

    def servers(self) -> set[str]:
        """Return the names of all servers in the file."""
        found: set[str] = set()
        for index in range(len(self.sealed.groups)):
            table = self._file.read_row_group(index, columns=["server"], use_threads=False)
            found.update(codes(table, "server")[0])
        return found


def codes(table: pa.Table, name: str) -> tuple[list[str], Ints]:
    """Return the dictionary of a column and the index of every row in it; pa.ArrowInvalid when there is none such."""
    names, indices = _dictionary(table, name)
    return names, indices.astype(np.int64)


def _dictionary(table: pa.Table, name: str) -> tuple[list[str], NDArray[np.integer[Any]]]:
    """Do as `codes` does, with the indices as they are stored: of 32 bits."""
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    if not isinstance(column, pa.DictionaryArray):
        column = column.dictionary_encode()
    column.validate(full=True)
    return column.dictionary.to_pylist(), column.indices.to_numpy()


def _times(table: pa.Table) -> Ints:
    times: Ints = table.column("time").cast(pa.int64()).to_numpy() * _NANOS_PER_MILLI
    return times


# ── merging ────────────────────────────────────────────────────────────────────────────────────────────────────────

# Which rows stay: given the names of metrics and servers and the rows, a mask bool[K].
Keep = Callable[[Sequence[str], Sequence[str], Rows], Bools]


def merge(folder: Path, kind: Format, inputs: Sequence[Sealed], keep: Keep | None = None, width: int = 1) -> Sealed:
    """Write one file of the rows of neighbours, ascending in their numbers, without those that do not stay (blocking)."""
    about = About(
        first=inputs[0].about.first,
        last=inputs[-1].about.last,
        revision=inputs[0].about.revision + 1 if len(inputs) == 1 else 0,
        accepted=inputs[-1].about.accepted,
        spans=span.union(each for file in inputs for each in file.spans),
    )
    servers = server_names(kind, inputs)  # known before the first row group is written
    rank = {name: at for at, name in enumerate(servers)}
    with ByMetric(kind, inputs, rank, keep) as batches:
        return write(folder, kind, about, servers, batches, width)


class ByMetric:
    """The rows of several files, metric by metric in the order of their keys; of a row that several have the last one's.

    `rank` gives the code of every server that may come; `keep` says which rows stay.
    """

    def __init__(
        self, kind: Format, inputs: Sequence[Sealed], rank: Mapping[str, int], keep: Keep | None = None
    ) -> None:
        self._kind = kind
        self._rank = rank
        self._keep = keep
        self._places: dict[str, list[tuple[int, int]]] = {}
        for at, sealed in enumerate(inputs):
            for index, keys in enumerate(sealed.groups):
                for key in keys:
                    self._places.setdefault(key, []).append((at, index))
        self._readers = [Reader(sealed, kind) for sealed in inputs]
        # For each input the row group that was read last, and where in it the rows of each metric are.
        self._held: dict[int, tuple[int, Mapping[str, int], Rows, Sequence[int]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._readers:
            reader.__exit__()

    def __iter__(self) -> Iterator[Batch]:
        for key in sorted(self._places):
            yield Batch([key], self.rows(key))

    def rows(self, key: str) -> Rows:
        """Return the rows of one metric, sorted by server and time; of keys in ascending order each group is read once."""
        parts = []
        for at, index in self._places.get(key, ()):
            codes_of, rows, begins = self._group(at, index)
            code = codes_of[key]
            parts.append(rows.take(slice(begins[code], begins[code + 1])))
        return _newest(parts) if parts else _no_rows(self._kind.names)

    def _group(self, at: int, index: int) -> tuple[Mapping[str, int], Rows, Sequence[int]]:
        held = self._held.get(at)
        if held is None or held[0] != index:
            metrics, servers, rows = self._readers[at].group(index, self._kind.names)
            if self._keep is not None:
                rows = rows.take(self._keep(metrics, servers, rows))
            if (rows.metrics[1:] < rows.metrics[:-1]).any():
                rows = rows.take(np.argsort(rows.metrics, kind="stable"))
            order = np.asarray([self._rank[name] for name in servers], np.int64)
            begins = np.searchsorted(rows.metrics, np.arange(len(metrics) + 1)).tolist()
            rows = rows._replace(servers=order[rows.servers] if len(order) else rows.servers)
            held = self._held[at] = index, {key: code for code, key in enumerate(metrics)}, rows, begins
        return held[1:]


def _no_rows(names: Sequence[str]) -> Rows:
    nothing = np.empty(0, np.int64)
    return Rows(nothing, nothing, nothing, {name: np.empty(0) for name in names})


def server_names(kind: Format, inputs: Sequence[Sealed]) -> list[str]:
    """Return the names of all servers in some files, sorted (blocking)."""
    names: set[str] = set()
    for file in inputs:
        with Reader(file, kind) as reader:
            names |= reader.servers()
    return sorted(names)


def _newest(parts: Sequence[Rows]) -> Rows:
    """Return the rows of one metric from several files: of those of one server and time the last file's."""
    if len(parts) == 1:
        return parts[0]._replace(metrics=np.zeros(len(parts[0].times), np.int64))
    servers = np.concatenate([part.servers for part in parts])
    times = np.concatenate([part.times for part in parts])
    values = {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values}
    order = np.lexsort((times, servers))  # stable: later files stay behind earlier ones
    servers, times = servers[order], times[order]
    last = np.ones(len(order), np.bool_)
    last[:-1] = (servers[1:] != servers[:-1]) | (times[1:] != times[:-1])
    kept = order[last]
    return Rows(
        np.zeros(len(kept), np.int64), servers[last], times[last], {name: v[kept] for name, v in values.items()}
    )
