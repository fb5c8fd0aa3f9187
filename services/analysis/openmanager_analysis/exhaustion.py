"""When a level reaches a limit, with an interval: first passage of growth, season and noise together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmanager.errors import invalid
from openmanager_analysis import growth, sawtooth
from openmanager_analysis.grid import Grid, regularize
from openmanager_analysis.growth import Growth

Floats = NDArray[np.float64]
HOUR_MILLIS = 3_600_000
DAY_HOURS = 24
PATHS = 400
MAX_HORIZON_DAYS = 3_660


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhaustion:
    """Hours after the last sample until the limit is reached; None is 'not within the horizon'.

    `hours` is the median; (`low`, `high`) hold 80 %, (`low_95`, `high_95`) 95 % of what may come. `chance` is the
    probability, in [0, 1], that the limit is reached within the horizon; `method` says what decided.
    """

    hours: float | None
    low: float | None
    high: float | None
    low_95: float | None
    high_95: float | None
    chance: float
    method: str


def time_to_limit(
    time_unix_millis: NDArray[np.int64], values: Floats, limit: float, horizon_hours: float = 90 * 24
) -> Exhaustion:
    """Return when the series reaches `limit`, from below or, where it falls towards it, from above.

    time_unix_millis: int64[T], strictly increasing; values: float64[T], NaN for missing.
    """
    _check(limit, horizon_hours)
    grid = regularize(time_unix_millis, values)
    sign = _direction(grid.values, limit)
    if sign == 0:
        return Exhaustion(hours=0.0, low=0.0, high=0.0, low_95=0.0, high_95=0.0, chance=1.0, method="reached")
    turned = Grid(values=grid.values * sign, interval_millis=grid.interval_millis, end_unix_millis=grid.end_unix_millis)
    times, method = _passages(turned, limit * sign, horizon_hours)
    return _summary(times, method)


def _check(limit: float, horizon_hours: float) -> None:
    if not np.isfinite(limit):
        raise invalid("limit", "must be finite")
    if not 0 < horizon_hours <= MAX_HORIZON_DAYS * DAY_HOURS:
        raise invalid("horizon", f"must be more than 0 and at most {MAX_HORIZON_DAYS:,} days")


def _direction(values: Floats, limit: float) -> int:
    """Return 1 for a level below the limit, −1 for one that falls towards it, 0 for one that is over it.

    A level above the limit has passed it when it was below, or when it does not fall.
    """
    known = values[~np.isnan(values)]
    tenth = max(1, len(known) // 10)
    now = float(np.median(known[-min(3, tenth) :]))
    if now < limit:
        return 1
    if np.median(known[:tenth]) <= limit or np.quantile(known, 0.1) <= limit and np.median(known) <= limit:
        return 0
    is_falling = np.median(known[-tenth:]) < np.median(known[:tenth])
    return -1 if is_falling or limit <= 0 else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Level:
    """A series without its season: levels float64[J] in blocks of `block_hours`, the last ending at the last sample.

    season: float64[S] by hour, of which the first is the hour after the last sample; noise: float64[N], sorted, what
    samples do within their block; `per_hour` samples.
    """

    levels: Floats
    block_hours: float
    season: Floats
    noise: Floats
    per_hour: float


def _passages(grid: Grid, limit: float, horizon_hours: float) -> tuple[Floats, str]:
    """Return when drawn futures reach the limit, float64[B] hours, infinite beyond the horizon, and what they follow."""
    random = np.random.default_rng(0)
    cycles = sawtooth.find(grid)
    if cycles is not None and cycles.is_regular:
        return sawtooth.passages(cycles, limit, horizon_hours, PATHS, random), "saw-tooth"
    values = grid.values if cycles is None else cycles.stitched
    level = _level(Grid(values=values, interval_millis=grid.interval_millis, end_unix_millis=grid.end_unix_millis))
    count = len(level.levels)
    times = (np.arange(count) + 0.5) / count
    origin, scale = float(level.levels.mean()), float(np.ptp(level.levels)) or 1.0
    grown = growth.fit(times, (level.levels - origin) / scale)
    ends, lengths = _cells(horizon_hours)
    span = count * level.block_hours
    paths = origin + scale * (grown.draw(1 + ends / span, PATHS, random) + _wander(grown, ends, level, random))
    over = paths + _season(level, ends, lengths) + _noise(level, lengths, random)
    return _first(over, ends, lengths, limit), _method(grown)


def _level(grid: Grid) -> _Level:
    """Cut the series into 24 to 96 blocks or so, and take its season by hour of day (of week from three weeks) away."""
    per_hour = HOUR_MILLIS / grid.interval_millis
    hourly = max(1, round(per_hour))
    values = grid.values
    known = ~np.isnan(values)
    values = np.interp(np.arange(len(values)), np.flatnonzero(known), values[known])
    step_hours = hourly / per_hour
    count = len(values) // hourly
    hours = np.median(values[-count * hourly :].reshape(count, hourly), axis=1)
    season = _profile(hours, round(DAY_HOURS / step_hours)) if step_hours <= 6 else np.zeros(1)
    phase = np.resize(season, -(-count // len(season)) * len(season))[-count:] if len(season) > 1 else np.zeros(count)
    plain = hours - phase
    block = next(size for size in (1, 2, 3, 4, 6, 8, 12, 24, 48, 72, 168, 336, 720, 10**9) if count <= 96 * size)
    blocks = count // block
    levels = np.median(plain[-blocks * block :].reshape(blocks, block), axis=1)
    fine = (
        values[-blocks * block * hourly :]
        - np.repeat(levels, block * hourly)
        - np.repeat(phase[-blocks * block :], hourly)
    )
    noise = np.sort(fine)
    return _Level(
        levels=levels,
        block_hours=block * step_hours,
        season=season,
        noise=noise - np.median(noise),
        per_hour=per_hour,
    )


def _profile(hours: Floats, day: int) -> Floats:
    """Return the season by hour, the first following the last of hours: float64[T]; zeros where there is none."""
    size = 7 * day if len(hours) >= 21 * day else day
    count = len(hours) // size
    if count < 3 or day < 2:
        return np.zeros(1)
    rows = hours[-count * size :].reshape(count, size)
    trend = np.interp(np.arange(count * size), (np.arange(count) + 0.5) * size - 0.5, np.median(rows, axis=1))
    off = rows - trend.reshape(rows.shape)
    profile = np.median(off, axis=0)
    noise = float(np.mean((off - profile) ** 2)) * 1.6 / count
    power = float(np.var(profile))
    return profile * max(0.0, 1 - noise / power) if power > 0 else np.zeros(1)


def _cells(horizon_hours: float) -> tuple[Floats, Floats]:
    """Return the ends and lengths of the stretches of the future, in hours: fine near, coarse far."""
    ends = np.concatenate(
        [np.arange(1.0, 72), np.arange(72.0, 720, 6), np.arange(720.0, horizon_hours, 24), [horizon_hours]]
    )
    ends = np.unique(ends[ends <= horizon_hours])
    return ends, np.diff(ends, prepend=0.0)


def _wander(grown: Growth, ends: Floats, level: _Level, random: np.random.Generator) -> Floats:
    """Return what the AR(1) residual does from here on, float64[B, F], in the scale of the fit."""
    lengths = np.diff(ends, prepend=0.0)
    kept = grown.correlation ** (lengths / level.block_hours)
    shocks = random.standard_normal((len(ends), PATHS)) * (grown.sigma * np.sqrt(1 - kept**2))[:, None]
    paths = np.empty((len(ends), PATHS))
    state = np.full(PATHS, grown.last)
    for place in range(len(ends)):
        state = kept[place] * state + shocks[place]
        paths[place] = state
    return paths.T


def _season(level: _Level, ends: Floats, lengths: Floats) -> Floats:
    """Return the highest the season comes within each cell, float64[F]."""
    size = len(level.season)
    doubled = np.concatenate([level.season, level.season])
    start = np.rint(ends - lengths).astype(np.int64) % size
    width = np.minimum(np.ceil(lengths).astype(np.int64), size)
    return np.array([doubled[one : one + many].max() for one, many in zip(start, np.maximum(width, 1), strict=True)])


def _noise(level: _Level, lengths: Floats, random: np.random.Generator) -> Floats:
    """Return the highest of the noise of each cell's samples, float64[B, F]: the quantile at U to the power of 1/k."""
    many = np.maximum(1.0, lengths * level.per_hour)
    place = random.random((PATHS, len(lengths))) ** (1 / many)
    return level.noise[np.minimum((place * len(level.noise)).astype(np.int64), len(level.noise) - 1)]


def _first(over: Floats, ends: Floats, lengths: Floats, limit: float) -> Floats:
    """Return the hours until each path: float64[B, F] reaches the limit, infinite for never."""
    reached = over >= limit
    place = reached.argmax(axis=1)
    rows = np.arange(len(over))
    before = np.where(place > 0, over[rows, place - 1], limit)
    rise = over[rows, place] - before
    part = np.where((rise > 0) & (place > 0), (limit - before) / np.where(rise > 0, rise, 1), 0.5)
    hours = ends[place] - lengths[place] * (1 - np.clip(part, 0, 1))
    return np.where(reached[rows, place], hours, np.inf)


def _method(grown: Growth) -> str:
    kinds = set(grown.kinds[0].tolist())
    if growth.CURVE in kinds:
        return "curve"
    return "line after a change" if kinds & {growth.KINK, growth.JUMP} else "line"


def _summary(times: Floats, method: str) -> Exhaustion:
    levels = np.quantile(times, [0.025, 0.1, 0.5, 0.9, 0.975], method="closest_observation")
    low_95, low, hours, high, high_95 = (float(level) if np.isfinite(level) else None for level in levels)
    return Exhaustion(
        hours=hours,
        low=low,
        high=high,
        low_95=low_95,
        high_95=high_95,
        chance=float(np.isfinite(times).mean()),
        method=method,
    )
