"""`make bench`, `make bench-history` and `make bench-all`: print the table."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict

from bench import analysis, auditing, backfill, catching_up, footprint, interactions, local, plan, rpc
from bench.pair import Row

PARTS: dict[str, Callable[[], Row | Iterable[Row]]] = {
    "frame": local.frames,
    "tick": local.tick,
    "generator": local.generator,
    "ack-20": lambda: local.acknowledged(20, 320, 16),
    "ack-1000": lambda: local.acknowledged(1000, 48, 4),
    "block": local.block,
    "rpc": rpc.rows,
    "idle": footprint.rows,
    "backfill": backfill.rows,
    "catching-up": catching_up.rows,
    "interactions": interactions.rows,
    "audit": auditing.rows,
    "analysis": analysis.rows,
    "plan": plan.rows,
}


def main() -> None:
    options = _options()
    parts = _parts(options)
    width = 116 if options.history or options.all else 88
    if not options.json:
        print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.platform()}\n")
        print(
            _MARKDOWN_HEAD
            if options.markdown
            else f"{'what':{width}} {'ours':>14} {'peer':>14} {'ratio':>8} {'goal':>8}"
        )
    missed = 0
    for part in options.parts or parts:
        if sys.stderr.isatty():
            print(f"measuring {part} …", end="\r", file=sys.stderr, flush=True)
        found = parts[part]()
        for row in [found] if isinstance(found, Row) else found:
            missed += not row.met
            line = _markdown(row) if options.markdown else _line(row, width)
            print(json.dumps(asdict(row)) if options.json else line, flush=True)
    if missed and not options.json:
        print(f"\n{missed} goals missed")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("parts", nargs="*", help="only these parts")
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--markdown", action="store_true", help="a table for the documentation")
    parser.add_argument("--all", action="store_true", help="all parts")
    parser.add_argument("--history", action="store_true", help="the parts about history beside real engines")
    parser.add_argument("--minutes", type=float, default=2.0, help="of history: how long a steady load goes on")
    parser.add_argument("--pace", type=float, default=1.0, help="of history: seconds from one frame of it to the next")
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in _parts(options)]:
        parser.error(f"there is no {', '.join(unknown)}; there is {', '.join(_parts(options))}")
    return options


def _parts(options: argparse.Namespace) -> Mapping[str, Callable[[], Row | Iterable[Row]]]:
    if not (options.history or options.all):
        return PARTS
    from bench.history import parts

    return {**(PARTS if options.all else {}), **parts(options.minutes, options.pace)}


_MARKDOWN_HEAD = "| what | ours | peer | ratio | goal |\n|---|---|---|---|---|"


def _line(row: Row, width: int) -> str:
    mark = "" if row.met else "  missed"
    note = f"\n    {row.note}" if row.note else ""
    return f"{row.name:{width}} {row.ours:>14} {row.peer:>14} {_ratio(row):>8} {row.goal:>8}{mark}{note}"


def _markdown(row: Row) -> str:
    note, mark = f" ({row.note})" if row.note else "", "" if row.met else ", missed"
    return f"| {row.name}{note} | {row.ours} | {row.peer} | {_ratio(row)} | {row.goal or '—'}{mark} |"


def _ratio(row: Row) -> str:
    return "—" if math.isnan(row.ratio) else f"{row.ratio:.3f}"


if __name__ == "__main__":
    main()
