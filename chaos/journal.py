"""The journal of a load: what it asked for and what it was told, durable, whatever becomes of the mesh."""

from __future__ import annotations

import os
import threading
from collections import deque
from enum import IntEnum
from pathlib import Path
from typing import Self

import numpy as np

SYNC_SECONDS = 0.05
ROW = np.dtype([("kind", "u1"), ("writer", "u2"), ("time", "i8"), ("value", "f8"), ("at", "f8")])


class Kind(IntEnum):
    """What a row says. Of a read `value` is the seconds it took, and `time` is 0."""

    INVOKED = 1  # a frame was sent
    OK = 2  # it was acknowledged
    FAILED = 3  # it was refused: it is not there
    UNKNOWN = 4  # nobody knows: it is there, or it is not
    READ = 5
    DEGRADED = 6  # a read that was answered, and said that it was not from the first choice
    READ_FAILED = 7


class Journal:
    """Rows at the end of a file, synced many at a time."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._rows: deque[tuple[int, int, int, float, float]] = deque()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._sync_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()
        self._sync()
        os.close(self._file)

    def add(self, kind: Kind, writer: int, time: int, value: float, at: float) -> None:
        """Take a row: `at` is when, on the monotonic clock."""
        self._rows.append((kind, writer, time, value, at))

    def _sync_forever(self) -> None:
        while not self._closing.wait(SYNC_SECONDS):
            self._sync()

    def _sync(self) -> None:
        rows = [self._rows.popleft() for _ in range(len(self._rows))]
        if rows:
            left = memoryview(np.array(rows, ROW).tobytes())
            while left:
                left = left[os.write(self._file, left) :]
            os.fdatasync(self._file)


def load(path: Path) -> np.ndarray:
    """Return the rows of a journal."""
    return np.fromfile(path, ROW)
