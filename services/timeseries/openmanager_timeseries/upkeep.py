"""What is done to sealed files as they age: small neighbours become one, what need not be kept any more goes."""

from __future__ import annotations

from collections.abc import Sequence

from openmanager_timeseries.sealed import Sealed

_HOUR = 3600 * 10**9
_DAY = 24 * _HOUR
# A window is merged when no more samples of it are to be expected, in the ordinary run of things.
_QUIET = 600 * 10**9
# Larger files would be read for a small part of them.
MAX_ROWS = 100_000_000
# A row group of each is held in memory.
MAX_FILES = 32
# By kind of file, the windows whose files become one.
BLOCK_WINDOWS = (_HOUR, _DAY)


def tier_windows(width: int) -> Sequence[int]:
    """Return the windows for buckets of `width` nanoseconds: a day, and what holds a few hundred buckets of a series."""
    return (_DAY, 8 * _DAY) if width < _HOUR else (_DAY, 32 * _DAY)


def next_merge(files: Sequence[Sealed], windows: Sequence[int], now: int) -> Sequence[Sealed]:
    """Return neighbours that are to become one file, oldest first; empty when there are none.

    These are two or more, next to each other by number, whose rows lie in one window that is over; the widest window
    first, so that what is old already is not written anew for each.
    """
    for width in sorted(windows, reverse=True):
        run: list[Sealed] = []
        for file in (*files, None):
            if file is not None and run and _joins(run, file, width):
                run.append(file)
                continue
            if len(run) > 1:
                return run
            run = [file] if file is not None and _window(file, width) is not None and _is_over(file, width, now) else []
    return ()


def _joins(run: Sequence[Sealed], file: Sealed, width: int) -> bool:
    rows = sum(each.about.row_count for each in run) + file.about.row_count
    return _window(file, width) == _window(run[0], width) and rows <= MAX_ROWS and len(run) < MAX_FILES


def _window(file: Sealed, width: int) -> int | None:
    """Return the number of the window that holds all rows, None when there is none such."""
    first, last = file.about.min_time // width, file.about.max_time // width
    return first if first == last else None


def _is_over(file: Sealed, width: int, now: int) -> bool:
    return (file.about.min_time // width + 1) * width + _QUIET <= now
