"""The few things that the log asks of a file system, as a port, so that tests can lose what was not synced.

Names are relative to one folder. Every call may raise OSError; ENOSPC and EIO are what the log is prepared for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class File(Protocol):
    """A file that is being appended to."""

    def append(self, parts: Sequence[bytes | memoryview]) -> None:
        """Write all parts at the end, in order."""
        ...

    def sync(self) -> None:
        """Return when what was written survives a power loss."""
        ...

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes; the next append goes there."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class Disk(Protocol):
    """One folder of files."""

    def create(self, name: str) -> File:
        """Create an empty file and return it; its name is durable only after `sync`."""
        ...

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset` on; fewer at the end of the file."""
        ...

    def sizes(self) -> dict[str, int]:
        """Return the size of every file by its name."""
        ...

    def remove(self, name: str) -> None:
        """Delete a file; nothing happens when it does not exist."""
        ...

    def replace(self, name: str, content: bytes) -> None:
        """Give a file new content, atomically and durably, its name included."""
        ...

    def sync(self, name: str = "") -> None:
        """Return when a file's content survives a power loss; without a name, which files there are."""
        ...

    def free_bytes(self) -> tuple[int, int]:
        """Return the free and the total bytes of the volume."""
        ...


class PosixFile:
    """A file of the operating system."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def append(self, parts: Sequence[bytes | memoryview]) -> None:
        """Write all parts with as few system calls as possible; a short write is continued."""
        pending = [memoryview(part) for part in parts if len(part)]
        done = 0
        while done < len(pending):
            written = os.writev(self._descriptor, pending[done : done + 1024])
            while done < len(pending) and written >= len(pending[done]):
                written -= len(pending[done])
                done += 1
            if written:
                pending[done] = pending[done][written:]

    def sync(self) -> None:
        """Flush data and size to the device."""
        os.fdatasync(self._descriptor)

    def truncate(self, size: int) -> None:
        """Cut the file."""
        os.ftruncate(self._descriptor, size)
        os.lseek(self._descriptor, size, os.SEEK_SET)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)


class PosixDisk:
    """A folder of the operating system."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        _make(folder)

    def create(self, name: str) -> PosixFile:
        """Create an empty file."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        return PosixFile(os.open(self._folder / name, flags, 0o640))

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Read a range of a file."""
        with (self._folder / name).open("rb", buffering=0) as file:
            file.seek(offset)
            return file.read(size)

    def sizes(self) -> dict[str, int]:
        """List the files."""
        found = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_file():
                        found[entry.name] = entry.stat().st_size
        return found

    def remove(self, name: str) -> None:
        """Delete a file if it is there."""
        (self._folder / name).unlink(missing_ok=True)

    def replace(self, name: str, content: bytes) -> None:
        """Write aside, sync, rename, sync the folder."""
        aside = f"{name}.new"
        try:
            with contextlib.closing(self.create(aside)) as file:
                file.append([content])
                file.sync()
        except OSError:
            self.remove(aside)  # on a full disk every byte counts
            raise
        (self._folder / aside).replace(self._folder / name)
        self.sync()

    def sync(self, name: str = "") -> None:
        """Sync a file or the folder."""
        _sync(self._folder / name)

    def free_bytes(self) -> tuple[int, int]:
        """Ask the volume."""
        found = os.statvfs(self._folder)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def _make(folder: Path) -> None:
    """Make a folder with what is above it, durably: a folder whose name is lost takes its files with it."""
    if not folder.parent.exists():
        _make(folder.parent)
    folder.mkdir(exist_ok=True, mode=0o750)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
