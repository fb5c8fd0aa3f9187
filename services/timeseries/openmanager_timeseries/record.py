"""Records of the log and how they are found again in damaged bytes.

A segment is a header of 16 bytes (magic, first position) and then records::

    length u32 | crc32c u32 | position u64 | receive time i64 ns | accepted u64 | samples u32 | trace 25 B | 3 B zero

followed by the frame. Everything is little-endian. `length` is that of the frame; the checksum covers all that follows
it and the length; `samples` counts those of this frame, `accepted` all that were acknowledged up to and including it, so
that what a hole held can be told.
Positions grow from record to record; after damage they may skip, never repeat.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import google_crc32c

MAGIC = b"OMLOG\x01\x00\x00"
SEGMENT_HEADER = struct.Struct("<8sQ")
_RECORD_HEADER = struct.Struct("<IIQqQI25s3x")
_CHECKED_FROM = 8  # the checksum covers everything after itself, and the length
_TRACE = struct.Struct(">16s8sB")
_NO_TRACE = b"\0" * 25

RECORD_OVERHEAD = _RECORD_HEADER.size
MAX_RECORD_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Record:
    """One frame of the log. `payload` is the frame's wire form; `accepted` the running total of samples."""

    position: int
    receive_nanos: int
    accepted: int
    samples: int
    trace_parent: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a segment that are no record: at the end of the last segment a torn write, elsewhere a loss."""

    offset: int
    size: int


def pack_trace(trace_parent: str) -> bytes:
    """Return the 25 bytes of a W3C `traceparent`; zeros when there is none or it is malformed."""
    parts = trace_parent.split("-")
    try:
        return _TRACE.pack(bytes.fromhex(parts[1]), bytes.fromhex(parts[2]), int(parts[3], 16))
    except (IndexError, ValueError, struct.error):
        return _NO_TRACE


def unpack_trace(packed: bytes) -> str:
    """Undo `pack_trace`."""
    if packed == _NO_TRACE:
        return ""
    trace, span, flags = _TRACE.unpack(packed)
    return f"00-{trace.hex()}-{span.hex()}-{flags:02x}"


def encode_header(record: Record) -> bytes:
    """Return the header that stands before a record's payload in a segment."""
    header = bytearray(
        _RECORD_HEADER.pack(
            len(record.payload),
            0,
            record.position,
            record.receive_nanos,
            record.accepted,
            record.samples,
            pack_trace(record.trace_parent),
        )
    )
    struct.pack_into("<I", header, 4, _checksum(bytes(header), record.payload))
    return bytes(header)


def _checksum(header: bytes, payload: bytes) -> int:
    crc = google_crc32c.value(header[:4] + header[_CHECKED_FROM:])
    return int(google_crc32c.extend(crc, payload))


def decode_at(data: bytes, offset: int) -> tuple[Record, int] | None:
    """Return the record at `offset` of a segment's bytes and the offset after it; None when there is no whole one."""
    start = offset + RECORD_OVERHEAD
    if start > len(data):
        return None
    header = data[offset:start]
    size, crc, position, receive_nanos, accepted, samples, trace = _RECORD_HEADER.unpack(header)
    if position == 0 or size > MAX_RECORD_BYTES or start + size > len(data):
        return None
    payload = data[start : start + size]
    if _checksum(header, payload) != crc:
        return None
    return Record(position, receive_nanos, accepted, samples, unpack_trace(trace), payload), start + size


def scan(data: bytes, offset: int, position: int) -> Iterator[tuple[Record | Damage, int]]:
    """Yield the records from `offset` on, and damage between them, each with the offset after it.

    `position` is the last one that was seen: what is not newer (a copied segment) is passed over.
    """
    while offset < len(data):
        found = decode_at(data, offset)
        if found is None:
            again = _resync(data, offset, position)
            yield Damage(offset, again - offset), again
            offset = again
            continue
        record, offset = found
        if record.position > position:
            position = record.position
            yield record, offset


def _resync(data: bytes, offset: int, position: int) -> int:
    """Return the offset of the next whole record after damage, the end of the data when there is none.

    The next positions are known, and a position stands in the open: look for its bytes, then believe only a checksum.
    """
    position_at = 8
    for ahead in range(1, 65):
        wanted = struct.pack("<Q", position + ahead)
        at = data.find(wanted, offset + 1 + position_at)
        while at >= 0:
            if decode_at(data, at - position_at) is not None:
                return at - position_at
            at = data.find(wanted, at + 1)
    return _resync_anywhere(data, offset)


def _resync_anywhere(data: bytes, offset: int) -> int:
    """Look for a record of any position: three zero bytes stand before the frame in every header."""
    zeros_at = RECORD_OVERHEAD - 3
    at = data.find(b"\0\0\0", offset + 1 + zeros_at)
    while at >= 0:
        if decode_at(data, at - zeros_at) is not None:
            return at - zeros_at
        at = data.find(b"\0\0\0", at + 1)
    return len(data)
