"""`make upgrade`: exchange the services of a mesh, one at a time under load, for those of another version, and back again.

The mesh begins as the last release, with two gateways and stores of its own. Both versions' clients write and read all the
while. Then each service is ended, and started as this version on the same data and address; at the end all of them go back.
"""

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
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.rpc import free_ports
from chaos import checker, journal, reading, rolling, steady
from chaos.before import Release, before, this
from chaos.journal import Journal
from chaos.load import WRITERS
from chaos.stores import stores
from openmanager.runtime.peer import Peer

SECOND = "gateway-2"
# What keeps data in a folder.
DATA = ("timeseries", "analysis")
# What keeps data, then what is asked for it, then who asks. Who goes back takes the opposite way.
SERVICES_FIRST = ("metadata", "timeseries", "cache", "analysis", "simulator", SECOND, "gateway")
GATEWAYS_FIRST = (SECOND, "gateway", "metadata", "timeseries", "cache", "analysis", "simulator")
ORDERS = {"services-first": SERVICES_FIRST, "gateways-first": GATEWAYS_FIRST}
CALLS_PER_SECOND = 100.0
# Both versions are left to work together for so long after each exchange.
TOGETHER_SECONDS = 1.0
END_SECONDS = 30.0
SAID = 5
# So short that files of both versions are written, sealed and read all the while.
HURRY = {"OPENMANAGER_TIMESERIES_SEAL_INTERVAL": "5s", "OPENMANAGER_TIMESERIES_SEGMENT_SIZE": "1MiB"}
# A store is not away because a machine is busy.
PATIENT = {
    "OPENMANAGER_METADATA_CONNECT_TIMEOUT": "5s",
    "OPENMANAGER_METADATA_STATEMENT_TIMEOUT": "5s",
    "OPENMANAGER_METADATA_ACQUIRE_TIMEOUT": "2s",
}
FLEET = {"OPENMANAGER_SIMULATOR_SERVERS": "3", "OPENMANAGER_SIMULATOR_INTERVAL": "1s"}
# A start takes a second, on a busy machine ten: a call may wait for it. The first release's gateways never wait.
CALL_SECONDS = 30.0
PATIENCE = {"OPENMANAGER_GATEWAY_PATIENCE": f"{CALL_SECONDS:g}s"}
CLIENT = Path(__file__).parent / "within" / "client_of_release.py"


def main() -> None:
    parser = argparse.ArgumentParser(prog="chaos.upgrade", description=__doc__)
    parser.add_argument("--order", choices=ORDERS, default="gateways-first")
    parser.add_argument("--folder", type=Path, default=Path("build"), help="keeps the installed release between runs")
    parser.add_argument("--forward", action="store_true", help="do not go back")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no mesh is left behind
    old = before(options.folder)
    with tempfile.TemporaryDirectory(prefix="openmanager-upgrade-") as folder:
        found = asyncio.run(run(Path(folder), old, ORDERS[options.order], back=not options.forward))
    print("\n".join(found.lines()))
    sys.exit(1 if any(found.broken()) else 0)


@dataclass(kw_only=True)
class Outcome(rolling.Outcome):
    """What exchanging cost. The first release does not finish the calls under way when it is ended."""

    limit_seconds: float = 600.0
    failed_share: float = 0.01
    # What the other version's client saw: its calls, its samples and those of them that are lost.
    other: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """Yield a table of the exchanges, and the sums."""
        yield from super().lines()
        for why, count in Counter(why for _, why in self.failures).most_common():
            yield f"{count:6} times: {why}"
        yield f"the release's own client: {json.dumps(self.other)}"

    def broken(self) -> Iterator[str]:
        """Yield the promises that were not kept."""
        yield from super().broken()
        if any(self.other.get(name) for name in ("lost", "strange", "error")):
            yield f"the release's own client: {json.dumps(self.other)}"


class Service:
    """A service of either version, at the same address and on the same data."""

    def __init__(
        self, name: str, old: Release, addresses: Mapping[str, str], data: Path, more: Mapping[str, str]
    ) -> None:
        self.name = "gateway" if name == SECOND else name
        self.address = addresses[name]
        self._old, self._addresses, self._data, self._more = old, addresses, data, more
        self._screen = data / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, release: Release) -> None:
        """Start it as a version; nothing when that version has no such service."""
        if self.name not in release.services:
            return
        with self._screen.open("ab") as out:
            self._process = subprocess.Popen(
                [str(release.python), "-m", "openmanager.cli", "serve", self.name, "--listen", self.address],
                env=self._environment(release),
                cwd=self._data,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def _environment(self, release: Release) -> dict[str, str]:
        """Return what a version knows of the settings: it refuses to start with one that it does not."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("OPENMANAGER_", "PYTHON"))}
        made = {**inherited, **self._more, "OPENMANAGER_ALLOW_INSECURE": "1"}
        if release.version != self._old.version:
            made |= PATIENCE
        for name in release.services:
            variable = "OPENMANAGER_GATEWAY" if name == "gateway" else f"OPENMANAGER_MESH_{name.upper()}"
            made[variable] = self._addresses[name]
            if name in DATA:
                made[f"OPENMANAGER_{name.upper()}_DATA_DIR"] = str(self._data / name)
        return made

    def end(self) -> None:
        """End it as an operator does."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def undo_migrations(self, release: Release) -> None:
        """Give the database the tables of an earlier version, as an operator does."""
        command = [sys.executable, "-m", "openmanager.cli", "schema", "--back-to", str(release.migration), "--discard"]
        done = subprocess.run(
            command, env={**os.environ, **self._more}, capture_output=True, text=True, check=False, timeout=END_SECONDS
        )
        if done.returncode:
            raise SystemExit(f"the migrations are not undone: {done.stderr}")

    def said(self) -> str:
        """Return the last lines of its log."""
        return "\n".join(self._screen.read_text(encoding="utf-8", errors="replace").splitlines()[-SAID:])

    @property
    def is_there(self) -> bool:
        """Whether the version that runs has it."""
        return self._process is not None


async def run(folder: Path, old: Release, order: Sequence[str], *, back: bool) -> Outcome:
    """Exchange all services for this version's, and back; read everything back and judge."""
    outcome, path = Outcome(), folder / "journal"
    base = free_ports(len(SERVICES_FIRST))
    addresses = {name: f"127.0.0.1:{base + at}" for at, name in enumerate(SERVICES_FIRST)}
    both = f"ipv4:{addresses['gateway']},{addresses[SECOND]}"
    async with stores(folder / "stores", 1) as behind:
        services = {
            name: Service(name, old, addresses, folder, {**behind.environment, **HURRY, **PATIENT, **FLEET})
            for name in addresses
        }
        try:
            for each in services.values():
                each.start(old)
            async with Peer("both gateways", both) as peer:
                await rolling.started(peer, [each.address for each in services.values() if each.is_there])
                with Journal(path) as told:
                    pace = rolling.WRITTEN * CALLS_PER_SECOND, (1 - rolling.WRITTEN) * CALLS_PER_SECOND
                    async with (
                        steady.load(both, told, *pace, seconds=CALL_SECONDS) as outcome.reads,
                        _client(old, both, outcome),
                    ):
                        await _exchange(services, order, old, outcome, back=back)
                outcome.rows = journal.load(path)
                found = [await reading.queried(peer, writer, outcome.rows) for writer in range(WRITERS)]
                outcome.verdict = checker.check(outcome.rows, found)
        finally:
            for each in reversed(services.values()):
                await asyncio.to_thread(each.end)
    return outcome


async def _exchange(
    services: Mapping[str, Service], order: Sequence[str], old: Release, outcome: Outcome, *, back: bool
) -> None:
    outcome.began = time.monotonic()
    steps = [(this(), name) for name in order]
    # A folder of a newer layout is refused by a version that knows of layouts, and taken for damaged by the first release.
    stay = DATA if old.layout < this().layout else ()
    steps += [(old, name) for name in reversed(order) if name not in stay] if back else []
    for release, name in steps:
        began = time.monotonic()
        await asyncio.to_thread(services[name].end)
        ended = time.monotonic()
        if name == "metadata" and release == old:
            await asyncio.to_thread(services[name].undo_migrations, release)
        services[name].start(release)
        label = f"{name} {release.version}"
        if services[name].is_there:
            try:
                await rolling.serving(services[name].address)
            except TimeoutError as err:
                raise SystemExit(f"{label} does not become well; it said last:\n{services[name].said()}") from err
        back_at = time.monotonic()
        outcome.restarts.append(rolling.Restart(service=label, began=began, ended=ended - began, back=back_at - began))
        await asyncio.sleep(TOGETHER_SECONDS)
    outcome.seconds = time.monotonic() - outcome.began


@contextlib.asynccontextmanager
async def _client(old: Release, target: str, outcome: Outcome) -> AsyncIterator[None]:
    """Let the release's own client write and read while the block runs."""
    process = await asyncio.create_subprocess_exec(
        str(old.python),
        str(CLIENT),
        target,
        steady.SERVER,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield
        told, _ = await asyncio.wait_for(process.communicate(b""), END_SECONDS)
        outcome.other = json.loads(told) if told else {"error": f"it ended with {process.returncode}"}
        for at, why in outcome.other.pop("failed", ()):
            outcome.reads.failures.append((at, f"to the release's own client: {why}"))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


if __name__ == "__main__":
    main()
