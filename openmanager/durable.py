"""Small files that are replaced as a whole: aside, synced, renamed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from openmanager import failpoint

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_TRAILER = b"\n%08x"
_DAMAGED = "the file is not what was written"
_PART_BYTES = 1 << 20


def replace(path: Path, content: bytes) -> None:
    """Give a file new content, atomically and durably, its name included (blocking)."""
    with _replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    aside = path.with_name(path.name + ".new")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        failpoint.passed("durable.before-rename")
        aside.replace(path)
    except Exception:
        aside.unlink(missing_ok=True)  # on a full disk half a file is in the way
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Return when a file, or which files a folder has, survives a power loss (blocking)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(body: bytes) -> bytes:
    """Return what a file holds, with the checksum that `unseal` wants to see."""
    return body + _TRAILER % zlib.crc32(body)


def unseal(raw: bytes) -> bytes:
    """Undo `seal`; ValueError for what it did not write."""
    body, _, checksum = raw.rpartition(b"\n")
    if zlib.crc32(body) != int(checksum, 16):
        raise ValueError(_DAMAGED)
    return body


class Sealing(io.RawIOBase):
    """What is written into a file that `sealing` replaces; it can be written to and nothing else."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.checksum = 0

    def write(self, data: Buffer) -> int:
        """Write more."""
        self.checksum = zlib.crc32(data, self.checksum)
        return self._file.write(data)


@contextlib.contextmanager
def sealing(path: Path) -> Iterator[Sealing]:
    """Replace a file, as `replace` does with what `seal` returns, by what is written meanwhile (blocking)."""
    with _replacing(path) as file:
        written = Sealing(file)
        yield written
        file.write(_TRAILER % written.checksum)


@contextlib.contextmanager
def unsealing(path: Path) -> Iterator[BinaryIO]:
    """Open what `sealing` or `seal` made, once all of it was read and found to be whole (blocking).

    The trailer is at its end. FileNotFoundError without a file, OSError or ValueError for a damaged one.
    """
    with path.open("rb") as file:
        left, checksum = path.stat().st_size - len(_TRAILER % 0), 0
        while left > 0 and (part := file.read(min(left, _PART_BYTES))):
            left, checksum = left - len(part), zlib.crc32(part, checksum)
        if left or file.read() != _TRAILER % checksum:
            raise ValueError(_DAMAGED)
        file.seek(0)
        yield file


def encode(document: Any) -> bytes:
    """Return a JSON document as a file holds it, sealed."""
    return seal(json.dumps(document).encode())


def load(path: Path) -> Any:
    """Return the document of a file (blocking); FileNotFoundError without one, OSError or ValueError if it is damaged."""
    return decode(path.read_bytes())


def decode(raw: bytes) -> Any:
    """Undo `encode`; ValueError for what it did not write."""
    return json.loads(unseal(raw))
