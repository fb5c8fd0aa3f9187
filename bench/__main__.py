"""`make bench`: print the table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict

from bench import local, rpc
from bench.pair import Row

PARTS: dict[str, Callable[[], Row | Iterable[Row]]] = {
    "frame": local.frames,
    "tick": local.tick,
    "ack-20": lambda: local.acknowledged(20, 320, 16),
    "ack-1000": lambda: local.acknowledged(1000, 48, 4),
    "block": local.block,
    "rpc": rpc.rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="only these parts")
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    options = parser.parse_args()
    if not options.json:
        print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.platform()}\n")
        print(f"{'what':88} {'ours':>12} {'peer':>12} {'ratio':>8} {'goal':>8}")
    missed = 0
    for part in options.parts or PARTS:
        if sys.stderr.isatty():
            print(f"measuring {part} …", end="\r", file=sys.stderr, flush=True)
        found = PARTS[part]()
        for row in [found] if isinstance(found, Row) else found:
            missed += not row.met
            if options.json:
                print(json.dumps(asdict(row)), flush=True)
            else:
                mark = "" if row.met else "  missed"
                print(f"{row.name:88} {row.ours:>12} {row.peer:>12} {row.ratio:8.3f} {row.goal:>8}{mark}", flush=True)
    if missed and not options.json:
        print(f"\n{missed} goals missed")


if __name__ == "__main__":
    main()
