"""Levels to judge exhaustion on: disks and memory that grow, turn, accelerate, are cleared or stay, simulated by seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Random = np.random.Generator
HORIZON_HOURS = 90 * 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """history: float64[T] by the hour; `hours` after its end the limit is reached, None for not within 90 days."""

    family: str
    history: Floats
    limit: float
    hours: float | None


def case(seed: int) -> Case:
    """Return the case of a seed: 7 to 60 days of history, and what came after it."""
    random = np.random.default_rng(seed)
    family = list(FAMILIES)[seed % len(FAMILIES)]
    past = int(random.choice([7, 14, 21, 28, 45, 60])) * 24
    limit = float(random.choice([80.0, 90.0, 95.0, 100.0]))
    level = FAMILIES[family](random, past, limit)
    values = level + _season(random, len(level)) + _noise(random, len(level))
    reached = np.flatnonzero(values[past:] >= limit)
    if (values[past - 3 : past] >= limit).any():  # full already: no question to ask
        return case(seed + 7_777_777 * len(FAMILIES))
    return Case(
        family=family, history=values[:past], limit=limit, hours=float(reached[0] + 1) if reached.size else None
    )


def _season(random: Random, count: int) -> Floats:
    if random.random() < 0.5:
        return np.zeros(count)
    hour = np.arange(count)
    week = 1 - random.uniform(0, 0.6) * ((hour // 24) % 7 >= 5)
    return random.uniform(0.1, 2.5) * np.sin(2 * np.pi * (hour / 24 + random.random())) * week


def _noise(random: Random, count: int) -> Floats:
    from scipy.signal import lfilter

    kept = random.choice([0.0, 0.5, 0.9, 0.97])
    shocks = random.standard_normal(count + 500)
    smooth = lfilter([np.sqrt(1 - kept**2)], [1.0, -kept], shocks)[500:]
    bursts = (random.random(count) < random.choice([0, 0.002, 0.01])) * random.exponential(2.0, count)
    return random.choice([0.05, 0.2, 0.5, 1.0]) * smooth + bursts


def _reach(random: Random) -> float:
    """Return hours in which a growing level is to get to its limit: 12 hours to 120 days, as often short as long."""
    return float(np.exp(random.uniform(np.log(12), np.log(120 * 24))))


def _start(random: Random, limit: float) -> float:
    """Return the level at the end of the history."""
    return limit - random.uniform(3, 50)


def _line(random: Random, past: int, limit: float) -> Floats:
    now = _start(random, limit)
    rate = min((limit - now) / _reach(random), 1.5 * now / past)
    return now + rate * np.arange(-past, HORIZON_HOURS)


def _steps(random: Random, past: int, limit: float) -> Floats:
    """Growth by pieces of random size, as files come."""
    line = _line(random, past, limit)
    rate = (line[-1] - line[0]) / len(line)
    each = random.choice([2, 12, 48]) * rate
    made = np.cumsum((random.random(len(line)) < rate / max(each, 1e-12)) * random.gamma(2, each / 2, len(line)))
    return line[past] + made - made[past]


def _changed(random: Random, past: int, limit: float) -> Floats:
    line = _line(random, past, limit)
    rate = line[1] - line[0]
    turn = past - int(random.uniform(0.15, 0.7) * past)
    before = rate * random.choice([0.0, 0.2, 0.4, 2.0, 3.0])
    line[:turn] = line[turn] - before * np.arange(turn, 0, -1)
    return line


def _accelerating(random: Random, past: int, limit: float) -> Floats:
    now, hours = _start(random, limit), np.arange(-past, HORIZON_HOURS)
    reach = min(_reach(random), 2.0 * past)
    if random.random() < 0.5:
        bend = random.uniform(1, 4) / (past + reach)
        made = np.expm1(np.minimum(bend * hours, 20)) / np.expm1(bend * reach)
    else:
        early = past * random.uniform(0.8, 1.2)
        made = (np.maximum(hours + early, 0) ** 2 - early**2) / ((reach + early) ** 2 - early**2)
    return now + (limit - now) * np.minimum(made, 3)


def _decelerating(random: Random, past: int, limit: float) -> Floats:
    hours = np.arange(-past, HORIZON_HOURS)
    top = limit + random.uniform(-25, 15)
    return top - random.uniform(5, 40) * np.exp(-hours / random.uniform(0.5 * past, 3 * past))


def _saw(random: Random, past: int, limit: float) -> Floats:
    """Cleared at even times, whether it grows from cycle to cycle or not."""
    period, hours = int(random.choice([12, 24, 48, 72, 168])), np.arange(past + HORIZON_HOURS)
    shifted = hours + int(random.integers(period))
    depth = random.uniform(5, 30)
    peak = limit - random.uniform(2, 20)
    drift = random.choice([0.0, 0.0, (limit - peak) / _reach(random)])
    height = random.normal(1, random.choice([0.0, 0.05]), len(hours) // period + 3)[shifted // period]
    made = peak - depth + depth * height * (shifted % period) / period
    return made + drift * (hours - past)


def _cleared(random: Random, past: int, limit: float) -> Floats:
    """Growth on a line, with one or two clean-ups in the past."""
    line = _line(random, past, limit)
    rate = line[1] - line[0]
    for place in random.integers(past // 6, past - 12, int(random.integers(1, 3))):
        line[: int(place)] += random.uniform(0.2, 0.6) * rate * past + 2
    return line


def _flat(random: Random, past: int, limit: float) -> Floats:
    return np.full(past + HORIZON_HOURS, limit - random.uniform(8, 50))


def _wandering(random: Random, past: int, limit: float) -> Floats:
    """No growth, but a level that comes and goes over days."""
    from scipy.signal import lfilter

    kept, count = np.exp(-1 / random.uniform(24, 96)), past + HORIZON_HOURS
    wander = lfilter([np.sqrt(1 - kept**2)], [1.0, -kept], random.standard_normal(count + 1000))[1000:]
    return limit - random.uniform(12, 50) + random.uniform(0.5, 2) * wander


FAMILIES = {
    "line": _line,
    "steps": _steps,
    "changed": _changed,
    "accelerating": _accelerating,
    "decelerating": _decelerating,
    "saw": _saw,
    "cleared": _cleared,
    "flat": _flat,
    "wandering": _wandering,
}
