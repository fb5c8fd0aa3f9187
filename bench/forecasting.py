"""`python -m bench.forecasting`: judge forecasts on simulated series, beside the daily seasonal naive forecast."""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray
from openmanager_analysis.forecast import QUANTILES, forecast

from bench.forecast_series import series

Floats = NDArray[np.float64]
LEVELS = np.array(QUANTILES)
FIRST_SEED = {"development": 0, "judgement": 1_000_000}


def pinball(quantiles: Floats, actual: Floats) -> float:
    """Return the CRPS as twice the mean pinball loss of quantiles float64[H, Q]."""
    off = actual[:, None] - quantiles
    return float(2 * np.maximum(LEVELS * off, (LEVELS - 1) * off).mean())


def naive(history: Floats, per_day: int, ahead: int) -> Floats:
    """Return the last day again, with the quantiles of its errors by day ahead, float64[H, Q]."""
    filled = np.interp(np.arange(len(history)), np.flatnonzero(~np.isnan(history)), history[~np.isnan(history)])
    made = np.empty((ahead, len(LEVELS)))
    for day in range(ahead // per_day):
        lag = (day + 1) * per_day
        errors = np.quantile(filled[lag:] - filled[:-lag], LEVELS)
        errors -= errors[3]
        made[day * per_day : lag] = filled[-per_day:, None] + errors
    return made


def judge(seeds: range, per_day: int) -> None:
    rows = defaultdict(list)
    spent = 0.0
    for seed in seeds:
        name, history, actual = series(seed, per_day=per_day)
        scale = float(np.nanmean(np.abs(history[per_day:] - history[:-per_day]))) or 1.0
        times = np.arange(len(history)) * (86_400_000 // per_day) + 1_700_000_000_000
        began = time.process_time()
        ours = forecast(times, history, len(actual)).quantiles
        spent += time.process_time() - began
        theirs = naive(history, per_day, len(actual))
        rows[name].append(
            [
                np.abs(actual - ours[:, 3]).mean() / scale,
                np.abs(actual - theirs[:, 3]).mean() / scale,
                pinball(ours, actual) / scale,
                pinball(theirs, actual) / scale,
                ((actual >= ours[:, 1] - 1e-9) & (actual <= ours[:, 5] + 1e-9)).mean(),
                ((actual >= ours[:, 0] - 1e-9) & (actual <= ours[:, 6] + 1e-9)).mean(),
            ]
        )
    print(
        f"{'family':10} {'series':>6} {'MASE':>7} {'rel':>6} {'geo':>6} {'CRPS rel':>8} {'geo':>6} {'80 %':>6} {'95 %':>6}"
    )
    for name, found in [*rows.items(), ("all", [row for family in rows.values() for row in family])]:
        print(_line(name, np.array(found)))
    print(f"{1000 * spent / len(seeds):.2f} ms CPU a forecast")


def _line(name: str, rows: Floats) -> str:
    mean = rows.mean(axis=0)
    small = 1e-6
    geo = np.exp(np.log((rows[:, [0, 2]] + small) / (rows[:, [1, 3]] + small)).mean(axis=0))
    return (
        f"{name:10} {len(rows):6} {mean[0]:7.3f} {mean[0] / mean[1]:6.3f} {geo[0]:6.3f} {mean[2] / mean[3]:8.3f} "
        f"{geo[1]:6.3f} {mean[4]:6.3f} {mean[5]:6.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", choices=list(FIRST_SEED), default="judgement")
    parser.add_argument("--count", type=int, default=440, help="How many series.")
    parser.add_argument("--per-day", type=int, default=24, help="How many values a day.")
    options = parser.parse_args()
    first = FIRST_SEED[options.seeds]
    judge(range(first, first + options.count), options.per_day)


if __name__ == "__main__":
    main()
