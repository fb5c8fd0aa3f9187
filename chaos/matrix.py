"""`python -m chaos.matrix`: the cells of the table, one after the other; what was found is appended to a file.

A run that was interrupted goes on where it was: cells that the file has are not made again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from bench.store import influx_binary
from chaos.cell import PATIENCE, Cell, Result, applicable, cells, run
from chaos.stores import can_mount
from chaos.world import World, world


def present() -> list[str]:
    """Return what this machine has of what cells may need."""
    found = {
        "root": can_mount(),
        "victoriametrics": shutil.which("victoria-metrics") is not None,
        "influxdb": influx_binary() is not None,
    }
    return [name for name, here in found.items() if here]


def place(cell: Cell) -> tuple[str, bool]:
    """Return what kind of mesh a cell needs: an engine, and whether its parts have file systems of their own."""
    return cell.engine, cell.small_disks


async def run_all(
    chosen: Sequence[Cell], file: Path | None, *, seconds: float, rate: float, patience: float, seed: int
) -> list[Result]:
    """Make cells, those on the same kind of mesh together; a mesh that does not recover is replaced."""
    done = {each.name: each for each in stored(file)}
    results = [done[cell.name] for cell in chosen if cell.name in done]
    left = sorted((cell for cell in chosen if cell.name not in done), key=place)
    told = len(results)
    for (engine, small_disks), group in groupby(left, key=place):
        waiting = list(group)
        while waiting:
            async with world(engine, seed=seed, small_disks=small_disks) as found:
                while waiting:
                    cell = waiting.pop(0)
                    result = await _attempt(found, cell, seconds=seconds, rate=rate, patience=patience)
                    results.append(result)
                    told += 1
                    _tell(result, told, len(chosen))
                    if file is not None:
                        with file.open("a", encoding="utf-8") as out:
                            out.write(json.dumps(asdict(result)) + "\n")
                    if result.recovered is None:
                        break
    return results


async def _attempt(found: World, cell: Cell, *, seconds: float, rate: float, patience: float) -> Result:
    try:
        return await run(found, cell, seconds=seconds, rate=rate, patience=patience)
    except Exception as err:  # noqa: BLE001  (a cell that cannot be made is a finding, and the others are made)
        return Result(name=cell.name, broken=[f"{type(err).__name__}: {err}"])


def stored(file: Path | None) -> Iterator[Result]:
    """Yield the results of a file."""
    if file is not None and file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            yield Result(**json.loads(line))


def lines(results: Sequence[Result]) -> Iterator[str]:
    """Yield a table for a terminal."""
    yield f"{'cell':38} {'reads':>7} {'answered':>9} {'p99 ms':>7} {'writes':>6} {'refused':>7} {'seen s':>7} {'back s':>7} {'lost':>5}"
    for each in results:
        answered = 1 - each.failed / each.reads if each.reads else 1.0
        yield (
            f"{each.name:38} {each.reads:7,} {answered:9.3%} {1e3 * each.p99:7.1f} {each.writes:6,} {each.refused:7,} "
            f"{_seconds(each.detected)} {_seconds(each.recovered)} {each.lost:5}"
        )
        for why in each.broken:
            yield f"    BROKEN: {why}"


def _seconds(found: float | None) -> str:
    return f"{'—':>7}" if found is None else f"{found:7.2f}"


def _tell(result: Result, done: int, count: int) -> None:
    for line in list(lines([result]))[1:]:
        print(f"{done:3}/{count} {line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="chaos.matrix", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names of cells; all when none is given")
    parser.add_argument("--smoke", action="store_true", help="a chosen few")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each fault lasts")
    parser.add_argument("--rate", type=float, default=100.0, help="reads a second")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="by what promises on time are multiplied")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, help="file to append to, and to go on from")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no mesh is left behind
    chosen = [
        cell
        for cell in cells()
        if (cell.smoke or not options.smoke) and (not options.names or any(name in cell.name for name in options.names))
    ]
    here = present()
    for cell in chosen:
        if not applicable(cell, here):
            print(f"not made: {cell.name}: {', '.join(need for need in cell.needs if need not in here)} is not here")
    able = [cell for cell in chosen if applicable(cell, here)]
    with contextlib.suppress(KeyboardInterrupt):
        results = asyncio.run(
            run_all(
                able,
                options.results,
                seconds=options.seconds,
                rate=options.rate,
                patience=options.patience,
                seed=options.seed,
            )
        )
        broken = [each for each in results if each.broken]
        print(f"{len(results)} cells, {len(results) - len(broken)} as promised, {len(broken)} not")
        sys.exit(1 if broken else 0)
    sys.exit(130)


if __name__ == "__main__":
    main()
