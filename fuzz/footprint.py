"""What processes hold: memory, descriptors and threads, as the system counts them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

KIB = 1024
# Writing it to clear_refs makes the peak of resident memory begin anew.
RESET_PEAK = "5"


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


def footprints(pids: Mapping[str, int]) -> dict[str, Footprint]:
    """Return what each of some processes holds; those that have ended are left out."""
    found = {}
    for name, pid in pids.items():
        with contextlib.suppress(OSError):
            found[name] = footprint(pid)
    return found
