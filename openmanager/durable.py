"""Small files that are replaced as a whole: aside, synced, renamed."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

from openmanager import failpoint


def replace(path: Path, content: bytes) -> None:
    """Give a file new content, atomically and durably, its name included (blocking)."""
    aside = path.with_name(path.name + ".new")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        failpoint.passed("durable.before-rename")
        aside.replace(path)
    except OSError:
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
    return body + b"\n%08x" % zlib.crc32(body)


def unseal(raw: bytes) -> bytes:
    """Undo `seal`; ValueError for what it did not write."""
    body, _, checksum = raw.rpartition(b"\n")
    if zlib.crc32(body) != int(checksum, 16):
        raise ValueError("the file is not what was written")
    return body


def encode(document: Any) -> bytes:
    """Return a JSON document as a file holds it, sealed."""
    return seal(json.dumps(document).encode())


def load(path: Path) -> Any:
    """Return the document of a file (blocking); FileNotFoundError without one, OSError or ValueError if it is damaged."""
    return decode(path.read_bytes())


def decode(raw: bytes) -> Any:
    """Undo `encode`; ValueError for what it did not write."""
    return json.loads(unseal(raw))
