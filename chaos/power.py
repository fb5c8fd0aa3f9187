"""A folder of timeseries that loses, with the process that uses it, whatever was not synced.

A kernel keeps what a killed process has written, so killing alone never finds a sync that was forgotten. Here appended
bytes wait in the process for their sync, and files that were created, renamed or deleted keep their old names until
the folder is synced: to kill the process is to cut the power. Half of what is appended goes to the kernel at once, as a
kernel writes back what it likes, so that a cut leaves torn records behind.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Sequence
from pathlib import Path

from openmanager_timeseries.disk import PosixDisk, PosixFile

UNSYNCED = ".unsynced"


class PowerFile:
    """A file whose unsynced bytes are in this process."""

    def __init__(self, file: PosixFile) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._closed = False
        self.kept = 0
        self.waiting: list[bytes] = []

    @property
    def size(self) -> int:
        """The bytes that a reader sees."""
        return self.kept + sum(map(len, self.waiting))

    def append(self, parts: Sequence[bytes | memoryview]) -> None:
        """Take all parts; hand the first half of them on."""
        with self._lock:
            self.waiting += map(bytes, parts)
            if len(self.waiting) == len(parts):
                self._hand_on(len(parts) // 2)

    def sync(self) -> None:
        """Hand everything on, and sync it."""
        with self._lock:
            self._hand_on(len(self.waiting))
            self._file.sync()

    def truncate(self, size: int) -> None:
        """Cut the file."""
        with self._lock:
            whole = b"".join(self.waiting)[: max(0, size - self.kept)]
            self.waiting = [whole] if whole else []
            if size < self.kept:
                self._file.truncate(size)
                self.kept = size

    def close(self) -> None:
        """Close the file; what waits can still be synced by its name, or is lost."""
        if not self.waiting:
            self._file.close()
        self._closed = True

    def flush(self) -> None:
        """Hand everything on when somebody syncs the file by its name."""
        if self.waiting:
            self.sync()
            if self._closed:
                self._file.close()

    def _hand_on(self, count: int) -> None:
        self._file.append(self.waiting[:count])
        self.kept += sum(map(len, self.waiting[:count]))
        del self.waiting[:count]


class PowerDisk:
    """A folder whose unsynced names are in this process: files of `PosixDisk` under other names, and what they stand for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._disk = PosixDisk(folder)
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        # Where the content of a name is, None for one that was deleted; as they changed since the last sync.
        self._names: dict[str, str | None] = {}
        self._files: dict[str, PowerFile] = {}
        for name in self._disk.sizes():
            if name.endswith(UNSYNCED):
                self._disk.remove(name)

    def create(self, name: str) -> PowerFile:
        """Create an empty file."""
        with self._lock:
            where = f"{next(self._numbers)}{UNSYNCED}"
            made = PowerFile(self._disk.create(where))
            self._names.pop(name, None)
            self._names[name], self._files[name] = where, made
            return made

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Read a range of a file."""
        with self._lock:
            where = self._where(name)
            file = self._files.get(name)
            if file is None or not file.waiting:
                return self._disk.read(where, offset, size)
            whole = self._disk.read(where, 0, file.kept) + b"".join(file.waiting)
            return whole[offset : offset + size]

    def sizes(self) -> dict[str, int]:
        """List the files."""
        with self._lock:
            kept = self._disk.sizes()
            found = {name: size for name, size in kept.items() if not name.endswith(UNSYNCED)}
            for name, where in self._names.items():
                found.pop(name, None)
                if where is not None:
                    found[name] = kept[where]
            return found | {name: file.size for name, file in self._files.items() if name in found}

    def remove(self, name: str) -> None:
        """Delete a file if it is there."""
        with self._lock:
            self._names.pop(name, None)
            self._names[name] = None
            self._files.pop(name, None)

    def replace(self, name: str, content: bytes) -> None:
        """Write aside, sync, rename, sync the folder."""
        aside = f"{name}.new"
        try:
            with contextlib.closing(self.create(aside)) as file:
                file.append([content])
                file.sync()
        except OSError:
            self.remove(aside)
            raise
        self._rename(aside, name)
        self.sync()

    def sync(self, name: str = "") -> None:
        """Sync a file, or make the names durable in the order in which they changed."""
        with self._lock:
            if name:
                if (file := self._files.get(name)) is not None:
                    file.flush()
                self._disk.sync(self._where(name))
                return
            for each, where in self._names.items():
                if where is None:
                    self._disk.remove(each)
                else:
                    (self._folder / where).replace(self._folder / each)
            self._names.clear()
            self._disk.sync()

    def free_bytes(self) -> tuple[int, int]:
        """Ask the volume."""
        return self._disk.free_bytes()

    def _rename(self, old: str, new: str) -> None:
        with self._lock:
            where, file = self._where(old), self._files[old]
            self.remove(old)
            self._names.pop(new, None)
            self._names[new], self._files[new] = where, file

    def _where(self, name: str) -> str:
        where = self._names.get(name, name)
        if where is None:
            raise FileNotFoundError(name)
        return where
