"""`make chaos-full`: every cell of the table, a thousand random faults, and every planted bug.

What is found is appended to files in a folder; a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chaos.matrix import present
from chaos.planted import BUGS
from chaos.stores import ENGINES

FAULTS_A_ROUND = 50
# Of every four rounds one has each engine that is here, and the others have the blocks alone.
TURNS = ("", ENGINES[0], "", ENGINES[1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="chaos.full", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("chaos-results"), help="where what is found is kept")
    parser.add_argument("--faults", type=int, default=1000, help="random ones")
    parser.add_argument("--seed", type=int, default=1, help="of the first round; the next has the next")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the fault of a cell lasts")
    parser.add_argument("--rate", type=float, default=300.0, help="reads a second in a cell")
    parser.add_argument("--only", choices=["matrix", "random", "planted"], help="one part")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options.folder.mkdir(parents=True, exist_ok=True)
    parts = [options.only] if options.only else ["matrix", "random", "planted"]
    good = True
    if "matrix" in parts:
        file = options.folder / "matrix.jsonl"
        pace = ["--seconds", str(options.seconds), "--rate", str(options.rate), "--seed", str(options.seed)]
        good &= not _run("chaos.matrix", "--results", str(file), *pace).returncode
    if "random" in parts:
        good &= _random(options.folder / "random.jsonl", options.faults, options.seed)
    if "planted" in parts:
        good &= _planted(options.folder / "planted.jsonl", options.seed)
    sys.exit(0 if good else 1)


def _run(module: str, *arguments: str, keep: bool = False) -> subprocess.CompletedProcess[bytes]:
    out = subprocess.PIPE if keep else None
    return subprocess.run([sys.executable, "-m", module, *arguments], stdout=out, check=False)


def _random(file: Path, faults: int, seed: int) -> bool:
    """Make rounds of random faults until there are enough; say whether all were sound."""
    done = {(each["seed"], each["engine"]): each for each in _rows(file)}
    good = True
    here = present()
    for missing in set(ENGINES) - set(here):
        print(f"{missing} is not here: its rounds are made without", flush=True)
    for at in range(-(-faults // FAULTS_A_ROUND)):
        turn = TURNS[at % len(TURNS)]
        key = seed + at, turn if turn in here else ""
        if key not in done:
            options = ["--faults", str(FAULTS_A_ROUND), "--seed", str(key[0]), "--json"]
            engine = ["--engine", key[1]] if key[1] else []
            ended = _run("chaos", *options, *engine, keep=True)
            if not ended.stdout:
                print(f"round {at + 1}: it did not come to an end", flush=True)
                good = False
                continue
            done[key] = json.loads(ended.stdout)
            _append(file, done[key])
        found = done[key]
        good &= not found["defects"]
        print(
            f"round {at + 1}, seed {found['seed']}{' ' + found['engine'] if found['engine'] else ''}: "
            f"{len(found['faults'])} faults, {found['crashes']} crashes, {found['acknowledged']:,} samples acknowledged, "
            f"{found['defects'] or 'no'} defects",
            flush=True,
        )
    return good


def _planted(file: Path, seed: int) -> bool:
    """Plant what was not planted yet; say whether all was found, and nothing where none is."""
    done = {each["bug"] for each in _rows(file)}
    for name in (*BUGS, "none"):
        if name not in done:
            _run("chaos.proving", name, "--seed", str(seed), "--results", str(file))
    return all(each["found"] == (each["bug"] != "none") for each in _rows(file))


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def _append(file: Path, row: object) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
