"""`make chaos`: break a mesh again and again, and print what was lost and how long it was away."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.rpc import free_ports
from chaos import checker, inside, journal, reading
from chaos.at_random import RECOVERY_SECONDS, Fault, make
from chaos.journal import Kind
from chaos.mesh import START_SECONDS, Mesh, Probe
from chaos.planted import BUGS
from chaos.stores import ENGINES, Stores, can_mount, small_disk, stores
from openmanager.failpoint import NAMES
from openmanager.runtime.peer import Peer

FAULTS_A_MESH = 12
# With a bug to be found everything is killed, and looked at, more often.
FAULTS_A_LOOK = 2
# So short that files are sealed, merged and deleted all the while.
HURRY = {
    "OPENMANAGER_TIMESERIES_SEAL_INTERVAL": "3s",
    "OPENMANAGER_TIMESERIES_LOG_RETENTION": "5s",
    "OPENMANAGER_TIMESERIES_SEGMENT_SIZE": "1MiB",
    "OPENMANAGER_ANALYSIS_INTERVAL": "1s",
    "OPENMANAGER_ANALYSIS_SAVE_INTERVAL": "1s",
}
# How often a place is passed before the process dies there: what is passed seldom, soon.
PASSES = {"log": (20, 400), "ledger": (1, 10), "sealed": (1, 5), "durable": (1, 5), "log.amid-trim": (1, 3)}
# With so many of the faults timeseries dies at a failpoint as well; more would be answered by longer and longer pauses.
CRASHES = 0.2
# Of the file systems that are filled.
DISK_BYTES = 512 << 20


def main() -> None:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=24, help="how many")
    parser.add_argument("--seed", type=int, default=1, help="of what is broken, when and for how long")
    parser.add_argument("--engine", choices=ENGINES, default="", help="an engine beside the blocks")
    parser.add_argument("--json", action="store_true", help="one document")
    parser.add_argument("--planted", choices=["none", *BUGS], help="end as soon as this bug is found, or none is")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no mesh is left behind
    with tempfile.TemporaryDirectory(prefix="openmanager-chaos-") as folder:
        found = asyncio.run(run(Path(folder), options.faults, options.seed, options.planted, options.engine))
    if options.json:
        print(json.dumps(found.document(), indent=1))
    else:
        print("\n".join(found.lines()))
    sys.exit(0 if found.verdict.sound and all(each.recovered is not None for each in found.faults) else 1)


@dataclass(kw_only=True)
class Outcome:
    """What a run found."""

    seed: int
    engine: str
    seconds: float
    faults: list[Fault]
    crashes: int
    verdict: checker.Verdict
    rows: np.ndarray

    def lines(self) -> Iterator[str]:
        """Yield a table of the faults, and the sum."""
        yield f"{'fault':22} {'n':>4} {'reads':>7} {'answered':>9} {'p50 ms':>7} {'p99 ms':>7} {'back p50 s':>10} {'p95 s':>6}"
        groups: dict[tuple[str, str], list[Fault]] = defaultdict(list)
        for fault in self.faults:
            groups[fault.kind, fault.victim].append(fault)
        for (kind, victim), some in sorted(groups.items()):
            reads = np.concatenate([self._reads(each) for each in some])
            yield f"{kind + ' ' + victim:22} {_row(some, reads)}"
        yield f"{'all':22} {_row(self.faults, np.concatenate([self._reads(each) for each in self.faults]))}"
        sound = self.verdict
        yield ""
        yield (
            f"{len(self.faults)} faults and {self.crashes} crashes at failpoints in {self.seconds:.0f} s, seed {self.seed}: "
            f"{sound.acknowledged:,} samples acknowledged, {sound.unknown:,} of unknown fate"
        )
        yield f"of these, of {sound.shown:,} answers that showed some, and of the books: {sound.summary()}"
        # Those that can lose something at all: what happens to history, and to everything.
        count = sum(each.victim in {"timeseries", "everything"} for each in self.faults) + self.crashes
        if sound.sound and count:
            yield (
                f"{count} of them were in the way of samples: such a one loses some in fewer than {min(1.0, 3 / count):.2%} of cases, "
                "with 95 % confidence; each kill of timeseries was a power cut for its log"
            )
        yield from sound.examples

    def document(self) -> dict[str, object]:
        """Return it for programs."""
        faults = []
        for each in self.faults:
            reads = self._reads(each)
            failed = int((reads["kind"] == Kind.READ_FAILED).sum())
            slowest = float(np.percentile(reads["seconds"], 99)) if len(reads) else 0.0
            faults.append(asdict(each) | {"reads": len(reads), "failed": failed, "p99": slowest})
        return {
            "seed": self.seed,
            "engine": self.engine,
            "seconds": self.seconds,
            "faults": faults,
            "crashes": self.crashes,
            "acknowledged": self.verdict.acknowledged,
            "unknown": self.verdict.unknown,
            "shown": self.verdict.shown,
            "defects": self.verdict.defects,
            "examples": self.verdict.examples,
        }

    def _reads(self, fault: Fault) -> np.ndarray:
        """Return the reads that began while a fault was felt."""
        reads = self.rows[self.rows["kind"] >= Kind.READ]
        chosen: np.ndarray = reads[(reads["at"] >= fault.began) & (reads["at"] < fault.end)]
        return chosen


def _row(faults: list[Fault], reads: np.ndarray) -> str:
    answered = reads[reads["kind"] != Kind.READ_FAILED]
    share = len(answered) / len(reads) if len(reads) else 1.0
    p50, p99 = np.percentile(answered["seconds"], [50, 99]) * 1e3 if len(answered) else (0.0, 0.0)
    back = [each.recovered for each in faults if each.recovered is not None]
    never = len(faults) - len(back)
    median, late = (statistics.median(back), float(np.percentile(back, 95))) if back else (0.0, 0.0)
    away = f"  {never} not back within {RECOVERY_SECONDS:.0f} s" if never else ""
    return f"{len(faults):4} {len(reads):7,} {share:9.3%} {p50:7.1f} {p99:7.1f} {median:10.2f} {late:6.2f}{away}"


# ── breaking ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def run(folder: Path, count: int, seed: int, planted: str | None = None, engine: str = "") -> Outcome:
    """Break a mesh `count` times under load; read everything back and judge.

    With a bug planted in it, or `none`, it is judged after every start as well, and the run ends when something is wrong.
    """
    dice, base, screen = random.Random(seed), free_ports(6), folder / "screen"
    gateway, path, died = f"127.0.0.1:{base}", folder / "journal", folder / "died"
    faults: list[Fault] = []
    start = time.monotonic()
    async with Peer("the gateway", gateway) as peer, _ground(folder, seed, engine) as behind:
        probe = Probe(peer)
        environment = {**behind.environment, **HURRY, **inside.environment(planted if planted in BUGS else "")}
        several = FAULTS_A_LOOK if planted else FAULTS_A_MESH
        verdict = checker.Verdict()
        mesh = Mesh.start(folder / "data", base, screen, environment)
        load = subprocess.Popen([sys.executable, "-m", "chaos.load", gateway, str(path)], stdin=subprocess.PIPE)
        try:
            try:
                await probe.wait("the first start")
                while len(faults) < count and verdict.sound:
                    for _ in range(min(several, count - len(faults) - 1)):
                        if dice.random() < CRASHES:
                            died.unlink(missing_ok=True)  # it dies at its failpoint another time
                        faults.append(await make(mesh, behind, probe, dice))
                        _tell(faults[-1], len(faults), count)
                        await asyncio.sleep(dice.uniform(0.2, 1.0))
                    began = time.monotonic()
                    mesh.kill()
                    place = f"{_place(dice)}:{died}" if len(faults) + 1 < count else ""
                    mesh = Mesh.start(folder / "data", base, screen, environment, place)
                    recovered = await probe.works(START_SECONDS)
                    faults.append(Fault(kind="kill", victim="everything", began=began, held=0.0, recovered=recovered))
                    _tell(faults[-1], len(faults), count)
                    if planted and recovered is not None:
                        verdict = await reading.look(peer, path)
                await probe.wait("the last start")
            finally:
                assert load.stdin is not None
                load.stdin.close()
                load.wait(30)
            seconds, crashes = time.monotonic() - start, mesh.restarts("timeseries")

            def restart() -> None:
                nonlocal mesh
                mesh.end()
                mesh = Mesh.start(folder / "data", base, screen, environment)

            if verdict.sound:
                verdict = await reading.judge(peer, path, restart)
            mesh.end()
        finally:
            if mesh.process.poll() is None:
                mesh.kill()
    killed = sum(each.kind == "kill" and each.victim == "timeseries" for each in faults)
    return Outcome(
        seed=seed,
        engine=engine,
        seconds=seconds,
        faults=faults,
        crashes=max(0, crashes - killed),
        verdict=verdict,
        rows=journal.load(path),
    )


@contextlib.asynccontextmanager
async def _ground(folder: Path, seed: int, engine: str) -> AsyncIterator[Stores]:
    """Run the stores; each, and the data of the mesh, on a file system of its own where we may mount some."""
    size = DISK_BYTES if can_mount() else 0
    (folder / "data").mkdir()
    with small_disk(folder / "data", size) if size else contextlib.nullcontext():
        async with stores(folder / "stores", seed, engine=engine, disk_bytes=size) as behind:
            yield behind


def _place(dice: random.Random) -> str:
    """Return a failpoint, and how often it is passed before it does its work."""
    name = dice.choice(sorted(name for name in NAMES if name.partition(".")[0] in PASSES))
    low, high = PASSES.get(name) or PASSES[name.partition(".")[0]]
    return f"{name}:{dice.randint(low, high)}"


def _tell(fault: Fault, done: int, count: int) -> None:
    if sys.stderr.isatty():
        back = "not back" if fault.recovered is None else f"back after {fault.recovered:.2f} s"
        bar = "█" * (20 * done // count) + "░" * (20 - 20 * done // count)
        print(f"\r\x1b[K{bar} {done}/{count} {fault.kind} {fault.victim}: {back}", end="", file=sys.stderr, flush=True)
        if done == count:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
