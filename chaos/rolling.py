"""`make rolling`: restart every service of a mesh with two gateways, one at a time, under load, and count who notices."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from bench.rpc import free_ports
from chaos import checker, journal, reading, steady
from chaos.journal import Journal, Kind
from chaos.load import GATEWAY, INVENTORY, WRITERS
from chaos.mesh import PORTS, SERVICES, START_SECONDS, Mesh, Probe, signalled
from chaos.stores import stores
from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.metadata.v1 import metadata_pb2
from openmanager.api.status.v1 import status_pb2
from openmanager.client.rpc import DEADLINE_SECONDS
from openmanager.errors import OpenManagerError
from openmanager.runtime.peer import Peer

GET_STATUS = "/openmanager.api.status.v1.StatusService/GetStatus"
CALLS_PER_SECOND = 200.0
# The share of them that are frames to be written.
WRITTEN = 0.3
# After a service is back the next one is left alone for so long.
PAUSE_SECONDS = 0.5
POLL_SECONDS = 0.02
FAILED_SHARE = 0.001
TOTAL_SECONDS = 60.0
SECOND = "gateway 2"
NAMES = (SECOND, *SERVICES)


def main() -> None:
    parser = argparse.ArgumentParser(prog="chaos.rolling", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one document")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no mesh is left behind
    with tempfile.TemporaryDirectory(prefix="openmanager-rolling-") as folder:
        found = asyncio.run(run(Path(folder)))
    print(json.dumps(found.document(), indent=1) if options.json else "\n".join(found.lines()))
    sys.exit(1 if any(found.broken()) else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """A service that was told to end: when on the monotonic clock, how long it took to, and until its successor served."""

    service: str
    began: float
    ended: float
    back: float


@dataclass(kw_only=True)
class Outcome:
    """What a rolling restart cost."""

    began: float = 0.0
    seconds: float = 0.0
    restarts: list[Restart] = field(default_factory=list)
    reads: steady.Reads = field(default_factory=steady.Reads)
    verdict: checker.Verdict = field(default_factory=checker.Verdict)
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, journal.ROW))
    limit_seconds: float = TOTAL_SECONDS
    failed_share: float = FAILED_SHARE

    @property
    def calls(self) -> np.ndarray:
        """When each call was made."""
        found = np.sort(np.append(self.reads.at, self.rows["at"][self.rows["kind"] == Kind.INVOKED]))
        return found[found >= self.began]

    @property
    def failures(self) -> list[tuple[float, str]]:
        """When each call that failed was made, or a write was told so, and what failed."""
        rows = self.rows[(self.rows["kind"] == Kind.FAILED) | (self.rows["kind"] == Kind.UNKNOWN)]
        found = [*self.reads.failures, *((float(at), "a frame was not acknowledged") for at in rows["at"])]
        return sorted(each for each in found if each[0] >= self.began)

    def lines(self) -> Iterator[str]:
        """Yield a table of the restarts, and the sum."""
        yield f"{'service':18} {'ended s':>8} {'back s':>7} {'calls':>6} {'failed':>7} {'slowest read s':>15}"
        at, took = np.array(self.reads.at), np.array(self.reads.seconds)
        failed = np.array([at for at, _ in self.failures])
        for restart, end in zip(self.restarts, [*(each.began for each in self.restarts[1:]), np.inf], strict=True):
            calls, fails = (np.diff(np.searchsorted(each, [restart.began, end]))[0] for each in (self.calls, failed))
            slowest = took[(at >= restart.began) & (at < end)].max(initial=0)
            yield f"{restart.service:18} {restart.ended:8.2f} {restart.back:7.2f} {calls:6} {fails:7} {slowest:15.2f}"
        yield ""
        yield (
            f"{len(self.calls):,} calls in {self.seconds:.1f} s, {len(self.failures)} failed; "
            f"{self.verdict.acknowledged:,} samples acknowledged, {self.verdict.lost} lost"
        )
        yield from (f"broken: {promise}" for promise in self.broken())

    def broken(self) -> Iterator[str]:
        """Yield the promises that were not kept."""
        if len(self.failures) > self.failed_share * len(self.calls):
            yield f"{len(self.failures)} of {len(self.calls):,} calls failed, such as: {self.failures[0][1]}"
        if not self.verdict.sound:
            yield f"samples: {', '.join(self.verdict.examples)}"
        if self.seconds > self.limit_seconds:
            yield f"it took {self.seconds:.0f} s"

    def document(self) -> dict[str, object]:
        """Return it for programs."""
        return {
            "seconds": self.seconds,
            "restarts": [asdict(each) for each in self.restarts],
            "calls": len(self.calls),
            "failures": self.failures,
            "verdict": asdict(self.verdict),
            "broken": list(self.broken()),
        }


async def run(
    folder: Path, *, names: Sequence[str] = NAMES, rate: float = CALLS_PER_SECOND, seconds: float = DEADLINE_SECONDS
) -> Outcome:
    """Restart services one at a time, under so many calls a second that may take so long; read everything back and judge."""
    path, outcome = folder / "journal", Outcome()
    async with stores(folder / "stores", 1) as behind:
        base = free_ports(len(PORTS) + 1)
        beside = f"127.0.0.1:{base + len(PORTS)}"
        both = f"ipv4:127.0.0.1:{base},{beside}"
        patience = {"OPENMANAGER_GATEWAY_PATIENCE": f"{seconds:g}s"}
        mesh = Mesh.start(folder / "data", base, folder / "screen", {**behind.environment, **patience})
        second = Second(mesh, beside, patience, folder / "second")
        try:
            async with Peer("both gateways", both) as peer:
                await started(peer, [second.address])
                with Journal(path) as told:
                    pace = WRITTEN * rate, (1 - WRITTEN) * rate
                    async with steady.load(both, told, *pace, seconds=seconds) as outcome.reads:
                        await _roll(mesh, second, names, outcome)
                outcome.rows = journal.load(path)
                found = [await reading.queried(peer, writer, outcome.rows) for writer in range(WRITERS)]
                outcome.verdict = checker.check(outcome.rows, found)
        finally:
            second.end()
            await asyncio.to_thread(mesh.end)
    return outcome


class Second:
    """A second gateway beside a mesh's own."""

    def __init__(self, mesh: Mesh, address: str, more: Mapping[str, str], screen: Path) -> None:
        peers = {f"OPENMANAGER_MESH_{name.upper()}": where for name, where in mesh.addresses().items()}
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OPENMANAGER_")}
        self.address = address
        self._environment = {**environment, **peers, **more, "OPENMANAGER_ALLOW_INSECURE": "1"}
        del self._environment["OPENMANAGER_MESH_GATEWAY"]
        self._screen = screen
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "openmanager.cli", "serve", "gateway", "--listen", self.address]
        with self._screen.open("ab") as out:
            return subprocess.Popen(command, env=self._environment, stdout=out, stderr=out, start_new_session=True)

    def end(self) -> None:
        """End it as an operator does."""
        self._process.terminate()
        self._process.wait(30)

    def restart(self) -> None:
        """End it, and start its successor."""
        self.end()
        self._process = self._start()


async def _roll(mesh: Mesh, second: Second, names: Sequence[str], outcome: Outcome) -> None:
    """Restart one service after the other, the next one as soon as the last one serves again."""
    outcome.began = time.monotonic()
    addresses = mesh.addresses()
    for name in names:
        began = time.monotonic()
        if name == SECOND:
            await asyncio.to_thread(second.restart)
        else:
            await _end(mesh, name)
        ended = time.monotonic()
        await serving(second.address if name == SECOND else addresses[name])
        back = time.monotonic()
        outcome.restarts.append(Restart(service=name, began=began, ended=ended - began, back=back - began))
        await asyncio.sleep(PAUSE_SECONDS)
    outcome.seconds = time.monotonic() - outcome.began


async def _end(mesh: Mesh, name: str) -> None:
    """End a service, which its supervisor then starts again."""
    pid = mesh.pid(name)
    signalled([pid or 0], signal.SIGTERM)
    while mesh.pid(name) == pid:
        await asyncio.sleep(POLL_SECONDS)


async def started(peer: Peer, addresses: Iterable[str]) -> None:
    """Return when a mesh that has just been started is well, and its services at some addresses are.

    No load begins before: a client whose first calls fail has no retries left for a while.
    """
    await Probe(peer).wait("the first start")
    await asyncio.gather(*(serving(address) for address in addresses))
    await known(peer)


async def known(peer: Peer) -> None:
    """Return when the server that is asked for is known everywhere."""
    hot, kept = gateway_pb2.GetServerRequest(id=steady.SERVER), metadata_pb2.GetServerRequest(id=steady.SERVER)
    for _ in range(2 * len(NAMES)):  # by one gateway and the other
        await reading.patiently(
            lambda: peer.unary(f"{GATEWAY}/GetServer", hot, gateway_pb2.GetServerResponse, seconds=1)
        )
        await reading.patiently(
            lambda: peer.unary(f"{INVENTORY}/GetServer", kept, metadata_pb2.GetServerResponse, seconds=1)
        )


async def serving(address: str) -> None:
    """Wait until a service says that it and all it stands on are well."""
    await _status(address, well=True)


async def unwell(address: str) -> None:
    """Wait until a service says that something it stands on is not well."""
    await _status(address, well=False)


async def _status(address: str, *, well: bool) -> None:
    async with asyncio.timeout(START_SECONDS), Peer("the service", address) as peer:
        while True:
            with contextlib.suppress(OpenManagerError):
                request = status_pb2.GetStatusRequest()
                reply = await peer.unary(GET_STATUS, request, status_pb2.GetStatusResponse, seconds=1)
                if (reply.status.state == status_pb2.STORAGE_STATE_OK) is well:
                    return
            await asyncio.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main()
