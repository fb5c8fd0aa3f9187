"""What a process takes of a machine: memory, file descriptors and threads, as /proc tells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MIB = float(1 << 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one process takes at one moment; memory in MiB, `pss` with its share of what it shares."""

    rss: float
    pss: float
    descriptors: int
    threads: int


def of(pid: int) -> Usage | None:
    """Return what a process takes, None when it has ended."""
    process = Path(f"/proc/{pid}")
    try:
        memory = _fields((process / "smaps_rollup").read_text().splitlines()[1:])
        status = _fields((process / "status").read_text().splitlines())
        descriptors = sum(1 for _ in (process / "fd").iterdir())
        return Usage(
            rss=memory["Rss"] * 1024 / MIB,
            pss=memory["Pss"] * 1024 / MIB,
            descriptors=descriptors,
            threads=status["Threads"],
        )
    except (OSError, KeyError):
        return None  # a zombie has no memory


def _fields(lines: Iterable[str]) -> dict[str, int]:
    pairs = (line.split(":", 1) for line in lines)
    return {name: int(text.split()[0]) for name, text in pairs if text.split() and text.split()[0].isdecimal()}


def size_of(folder: Path, names: str = "*") -> tuple[int, int]:
    """Return how many files of such names a folder and those in it hold, and their bytes."""
    count = size = 0
    for path in folder.rglob(names):
        try:
            if path.is_file():
                count, size = count + 1, size + path.stat().st_size
        except OSError:
            continue  # it was deleted meanwhile
    return count, size
