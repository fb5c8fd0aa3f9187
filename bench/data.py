"""The standard fleet and the standard series."""

from __future__ import annotations

import time

import numpy as np

from openmanager.frame import Frame

INTERVAL = 10 * 10**9


def standard_series(ticks: int, servers: int, metrics: int, seed: int = 1) -> np.ndarray:
    """Return float64[T, S, M]: mean-reverting (φ 0.9) around a base in 10–80 with unit steps, rounded to 0.01."""
    generator = np.random.default_rng(seed)
    base = generator.uniform(10, 80, (servers, metrics))
    state = np.zeros((servers, metrics))
    out = np.empty((ticks, servers, metrics))
    for tick in range(ticks):
        state = 0.9 * state + generator.standard_normal((servers, metrics))
        out[tick] = np.round(base + state, 2)
    return out


def delta_entropy_bytes(values: np.ndarray) -> float:
    """Return the order-0 entropy of the differences of a series in steps of 0.01, bytes a sample."""
    steps = np.rint(np.diff(values, axis=0) * 100).astype(np.int64).ravel()
    _, counts = np.unique(steps, return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum() / 8)


def names(servers: int, metrics: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return ids and keys of realistic length."""
    return (
        tuple(f"server-{index:05d}" for index in range(servers)),
        tuple(f"system.cpu.utilization{{cpu={index},state=user}}" for index in range(metrics)),
    )


def frame(servers: int, metrics: int, seed: int = 1) -> Frame:
    """Return a frame of one tick, now."""
    ids, keys = names(servers, metrics)
    values = standard_series(1, servers, metrics, seed)
    return Frame(times=np.array([time.time_ns() // 10**6 * 10**6]), servers=ids, metrics=keys, values=values)
