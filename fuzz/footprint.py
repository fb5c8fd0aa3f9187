"""What processes hold: memory, descriptors and threads, as the system counts them."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

KIB = 1024
# Writing it to clear_refs makes the peak of resident memory begin anew.
RESET_PEAK = "5"
# The most heaps that threads share, and from how many bytes on memory is the system's again when it is free: of mallopt(3).
_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1
HEAPS, MMAP_BYTES, TRIM_BYTES = 2, 1 << 20, 8 << 20


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process holds now."""

    resident_bytes: int
    peak_bytes: int
    descriptors: int
    threads: int


def footprint(pid: int) -> Footprint:
    """Return what a process holds."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return Footprint(
        resident_bytes=int(found["VmRSS"][0]) * KIB,
        peak_bytes=int(found["VmHWM"][0]) * KIB,
        descriptors=sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
        threads=int(found["Threads"][0]),
    )


def reset_peak(pid: int) -> None:
    """Let the peak of a process's memory begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text(RESET_PEAK)


def share_heaps() -> None:
    """Let the threads of this process share a few heaps: what glibc keeps for each of them looks like a leak."""
    with contextlib.suppress(AttributeError):  # another libc
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((_ARENA_MAX, HEAPS), (_MMAP_THRESHOLD, MMAP_BYTES), (_TRIM_THRESHOLD, TRIM_BYTES)):
            mallopt(option, value)


def trim() -> None:
    """Give back to the system what is free in this process."""
    with contextlib.suppress(AttributeError):  # another libc
        ctypes.CDLL(None).malloc_trim(0)


def footprints(pids: Mapping[str, int]) -> dict[str, Footprint]:
    """Return what each of some processes holds; those that have ended are left out."""
    found = {}
    for name, pid in pids.items():
        with contextlib.suppress(OSError):
            found[name] = footprint(pid)
    return found
