"""How much memory a fleet takes, and how much there is: one that does not fit would take the machine with it."""

from __future__ import annotations

from pathlib import Path

from openmanager.errors import Reason, ResourceExhaustedError
from openmanager_simulator.noise import BLOCK, LATENT_BLOCK, LATENTS

# Two blocks of values and two of latents are kept, of doubles.
_KEPT = 2
_DOUBLE = 8
# What is left to the others.
_SHARE = 2
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
_GIB = 1 << 30


def fleet_bytes(servers: int, metrics: int) -> int:
    """Return about how much memory the simulation of a fleet takes."""
    return _KEPT * _DOUBLE * servers * (BLOCK * metrics + LATENT_BLOCK * LATENTS)


def available_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Return how much memory can still be taken, of the machine and of our control group; a lot where nobody tells."""
    found = [1 << 62]
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    try:
        limit, used = ((cgroup / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        if limit != "max":
            found.append(int(limit) - int(used))
    except (OSError, ValueError):
        pass
    return max(0, min(found))


def check_fits(servers: int, metrics: int, available: int) -> None:
    """Raise ResourceExhaustedError for a fleet that would take more than half of the memory that there is."""
    needed = fleet_bytes(servers, metrics)
    if needed > available // _SHARE:
        raise ResourceExhaustedError(
            f"server_count: {servers:,} servers would take {needed / _GIB:.1f} GiB of memory, and half of what is free,"
            f" {available / _SHARE / _GIB:.1f} GiB, may be taken",
            reason=Reason.OVERLOADED,
            field="server_count",
        )
