"""Checksums of what a folder of history holds: for every series of every tier, and of the log beyond the blocks.

A checksum is the sum, modulo 2^64, of a hash of each row: it does not depend on which file holds a row, nor on the order.
It finds what went wrong by accident; against those who forge a backup stands its encryption.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from crc32c import crc32c
from numpy.typing import NDArray

from openmanager import durable
from openmanager.api.frame.v1 import frame_pb2
from openmanager.frame import decode_trusted
from openmanager_timeseries import block
from openmanager_timeseries.log import SUFFIX
from openmanager_timeseries.record import SEGMENT_HEADER, Record, scan
from openmanager_timeseries.rollup_file import ROLLUPS, SKETCHES
from openmanager_timeseries.sealed import SUFFIX as SEALED
from openmanager_timeseries.sealed import Format, Name, Reader, open_sealed

Hashes = NDArray[np.uint64]
KEYS = ["tier", "server", "metric"]
SCHEMA = pa.schema([*((name, pa.string()) for name in KEYS), ("row_count", pa.int64()), ("checksum", pa.uint64())])
_MANY = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Checksums:
    """What a folder holds. `table` has a row for each series of each tier; `position` is the last of the log."""

    table: pa.Table
    position: int
    accepted: int
    # Files that cannot be read, and have no part in the table.
    damaged: tuple[str, ...]


def checksums(folder: Path, cache: Path | None = None) -> Checksums:
    """Return the checksums of a folder that nobody writes to (blocking).

    Those of sealed files, which never change, are kept in `cache` and not computed again; without one all are.
    """
    damaged: list[str] = []
    parts: list[pa.Table] = []
    last = 0
    kept = set()
    for tier, path, kind in _sealed_files(folder):
        try:
            found = _of_file(tier, path, kind) if cache is None else _cached(cache, tier, path, kind)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
            damaged.append(path.name)
            continue
        kept.add(_cached_name(tier, path))
        last = max(last, Name.parse(path.name).last) if tier == "raw" else last
        parts.append(found)
        if sum(map(len, parts)) > _MANY:
            parts = [_summed(parts)]
    for path in cache.iterdir() if cache is not None and cache.is_dir() else ():
        if path.name not in kept:
            path.unlink()
    log, position, accepted = _of_log(folder / "log", last)
    table = _summed([*parts, log]).sort_by([(name, "ascending") for name in KEYS])
    return Checksums(table=table, position=position, accepted=accepted, damaged=tuple(damaged))


def differences(expected: pa.Table, found: pa.Table) -> list[str]:
    """Return the series, as `tier server metric`, whose checksums differ or that only one of two tables has."""
    if expected.equals(found):
        return []
    one, other = (
        {tuple(row[name] for name in KEYS): (row["row_count"], row["checksum"]) for row in table.to_pylist()}
        for table in (expected, found)
    )
    return sorted(" ".join(key) for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def _sealed_files(folder: Path) -> Iterator[tuple[str, Path, Format]]:
    for path in sorted((folder / "blocks").glob(f"*{SEALED}")):
        yield "raw", path, block.FORMAT
    for path in sorted((folder / "tiers").glob(f"*/*{SEALED}")):
        yield path.parent.name, path, ROLLUPS
    for path in sorted((folder / "sketches").glob(f"*/*{SEALED}")):
        yield f"{path.parent.name} sketches", path, SKETCHES


def _cached_name(tier: str, path: Path) -> str:
    return f"{tier}.{path.name}"


def _cached(cache: Path, tier: str, path: Path, kind: Format) -> pa.Table:
    """Return the checksums of a file's series, as they were computed before; a file's name tells its content."""
    place = cache / _cached_name(tier, path)
    with contextlib.suppress(pa.ArrowException, OSError):  # not there, or damaged
        found = pq.read_table(place, page_checksum_verification=True)
        if found.schema.equals(SCHEMA):
            return found
    made = _of_file(tier, path, kind)
    buffer = pa.BufferOutputStream()
    pq.write_table(made, buffer, compression="zstd", write_page_checksum=True)
    cache.mkdir(mode=0o700, exist_ok=True)
    durable.replace(place, buffer.getvalue().to_pybytes())
    return made


def _of_file(tier: str, path: Path, kind: Format) -> pa.Table:
    """Return the checksums of a file's series."""
    sealed = open_sealed(path)
    parts = []
    with Reader(sealed, kind) as reader:
        for index in range(len(sealed.groups)):
            metrics, servers, rows = reader.group(index, kind.names)
            if not len(rows.times):
                continue
            hashes = _mixed(rows.times.view(np.uint64))
            for name in kind.names:
                hashes = _mixed(hashes + _bits(rows.values[name]))
            changes = (rows.metrics[1:] != rows.metrics[:-1]) | (rows.servers[1:] != rows.servers[:-1])
            starts = np.flatnonzero(np.append(True, changes))
            counts = np.diff(np.append(starts, len(hashes)))
            parts.append(
                _table(
                    tier,
                    [servers[code] for code in rows.servers[starts].tolist()],
                    [metrics[code] for code in rows.metrics[starts].tolist()],
                    counts,
                    np.add.reduceat(hashes, starts),
                )
            )
    return _summed(parts)


def _of_log(folder: Path, after: int) -> tuple[pa.Table, int, int]:
    """Return the checksums of the frames after a position, the last position, and the running total there."""
    sums: dict[tuple[Any, Any], tuple[NDArray[np.int64], Hashes]] = {}
    position = accepted = 0
    for record in _records(folder):
        position, accepted = record.position, record.accepted
        if position <= after:
            continue
        frame = decode_trusted(frame_pb2.Frame.FromString(bytes(record.payload)))
        there = ~np.isnan(frame.values)
        times = _mixed(frame.times.view(np.uint64))[:, None, None]
        hashes = np.where(there, _mixed(times + _bits(frame.values)), np.uint64(0)).sum(axis=0, dtype=np.uint64)
        counts = there.sum(axis=0)
        key = (tuple(frame.servers), tuple(frame.metrics))
        known = sums.get(key)
        sums[key] = (counts, hashes) if known is None else (known[0] + counts, known[1] + hashes)
    parts = []
    for (servers, metrics), (counts, hashes) in sums.items():
        at = np.nonzero(counts)
        names = [servers[index] for index in at[0].tolist()], [metrics[index] for index in at[1].tolist()]
        parts.append(_table("log", *names, counts[at], hashes[at]))
    return _summed(parts), position, accepted


def _records(folder: Path) -> Iterator[Record]:
    """Yield the records of a log, in order; what a crash may have left behind the end of a segment is none of it."""
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    borders = [int(path.stem) for path in paths[1:]]
    for path, border in zip(paths, [*borders, None], strict=False):  # of no segments there is no last one
        data = path.read_bytes()
        first = int(path.stem)
        limits = () if border is None else (border - 1,)
        for item, _ in scan(data, SEGMENT_HEADER.size, first - 1, *limits):
            if isinstance(item, Record):
                yield item


def _table(tier: str, servers: list[str], metrics: list[str], counts: Any, hashes: Hashes) -> pa.Table:
    return pa.table([[tier] * len(servers), servers, metrics, counts, hashes], schema=SCHEMA)


def _summed(parts: list[pa.Table]) -> pa.Table:
    """Return one row for each series of some tables."""
    if not parts:
        return SCHEMA.empty_table()
    found = pa.concat_tables(parts).group_by(KEYS).aggregate([("row_count", "sum"), ("checksum", "sum")])
    return pa.table([*(found[name] for name in KEYS), found["row_count_sum"], found["checksum_sum"]], schema=SCHEMA)


def _bits(values: Any) -> Hashes:
    """Return a column as numbers: the bits of doubles, a checksum of texts."""
    if values.dtype == object:
        return np.fromiter(map(crc32c, values), np.uint64, len(values))
    return np.ascontiguousarray(values, np.float64).view(np.uint64)


def _mixed(numbers: Hashes) -> Hashes:
    """Return numbers whose every bit depends on every bit of these (the finaliser of SplitMix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
