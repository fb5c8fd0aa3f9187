"""What a whole mesh takes of its machine: processor time and memory by part, while its simulator ticks."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.history_server import clean_environment
from bench.pair import Row
from bench.rpc import free_ports
from openmanager import suite

SETTLE_SECONDS = 15.0
SECONDS = 30.0
STARTS = 5
# The default mesh is there beside what a machine is for.
GOAL_CPU, GOAL_PSS, GOAL_START = 0.02, 600 * 2**20, 5.0
UP, POSTGRESQL, REDIS = "up", "postgresql", "redis"


@dataclass(frozen=True)
class Use:
    """What a part takes: seconds of processor time since it began, bytes of memory with its share of what is shared."""

    cpu: float
    pss: int


@dataclass(frozen=True)
class Mesh:
    """A running mesh: the process of `up`, the gateway's address, and the seconds from its start to serving."""

    pid: int
    gateway: str
    folder: Path
    seconds: float

    def used(self) -> dict[str, Use]:
        """Return what each part has taken until now."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
        found = {UP: _sum([self.pid])}
        for child in children.get(self.pid, []):
            with contextlib.suppress(OSError):
                found[_name(child)] = _sum(_below(child, children))
        return found

    def spent(self, seconds: float) -> tuple[Mapping[str, float], Mapping[str, Use]]:
        """Return the cores that each part keeps busy for so long, and what it has taken in the end."""
        before, begin = self.used(), time.monotonic()
        time.sleep(seconds)
        after, elapsed = self.used(), time.monotonic() - begin
        return {name: (after[name].cpu - before[name].cpu) / elapsed for name in after}, after


@contextlib.contextmanager
def running(servers: int, *, interval: str = "10s") -> Iterator[Mesh]:
    """Run a mesh of its own with a simulated fleet."""
    gateway = f"127.0.0.1:{free_ports(len(suite.NAMES))}"
    with tempfile.TemporaryDirectory(prefix="openmanager-bench-") as folder:
        command = [sys.executable, "-m", "openmanager.cli", "up", "--data-dir", folder, "--gateway", gateway]
        begin = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--servers", str(servers), "--interval", interval],
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert process.stdout is not None
            if not any("is up" in line for line in process.stdout):
                raise OSError("the mesh did not start")
            yield Mesh(process.pid, gateway, Path(folder), time.perf_counter() - begin)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def rows() -> Iterator[Row]:
    """Start the default mesh and let it tick: what it takes when nobody asks it anything."""
    with running(20) as mesh:
        time.sleep(SETTLE_SECONDS)
        cores, used = mesh.spent(SECONDS)
    starts = [mesh.seconds]
    for _ in range(STARTS - 1):
        with running(20) as mesh:
            starts.append(mesh.seconds)
    cpu, pss, start = sum(cores.values()), sum(each.pss for each in used.values()), sorted(starts)[STARTS // 2]
    by_cpu = ", ".join(f"{name} {cores[name]:.2%}" for name in sorted(cores, key=cores.__getitem__, reverse=True))
    by_pss = ", ".join(f"{name} {each.pss / 2**20:.0f}" for name, each in sorted(used.items(), key=_by_memory))
    yield _limit("idle mesh with its simulator: CPU", cpu, GOAL_CPU, "% of a core", 100, by_cpu)
    yield _limit("idle mesh with its simulator: PSS", pss, GOAL_PSS, "MiB", 2.0**-20, by_pss)
    yield _limit(f"idle mesh: start to serving, median of {STARTS}", start, GOAL_START, "s", 1)


def _limit(name: str, found: float, goal: float, unit: str, scale: float, note: str = "") -> Row:
    ratio = found / goal
    return Row(name, f"{found * scale:.3g} {unit}", f"{goal * scale:.3g} {unit}", ratio, "≤ 1", ratio <= 1, note)


def _by_memory(each: tuple[str, Use]) -> int:
    return -each[1].pss


def _name(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    if b"serve" in words:
        return words[words.index(b"serve") + 1].decode()
    return POSTGRESQL if words[0].endswith(b"postgres") else REDIS


def _below(pid: int, children: Mapping[int, list[int]]) -> list[int]:
    return [pid, *(each for child in children.get(pid, []) for each in _below(child, children))]


def _sum(pids: list[int]) -> Use:
    cpu, pss = 0.0, 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it may end meanwhile, and is in its parent's account then
            # utime, stime, and the same of the children that have ended: proc(5), fields 14 to 17.
            cpu += sum(map(int, _stat(pid)[11:15])) / os.sysconf("SC_CLK_TCK")
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
            pss += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
    return Use(cpu, pss)


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on: the name before them may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
