"""`python -m chaos.report FOLDER`: the tables of docs/reliability.md and the headline of the README, from what runs found.

Only what stands between `<!-- chaos: NAME -->` and `<!-- end -->` is written.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chaos.cell import Cell, Result, cells
from chaos.matrix import stored

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("docs/reliability.md", "README.md")
Row = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(prog="chaos.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="where `make chaos-full` has put what it found")
    folder = parser.parse_args().folder
    results, rounds = list(stored(folder / "matrix.jsonl")), list(_rows(folder / "random.jsonl"))
    bugs = list(_rows(folder / "planted.jsonl"))
    made: dict[str, Callable[[], Iterator[str]]] = {
        "headline": lambda: headline(results, rounds, bugs),
        "figures": lambda: figures(results, rounds, bugs),
        "matrix": lambda: matrix(results),
        "random": lambda: by_fault(rounds),
        "planted": lambda: planted(bugs),
    }
    for page in PAGES:
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        for name, write in made.items():
            text = put(text, name, "\n".join(write()))
        path.write_text(text, encoding="utf-8")


def put(text: str, name: str, content: str) -> str:
    """Return a page with what stands under a name replaced; the page itself when it has no such place."""
    return re.sub(
        rf"(<!-- chaos: {name} -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{content}\n{found[2]}",
        text,
        flags=re.DOTALL,
    )


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


# ── what was found ───────────────────────────────────────────────────────────────────────────────────────────────────


def bound(count: int) -> str:
    """Return what 0 cases among so many say of the rate, with 95 % confidence (the rule of three)."""
    return f"{min(1.0, 3 / count):.2%}" if count else "—"


def faults_of(rounds: Sequence[Row]) -> list[Row]:
    """Return the faults of all rounds."""
    return [fault for each in rounds for fault in each["faults"]]


def headline(results: Sequence[Result], rounds: Sequence[Row], bugs: Sequence[Row]) -> Iterator[str]:
    """Yield the sentences of the README, of what was run."""
    faults, samples, lost = _sums(rounds)
    kept = sum(not each.broken for each in results)
    hunted = [each for each in bugs if each["bug"] != "none"]
    if faults:
        yield (
            f"**{faults:,} random faults, {samples:,} samples acknowledged under them, {lost} lost, doubled, torn or "
            f"foreign** (fewer than {bound(faults)} of such faults lose any, with 95 % confidence)."
        )
    if results:
        yield f"{kept} of {len(results)} kinds of single and double faults kept every promise on reads, writes and recovery."
    if hunted:
        yield f"The checker found {sum(each['found'] for each in hunted)} of {len(hunted)} bugs that were planted to try it."
    yield "[How, and every figure](docs/reliability.md)."


def _sums(rounds: Sequence[Row]) -> tuple[int, int, int]:
    """Return faults (crashes included), samples acknowledged, and what was wrong with samples."""
    faults = sum(len(each["faults"]) + each["crashes"] for each in rounds)
    return faults, sum(each["acknowledged"] for each in rounds), sum(sum(each["defects"].values()) for each in rounds)


def figures(results: Sequence[Result], rounds: Sequence[Row], bugs: Sequence[Row]) -> Iterator[str]:
    """Yield the figures with their goals."""
    faults, samples, lost = _sums(rounds)
    single = [(cell, each) for cell, each in _with_cells(results) if len(cell.parts) == 1 and cell.reads]
    shares = [1 - each.failed / each.reads for _, each in single if each.reads]
    slowest = max(((each.p99, each.name) for _, each in single), default=(0.0, ""))
    back = [each.recovered for _, each in _with_cells(results) if each.recovered is not None]
    random_back = [fault["recovered"] for fault in faults_of(rounds) if fault["recovered"] is not None]
    yield "| what | goal | found |"
    yield "|---|---|---|"
    yield f"| acknowledged samples lost, doubled, torn, resurrected or foreign | 0 of ≥ 10 M over ≥ 1,000 faults | {lost} of {samples:,} over {faults:,} (rate below {bound(faults)} a fault) |"
    if shares:
        good = sum(share >= 0.999 for share in shares)
        yield f"| reads answered during a single fault | ≥ 99.9 % in every cell | {good} of {len(shares)} cells; the worst {min(shares):.3%} |"
        yield f"| reads at p99 during a single fault | ≤ 300 ms | at most {1e3 * slowest[0]:.0f} ms ({slowest[1]}) |"
    yield f"| seen, killed | ≤ 1 s | {_seen(results, 'killed')} |"
    yield f"| seen, hung | ≤ 3 s | {_seen(results, 'stopped')} |"
    if back:
        yield f"| all as before after a cell's fault was over | ≤ 3 s at p95 | {_spread(back)} |"
    if random_back:
        yield f"| all as before after a random fault was over | ≤ 3 s at p95 | {_spread(random_back)} |"
    hunted = [each for each in bugs if each["bug"] != "none"]
    if hunted:
        yield f"| planted bugs found within 50 faults | 6 of 6 | {sum(each['found'] for each in hunted)} of {len(hunted)} |"


def _seen(results: Sequence[Result], fault: str) -> str:
    found = [
        each.detected
        for cell, each in _with_cells(results)
        if cell.fault == fault and len(cell.parts) == 1 and each.detected is not None
    ]
    return (
        f"at most {max(found):.1f} s, half within {float(np.median(found)):.1f} s ({len(found)} cells)"
        if found
        else "—"
    )


def _spread(seconds: Sequence[float]) -> str:
    p50, p95 = np.percentile(seconds, [50, 95])
    return f"{p50:.2f} s in the median, {p95:.2f} s at p95 ({len(seconds)})"


def _with_cells(results: Sequence[Result]) -> Iterator[tuple[Cell, Result]]:
    by_name = {cell.name: cell for cell in cells()}
    yield from ((by_name[each.name], each) for each in results if each.name in by_name)


def matrix(results: Sequence[Result]) -> Iterator[str]:
    """Yield the table of the cells."""
    yield "| fault | reads | answered | p99 | writes | refused | seen | back | lost | promises |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|"
    order = {cell.name: at for at, cell in enumerate(cells())}
    for each in sorted(results, key=lambda found: order.get(found.name, 0)):
        share = f"{1 - each.failed / each.reads:.2%}" if each.reads else "—"
        p99 = f"{1e3 * each.p99:.0f} ms" if each.reads else "—"
        yield (
            f"| {each.name} | {each.reads:,} | {share} | {p99} | {each.writes:,} | {each.refused:,} "
            f"| {_time(each.detected)} | {_time(each.recovered)} | {each.lost + each.foreign} "
            f"| {'; '.join(each.broken) or 'kept'} |"
        )


def _time(seconds: float | None) -> str:
    return "—" if seconds is None else f"{seconds:.1f} s"


def by_fault(rounds: Sequence[Row]) -> Iterator[str]:
    """Yield the table of the random faults."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for fault in faults_of(rounds):
        groups[fault["kind"], fault["victim"]].append(fault)
    yield "| fault | of | times | reads | answered | back p50 | back p95 |"
    yield "|---|---|--:|--:|--:|--:|--:|"
    for (kind, victim), some in sorted(groups.items()):
        reads, failed = sum(each["reads"] for each in some), sum(each["failed"] for each in some)
        back = [each["recovered"] for each in some if each["recovered"] is not None]
        p50, p95 = np.percentile(back, [50, 95]) if back else (float("nan"), float("nan"))
        share = f"{1 - failed / reads:.2%}" if reads else "—"
        yield f"| {kind} | {victim} | {len(some)} | {reads:,} | {share} | {p50:.2f} s | {p95:.2f} s |"
    seeds = ", ".join(f"{each['seed']}{' ' + each['engine'] if each['engine'] else ''}" for each in rounds)
    yield ""
    yield f"Seeds: {seeds}. Crashes at failpoints beside them: {sum(each['crashes'] for each in rounds)}."


def planted(bugs: Sequence[Row]) -> Iterator[str]:
    """Yield the table of the planted bugs."""
    yield "| planted | found | after faults | as |"
    yield "|---|---|--:|---|"
    for each in bugs:
        yield f"| {each['bug']} | {'yes' if each['found'] else 'no'} | {each['faults']} | {each['what']} |"


if __name__ == "__main__":
    main()
