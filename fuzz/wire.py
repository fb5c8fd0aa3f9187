"""`make fuzz-wire`: attack a mesh beside a good client, send it damaged messages, cancel calls; and print what it bore."""

from __future__ import annotations

import argparse
import asyncio
import math
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.rpc import free_ports, secret
from chaos.mesh import SERVICES, START_SECONDS, Mesh
from fuzz import cancellation, mutation
from fuzz.attack import ATTACKS
from fuzz.footprint import Footprint, footprint, footprints, reset_peak
from fuzz.good_client import GoodClient
from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.runtime.peer import Peer

LIST_SERVERS = "/openmanager.api.gateway.v1.GatewayService/ListServers"
OFFSETS = {"gateway": 0, "simulator": 1, "cache": 2, "timeseries": 3, "metadata": 4, "analysis": 5}
# So short that slow peers are given up while they are looked at.
HURRY = {f"OPENMANAGER_SERVER_{name}_TIMEOUT": "2s" for name in ("READ", "WRITE")}
SECONDS = 4.0
# What a good client must be able to do beside an attacker.
LEAST_SUCCESS = 0.999
MOST_TIMES = 2.0
# A tail shorter than this is the machine's own.
NOISE_SECONDS = 0.02
MIB = 1 << 20
# Before damage is counted, so many calls let caches, pools and threads grow to what they are.
WARM_UP = 3000


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A good client with and without an attack beside it, and what the attacked process held."""

    name: str
    end: str
    calls: int
    success: float
    calm_p99: float
    p99: float
    rise_bytes: int
    same_process: bool

    def defects(self) -> Iterator[str]:
        """Yield what must not be."""
        if self.end not in ATTACKS[self.name].ends:
            yield f"it ended as “{self.end}”"
        if not self.same_process:
            yield "the process did not live"
        if self.success < LEAST_SUCCESS:
            yield "the good client suffered"
        if self.p99 > max(MOST_TIMES * self.calm_p99, NOISE_SECONDS):
            yield "the good client waited"
        if self.rise_bytes > ATTACKS[self.name].most_bytes:
            yield "memory"


def main() -> None:
    parser = argparse.ArgumentParser(prog="fuzz.wire", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="of calm and attack, for each attack; 0: no attacks")
    parser.add_argument("--attacks", nargs="*", default=list(ATTACKS), choices=ATTACKS, help="which")
    parser.add_argument("--requests", type=int, default=20_000, help="damaged messages; 0: none")
    parser.add_argument("--cancellations", type=int, default=10_000, help="calls to cancel; 0: none")
    parser.add_argument("--seconds", type=float, default=math.inf, help="of either, at most")
    parser.add_argument("--seed", type=int, default=1, help="of what is damaged and when a call is cancelled")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no mesh is left behind
    with tempfile.TemporaryDirectory(prefix="openmanager-fuzz-") as folder:
        sound = asyncio.run(run(Path(folder), options))
    sys.exit(0 if sound else 1)


async def run(folder: Path, options: argparse.Namespace) -> bool:
    """Do all that was asked of a mesh of its own; return whether it bore it."""
    base, sound = free_ports(6), True
    mesh = Mesh.start(folder / "data", base, folder / "screen", HURRY)
    addresses = {name: f"127.0.0.1:{base + offset}" for name, offset in OFFSETS.items()}
    try:
        async with Peer("the gateway", mesh.gateway) as peer:
            client = GoodClient(peer)
            await _started(mesh, client)
            if options.rounds:
                sound &= await _attack(mesh, addresses, client, options)
            if options.requests:
                sound &= await _mutate(mesh, addresses, peer, options)
            if options.cancellations:
                sound &= await _cancel(mesh, options)
            sound &= await client.works()
        restarts = {name: count for name in SERVICES if (count := mesh.restarts(name))}
        if restarts:
            print(f"started again: {restarts}")
        return sound and not restarts
    finally:
        mesh.end()


async def _started(mesh: Mesh, client: GoodClient) -> None:
    async with asyncio.timeout(START_SECONDS):
        while not all(map(mesh.pid, SERVICES)) or not await client.works():
            if mesh.process.poll() is not None:
                raise SystemExit("the mesh did not start")
            await asyncio.sleep(0.1)


# ── attacks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _attack(mesh: Mesh, addresses: Mapping[str, str], client: GoodClient, options: argparse.Namespace) -> bool:
    sound = True
    print(
        f"{'attack on the gateway':22} {'end':12} {'calls':>6} {'answered':>9} {'calm p99':>9} {'p99 ms':>8} {'×':>5} {'MiB':>6}"
    )
    for name in options.attacks:
        found = await _beside(mesh, addresses["gateway"], client, name, options.rounds)
        defects = list(found.defects())
        sound &= not defects
        print(
            f"{name:22} {found.end:12} {found.calls:6,} {found.success:9.3%} {found.calm_p99 * 1e3:9.1f} {found.p99 * 1e3:8.1f} "
            f"{found.p99 / found.calm_p99:5.1f} {found.rise_bytes / MIB:6.1f}  {', '.join(defects)}",
            flush=True,
        )
    print(f"\n{'on the other ports':22} " + " ".join(f"{server:>24}" for server in addresses if server != "gateway"))
    for name in options.attacks:
        row = []
        for server, address in addresses.items():
            if server != "gateway":
                text, well = await _once(mesh, server, address, client, name)
                sound &= well
                row.append(f"{text:>24}")
        print(f"{name:22} " + " ".join(row), flush=True)
    return sound


async def _beside(mesh: Mesh, address: str, client: GoodClient, name: str, rounds: int) -> Beside:
    pid = mesh.pid("gateway") or 0
    calm, beside, end = [], [], ""
    before = footprint(pid)
    reset_peak(pid)
    for _ in range(rounds):
        calm.append(await client.latencies(SECONDS))
        async with _attacker(name, address, SECONDS + 0.5) as finished:
            await asyncio.sleep(0.5)  # until it has begun
            beside.append(await client.latencies(SECONDS))
            end = await finished()
    all_calm, all_beside = np.concatenate(calm), np.concatenate(beside)
    return Beside(
        name=name,
        end=end,
        calls=len(all_beside),
        success=float(np.isfinite(all_beside).mean()),
        calm_p99=_p99(all_calm),
        p99=_p99(all_beside),
        rise_bytes=footprint(pid).peak_bytes - before.resident_bytes,
        same_process=mesh.pid("gateway") == pid,
    )


async def _once(mesh: Mesh, server: str, address: str, client: GoodClient, name: str) -> tuple[str, bool]:
    pid = mesh.pid(server) or 0
    before = footprint(pid)
    reset_peak(pid)
    async with _attacker(name, address, 0) as finished:
        end = await finished()
    rise = footprint(pid).peak_bytes - before.resident_bytes
    well = (
        end in ATTACKS[name].ends
        and mesh.pid(server) == pid
        and rise <= ATTACKS[name].most_bytes
        and await client.works()
    )
    return f"{end} {rise / MIB:+.1f} MiB{'' if well else ' !'}", well


@asynccontextmanager
async def _attacker(name: str, address: str, seconds: float) -> AsyncIterator[Callable[[], object]]:
    """Attack from a process of its own, for some seconds or once."""
    command = [sys.executable, "-m", "fuzz.attack", name, address, str(seconds)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)

    async def finished() -> str:
        return (await process.communicate())[0].decode().strip()

    try:
        yield finished
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _p99(latencies: np.ndarray) -> float:
    return float(np.percentile(latencies, 99, method="inverted_cdf"))


# ── damaged messages and cancelled calls ─────────────────────────────────────────────────────────────────────────────


async def _mutate(mesh: Mesh, addresses: Mapping[str, str], peer: Peer, options: argparse.Namespace) -> bool:
    listed = await peer.unary(
        LIST_SERVERS, gateway_pb2.ListServersRequest(), gateway_pb2.ListServersResponse, seconds=5
    )
    ids = [each.id for each in listed.servers]
    await mutation.run(addresses, ids, min(WARM_UP, options.requests), options.seed + 1)
    before = _held(mesh)
    tally = await mutation.run(
        addresses, ids, options.requests, options.seed, _progress(options.requests), options.seconds
    )
    print(f"\n{tally.codes.total():,} damaged messages, seed {options.seed}")
    print("\n".join(tally.lines()))
    print("\n".join(_grown(before, _held(mesh))), flush=True)
    return not tally.defects


async def _cancel(mesh: Mesh, options: argparse.Namespace) -> bool:
    stores = secret(mesh.pid("cache") or 0, "REDIS_URL"), secret(mesh.pid("metadata") or 0, "DATABASE_URL")
    await cancellation.run(mesh.gateway, min(WARM_UP, options.cancellations), options.seed + 1)
    before, held = _held(mesh), await cancellation.behind(*stores)
    tally = await cancellation.run(
        mesh.gateway, options.cancellations, options.seed, _progress(options.cancellations), options.seconds
    )
    after = await cancellation.behind(*stores)
    print(f"\ncancelled calls, seed {options.seed}")
    print("\n".join(tally.lines()))
    print(f"connections to Redis {held.redis} → {after.redis}, to PostgreSQL {held.postgresql} → {after.postgresql}")
    print(f"transactions that nobody ends: {after.transactions}")
    print("\n".join(_grown(before, _held(mesh))), flush=True)
    return not tally.foreign and not after.transactions


def _held(mesh: Mesh) -> dict[str, Footprint]:
    return footprints({name: mesh.pid(name) or 0 for name in SERVICES})


def _grown(before: Mapping[str, Footprint], after: Mapping[str, Footprint]) -> Iterator[str]:
    yield f"{'process':12} {'MiB':>14} {'descriptors':>14} {'threads':>12}"
    for name, then in before.items():
        now = after[name]
        memory = f"{then.resident_bytes / MIB:.0f} → {now.resident_bytes / MIB:.0f}"
        yield (
            f"{name:12} {memory:>14} {f'{then.descriptors} → {now.descriptors}':>14} "
            f"{f'{then.threads} → {now.threads}':>12}"
        )


def _progress(count: int) -> Callable[[int], None]:
    def tell(done: int) -> None:
        if sys.stderr.isatty() and done % 500 == 0:
            bar = "█" * (20 * done // count) + "░" * (20 - 20 * done // count)
            print(f"\r\x1b[K{bar} {done:,}/{count:,}", end="", file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    main()
