"""What the detector has learnt, as one file: arrays and a JSON document, checked as a whole."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openmanager import durable

# Another version is not read: the detector begins anew.
VERSION = 1
_MAGIC = b"OMANALYS"
_NUMBER_BYTES = 4


class StateError(Exception):
    """A file that is damaged, or of another version."""


def encode(document: Mapping[str, Any], detector: bytes) -> bytes:
    """Return the bytes of a file: magic, version, CRC-32 of the rest, then two parts, each after its length."""
    text = zlib.compress(json.dumps(document).encode(), 1)
    body = b"".join((_number(len(text)), text, detector))
    return b"".join((_MAGIC, _number(VERSION), _number(zlib.crc32(body)), body))


def decode(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """Undo `encode`; StateError for what this version did not write."""
    head = len(_MAGIC) + 2 * _NUMBER_BYTES
    body = raw[head:]
    if raw[: len(_MAGIC)] != _MAGIC or len(body) < _NUMBER_BYTES:
        raise StateError("no state of an analysis")
    version, checksum = (_read(raw, len(_MAGIC) + at) for at in (0, _NUMBER_BYTES))
    if version != VERSION:
        raise StateError(f"of version {version}, and {VERSION} is read")
    if checksum != zlib.crc32(body):
        raise StateError("damaged")
    size = _read(body, 0)
    document = json.loads(zlib.decompress(body[_NUMBER_BYTES : _NUMBER_BYTES + size]))
    return document, body[_NUMBER_BYTES + size :]


def save(path: Path, document: Mapping[str, Any], detector: bytes) -> int:
    """Store a state, whole or not at all, and return its size in bytes (blocking)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = encode(document, detector)
    durable.replace(path, content)
    return len(content)


def load(path: Path) -> tuple[dict[str, Any], bytes] | None:
    """Return the stored state, None without one (blocking); StateError or OSError when it cannot be read."""
    try:
        return decode(path.read_bytes())
    except FileNotFoundError:
        return None


def _number(value: int) -> bytes:
    return value.to_bytes(_NUMBER_BYTES, "big")


def _read(raw: bytes, at: int) -> int:
    return int.from_bytes(raw[at : at + _NUMBER_BYTES], "big")
