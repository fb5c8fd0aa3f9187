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
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from crc32c import crc32c

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

# A frame in its wire form; a view where it was cut out of a larger message.
Payload = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Record:
    """One frame of the log. `payload` is the frame's wire form; `accepted` the running total of samples."""

    position: int
    receive_nanos: int
    accepted: int
    samples: int
    trace_parent: str
    payload: Payload


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


def _checksum(header: bytes, payload: Payload) -> int:
    return crc32c(payload, crc32c(header[:4] + header[_CHECKED_FROM:]))


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
    while (found := decode_at(data, offset)) and position + 1 == found[0].position <= last:
        record, offset = found
        position = record.position
        yield record, offset
    for at in _rest(data, offset, position, min(last, position + _FARTHEST)):
        if at > offset:
            yield Damage(offset, at - offset), at
        if (found := decode_at(data, at)) is not None:
            offset = found[1]
            yield found
    if offset < len(data):
        yield Damage(offset, len(data) - offset), len(data)


def _rest(data: bytes, offset: int, position: int, last: int) -> list[int]:
    """Return the offsets of the records beyond something that is none.

    Some may stand in a wrong place, and would hide those that they precede: of all that are whole, take the most that
    are in order (the longest increasing subsequence of positions).
    """
    offsets: list[int] = []
    before: list[int] = []  # for each record, the index of the one before it in the longest row that ends with it
    ends: list[int] = []  # for each length, the index of the record with the smallest position that ends a row
    positions: list[int] = []  # the positions of `ends`
    found = _nearest(data, offset, position, last)
    while found is not None:
        at, record, after = found
        length = bisect_left(positions, record.position)
        before.append(ends[length - 1] if length else -1)
        ends[length : length + 1] = [len(offsets)]
        positions[length : length + 1] = [record.position]
        offsets.append(at)
        found = _nearest(data, after, position, last)
    row = []
    index = ends[-1] if ends else -1
    while index >= 0:
        row.append(offsets[index])
        index = before[index]
    return row[::-1]


def _nearest(data: bytes, offset: int, position: int, last: int) -> tuple[int, Record, int] | None:
    """Return the nearest whole record after `position` and up to `last`, with its offset and the one after it."""
    size = 1
    end = len(data) - RECORD_OVERHEAD + 1
    while offset < end:
        # A position stands in the open: look for one in range at every byte, then believe only a checksum.
        positions = np.ndarray(min(size, end - offset), "<u8", data, offset + _POSITION_AT, 1)
        for at in np.flatnonzero((positions > position) & (positions <= last)).tolist():
            if (found := decode_at(data, offset + at)) is not None:
                return offset + at, *found
        offset, size = offset + size, min(size << 8, 1 << 18)  # mostly it is near
    return None
