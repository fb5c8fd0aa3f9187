"""Interleaved pairs: ours and the peer's, turn about, so that a noisy machine disturbs both alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

PAIRS = 7


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, ours and the peer's figure, their ratio, and the goal for it."""

    name: str
    ours: str
    peer: str
    ratio: float
    goal: str
    met: bool
    note: str = ""


def timed(work: Callable[[], object], seconds: float = 0.15) -> float:
    """Return the seconds that one call takes, repeated for about `seconds`."""
    work()
    count, start = 0, time.perf_counter()
    while True:
        work()
        count += 1
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return elapsed / count


def pairs(ours: Callable[[], float], peer: Callable[[], float], count: int = PAIRS) -> tuple[float, float, float]:
    """Return the medians of both and of their ratio, over `count` interleaved pairs."""
    found = [(ours(), peer()) for _ in range(count)]
    return (
        statistics.median(pair[0] for pair in found),
        statistics.median(pair[1] for pair in found),
        statistics.median(pair[0] / pair[1] for pair in found),
    )


def at_most(
    name: str, figures: tuple[float, float, float], goal: float, unit: str, scale: float, note: str = ""
) -> Row:
    """Return a row whose ratio should be at most `goal`, if there is one: infinity is none."""
    ours, peer, ratio = figures
    wanted = "" if math.isinf(goal) else f"≤ {goal:g}"
    return Row(name, f"{ours * scale:.3g} {unit}", f"{peer * scale:.3g} {unit}", ratio, wanted, ratio <= goal, note)


def at_least(
    name: str, figures: tuple[float, float, float], goal: float, unit: str, scale: float, note: str = ""
) -> Row:
    """Return a row whose ratio should be at least `goal`."""
    ours, peer, ratio = figures
    return Row(
        name, f"{ours * scale:.3g} {unit}", f"{peer * scale:.3g} {unit}", ratio, f"≥ {goal:g}", ratio >= goal, note
    )
