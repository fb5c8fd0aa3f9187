"""The canonical bytes of an entry, of the file that an export makes, and of a checkpoint: docs/audit.md specifies them.

Whoever changes a byte here changes every hash: a new version of the format has another first byte, and both are read.
The verifier (`openmanager.audit_file`) is written from the specification and shares nothing with this.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openmanager.audit import Kind

VERSION = 1
MAGIC = b"OMAUDIT1"
CHECKPOINT_MAGIC = b"OpenManager audit checkpoint v1\n"
NO_HASH = bytes(32)
# version, kind, number, time, intent, code, count
_HEAD = struct.Struct(">BBQQQIQ")
_LENGTH = struct.Struct(">I")
_TEXTS = (
    "actor",
    "via",
    "action",
    "object",
    "reason",
    "request_id",
    "trace_id",
    "policy_version",
    "subject",
)
_BYTES = ("request_hash", "after_hash", "sealed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An entry of the log. Times are nanoseconds since the epoch; `intent` is 0 for all but outcomes."""

    number: int
    time_unix_nanos: int
    kind: Kind
    actor: str
    via: str
    action: str
    object: str = ""
    reason: str = ""
    request_id: str = ""
    trace_id: str = ""
    policy_version: str = ""
    subject: str = ""
    intent: int = 0
    code: int = 0
    count: int = 1
    request_hash: bytes = b""
    after_hash: bytes = b""
    sealed: bytes = b""
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What the whole log was at a size. `key_id` and `signature` are empty when it is not signed."""

    log_id: bytes
    size: int
    root: bytes
    time_unix_nanos: int
    previous: bytes
    key_id: bytes = b""
    signature: bytes = b""

    def body(self) -> bytes:
        """Return the bytes that are signed."""
        head = struct.pack(">16sQ32sQ", self.log_id, self.size, self.root, self.time_unix_nanos)
        return CHECKPOINT_MAGIC + head + (self.key_id or NO_HASH) + self.previous

    def digest(self) -> bytes:
        """Return what the next checkpoint names this one by."""
        return hashlib.sha256(self.body()).digest()

    def line(self) -> str:
        """Return the line of a file of checkpoints, with its end."""
        document = {
            "log": self.log_id.hex(),
            "size": self.size,
            "root": self.root.hex(),
            "time_unix_nanos": self.time_unix_nanos,
            "key_id": self.key_id.hex(),
            "previous": self.previous.hex(),
            "signature": self.signature.hex(),
        }
        return json.dumps(document) + "\n"


def encode(entry: Entry) -> bytes:
    """Return the canonical bytes of an entry."""
    parts = [
        _HEAD.pack(VERSION, entry.kind, entry.number, entry.time_unix_nanos, entry.intent, entry.code, entry.count)
    ]
    parts.extend(_sized(getattr(entry, name).encode()) for name in _TEXTS)
    parts.extend(_sized(getattr(entry, name)) for name in _BYTES)
    parts.append(encode_map(entry.details))
    return b"".join(parts)


def encode_map(found: Mapping[str, str]) -> bytes:
    """Return the canonical bytes of names with values: in the order of the names' bytes."""
    pairs = sorted((key.encode(), value.encode()) for key, value in found.items())
    return _LENGTH.pack(len(pairs)) + b"".join(_sized(part) for pair in pairs for part in pair)


def decode(data: bytes) -> Entry:
    """Return the entry of its canonical bytes; ValueError when they are none."""
    try:
        version, kind, number, time, intent, code, count = _HEAD.unpack_from(data)
        reader = _Reader(data, _HEAD.size)
        if version != VERSION:
            raise ValueError("an entry of another version")
        values: dict[str, Any] = {name: reader.text() for name in _TEXTS}
        values |= {name: reader.take() for name in _BYTES}
        values["details"] = reader.map()
        reader.end()
    except (struct.error, UnicodeDecodeError) as err:
        raise ValueError("no entry") from err
    return Entry(number=number, time_unix_nanos=time, kind=Kind(kind), intent=intent, code=code, count=count, **values)


def decode_map(data: bytes) -> dict[str, str]:
    """Return the names and values of their canonical bytes; ValueError when they are none."""
    reader = _Reader(data, 0)
    try:
        found = reader.map()
        reader.end()
    except (struct.error, UnicodeDecodeError) as err:
        raise ValueError("no map") from err
    return found


def file_head(log_id: bytes, first: int, hashes: Sequence[bytes]) -> bytes:
    """Return the head of a file that begins with the entry `first`; `hashes` stand for what was before it."""
    return MAGIC + log_id + struct.pack(">QI", first, len(hashes)) + b"".join(hashes)


def framed(entry: bytes) -> bytes:
    """Return the record of an entry in a file."""
    return _sized(entry)


def _sized(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


class _Reader:
    """Reads sized parts one after the other."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at

    def number(self) -> int:
        found = int(_LENGTH.unpack_from(self._data, self._at)[0])
        self._at += _LENGTH.size
        return found

    def take(self) -> bytes:
        size = self.number()
        found = self._data[self._at : self._at + size]
        if len(found) != size:
            raise ValueError("it ends too soon")
        self._at += size
        return found

    def text(self) -> str:
        return self.take().decode()

    def map(self) -> dict[str, str]:
        return {self.text(): self.text() for _ in range(self.number())}

    def end(self) -> None:
        if self._at != len(self._data):
            raise ValueError("there is something after it")
