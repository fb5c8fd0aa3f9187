"""Series to judge forecasts on: load as clusters and clouds have it, simulated, each from its own seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Random = np.random.Generator


def series(seed: int, *, per_day: int = 24, days_ahead: int = 7) -> tuple[str, Floats, Floats]:
    """Return a family's name, a history of 2 to 6 weeks, and the week that comes after it."""
    random = np.random.default_rng(seed)
    days = int(random.choice([14, 21, 21, 24, 28, 28, 42]))
    count = (days + days_ahead) * per_day
    name = list(FAMILIES)[seed % len(FAMILIES)]
    values = FAMILIES[name](random, count, per_day)
    if random.random() < 0.25:
        values = _shifted(random, values)
    if random.random() < 0.15:
        values = _holiday(random, values, per_day)
    history = values[: days * per_day].copy()
    if random.random() < 0.15:
        _lose(random, history, per_day)
    return name, history, values[days * per_day :]


def _day(random: Random, count: int, per_day: int) -> Floats:
    """Return a daily profile of a few harmonics or of a working day, between −1 and 1, float64[count]."""
    phase = np.arange(per_day) / per_day
    if random.random() < 0.5:
        made = sum(
            random.normal(0, 1 / order) * np.sin(2 * np.pi * (order * phase + random.random())) for order in (1, 2, 3)
        )
    else:
        start, length = random.uniform(0.2, 0.5), random.uniform(0.15, 0.5)
        sharp = random.uniform(10, 60)
        made = 1 / (1 + np.exp(-sharp * (phase - start))) - 1 / (1 + np.exp(-sharp * (phase - start - length)))
    made = np.roll(made - np.mean(made), int(random.integers(per_day)))
    return np.resize(made / max(1e-9, np.abs(made).max()), count)


def _week(random: Random, count: int, per_day: int) -> Floats:
    """Return a factor by day of the week, float64[count]; near 1 for half of the series."""
    factors = np.ones(7)
    if random.random() < 0.6:
        factors[5:] = random.uniform(0.3, 1.0)
        factors[:5] += random.normal(0, 0.05, 5)
    days = np.repeat(np.resize(np.roll(factors, int(random.integers(7))), -(-count // per_day)), per_day)
    return days[:count]


def _ar(random: Random, count: int, hours: float, per_day: int) -> Floats:
    """Return an AR(1) process of unit variance whose memory is so many hours, float64[count]."""
    from scipy.signal import lfilter

    kept = float(np.exp(-24 / (per_day * hours)))
    shocks = random.standard_normal(count + 10 * per_day) * np.sqrt(1 - kept**2)
    return lfilter([1.0], [1.0, -kept], shocks)[-count:]


def _bursts(random: Random, count: int, per_day: int) -> Floats:
    """Return bursts of heavy-tailed heights that last minutes to hours, float64[count]."""
    made = np.zeros(count)
    for _ in range(int(random.poisson(count / per_day * random.choice([0.2, 1, 3])))):
        start, length = int(random.integers(count)), 1 + int(random.exponential(per_day / 12))
        made[start : start + length] += random.pareto(2.0) + 0.3
    return np.minimum(made, 20)


def _web(random: Random, count: int, per_day: int) -> Floats:
    load = 1 + random.uniform(0.2, 0.8) * _day(random, count, per_day)
    noise = 1 + random.uniform(0.03, 0.2) * _ar(random, count, random.uniform(0.5, 12), per_day)
    white = 1 + random.uniform(0.02, 0.15) * random.standard_normal(count)
    return np.maximum(random.uniform(10, 40) * load * _week(random, count, per_day) * noise * white, 0)


def _cluster(random: Random, count: int, per_day: int) -> Floats:
    wander = random.uniform(0.05, 0.25) * _ar(random, count, random.uniform(24, 240), per_day)
    day = random.uniform(0.02, 0.2) * _day(random, count, per_day)
    short = random.uniform(0.02, 0.1) * _ar(random, count, random.uniform(1, 8), per_day)
    return np.clip(random.uniform(20, 70) * (1 + wander + day + short), 0, 100)


def _idle(random: Random, count: int, per_day: int) -> Floats:
    base = random.uniform(1, 8) * (1 + random.uniform(0, 0.3) * _day(random, count, per_day))
    noise = np.exp(random.uniform(0.05, 0.4) * random.standard_normal(count))
    return np.clip(base * noise + 10 * _bursts(random, count, per_day), 0, 100)


def _batch(random: Random, count: int, per_day: int) -> Floats:
    state, made = 0, np.zeros(count)
    levels, place = random.uniform(5, 80, 4), 0
    while place < count:
        length = 1 + int(random.exponential(per_day * random.choice([0.1, 0.5, 2])))
        made[place : place + length] = levels[state]
        place, state = place + length, int(random.integers(4))
    cron = np.zeros(per_day)
    cron[int(random.integers(per_day)) :][: max(1, per_day // 16)] = random.uniform(5, 40)
    return np.clip(made + np.resize(cron, count) + random.uniform(0.5, 4) * random.standard_normal(count), 0, 100)


def _counts(random: Random, count: int, per_day: int) -> Floats:
    rate = random.choice([0.5, 3, 30]) * (1 + random.uniform(0.2, 0.95) * _day(random, count, per_day))
    rate = rate * _week(random, count, per_day) * random.gamma(3, 1 / 3, count)
    return random.poisson(np.maximum(rate, 0)).astype(np.float64)


def _growing(random: Random, count: int, per_day: int) -> Floats:
    slope = random.normal(0, 0.6) * np.arange(count) / count
    return np.maximum(_web(random, count, per_day) * (1 + slope), 0)


def _walk(random: Random, count: int, per_day: int) -> Floats:
    steps = random.standard_normal(count) * random.uniform(0.2, 2) * np.sqrt(24 / per_day)
    walk = 50 + np.cumsum(steps) + random.uniform(0, 3) * _day(random, count, per_day)
    return np.abs(np.mod(walk, 200) - 100) if walk.min() < 0 else walk


def _full(random: Random, count: int, per_day: int) -> Floats:
    day = random.uniform(5, 40) * _day(random, count, per_day)
    return np.clip(random.uniform(60, 95) + day + random.uniform(2, 10) * _ar(random, count, 4, per_day), 0, 100)


def _bytes(random: Random, count: int, per_day: int) -> Floats:
    base = np.exp(random.uniform(0.3, 1.2) * _day(random, count, per_day) + 0.4 * _ar(random, count, 6, per_day))
    backup = np.zeros(per_day)
    backup[int(random.integers(per_day)) :][: max(1, per_day // 24)] = random.uniform(0, 20)
    tail = np.exp(random.uniform(0.2, 1.0) * random.standard_normal(count))
    return 1e6 * (
        base * tail * _week(random, count, per_day) + np.resize(backup, count) * random.uniform(0.7, 1.3, count)
    )


def _resting(random: Random, count: int, per_day: int) -> Floats:
    made = np.full(count, random.uniform(10, 90))
    for place in random.integers(0, count, int(random.poisson(3))):
        made[place:] += random.normal(0, 8)
    return np.round(np.clip(made + random.uniform(0, 0.5) * random.standard_normal(count), 0, 100), 1)


def _changing(random: Random, count: int, per_day: int) -> Floats:
    strength = np.clip(0.5 + 0.7 * _ar(random, count, 24 * 10, per_day), 0, 1.5)
    noise = random.uniform(0.05, 0.25) * _ar(random, count, random.uniform(1, 24), per_day)
    return np.maximum(random.uniform(10, 50) * (1 + strength * 0.6 * _day(random, count, per_day) + noise), 0)


FAMILIES = {
    "web": _web,
    "cluster": _cluster,
    "idle": _idle,
    "batch": _batch,
    "counts": _counts,
    "growing": _growing,
    "walk": _walk,
    "full": _full,
    "bytes": _bytes,
    "resting": _resting,
    "changing": _changing,
}


def _shifted(random: Random, values: Floats) -> Floats:
    """Return the values with a new level from some time on, once or twice."""
    values = values.copy()
    for place in random.integers(0, len(values), int(random.integers(1, 3))):
        values[place:] = np.maximum(values[place:] + random.normal(0, 1) * values.std(), 0)
    return values


def _holiday(random: Random, values: Floats, per_day: int) -> Floats:
    values = values.copy()
    for day in random.integers(0, len(values) // per_day, 2):
        values[day * per_day : (day + 1) * per_day] *= random.uniform(0.4, 0.9)
    return values


def _lose(random: Random, history: Floats, per_day: int) -> None:
    """Lose single values, and some hours or days."""
    history[random.random(len(history)) < 0.03] = np.nan
    place = int(random.integers(len(history) - 3 * per_day))
    history[place : place + int(random.integers(1, 2 * per_day))] = np.nan
