"""A copy of a folder of history that a service may be writing to: what a kill at one moment would have left.

Files that have their names never change, so they are linked; the newest segment of the log, which grows, is copied, and
so are the small files of state, which are replaced as a whole. What makes a start after a crash right makes the copy
right: each part may be newer or older than another only as after a crash. So they are taken in this order:

1. The segments of the log, but for the newest: what is deleted of these from now on is in the copy. Segments go oldest
   first, so that none after them has gone as long as the one that was the newest is there at the end.
2. The consumers' positions, and after them the dead letters, which are durable before positions count them.
3. How far the tiers have come, and what is known of engines: older than the files that they speak of.
4. The files, with the deletions that were asked for: if these change meanwhile, the files are taken again.
5. Retention, and the catalogue, which has every series of the files; and which shard it is.
6. The rest of the log: it reaches beyond all that was taken before, so that no reader has had what is not in it.

What other services confirm, such as where the analysis is, is to be copied between `copy_files` and `copy_log`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from openmanager.errors import FailedPreconditionError, UnavailableError
from openmanager.shard import FILE as SHARD
from openmanager_timeseries.dead_letter import LETTERS
from openmanager_timeseries.history import CATALOG
from openmanager_timeseries.ledger import POSITIONS
from openmanager_timeseries.log import SUFFIX
from openmanager_timeseries.rewritten import REWRITTEN
from openmanager_timeseries.sealed import SUFFIX as SEALED
from openmanager_timeseries.sealed_store import DAMAGED, LINGER_SECONDS

LOG, ERASURES, RETENTION = "log", "erasures.json", "retention.json"
FILES = ("blocks", "tiers", "sketches")
ATTEMPTS = 10


def copy_files(folder: Path, into: Path) -> str:
    """Copy all but the end of the log (blocking), and return what `copy_log` wants to know: the segment that was the newest.

    `into` is to be on the same volume, or it costs as much room again.
    """
    if not (folder / LOG).is_dir():
        raise FailedPreconditionError(f"{folder} holds no history")
    (into / LOG).mkdir(mode=0o750, parents=True)
    *closed, newest = [*_segments(folder)] or [""]
    for name in closed:
        with contextlib.suppress(FileNotFoundError):  # it goes, for everybody has passed it
            _link(folder / LOG / name, into / LOG / name)
    _copy(folder / LOG / POSITIONS, into / LOG / POSITIONS)
    _copy(folder / LOG / LETTERS, into / LOG / LETTERS)
    for path in folder.glob("*.json"):
        if path.name not in {ERASURES, RETENTION, REWRITTEN}:
            _copy(path, into / path.name)
    _copy_sealed(folder, into)
    _copy(folder / RETENTION, into / RETENTION)
    _copy(folder / CATALOG, into / CATALOG)
    _copy(folder / SHARD, into / SHARD)
    return newest


def copy_log(folder: Path, into: Path, newest: str) -> None:
    """Copy what `copy_files` has left of the log (blocking); UnavailableError when some of it has gone meanwhile."""
    names = _segments(folder)
    for name in names[:-1]:
        if not (into / LOG / name).exists():
            _link(folder / LOG / name, into / LOG / name)
    for name in names[-1:]:
        _copy(folder / LOG / name, into / LOG / name)
    if newest and newest not in _segments(folder):
        raise UnavailableError("the log is deleted faster than it can be copied: try again later")
    _copy(folder / REWRITTEN, into / REWRITTEN)  # at last: it is written after what is in the log


def _segments(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / LOG).iterdir() if path.suffix == SUFFIX)


def _copy_sealed(folder: Path, into: Path) -> None:
    """Link the sealed files, as they were between two looks at the deletions that found the same."""
    for _ in range(ATTEMPTS):
        began, before = time.monotonic(), _content(folder / ERASURES)
        whole = True
        for name in FILES:
            shutil.rmtree(into / name, ignore_errors=True)
            whole = _link_below(folder / name, into / name) and whole
        # What was replaced by a merge is still there for a while: who is quicker has seen it, or what stands for it.
        quick = time.monotonic() - began < LINGER_SECONDS / 2
        if whole and quick and _content(folder / ERASURES) == before:
            if before is not None:
                (into / ERASURES).write_bytes(before)
            return
    raise UnavailableError("the files of history change faster than they can be copied: try again later")


def _link_below(folder: Path, into: Path) -> bool:
    """Link the files of a folder and of those in it; say whether none has gone meanwhile."""
    whole = True
    into.mkdir(mode=0o750, parents=True, exist_ok=True)
    if not folder.is_dir():
        return True
    for path in list(folder.iterdir()):
        if path.is_dir():
            whole = _link_below(path, into / path.name) and whole
        elif path.suffix in {SEALED, DAMAGED}:
            try:
                _link(path, into / path.name)
            except FileNotFoundError:
                whole = False
    return whole


def _link(source: Path, target: Path) -> None:
    """Give a file another name, or copy it where that cannot be done."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another volume, or one that knows no links
        shutil.copy2(source, target)


def _copy(source: Path, target: Path) -> None:
    """Copy a file, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(source, target)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
