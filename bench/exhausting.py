"""Judge times to a limit on simulated levels, beside least squares over the last 24 hours."""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np
from openmanager_analysis.exhaustion import time_to_limit

from bench.exhaustion_series import HORIZON_HOURS, Case, case

Answer = tuple[float | None, float | None, float | None]


def least_squares(found: Case) -> Answer:
    """The common practice: a line through the last 24 hours."""
    slope, level = np.polyfit(np.arange(-23, 1), found.history[-24:], 1)
    hours = (found.limit - level) / slope if slope > 0 else np.inf
    return (float(max(hours, 0)) if hours <= HORIZON_HOURS else None), None, None


def ours(found: Case) -> Answer:
    times = np.arange(len(found.history)) * 3_600_000 + 1_700_000_000_000
    answer = time_to_limit(times, found.history, found.limit, HORIZON_HOURS)
    return answer.hours, answer.low, answer.high


def judge(seeds: range) -> None:
    rows, spent = defaultdict(list), 0.0
    for seed in seeds:
        found = case(seed)
        began = time.process_time()
        answer = ours(found)
        spent += time.process_time() - began
        rows[found.family].append((found, answer, least_squares(found)))
    print(
        f"{'family':14}{'cases':>6}{'reached':>8}{'median err':>11}{'in 20 %':>8}{'80 %':>7}{'missed':>8}{'false':>7}  (least squares: err, in 20 %, missed, false)"
    )
    for name, found in [*rows.items(), ("all", [row for family in rows.values() for row in family])]:
        print(_line(name, found))
    print(f"{1000 * spent / len(seeds):.2f} ms CPU an answer")


def _line(name: str, rows: list[tuple[Case, Answer, Answer]]) -> str:
    reached = sum(found.hours is not None for found, _, _ in rows)
    error, near, missed, false = _figures([(found, mine) for found, mine, _ in rows])
    theirs = _figures([(found, peer) for found, _, peer in rows])
    inside = [
        (low is not None and low <= found.hours + 1 and (high is None or found.hours - 1 <= high))
        for found, (_, low, high), _ in rows
        if found.hours is not None
    ]
    covered = np.mean(inside) if inside else np.nan
    return (
        f"{name:14}{len(rows):6}{reached:8}{error:11.3f}{near:8.2f}{covered:7.2f}{missed:8.3f}{false:7.3f}  "
        f"{theirs[0]:.2f} {theirs[1]:.2f} {theirs[2]:.2f} {theirs[3]:.2f}"
    )


def _figures(rows: list[tuple[Case, Answer]]) -> tuple[float, float, float, float]:
    """Return the median relative error, the share within 20 %, what was missed, and the false alarms."""
    errors = np.array(
        [
            np.inf if hours is None else abs(hours - found.hours) / found.hours
            for found, (hours, _, _) in rows
            if found.hours is not None
        ]
    )
    calm = [hours is not None for found, (hours, _, _) in rows if found.hours is None]
    said = errors[np.isfinite(errors)]
    return (
        float(np.median(said)) if said.size else np.nan,
        float((errors <= 0.2).mean()) if errors.size else np.nan,
        float(np.isinf(errors).mean()) if errors.size else np.nan,
        float(np.mean(calm)) if calm else np.nan,
    )
