"""Servers with metrics that hang together and faults that show in some of them: a training and a test period."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.detection_series import DAY, Floats, _ar, _bursts, _daily

ROWS, STEP = 6000, 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """values: float64[2 * ROWS, M], the first ROWS the training period; truth: bool[ROWS], of the test period."""

    time_unix_millis: NDArray[np.int64]
    values: Floats
    truth: NDArray[np.bool_]
    blamed: list[tuple[int, int, list[int]]]


def server(seed: int, metrics: int = 30) -> Server:
    rng = np.random.default_rng([seed, 99])
    rows = 2 * ROWS
    seconds = 1_700_000_000 // STEP * STEP + np.arange(rows) * float(STEP)
    factors = _factors(rng, seconds)
    clean = np.column_stack([_metric(rng, factors) for _ in range(metrics)])
    values, truth, blamed = clean.copy(), np.zeros(rows, dtype=bool), []
    row = ROWS + int(rng.integers(300, 900))
    while row < rows - 400:
        length = int(rng.choice([rng.integers(3, 12), rng.integers(12, 60), rng.integers(60, 300)]))
        hit = rng.choice(metrics, int(rng.integers(1, max(2, metrics // 3))), replace=False)
        for column in hit:
            values[row : row + length, column] = _fault(rng, clean[:, column], row, length)
        truth[row : row + length] = True
        blamed.append((row - ROWS, row + length - ROWS, hit.tolist()))
        row += length + int(rng.integers(300, 1600))
    return Server(time_unix_millis=(seconds * 1000).astype(np.int64), values=values, truth=truth[ROWS:], blamed=blamed)


def _factors(rng: np.random.Generator, seconds: Floats) -> Floats:
    count = int(rng.integers(2, 5))
    made = []
    for _ in range(count):
        load = _daily(rng, seconds, weekly=False) * rng.uniform(0.5, 3)
        load += rng.uniform(0.2, 0.8) * _ar(rng, len(seconds), rng.uniform(0.8, 0.99))
        load += _bursts(rng, len(seconds), 0.002, rng.uniform(2, 20), rng.uniform(0.5, 2))
        made.append(
            load + rng.uniform(0, 1.0) * np.cumsum(rng.standard_normal(len(seconds))) / np.sqrt(20 * DAY / STEP)
        )
    return np.column_stack(made)


def _metric(rng: np.random.Generator, factors: Floats) -> Floats:
    rows = len(factors)
    kind = rng.choice(["linear", "exp", "private", "constant", "counts"], p=[0.5, 0.15, 0.15, 0.1, 0.1])
    if kind == "constant":
        return np.full(rows, float(rng.integers(0, 5)))
    signal = factors @ (rng.normal(size=factors.shape[1]) * (rng.random(factors.shape[1]) < 0.6))
    noise = rng.uniform(0.05, 0.5) * _ar(rng, rows, rng.uniform(0, 0.9))
    if kind == "linear":
        return 10 ** rng.uniform(-1, 4) * (5 + signal + noise)
    if kind == "exp":
        return 10 ** rng.uniform(-1, 4) * np.exp(0.4 * (signal + noise))
    if kind == "counts":
        return rng.poisson(np.exp(0.5 * np.clip(signal, -5, 5)) * rng.uniform(0.2, 5)).astype(float)
    return _ar(rng, rows, rng.uniform(0, 0.99)) + _bursts(rng, rows, 0.003, 3, 4)


def _fault(rng: np.random.Generator, values: Floats, row: int, length: int) -> Floats:
    low, middle, high = np.quantile(values, [0.02, 0.5, 0.98])
    spread = max(high - low, 1e-3 * abs(middle), 0.1)
    part = values[row : row + length]
    what = rng.choice(["shift", "ramp", "stuck", "decoupled", "noise", "sine"])
    size = rng.uniform(0.3, 1.5) * spread
    if what == "shift":
        return part + size
    if what == "ramp":
        return part + size * np.linspace(0, 1, length)
    if what == "stuck":
        return np.full(length, part[0])
    if what == "decoupled":
        other = int(rng.integers(0, ROWS))
        return values[other : other + length]
    if what == "noise":
        return part + 0.5 * size * rng.standard_normal(length)
    return part + size * np.sin(np.linspace(0, np.pi, length))
