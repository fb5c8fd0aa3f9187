"""Where the rows of an export go: a file in the making, or standard output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import click

from openmanager.cli.part import PartFile

if TYPE_CHECKING:
    import pyarrow as pa

    from openmanager.api.timeseries.v1.timeseries_pb2 import ExportChunk

# Small row groups make large files: the chunks of a reply are put together up to so many rows.
GROUP_ROWS = 128 << 10
_LENGTH_BYTES = 4


class Text(Protocol):
    """A format that is lines."""

    def header(self, names: list[str]) -> bytes:
        """Return what comes before the lines of tables with some columns."""
        ...

    def encode(self, table: pa.Table) -> bytes:
        """Return the lines of a table."""
        ...


class Sink(Protocol):
    """Where chunks go (blocking); `size_bytes` is what was written so far."""

    row_count: int
    size_bytes: int

    def take(self, chunk: ExportChunk) -> None:
        """Write the rows of a chunk."""
        ...

    def finish(self) -> None:
        """Write the end."""
        ...

    def close(self) -> None:
        """Let go, also of what is not whole."""
        ...


class Stdout:
    """Standard output as a file that knows where it is."""

    closed = False
    state: dict[str, Any] = {}  # noqa: RUF012  (nothing is ever there to go on with)

    def __init__(self) -> None:
        self._size = 0

    def write(self, data: bytes, **_: Any) -> None:
        """Write some bytes."""
        sys.stdout.buffer.write(data)
        self._size += len(data)

    def tell(self) -> int:
        """Return how much was written."""
        return self._size

    def flush(self) -> None:
        """Let whoever reads have it."""
        sys.stdout.buffer.flush()

    finish = close = flush


class TextSink:
    """Lines. In a file in the making they are cut to the last whole chunk and appended to."""

    def __init__(self, out: PartFile | Stdout, text: Text, tier: str) -> None:
        self._out = out
        self._tier = tier
        self._text = text
        self.row_count: int = out.state.get("rows", 0)
        self.size_bytes: int = out.state.get("size_bytes", 0)

    def take(self, chunk: ExportChunk) -> None:
        """Write the rows of a chunk."""
        table = table_of(chunk.parquet)
        data = self._text.encode(table)
        if not self.size_bytes:
            data = self._text.header(table.column_names) + data
        self.row_count += chunk.row_count
        self._out.write(data, rows=self.row_count, token=chunk.resume_token)
        self.size_bytes += len(data)

    def finish(self) -> None:
        """Write at least the header."""
        if not self.size_bytes:
            self._out.write(self._text.header(list(_empty(self._tier).names)))
        self._out.finish()

    def close(self) -> None:
        """Leave it as it is."""
        self._out.close()


class ParquetSink:
    """Parquet on standard output."""

    def __init__(self, tier: str) -> None:
        if sys.stdout.isatty():
            raise click.UsageError("Parquet is not for a terminal: send it to a file or a program")
        self._out = Stdout()
        self._writer = _Parquet(self._out, tier)
        self.row_count = self.size_bytes = 0

    def take(self, chunk: ExportChunk) -> None:
        """Write the rows of a chunk, when there are enough for a row group."""
        self._writer.write(table_of(chunk.parquet))
        self.row_count += chunk.row_count
        self.size_bytes = self._out.tell()

    def finish(self) -> None:
        """Write what waits, and the end."""
        self._writer.close()
        self._out.flush()
        self.size_bytes = self._out.tell()

    def close(self) -> None:
        """Leave standard output open."""


class ParquetFileSink:
    """A Parquet file. Its end can only be written once, so what is in the making are the chunks as they came."""

    def __init__(self, part: PartFile, tier: str) -> None:
        self._part = part
        self._tier = tier
        self.row_count: int = part.state["rows"]
        self.size_bytes: int = part.state.get("size_bytes", 0)

    def take(self, chunk: ExportChunk) -> None:
        """Keep a chunk."""
        data = len(chunk.parquet).to_bytes(_LENGTH_BYTES, "little") + chunk.parquet
        self.row_count += chunk.row_count
        self._part.write(data, rows=self.row_count, token=chunk.resume_token)
        self.size_bytes += len(data)

    def finish(self) -> None:
        """Make one file of the chunks."""
        whole = self._part.path.with_name(self._part.path.name + ".new")
        try:
            with whole.open("wb") as file:
                writer = _Parquet(file, self._tier)
                for data in self._chunks():
                    writer.write(table_of(data))
                writer.close()
                file.flush()
                os.fsync(file.fileno())
            self.size_bytes = whole.stat().st_size
            self._part.finish(whole)
        finally:
            whole.unlink(missing_ok=True)

    def _chunks(self) -> Iterator[bytes]:
        self._part.file.seek(0)
        while length := self._part.file.read(_LENGTH_BYTES):
            yield self._part.file.read(int.from_bytes(length, "little"))

    def close(self) -> None:
        """Leave it as it is."""
        self._part.close()


class _Parquet:
    """Writes tables as row groups of one Parquet file, which says its tier."""

    def __init__(self, file: Any, tier: str) -> None:
        self._file = file
        self._tier = tier
        self._writer: Any = None
        self._waiting: list[pa.Table] = []

    def write(self, table: pa.Table) -> None:
        self._waiting.append(table)
        if sum(map(len, self._waiting)) >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        tables, self._waiting = self._waiting or [_empty(self._tier).empty_table()], []
        # The names of two chunks are numbered each in its own way.
        whole = pa.concat_tables(tables).unify_dictionaries()
        if self._writer is None:
            self._writer = self._begin(whole.schema)
        self._writer.write_table(whole, row_group_size=max(1, len(whole)))

    def _begin(self, schema: pa.Schema) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        metadata = {b"openmanager": json.dumps({"tier": self._tier}).encode()}
        doubles = [field.name for field in schema if pa.types.is_floating(field.type)]
        return pq.ParquetWriter(
            self._file,
            schema.with_metadata(metadata),
            compression="zstd",
            use_dictionary=["metric", "server"],
            column_encoding={"time": "DELTA_BINARY_PACKED", **dict.fromkeys(doubles, "BYTE_STREAM_SPLIT")},
        )

    def close(self) -> None:
        if self._waiting or self._writer is None:
            self._flush()
        self._writer.close()


def table_of(data: bytes) -> pa.Table:
    """Return the rows of a chunk."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.read_table(pa.BufferReader(data))


def _empty(tier: str) -> pa.Schema:
    """Return the columns of a file of a tier without rows."""
    import pyarrow as pa

    from openmanager.rollup import COLUMNS

    names = pa.dictionary(pa.int32(), pa.string())
    numbers = ("value",) if tier == "raw" else COLUMNS
    return pa.schema(
        [("metric", names), ("server", names), ("time", pa.timestamp("ms", "UTC"))]
        + [(name, pa.int64() if name == "count" else pa.float64()) for name in numbers]
    )
