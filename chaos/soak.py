"""`make soak`: a mesh under a modest load with a fault a minute, and what has grown at the end that should not have."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.text import Text

from bench.rpc import free_ports
from chaos import checker, journal, reading, steady, usage
from chaos.at_random import HELD_SECONDS, RECOVERY_SECONDS, Fault, one
from chaos.at_random import KINDS as ALL_KINDS
from chaos.growth import JUDGED_SECONDS, Growth, Lives
from chaos.journal import Journal
from chaos.load import WRITERS
from chaos.mesh import SERVICES, Mesh, Probe
from chaos.stores import POSTGRESQL, REDIS, Stores, stores
from openmanager.cli import plot, render
from openmanager.client import Client
from openmanager.errors import OpenManagerError
from openmanager.runtime.peer import Peer

SAMPLE_SECONDS = 10.0
FAULT_SECONDS = 60.0
FRAMES_PER_SECOND, READS_PER_SECOND = 30.0, 20.0
END_SECONDS = 12.0
FLEET = ("--servers", "20", "--interval", "10s")
# So small and short that all that is kept for a while is full, and goes, many times an hour.
HURRY = {
    "OPENMANAGER_TIMESERIES_SEAL_INTERVAL": "30s",
    "OPENMANAGER_TIMESERIES_LOG_RETENTION": "2m",
    "OPENMANAGER_TIMESERIES_SEGMENT_SIZE": "1MiB",
    "OPENMANAGER_TIMESERIES_HEAD_SIZE": "8MiB",
    "OPENMANAGER_TIMESERIES_READ_CACHE_SIZE": "8MiB",
    "OPENMANAGER_ANALYSIS_INTERVAL": "1s",
    "OPENMANAGER_ANALYSIS_SAVE_INTERVAL": "1s",
}
# In the last third of the time the log may be so much larger than in the third before, and by one more segment.
LOG_GROWTH = 1.25
SEGMENT_BYTES = 1 << 20
STORES = (REDIS, POSTGRESQL)
# A full disk would be that of the machine.
KINDS = {kind: weight for kind, weight in ALL_KINDS.items() if kind != "disk full"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long")
    parser.add_argument("--seed", type=int, default=1, help="of what is broken, when and for how long")
    parser.add_argument("--json", type=Path, help="a file for the table, and for all that was measured")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no mesh is left behind
    with tempfile.TemporaryDirectory(prefix="openmanager-soak-") as folder:
        found = asyncio.run(run(Path(folder), 60 * options.minutes, options.seed))
    if options.json:
        options.json.write_text(json.dumps(found.document(), indent=1), encoding="utf-8")
    found.print()
    sys.exit(1 if any(found.broken()) else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """The log and what is made of it, at one moment."""

    at: float
    balanced: bool | None  # None while nobody answers
    log_bytes: int
    block_count: int
    block_bytes: int
    printed_bytes: int  # what the processes have printed, as far as it is kept


@dataclass(kw_only=True)
class Outcome:
    """What a soak found."""

    seed: int
    began: float
    lives: Lives = field(default_factory=Lives)
    books: list[Books] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    reads: steady.Reads = field(default_factory=steady.Reads)
    verdict: checker.Verdict = field(default_factory=checker.Verdict)
    seconds: float = 0.0
    ended: float = 0.0  # how long it took to end

    def growths(self) -> list[Growth]:
        """Return how each process grew."""
        return sorted(self.lives.growths(), key=lambda growth: growth.name)

    def broken(self) -> Iterator[str]:
        """Yield the promises that were not kept."""
        for growth in self.growths():
            if growth.name not in STORES:
                yield from growth.broken()
        third = len(self.books) // 3
        before, after = (max((each.log_bytes for each in some), default=0) for some in self._last_thirds(third))
        if self.seconds >= JUDGED_SECONDS and after > LOG_GROWTH * before + SEGMENT_BYTES:
            yield f"the log grew from {render.show_bytes(before)} to {render.show_bytes(after)}"
        if unbalanced := sum(each.balanced is False for each in self.books):
            yield f"the ledger did not balance {unbalanced} times"
        for fault in self.faults:
            if fault.recovered is None:
                yield f"{fault.kind} {fault.victim}: not back within {RECOVERY_SECONDS:.0f} s"
        if not self.verdict.sound:
            yield f"samples: {', '.join(self.verdict.examples)}"
        if self.ended > END_SECONDS:
            yield f"it took {self.ended:.1f} s to end"

    def _last_thirds(self, third: int) -> tuple[Sequence[Books], Sequence[Books]]:
        return self.books[third : 2 * third], self.books[2 * third :]

    def print(self) -> None:
        """Print a table of the processes, their memory over time, and the sum."""
        print(
            f"{'process':11} {'restarts':>8} {'minutes':>7} {'RSS MiB':>8} {'MiB/h':>8} {'%/h':>14} "
            f"{'PSS MiB':>8} {'MiB/h':>8} {'descriptors':>12} {'threads':>9}"
        )
        for each in self.growths():
            percent = f"{each.percent_per_hour:+.1f} ± {each.percent_error:.1f}"
            percent = percent if each.judged else f"({percent})"
            print(
                f"{each.name:11} {each.restarts:8} {each.seconds / 60:7.0f} {each.rss:8.1f} {each.rss_slope:+8.2f} {percent:>14} "
                f"{each.pss:8.1f} {each.pss_slope:+8.2f} {each.descriptors:7} ({each.descriptors_growth:+d}) "
                f"{each.threads:4} ({each.threads_growth:+d})"
            )
        print(f"\nRSS of {', '.join(sorted(SERVICES))}, MiB")
        out = render.console()
        out.print(self._drawn(min(out.width, 120)))
        last, verdict = self.books[-1], self.verdict
        print(
            f"{self.seconds / 60:.0f} minutes, seed {self.seed}: {len(self.faults)} faults; "
            f"{len(self.reads.failures):,} of {len(self.reads.at):,} reads not answered; {self.reads.events:,} events watched"
        )
        print(
            f"log {render.show_bytes(last.log_bytes)}, at most {render.show_bytes(max(each.log_bytes for each in self.books))}; "
            f"{last.block_count} blocks of {render.show_bytes(last.block_bytes)}; printed {render.show_bytes(last.printed_bytes)}; "
            f"ended in {self.ended:.1f} s"
        )
        print(
            f"{verdict.acknowledged:,} samples acknowledged, {verdict.unknown:,} of unknown fate; {verdict.summary()}"
        )
        for promise in self.broken():
            print(f"broken: {promise}")

    def _drawn(self, width: int) -> Text:
        # The clock on the wall, since that is what the axis of a plot tells.
        origin = time.time() - (time.monotonic() - self.began)
        lines = [
            plot.Line(
                times=np.array([(origin + at) * 1e9 for life in self.lives.of(name) for at in life.at], np.int64),
                values=np.array([each.rss for life in self.lives.of(name) for each in life.usage]),
            )
            for name in sorted(SERVICES)
        ]
        start, end = int(origin * 1e9), int((origin + self.seconds) * 1e9)
        return plot.draw(lines, start=start, end=end, width=width)

    def document(self) -> dict[str, object]:
        """Return it for programs."""
        return {
            "seed": self.seed,
            "seconds": self.seconds,
            "growths": [asdict(each) for each in self.growths()],
            "broken": list(self.broken()),
            "verdict": asdict(self.verdict),
            "reads": len(self.reads.at),
            "reads_not_answered": self.reads.failures,
            "faults": [asdict(each) for each in self.faults],
            "books": [asdict(each) for each in self.books],
            "lives": [asdict(life) for growth in self.growths() for life in self.lives.of(growth.name)],
        }


async def run(folder: Path, seconds: float, seed: int) -> Outcome:
    """Soak a mesh for so long; read everything back and judge."""
    base, path = free_ports(6), folder / "journal"
    gateway = f"127.0.0.1:{base}"
    outcome = Outcome(seed=seed, began=time.monotonic())
    async with Peer("the gateway", gateway) as peer, stores(folder / "stores", seed) as behind:
        environment = {**behind.environment, **HURRY}
        mesh = Mesh.start(folder / "data", base, folder / "screen", environment, fleet=FLEET)
        try:
            with Journal(path) as told:
                async with steady.load(gateway, told, FRAMES_PER_SECOND, READS_PER_SECOND) as outcome.reads:
                    await Probe(peer).wait("the first start")
                    outcome.began = time.monotonic()
                    sampling = asyncio.create_task(_sample(mesh, behind, folder / "data", outcome))
                    await _break(mesh, behind, Probe(peer), outcome, seconds)
                    sampling.cancel()
            outcome.seconds = time.monotonic() - outcome.began
            rows = journal.load(path)
            found = [await reading.queried(peer, writer, rows) for writer in range(WRITERS)]
            outcome.verdict = checker.check(rows, found)
            outcome.ended = await asyncio.to_thread(mesh.end)
        finally:
            if mesh.process.poll() is None:
                mesh.kill()
    return outcome


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _sample(mesh: Mesh, behind: Stores, data: Path, outcome: Outcome) -> None:
    async with Client(mesh.gateway) as client:
        while True:
            at = time.monotonic() - outcome.began
            pids = {name: mesh.pid(name) for name in SERVICES} | {name: behind.pid(name) for name in STORES}
            for name, pid in {**pids, "up": mesh.process.pid}.items():
                if pid is not None and (used := usage.of(pid)) is not None:
                    outcome.lives.add(name, pid, at, used)
            outcome.books.append(await _books(client, data, at))
            await asyncio.sleep(outcome.began + at + SAMPLE_SECONDS - time.monotonic())


async def _books(client: Client, data: Path, at: float) -> Books:
    try:
        balanced = (await client.ledger(seconds=2)).balanced
    except OpenManagerError:
        balanced = None
    blocks, block_bytes = await asyncio.to_thread(usage.size_of, data / "timeseries" / "blocks")
    return Books(
        at=at,
        balanced=balanced,
        log_bytes=usage.size_of(data / "timeseries" / "log", "*.log")[1],
        block_count=blocks,
        block_bytes=block_bytes,
        printed_bytes=usage.size_of(data / "logs")[1],
    )


# ── breaking ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _break(mesh: Mesh, behind: Stores, probe: Probe, outcome: Outcome, seconds: float) -> None:
    """Make a fault a minute, until the time is over."""
    dice = random.Random(outcome.seed)
    mortals = _mortals(dice)
    for due in np.arange(FAULT_SECONDS, seconds, FAULT_SECONDS):
        await asyncio.sleep(max(0.0, outcome.began + due - time.monotonic()))
        outcome.faults.append(await _make(mesh, behind, probe, dice, mortals[int(3 * due / seconds)]))
        _tell(outcome, due / seconds)
    await asyncio.sleep(max(0.0, outcome.began + seconds - time.monotonic()))


def _mortals(dice: random.Random) -> Sequence[Sequence[str]]:
    """Return the services that may be killed in each third of the time.

    Each is killed in one third only, the first or the last: so it has one life that is long enough to be judged by.
    """
    services = sorted(SERVICES)
    dice.shuffle(services)
    half = len(services) // 2
    return services[:half], (), services[half:]


async def _make(mesh: Mesh, behind: Stores, probe: Probe, dice: random.Random, mortals: Sequence[str]) -> Fault:
    """Make one fault, and wait until all is well again."""
    kind = dice.choices(list(KINDS), list(KINDS.values()))[0]
    victims = {"kill": [*mortals, *STORES], "stop": [*SERVICES, *STORES], "empty": [REDIS]}.get(kind, list(STORES))
    victim, seconds = dice.choice(victims), dice.uniform(0.2, HELD_SECONDS)
    return await one(kind, victim, seconds, mesh, behind, probe, dice)


def _tell(outcome: Outcome, share: float) -> None:
    fault = outcome.faults[-1]
    back = "not back" if fault.recovered is None else f"back after {fault.recovered:.2f} s"
    if sys.stderr.isatty():
        bar = "█" * int(20 * share) + "░" * (20 - int(20 * share))
        print(f"\r\x1b[K{bar} {len(outcome.faults)} {fault.kind} {fault.victim}: {back}", end="", file=sys.stderr)
        sys.stderr.flush()


if __name__ == "__main__":
    main()
