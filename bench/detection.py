"""`python -m bench.detection`: how well the detector finds simulated anomalies, beside simple ones, and what it costs.

The seeds below 1000 are for development, those from 1000 for judgement: defaults are frozen before these are looked at.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from openmanager_analysis.detection import THRESHOLD, Detector
from openmanager_analysis.detection.batch import History, judge

from bench.detection_measure import PROFILES, Nab, auc_pr, probation, vus_pr
from bench.detection_series import DAY, Group, corpus
from bench.detection_servers import ROWS, server

Floats = NDArray[np.float64]
JUDGEMENT, DEVELOPMENT = (1001, 1002), (1,)
HOLD = 120


def ours(group: Group) -> Floats:
    detector = Detector(group.values.shape[1])
    ticks = zip(group.time_unix_millis.tolist(), group.values, strict=True)
    return np.array([detector.observe(stamp, values).score for stamp, values in ticks])


def rolling_z(group: Group, rows: int = 300) -> Floats:
    """The deviation from the mean of the last rows, in their standard deviations."""
    values = np.where(np.isfinite(group.values), group.values, np.nanmedian(group.values, axis=0))
    padded = np.vstack([np.zeros(values.shape[1]), np.cumsum(values, axis=0)])
    squares = np.vstack([np.zeros(values.shape[1]), np.cumsum(values**2, axis=0)])
    end = np.arange(len(values))[:, None]
    start = np.maximum(end - rows, 0)
    count = np.maximum(end - start, 1)
    column = np.arange(values.shape[1])
    mean = (padded[end, column] - padded[start, column]) / count
    variance = np.maximum((squares[end, column] - squares[start, column]) / count - mean**2, 0)
    z = np.abs(values - mean) / (np.sqrt(variance) + 1e-3 * np.abs(mean) + 1e-9)
    return np.where(end > 10, z, 0)


def seasonal_naive(group: Group) -> Floats:
    """The deviation from the value a day before, in running mean deviations."""
    step = float(np.median(np.diff(group.time_unix_millis))) / 1000
    lag = max(1, int(DAY / step))
    values = np.where(np.isfinite(group.values), group.values, np.nanmedian(group.values, axis=0))
    off = np.abs(values[lag:] - values[:-lag])
    usual = np.cumsum(off, axis=0) / np.arange(1, len(off) + 1)[:, None]
    score = np.zeros_like(values)
    score[lag + 1 :] = off[1:] / (usual[:-1] + 1e-9)
    return score


def held_back(scores: Floats, threshold: float) -> Floats:
    """Return scores whose repeats within HOLD rows of a hit are below every threshold."""
    kept = scores.copy()
    for column in kept.T:
        last = -HOLD - 1
        for row in np.flatnonzero(column >= threshold):
            if row - last <= HOLD:
                column[row] = 0
            else:
                last = row
    return kept


@dataclass(frozen=True, slots=True)
class Result:
    best: dict[str, float]
    default: dict[str, float] | None
    auc_pr: float
    vus_pr: float


def assess(groups: Sequence[Group], scores: Sequence[Floats], *, has_default: bool, hold: bool) -> Result:
    columns = [column for found in scores for column in found.T]
    windows = [labelled for group in groups for labelled in group.windows]
    nab = Nab(columns, windows)
    best = {profile: nab.best(profile)[0] for profile in PROFILES}
    if hold:
        tries = np.geomspace(2, 30, 15)
        kept = {t: Nab([c for found in scores for c in held_back(found, t).T], windows) for t in tries}
        best = {profile: max(kept[t].score(profile, t) for t in tries) for profile in PROFILES}
    default = {profile: nab.score(profile, THRESHOLD) for profile in PROFILES} if has_default else None
    areas = []
    for group, found in zip(groups, scores, strict=True):
        first = probation(len(found))
        areas += [
            (auc_pr(found[first:, i], group.truth[first:, i]), vus_pr(found[first:, i], group.truth[first:, i], 60))
            for i in range(found.shape[1])
            if group.truth[first:, i].any()
        ]
    mean = np.mean(areas, axis=0)
    return Result(best, default, float(mean[0]), float(mean[1]))


DETECTORS: dict[
    str, tuple[Callable[[Group], Floats], bool, bool]
] = {  # with a default threshold, with repeats held back
    "OpenManager": (ours, True, False),
    "rolling z-score": (rolling_z, False, False),
    "rolling z-score, repeats held back": (rolling_z, False, True),
    "seasonal naive": (seasonal_naive, False, False),
    "seasonal naive, repeats held back": (seasonal_naive, False, True),
}


def series_table(seeds: Sequence[int]) -> None:
    print(
        f"{'one metric':36} {'standard':>9} {'low FP':>7} {'low FN':>7}   {'at the default':>20} {'AUC-PR':>7} {'VUS-PR':>7}"
    )
    groups = [group for seed in seeds for group in corpus(seed)]
    for name, (score, has_default, hold) in DETECTORS.items():
        result = assess(groups, [score(group) for group in groups], has_default=has_default, hold=hold)
        best = " ".join(f"{value:{width}.1f}" for value, width in zip(result.best.values(), (9, 7, 7), strict=True))
        default = " ".join(f"{value:6.1f}" for value in result.default.values()) if result.default else ""
        print(f"{name:36} {best}   {default:>20} {result.auc_pr:7.3f} {result.vus_pr:7.3f}", flush=True)


def servers_table(seeds: Sequence[int]) -> None:
    print(f"\n{'30 metrics of a server':36} {'AUC-PR':>7} {'VUS-PR':>7} {'found':>7} {'false alarms a day':>19}")
    rows = [_server_rows(seed) for seed in seeds]
    names = ["OpenManager, with a training period", "OpenManager, without", "largest |z| on the training period"]
    for place, name in enumerate(names):
        area, volume, found, false = np.mean([row[place] for row in rows], axis=0)
        alarms = f"{found:7.0%} {false * 1440 / ROWS:19.2f}" if place < 2 else ""
        print(f"{name:36} {area:7.3f} {volume:7.3f} {alarms}", flush=True)


def _server_rows(seed: int) -> list[tuple[float, float, float, float]]:
    made = server(seed)
    times, values = made.time_unix_millis, made.values
    history = History(time_unix_millis=times[:ROWS], values=values[:ROWS])
    after = judge(times[ROWS:], values[ROWS:], history, lambda _: None)
    alone = judge(times, values, None, lambda _: None)
    z = np.abs(values[ROWS:] - np.median(values[:ROWS], axis=0)) / (values[:ROWS].std(axis=0) + 1e-3)
    nothing = np.zeros(ROWS, dtype=bool)
    pairs = [(after.score, after.alarm), (alone.score[ROWS:], alone.alarm[ROWS:]), (z.max(axis=1), nothing)]
    rows = []
    for score, alarm in pairs:
        alarms = np.flatnonzero(alarm)
        hits = [[first <= a < last + 5 for a in alarms] for first, last, _ in made.blamed]
        found = np.mean([any(hit) for hit in hits])
        false = len(alarms) - np.any(hits, axis=0).sum() if len(alarms) else 0
        rows.append((auc_pr(score, made.truth), vus_pr(score, made.truth, 60), float(found), float(false)))
    return rows


def cost_table(series: int = 10_220, ticks: int = 300) -> None:
    rng = np.random.default_rng(1)
    detector = Detector(series)
    values = rng.normal(50, 5, (16, series))
    for row in range(50):
        detector.observe(1_700_000_000_000 + row * 10_000, values[row % 16])
    begun = time.process_time()
    for row in range(50, 50 + ticks):
        detector.observe(1_700_000_000_000 + row * 10_000, values[row % 16])
    spent = (time.process_time() - begun) / ticks
    size = sum(each.nbytes for each in detector.arrays().values()) / series
    alone, one = Detector(1), values[:, :1].copy()
    begun = time.process_time()
    for row in range(5000):
        alone.observe(1_700_000_000_000 + row * 10_000, one[row % 16])
    single = (time.process_time() - begun) / 5000
    print(f"\ntick of {series:,} series: {spent * 1000:.1f} ms CPU; {size:,.0f} bytes of state a series")
    print(f"tick of one series: {single * 1e6:.0f} µs CPU, {1 / single:,.0f} rows/s")


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.detection", description=__doc__)
    parser.add_argument("--development", action="store_true", help="the seeds of development, not those of judgement")
    parser.add_argument("--seeds", type=int, nargs="+", help="these seeds")
    seeds = parser.parse_args()
    chosen = seeds.seeds or (DEVELOPMENT if seeds.development else JUDGEMENT)
    print(f"seeds {', '.join(map(str, chosen))}; NAB-style at the best threshold of each profile, and at the default\n")
    series_table(chosen)
    servers_table([seed * 10 + place for seed in chosen for place in range(3)])
    cost_table()


if __name__ == "__main__":
    main()
