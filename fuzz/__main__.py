"""`python -m fuzz`: hostile input on every method of the suite, in one process; a table of what was answered."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import logging
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fuzz.footprint import share_heaps
from fuzz.mesh import open_mesh
from fuzz.run import Fuzzer, Outcome, answering, good_calls, store
from openmanager import embedded
from openmanager.cli.progress import Bar, show_rate
from openmanager.datadir import DataDir
from openmanager.runtime.supervisor import Supervisor


def main() -> None:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, help="how many")
    parser.add_argument("--seed", type=int, default=1, help="of what is sent")
    parser.add_argument("--findings", type=Path, default=Path("findings"), help="where findings are written")
    options = parser.parse_args()
    share_heaps()
    faulthandler.register(signal.SIGUSR1)  # where is it?
    logging.basicConfig(level=logging.ERROR)  # of what nobody expected the log shows why
    unexpected = _Unexpected()
    logging.getLogger().addHandler(unexpected)
    with tempfile.TemporaryDirectory(prefix="openmanager-fuzz-local-") as folder:
        outcome = asyncio.run(run(Path(folder), options.requests, options.seed))
    print("\n".join(lines(outcome)))
    if outcome.findings:
        store(outcome.findings, options.findings)
    for each in unexpected.found:
        print(f"logged: {each}")
    sys.exit(1 if outcome.findings or unexpected.found else 0)


class _Unexpected(logging.Handler):
    """Keeps what work in the background failed on without anybody being told: that may not be either."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(f"{record.name}: {record.getMessage()}: {record.exc_info[1]!r}"[:200])


async def run(folder: Path, requests: int, seed: int) -> Outcome:
    """Start the stores, open the services on them, and try the inputs."""
    with DataDir.open(folder) as data:
        valkey, postgresql = embedded.valkey(data), embedded.postgresql(data)
        async with Supervisor([valkey.spec, postgresql.spec]) as children:
            await children.wait_ready()
            urls = {"REDIS_URL": valkey.url.reveal(), "DATABASE_URL": postgresql.url.reveal()}
            async with open_mesh(folder, urls) as methods:
                await answering(methods)
                fuzzer = Fuzzer(methods, seed, good_calls())
                for number in (signal.SIGINT, signal.SIGTERM):  # the table is printed all the same
                    asyncio.get_running_loop().add_signal_handler(number, setattr, fuzzer, "stopped", True)
                with Bar("fuzzing") as bar:

                    def show(so_far: Outcome) -> None:
                        rate = show_rate(so_far.done, so_far.seconds)
                        bar.show(so_far.done, requests, f"{so_far.done:,} at {rate}, {len(so_far.findings)} findings")

                    return await fuzzer.run(requests, show)


def lines(outcome: Outcome) -> Iterator[str]:
    """Yield a table of the codes by method, the sums, and what was found."""
    total: Counter[str] = sum(outcome.codes.values(), Counter())
    codes = [code for code, _ in total.most_common()]
    width = max(len(name) for name in outcome.codes)
    yield f"{'method':{width}} mean ms " + " ".join(f"{code[:12]:>12}" for code in codes)
    for name, counts in sorted(outcome.codes.items()):
        mean = 1e3 * outcome.taken[name] / counts.total()
        yield f"{name:{width}} {mean:7.1f} " + " ".join(f"{counts[code]:12,}" for code in codes)
    yield f"{'all':{width}} {1e3 * sum(outcome.taken.values()) / total.total():7.1f} " + " ".join(
        f"{total[code]:12,}" for code in codes
    )
    yield ""
    rate = show_rate(outcome.done, outcome.seconds)
    yield f"{outcome.done:,} requests in {outcome.seconds:.0f} s ({rate}), seed {outcome.seed}"
    yield f"the slowest answer took {outcome.slowest[0]:.2f} s: {outcome.slowest[1]}"
    if outcome.warm and outcome.last:
        for name in ("resident", "files", "tasks", "threads"):
            yield f"{name:9} {getattr(outcome.warm, name):,} after the warm-up, {getattr(outcome.last, name):,} at the end"
    yield f"{len(outcome.findings)} findings"
    for each in outcome.findings:
        yield f"  {each.method} #{each.number} {each.what}: {each.details[:200]}"


if __name__ == "__main__":
    main()
