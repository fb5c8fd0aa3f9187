"""Records of the log and how they are found again in damaged bytes.

A segment is a header of 16 bytes (magic, first position) and then records::

    length u32 | crc32c u32 | position u64 | receive time i64 ns | accepted u64 | samples u32 | trace 25 B | 3 B zero

followed by the frame. Everything is little-endian. `length` is that of the frame; the checksum covers all that follows
it and the length; `samples` counts those of this frame, `accepted` all that were acknowledged up to and including it, so
that what a hole held can be told.
Within a segment the positions follow one another; from one to the next they may skip, never repeat.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import google_crc32c
import numpy as np

MAGIC = b"OMLOG\x01\x00\x00"
SEGMENT_HEADER = struct.Struct("<8sQ")
_RECORD_HEADER = struct.Struct("<IIQqQI25s3x")
_CHECKED_FROM = 8  # the checksum covers everything after itself, and the length
_POSITION_AT = 8
_FARTHEST = 1 << 20  # positions that a hole may hold: those of a segment, and many more
_TRACE = struct.Struct(">16s8sB")
_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_NO_TRACE = b"\0" * 25

RECORD_OVERHEAD = _RECORD_HEADER.size
MAX_RECORD_BYTES = 4 * 1024 * 1024
MAX_POSITION = (1 << 62) - 1


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
    found = _TRACE_PARENT.fullmatch(trace_parent)
    return bytes.fromhex("".join(found.groups())) if found else _NO_TRACE


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


def scan(data: bytes, offset: int, position: int, last: int = MAX_POSITION) -> Iterator[tuple[Record | Damage, int]]:
    """Yield the records from `offset` on, and damage between them, each with the offset after it.

    `position` is that of the record that ends at `offset`. What is not between it and `last` is none of this segment's,
    be it whole: bytes that were copied to a wrong place, or a batch that was given up.
    """
    while offset < len(data):
        found = decode_at(data, offset)
        if found is None or not position + 1 == found[0].position <= last:
            at = _find(data, offset, position, min(last, position + _FARTHEST))
            if at > offset:
                yield Damage(offset, at - offset), at
            found = decode_at(data, at)
            if found is None:
                return
        record, offset = found
        position = record.position
        yield record, offset


def _find(data: bytes, offset: int, position: int, last: int) -> int:
    """Return the offset of the next record of the segment, the end of the data when there is none."""
    found = at = _nearest(data, offset, position, last)
    while at < len(data) and (ahead := _position_at(data, at)) > position + 1 + (at - offset) // RECORD_OVERHEAD:
        # Further ahead than the bytes in between account for: it is out of place if one follows that it would hide.
        found, last = at, ahead - 1
        at = _nearest(data, at + 1, position, last)
    return at if at < len(data) else found


def _nearest(data: bytes, offset: int, position: int, last: int) -> int:
    """Return the offset of the nearest whole record after `position` and up to `last`; else the end of the data."""
    for start, count in _windows(offset, len(data) - RECORD_OVERHEAD + 1):
        # A position stands in the open: look for one in range at every byte, then believe only a checksum.
        positions = np.ndarray(count, "<u8", data, start + _POSITION_AT, 1)
        for at in np.flatnonzero((positions > position) & (positions <= last)).tolist():
            if decode_at(data, start + at) is not None:
                return start + int(at)
    return len(data)


def _windows(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut [start, end) in growing pieces: what is looked for is mostly at the very beginning."""
    size = 1 << 12
    while start < end:
        size = min(size, end - start)
        yield start, size
        start, size = start + size, 1 << 18


def _position_at(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset + _POSITION_AT : offset + _POSITION_AT + 8], "little")
