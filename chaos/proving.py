"""`make chaos-planted`: plant one bug after the other in a mesh, and see whether chaos finds it; and nothing where none is."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from chaos.planted import BUGS

# A machine that is busy with something else may take too long to start a mesh.
TRIES = 2


def main() -> None:
    parser = argparse.ArgumentParser(prog="chaos.proving", description=__doc__)
    parser.add_argument("--faults", type=int, default=50, help="within how many each is to be found")
    parser.add_argument("--seed", type=int, default=1, help="of the faults")
    parser.add_argument("--results", type=Path, help="file to append what was found to")
    parser.add_argument("bugs", nargs="*", metavar="BUG", help=f"of {', '.join(BUGS)}; all, and none")
    options = parser.parse_args()
    names = options.bugs or [*BUGS, "none"]
    start, right = time.monotonic(), 0
    print(f"{'bug':9} {'what goes wrong':56} {'faults':>6}  what was found")
    for name in names:
        found = tried(name, options.faults, options.seed)
        defects = found["defects"]
        right += bool(defects) == (name in BUGS)
        what = ", ".join(f"{count:,} {defect}" for defect, count in defects.items()) or "nothing"
        says = BUGS[name].says if name in BUGS else "nothing"
        print(f"{name:9} {says:56} {len(found['faults']):6}  {what}", flush=True)
        if options.results is not None:
            row = {"bug": name, "found": bool(defects), "faults": len(found["faults"]), "what": what}
            with options.results.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
    wanted = "found, and nothing where none is" if "none" in names else "found"
    print(f"{right} of {len(names)} as it should be ({wanted}), seed {options.seed}, {time.monotonic() - start:.0f} s")
    sys.exit(right < len(names))


def tried(name: str, faults: int, seed: int) -> dict[str, Any]:
    """Return what chaos finds with a bug planted."""
    command = [sys.executable, "-m", "chaos", "--planted", name, "--faults", str(faults), "--seed", str(seed), "--json"]
    for _ in range(TRIES):
        if said := subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout:
            document: dict[str, Any] = json.loads(said)
            return document
    raise SystemExit(f"chaos did not come to an end with {name} planted")


if __name__ == "__main__":
    main()
