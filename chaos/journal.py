"""The journal of a load: what it asked for, what it was told and what it was shown, durable, whatever becomes of the mesh."""

from __future__ import annotations

import os
import threading
from collections import deque
from enum import IntEnum
from pathlib import Path
from typing import Self

import numpy as np

SYNC_SECONDS = 0.05
ROW = np.dtype(
    [
        ("kind", "u1"),
        ("degraded", "?"),
        ("writer", "u2"),
        ("time", "i8"),
        ("value", "f8"),
        ("at", "f8"),
        ("seconds", "f8"),
    ]
)


class Kind(IntEnum):
    """What a row says.

    Of a write: `time` and `value` of its samples, and `at` when it was sent or answered, on the monotonic clock. Of what
    a read showed: `time` and `value` of a sample, whether the answer was marked, `at` when it was asked and the `seconds`
    it took. Samples of one frame are one row; where their values differ, which is a defect, there is a row for each
    value, and one with NaN where some are missing.
    """

    INVOKED = 1  # a frame was sent
    OK = 2  # it was acknowledged
    FAILED = 3  # it was refused: it is not there
    UNKNOWN = 4  # nobody knows: it is there, or it is not
    REGISTERED = 5  # the inventory took a server, whose number is `time`
    RANGE = 6  # a range was read: `value` seconds from `time` on
    RANGED = 7  # it showed this
    LATEST = 8  # the newest sample in history
    LISTED = 9  # the sample that a list of servers showed
    READ = 10  # the sample that a single server was shown with; `time` is 0 where there was none
    READ_FAILED = 11


class Journal:
    """Rows at the end of a file, synced many at a time."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._rows: deque[tuple[int, bool, int, int, float, float, float]] = deque()
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
        """Take a row of a write."""
        self._rows.append((kind, False, writer, time, value, at, 0.0))

    def add_shown(
        self, kind: Kind, writer: int, time: int, value: float, *, at: float, seconds: float, degraded: bool = False
    ) -> None:
        """Take a row of a read."""
        self._rows.append((kind, degraded, writer, time, value, at, seconds))

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
    """Return the rows of a journal, also of one that is being written."""
    whole = path.stat().st_size // ROW.itemsize
    return np.fromfile(path, ROW, whole)
