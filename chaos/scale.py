"""`make scale`: kill every process of a mesh of two shards and two gateways, one at a time, under load, and count who notices.

With `--stores cluster` or `--stores sentinel` every store has a copy of itself, and each process of a store is killed too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.rpc import free_base
from chaos import journal, reading, steady
from chaos.doubled import CLUSTER, SENTINEL, SMALL, Doubled, Victim, doubled
from chaos.journal import Journal, Kind
from chaos.load import WRITERS, server_of
from chaos.mesh import FLEET, Mesh, family, signalled
from chaos.rolling import CALLS_PER_SECOND, POLL_SECONDS, WRITTEN, Outcome, Restart, serving, started, unwell
from chaos.stores import stores
from openmanager.cli import layout
from openmanager.client import Client
from openmanager.client.rpc import DEADLINE_SECONDS
from openmanager.runtime.module import MeshConfig
from openmanager.shard import SHARDED, shard_of

SHARDS = GATEWAYS = 2
# One process is killed, and not the next before clients have found their way back to it.
SETTLE_SECONDS = 2.0
# All of it may take so long for each process that is killed.
KILL_SECONDS = 8.0
# Writes of a shard may wait so long while its log is started again.
WAIT_SECONDS = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="chaos.scale", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one document")
    parser.add_argument("--stores", choices=("", CLUSTER, SENTINEL), default="", help="the Redis of stores with copies")
    parser.add_argument("--rate", type=float, default=CALLS_PER_SECOND, help="calls a second")
    parser.add_argument("--seconds", type=float, default=DEADLINE_SECONDS, help="how long a call may take")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no mesh is left behind
    with tempfile.TemporaryDirectory(prefix="openmanager-scale-") as folder:
        found = asyncio.run(run(Path(folder), rate=options.rate, seconds=options.seconds, redis=options.stores))
    print(json.dumps(found.document(), indent=1) if options.json else "\n".join(found.lines()))
    sys.exit(1 if any(found.broken()) else 0)


@dataclass(kw_only=True)
class Scaled(Outcome):
    """What killing one process after the other cost."""

    # The longest write of servers of each shard, seconds, while the process of a name was away.
    waits: dict[str, list[float]] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """Yield a table of the kills, the longest writes, and the sum."""
        table = list(super().lines())
        yield from table
        yield ""
        yield f"{'killed':14} " + " ".join(f"{f'slowest write of shard {shard} s':>28}" for shard in range(SHARDS))
        for name, waits in self.waits.items():
            yield f"{name:14} " + " ".join(f"{wait:28.2f}" for wait in waits)

    def document(self) -> dict[str, object]:
        """Return it for programs."""
        return {**super().document(), "waits": self.waits}

    def broken(self) -> Iterator[str]:
        """Yield the promises that were not kept."""
        yield from super().broken()
        for name, waits in self.waits.items():
            if max(waits) > WAIT_SECONDS:
                yield f"a write waited {max(waits):.1f} s when {name} was killed"

    def measure(self) -> None:
        """Find the longest write of each shard in the time of each kill."""
        writes = _writes(self.rows)
        for restart, end in zip(self.restarts, [*(each.began for each in self.restarts[1:]), np.inf], strict=True):
            # Who was waiting when the process was killed is one of those who wait for it.
            inside = (writes["answered"] >= restart.began) & (writes["at"] < end)
            self.waits[restart.service] = [
                float(writes["seconds"][inside & (writes["shard"] == shard)].max(initial=0)) for shard in range(SHARDS)
            ]


def _writes(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return when each write was sent and answered, how long it took, and the shard that it was for."""
    sent = rows[rows["kind"] == Kind.INVOKED]
    told = rows[np.isin(rows["kind"], [Kind.OK, Kind.FAILED, Kind.UNKNOWN])]
    answers = {float(value): float(at) for value, at in zip(told["value"], told["at"], strict=True)}
    shards = np.array([shard_of(server_of(writer), SHARDS) for writer in range(WRITERS)])
    answered = np.array([answers.get(float(value), np.inf) for value in sent["value"]])
    known_end = np.where(np.isinf(answered), sent["at"], answered)
    return {"at": sent["at"], "answered": answered, "seconds": known_end - sent["at"], "shard": shards[sent["writer"]]}


async def run(
    folder: Path,
    *,
    names: Sequence[str] = (),
    rate: float = CALLS_PER_SECOND,
    seconds: float = DEADLINE_SECONDS,
    redis: str = "",
) -> Scaled:
    """Kill processes one at a time, all without names, under so many calls a second; read everything back and judge."""
    path, outcome = folder / "journal", Scaled()
    async with _stores(folder / "stores", redis) as behind:
        gateway = f"127.0.0.1:{_free_ports()}"
        config = MeshConfig(**layout.addresses(gateway, SHARDS, GATEWAYS), shard_count=SHARDS)
        parts = [part for part in layout.parts(config) if part.service != "console"]
        killed = [each for each in (*parts, *behind.victims) if each.name in names or not names]
        engine = "" if names else behind.engine
        more = {"OPENMANAGER_GATEWAY_PATIENCE": f"{seconds:g}s", **(SMALL if engine else {})}
        fleet = (*FLEET, "--shards", str(SHARDS), "--gateways", str(GATEWAYS))
        base = int(gateway.rpartition(":")[2])
        mesh = Mesh.start(folder / "data", base, folder / "screen", {**behind.environment, **more}, fleet=fleet)
        try:
            async with Client(config.gateway) as client:
                peer = client.rpc.peer
                await started(peer, [part.address for part in parts])
                with Journal(path) as told:
                    pace = WRITTEN * rate, (1 - WRITTEN) * rate
                    async with steady.load(config.gateway, told, *pace, seconds=seconds) as outcome.reads:
                        early = await reading.write_early(peer) if engine else 0
                        await _kill_each(mesh, killed, parts, outcome)
                outcome.rows = journal.load(path)
                outcome.measure()
                # An engine is asked when everything is in it, which it never is while somebody writes.
                await client.simulation.stop()
                outcome.verdict = await reading.read_back(peer, path, engine, early)
        finally:
            await asyncio.to_thread(mesh.end)
    return outcome


@contextlib.asynccontextmanager
async def _stores(folder: Path, redis: str) -> AsyncIterator[Doubled]:
    """Run stores with copies of themselves, or without a kind of Redis one of each, which nobody kills."""
    if redis:
        async with doubled(folder, redis) as behind:
            yield behind
    else:
        async with stores(folder, 1) as single:
            yield Doubled(single.environment)


async def _kill_each(
    mesh: Mesh, killed: Sequence[layout.Part | Victim], parts: Sequence[layout.Part], outcome: Scaled
) -> None:
    """Kill one process after the other, the next one as soon as all is well after the last one."""
    outcome.began, outcome.limit_seconds = time.monotonic(), len(killed) * KILL_SECONDS
    for each in killed:
        began = time.monotonic()
        if isinstance(each, Victim):
            theirs = [part.address for part in parts if part.service == each.service]
            await each.kill()
            if each.noticed:
                await asyncio.gather(*(unwell(address) for address in theirs))
            await each.replaced()
        else:
            theirs = [each.address]
            await _kill(mesh, each)
        ended = time.monotonic()
        await asyncio.gather(*(serving(address) for address in theirs))
        back = time.monotonic()
        outcome.restarts.append(Restart(service=each.name, began=began, ended=ended - began, back=back - began))
        if isinstance(each, Victim):
            await each.returned()
        await asyncio.sleep(SETTLE_SECONDS)
    outcome.seconds = time.monotonic() - outcome.began


async def _kill(mesh: Mesh, part: layout.Part) -> None:
    """Kill a process, and wait for its successor."""
    pid = _pid(mesh, part)
    signalled([pid or 0], signal.SIGKILL)
    while _pid(mesh, part) in {pid, None}:
        await asyncio.sleep(POLL_SECONDS)


def _pid(mesh: Mesh, part: layout.Part) -> int | None:
    """Return the process of a part, None while it has none: gateways are told apart by where they listen, shards by number."""
    words = [f"serve\0{part.service}\0".encode()]
    mark = f"OPENMANAGER_SHARD_INDEX={part.number}\0".encode() if part.service in SHARDED else b""
    if part.service == "gateway":
        words.append(part.address.encode())
    for pid in family(mesh.process.pid)[1:]:
        with contextlib.suppress(OSError):
            process = Path(f"/proc/{pid}")
            line = process.joinpath("cmdline").read_bytes()
            if all(word in line for word in words) and mark in process.joinpath("environ").read_bytes():
                return pid
    return None


def _free_ports() -> int:
    """Return a port that is free with all others of a mesh of shards and gateways."""
    found = layout.addresses("127.0.0.1:1", SHARDS, GATEWAYS)
    offsets = [int(address.rpartition(":")[2]) - 1 for address in ",".join(found.values()).split(",")]
    return free_base(offsets, max(offsets) + 1)


if __name__ == "__main__":
    main()
