"""Labelled series of many kinds, simulated: what `python -m bench.detection` judges the detector on.

Nothing here is learnt from, or made to look like, any public labelled set. A corpus is a few groups; the series of a group
share their time stamps, so that one detector takes them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DAY = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Series over the same stamps.

    values: float64[T, S] with NaN missing. windows: for each series its windows [first, last] of rows, as wide as a tenth of
    the rows together and with the onset in the middle. truth: bool[T, S], the rows that were changed.
    """

    name: str
    time_unix_millis: NDArray[np.int64]
    values: Floats
    kinds: list[str]
    anomalies: list[list[str]]
    windows: list[list[tuple[int, int]]]
    truth: NDArray[np.bool_]


def _ar(rng: np.random.Generator, count: int, rho: float) -> Floats:
    from scipy.signal import lfilter

    noise = rng.standard_normal(count) * np.sqrt(1 - rho * rho)
    return np.asarray(lfilter([1.0], [1.0, -rho], noise))


def _daily(rng: np.random.Generator, seconds: Floats, *, weekly: bool) -> Floats:
    """A daily curve in [0, 1] or so, of a random shape, lower at weekends where weekly."""
    hour = seconds % DAY / DAY * 2 * np.pi
    curve = np.zeros(len(seconds))
    for k in range(1, 4):
        curve += rng.normal() / k**1.3 * np.cos(k * (hour - rng.uniform(0, 2 * np.pi)))
    curve = (curve - curve.min()) / (np.ptp(curve) + 1e-9)
    if rng.random() < 0.3:
        curve = 1 / (1 + np.exp(-12 * (curve - 0.5)))
    if weekly:
        day = (seconds // DAY + 4) % 7
        factor = np.ones(7)
        factor[rng.integers(7)], factor[(rng.integers(7) + np.array([0, 1])) % 7] = 1.15, rng.uniform(0.2, 0.7)
        curve = curve * factor[day.astype(int)]
    return curve


def _bursts(rng: np.random.Generator, count: int, rate: float, length: float, size: float) -> Floats:
    """Normal bursts: they come all the time, with exponential lengths and gamma sizes."""
    out = np.zeros(count)
    for start in np.flatnonzero(rng.random(count) < rate):
        steps = 1 + int(rng.exponential(length))
        out[start : start + steps] += rng.gamma(2.0, size / 2)
    return out


def cpu_flat(rng: np.random.Generator, t: Floats) -> Floats:
    n = len(t)
    level, sigma = rng.uniform(1, 60), rng.uniform(0.02, 0.15)
    noise = _ar(rng, n, rng.uniform(0, 0.7))
    out = level * (1 + sigma * noise)
    if rng.random() < 0.5:
        out += _bursts(rng, n, rng.uniform(0.002, 0.02), rng.uniform(0, 6), level * sigma * rng.uniform(3, 8))
    return np.clip(np.round(out, int(rng.integers(1, 4))), 0, 100)


def cpu_daily(rng: np.random.Generator, t: Floats) -> Floats:
    n, swing = len(t), rng.uniform(10, 60)
    curve = _daily(rng, t, weekly=rng.random() < 0.6)
    out = rng.uniform(2, 25) + swing * curve + swing * rng.uniform(0.02, 0.12) * _ar(rng, n, rng.uniform(0, 0.85))
    out += _bursts(rng, n, rng.uniform(0, 0.01), rng.uniform(0, 4), swing * rng.uniform(0.1, 0.4))
    return np.clip(np.round(out, 3), 0, 100)


def near_constant(rng: np.random.Generator, t: Floats) -> Floats:
    n, level = len(t), rng.uniform(0.05, 90)
    step = level * rng.choice([0.001, 0.01, 0.03])
    out = level + step * np.round(rng.standard_normal(n) * rng.uniform(0.2, 0.9))
    return out + _bursts(rng, n, rng.uniform(0, 0.004), 0.5, step * rng.uniform(3, 12))


def heavy_traffic(rng: np.random.Generator, t: Floats) -> Floats:
    n = len(t)
    intensity = 1.2 * rng.uniform(0.2, 1) * _ar(rng, n, rng.uniform(0.5, 0.97))
    if rng.random() < 0.5:
        intensity += rng.uniform(0.5, 2) * _daily(rng, t, weekly=False)
    out = np.exp(intensity + rng.normal(10, 3))
    hit = rng.random(n) < rng.uniform(0.001, 0.01)
    out[hit] *= 1 + np.minimum(rng.pareto(2.0, hit.sum()), 6)
    return np.round(out, 1)


def counts(rng: np.random.Generator, t: Floats) -> Floats:
    n = len(t)
    base = rng.lognormal(1.8, 1.0) * (0.3 + rng.uniform(0.3, 2) * _daily(rng, t, weekly=rng.random() < 0.3))
    boost = np.zeros(n)
    for start in np.flatnonzero(rng.random(n) < rng.uniform(0.001, 0.006)):
        steps = np.arange(min(n - start, 60))
        boost[start : start + 60] += np.minimum(rng.pareto(2.5), 5) * np.exp(-steps / rng.uniform(1, 12))
    shape = rng.uniform(1.5, 8)
    return rng.poisson(rng.gamma(shape, 1 / shape, n) * base * (1 + boost)).astype(float)


def temperature(rng: np.random.Generator, t: Floats) -> Floats:
    n, tau = len(t), rng.uniform(0.5, 4) * DAY / (t[1] - t[0])
    slow = _ar(rng, n, np.exp(-1 / tau))
    out = rng.uniform(20, 90) + rng.uniform(1, 5) * slow + rng.uniform(0, 4) * _daily(rng, t, weekly=rng.random() < 0.3)
    return np.round(out + rng.uniform(0.1, 0.8) * _ar(rng, n, rng.uniform(0, 0.8)), 3)


def steps(rng: np.random.Generator, t: Floats) -> Floats:
    n, count = len(t), int(rng.integers(2, 5))
    levels = np.sort(rng.uniform(5, 80, count))
    mean = rng.uniform(20, 250)
    state, out, i = int(rng.integers(count)), np.empty(n), 0
    while i < n:
        length = 1 + int(rng.exponential(mean))
        out[i : i + length] = levels[state]
        state, i = int(rng.integers(count)), i + length
    return np.round(out + rng.uniform(0.2, 2) * rng.standard_normal(n), 2)


def sawtooth(rng: np.random.Generator, t: Floats) -> Floats:
    n, period, jitter = len(t), rng.uniform(40, 400), rng.uniform(0, 0.25)
    out, i, swing = np.empty(n), 0, rng.uniform(5, 40)
    while i < n:
        length = max(5, int(period * (1 + jitter * rng.normal())))
        out[i : i + length] = np.arange(min(length, n - i)) / period * swing
        i += length
    return np.round(rng.uniform(20, 50) + out + rng.uniform(0.1, 1) * rng.standard_normal(n), 2)


def batch(rng: np.random.Generator, t: Floats) -> Floats:
    n, step = len(t), t[1] - t[0]
    period = rng.choice([3600, 4 * 3600, 6 * 3600, DAY]) if step < 3000 else DAY
    length = period * rng.uniform(0.05, 0.4)
    phase = (t + rng.uniform(0, period) + rng.normal(0, step * rng.uniform(0, 1.5), n)) % period
    on = (phase < length).astype(float)
    return np.round(rng.uniform(1, 10) + on * rng.uniform(15, 60) + rng.uniform(0.2, 3) * rng.standard_normal(n), 2)


def mostly_zero(rng: np.random.Generator, t: Floats) -> Floats:
    n = len(t)
    rate = rng.uniform(0.005, 0.15)
    out = np.where(rng.random(n) < rate, rng.gamma(rng.uniform(0.7, 3), 1, n), 0.0)
    return np.round(out * 10 ** rng.uniform(0, 6), 1)


def latency(rng: np.random.Generator, t: Floats) -> Floats:
    n = len(t)
    load = _daily(rng, t, weekly=rng.random() < 0.5) * rng.uniform(0, 0.8)
    return np.round(rng.uniform(5, 200) * np.exp(load + rng.uniform(0.05, 0.4) * _ar(rng, n, rng.uniform(0, 0.7))), 3)


def network(rng: np.random.Generator, t: Floats) -> Floats:
    n = len(t)
    curve = 0.15 + _daily(rng, t, weekly=rng.random() < 0.6)
    return np.round(10 ** rng.uniform(3, 8) * curve * np.exp(rng.uniform(0.05, 0.3) * _ar(rng, n, rng.uniform(0, 0.6))))


KINDS: dict[str, Callable[[np.random.Generator, Floats], Floats]] = {
    make.__name__: make
    for make in (
        cpu_flat, cpu_daily, near_constant, heavy_traffic, counts, temperature, steps, sawtooth, batch, mostly_zero,
        latency, network,
    )
}  # fmt: skip


def _spread(values: Floats) -> float:
    """How far normal values go: what an anomaly has to exceed to be one."""
    low, middle, high = np.nanquantile(values, [0.01, 0.5, 0.99])
    return float(max(high - middle, middle - low, 1e-3 * abs(middle), 1e-6))


def _noise(values: Floats) -> float:
    return float(np.nanquantile(np.abs(np.diff(values)), 0.9) + 1e-9)


def spoil(  # noqa: C901, PLR0912  (a table of shapes)
    rng: np.random.Generator, values: Floats, kind: str, start: int, per_day: int
) -> tuple[str, int]:
    """Put one anomaly into values at start, in place. Returns what it is and the row after its last."""
    n, spread, noise = len(values), _spread(values), _noise(values)
    choices = ["spike", "dip", "shift", "variance", "drift", "burst", "stuck"]
    if kind in {"cpu_daily", "network", "latency"}:
        choices += ["no_season", "no_season"]
    if kind in {"sawtooth", "batch", "steps"}:
        choices += ["pattern", "pattern"]
    what = str(rng.choice(choices, p=None))
    if what == "stuck" and kind in {"near_constant", "mostly_zero", "counts", "steps"}:
        what = "spike"
    if what == "dip" and kind in {"mostly_zero", "counts", "heavy_traffic", "near_constant"}:
        what = "shift"
    length = {
        "spike": int(rng.integers(1, 5)), "dip": int(rng.integers(1, 12)), "shift": int(rng.uniform(0.3, 1.5) * per_day),
        "variance": int(rng.uniform(0.15, 0.6) * per_day), "drift": int(rng.uniform(0.4, 1.2) * per_day),
        "burst": int(rng.integers(6, 40)), "stuck": int(rng.uniform(0.2, 0.8) * per_day),
        "no_season": int(rng.uniform(0.4, 1.0) * per_day), "pattern": int(rng.uniform(0.2, 0.8) * per_day),
    }[what]  # fmt: skip
    length = max(1, min(length, int(0.08 * n)))
    end = min(n, start + length)
    part = values[start:end].copy()
    size = rng.uniform(1.5, 5) * spread
    positive = bool(np.nanmin(values) >= 0)
    if what == "spike":
        part += size * rng.uniform(0.8, 2) * np.exp(-np.arange(len(part)) / 3)
    elif what == "dip":
        part = part - size if not positive else part * rng.uniform(0, 0.25)
    elif what == "shift":
        part += (rng.choice([-1, 1]) if not positive else 1) * max(0.5 * size, 3 * noise)
    elif what == "variance":
        part = part + rng.standard_normal(len(part)) * max(noise * rng.uniform(2, 6), 0.3 * size)
    elif what == "drift":
        part += np.linspace(0, 1, len(part)) ** rng.uniform(0.7, 2) * size * (1 if positive else rng.choice([-1, 1]))
    elif what == "burst":
        part += size * rng.gamma(3, 1 / 3, len(part))
    elif what == "stuck":
        part[:] = part[0]
    elif what == "no_season":
        part[:] = np.nanquantile(values, rng.choice([0.1, 0.5])) + noise * 0.3 * rng.standard_normal(len(part))
    elif what == "pattern":
        part = np.nanmean(part) + 0.6 * spread * np.sin(np.arange(len(part)) / rng.uniform(1, 5)) + 0.3 * noise
    values[start:end] = np.maximum(part, 0) if positive else part
    if kind == "counts":
        values[start:end] = np.round(values[start:end])
    return what, end


def _series(
    rng: np.random.Generator, kind: str, seconds: Floats
) -> tuple[Floats, list[tuple[int, int]], list[str], NDArray[np.bool_]]:
    values = KINDS[kind](rng, seconds)
    n, per_day = len(seconds), int(DAY / (seconds[1] - seconds[0]))
    truth = np.zeros(n, dtype=bool)
    count = int(rng.choice([0, 1, 2, 3, 4], p=[0.12, 0.28, 0.32, 0.18, 0.1]))
    windows, what = [], []
    if count:
        half = int(0.1 * n / count / 2)
        first = int(0.17 * n) + half
        slots = np.sort(rng.choice(np.arange(first, n - half - 1, 2 * half + 2), count, replace=False))
        for start in slots + rng.integers(0, 3):
            name, end = spoil(rng, values, kind, int(start), per_day)
            truth[start:end] = True
            windows.append((int(start) - half, int(start) + half))
            what.append(name)
    if rng.random() < 0.15:  # rows that were never measured
        values[rng.random(n) < rng.uniform(0.002, 0.03)] = np.nan
        gap = int(rng.integers(n // 5, n))
        values[gap : gap + int(rng.integers(2, 40))] = np.nan
    return values, windows, what, truth


GROUPS = {  # name: (seconds between rows, rows, series of each kind, kinds)
    "5min": (300, 4032, 6, list(KINDS)),
    "30min": (1800, 8000, 2, ["cpu_daily", "counts", "latency", "network", "temperature", "heavy_traffic"]),
    "hourly": (3600, 1700, 4, ["heavy_traffic", "cpu_daily", "latency", "counts", "cpu_flat", "temperature"]),
    "long": (300, 15900, 2, ["counts", "network", "cpu_flat", "mostly_zero"]),
    "irregular": (300, 5000, 1, ["cpu_flat", "cpu_daily", "temperature", "latency", "network", "sawtooth"]),
}


def corpus(seed: int) -> list[Group]:
    """Return the groups of a seed."""
    return [_group(np.random.default_rng([seed, i]), name) for i, name in enumerate(GROUPS)]


def _group(rng: np.random.Generator, name: str) -> Group:
    step, rows, each, kinds = GROUPS[name]
    seconds = 1_700_000_000 // step * step + np.arange(rows) * float(step)
    if name == "irregular":
        seconds = seconds + rng.uniform(-0.4, 0.4, rows) * step
        seconds = seconds[np.sort(rng.choice(rows, rows - 200, replace=False))]
    made = [(kind, *_series(rng, kind, seconds)) for kind in kinds for _ in range(each)]
    return Group(
        name=name,
        time_unix_millis=(seconds * 1000).astype(np.int64),
        values=np.column_stack([m[1] for m in made]),
        kinds=[m[0] for m in made],
        windows=[m[2] for m in made],
        anomalies=[m[3] for m in made],
        truth=np.column_stack([m[4] for m in made]),
    )
