"""When a level reaches a limit, with an interval: first passage of growth, season and noise together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from openmanager.errors import invalid
from openmanager_analysis import growth, sawtooth
from openmanager_analysis.forecast import QUANTILES
from openmanager_analysis.grid import Grid, regularize
from openmanager_analysis.growth import Growth

Floats = NDArray[np.float64]
HOUR_MILLIS = 3_600_000
DAY_HOURS = 24
PATHS = 300
# What falls from its first to its last third by so much of its spread falls: noise does by 0.2, a straight line by 1.8.
FALL = 0.7
# A history of less than four days is cut into so many steps, one of more by the hour.
STEPS = 96
BLOCKS = (1, 2, 3, 4, 6, 8, 12, 24, 48, 72, 168, 336, 720, 10**9)
MAX_HORIZON_DAYS = 3_660


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Where the level of a series goes: `hours` float64[F] after the last sample, `quantiles` float64[F, Q] at QUANTILES."""

    hours: Floats
    quantiles: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhaustion:
    """Hours after the last sample until the limit is reached; None is 'not within the horizon'.

    `hours` is the median; (`low`, `high`) hold 80 %, (`low_95`, `high_95`) 95 % of what may come. `chance` is the
    probability, in [0, 1], that the limit is reached within the horizon; `method` says what decided. `course` is None where
    growth was not what decided. `is_rising` where the limit is reached from below; `times` are the drawn ones.
    """

    hours: float | None
    low: float | None
    high: float | None
    low_95: float | None
    high_95: float | None
    chance: float
    method: str
    back_test_error: float | None
    times: Floats
    course: Course | None = None
    is_rising: bool = True

    def within(self, hours: float) -> float:
        """Return the probability that the limit is reached within so many hours, of those of the horizon."""
        return float((self.times <= hours).mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Futures:
    """When drawn futures reach the limit, float64[B] hours, infinite beyond the horizon; and what they follow."""

    times: Floats
    method: str
    back_test_error: float | None
    course: Course | None = None


def time_to_limit(
    time_unix_millis: NDArray[np.int64],
    values: Floats,
    limit: float,
    horizon_hours: float = 90 * 24,
    *,
    is_floor: bool | None = None,
) -> Exhaustion:
    """Return when the series reaches `limit`: from above where that `is_floor`, from below where it is not.

    None asks the series: it has come below the limit, it was above it all the time and falls, or it is over it already.
    time_unix_millis: int64[T], strictly increasing; values: float64[T], NaN for missing; horizon_hours at most ten years.
    Fewer than 8 valid samples are a FailedPreconditionError, bad input an InvalidArgumentError.
    """
    _check(limit, horizon_hours)
    grid = regularize(time_unix_millis, values)
    sign = _direction(grid.values, limit, is_floor=is_floor)
    if sign == 0:
        return _summary(_Futures(times=np.zeros(1), method="reached", back_test_error=None))
    last = int(np.flatnonzero(~np.isnan(grid.values))[-1])
    turned = Grid(
        values=grid.values[: last + 1] * sign,
        interval_millis=grid.interval_millis,
        end_unix_millis=grid.end_unix_millis,
    )
    since = (len(grid.values) - 1 - last) * grid.interval_millis / HOUR_MILLIS
    found = _passages(turned, limit * sign, horizon_hours + since)
    times = np.maximum(found.times - since, 0.0)
    summary = _summary(replace(found, times=times, course=_turned(found.course, sign, since)))
    return replace(summary, is_rising=sign > 0)


def _turned(course: Course | None, sign: int, since: float) -> Course | None:
    """Return a course as it is for the series itself, from its last time on."""
    if course is None:
        return None
    return Course(hours=course.hours - since, quantiles=sign * course.quantiles[:, ::sign])


def _check(limit: float, horizon_hours: float) -> None:
    if not np.isfinite(limit):
        raise invalid("limit", "must be finite")
    if not 0 < horizon_hours <= MAX_HORIZON_DAYS * DAY_HOURS:
        raise invalid("horizon", f"must be more than 0 and at most {MAX_HORIZON_DAYS:,} days")


def _direction(values: Floats, limit: float, *, is_floor: bool | None) -> int:
    """Return 1 for a level that may rise to the limit, −1 for one that may fall to it, 0 for one that has reached it."""
    known = values[~np.isnan(values)]
    third = len(known) // 3
    now = float(np.median(known[-min(3, third) :]))
    if is_floor is None:
        spread = 1.4826 * float(np.median(np.abs(known - np.median(known))))
        fall = float(np.median(known[:third]) - np.median(known[-third:]))
        was_above = bool(np.median(known[:third]) > limit and np.median(known) > limit)
        is_floor = now >= limit and was_above and (fall > FALL * spread or limit <= 0)
    if is_floor:
        return -1 if now > limit else 0
    return 1 if now < limit else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Level:
    """A series as a level, a season and what is left, by steps.

    A step is an hour, less for a short history, the interval where that is longer. levels: float64[J], medians of `block` steps without the season, the last block ending at the last sample; season:
    float64[S], by step of the day or week, the first following the last sample; rest: float64[D, P], how far the highest
    sample of a step was above level and season, by day and step of the day.
    """

    levels: Floats
    block: int
    step_hours: float
    season: Floats
    rest: Floats


def _passages(grid: Grid, limit: float, horizon_hours: float) -> _Futures:
    """Draw futures, and see when they reach the limit."""
    random = np.random.default_rng(0)
    cycles = sawtooth.find(grid)
    if cycles is not None and cycles.is_regular:
        times = sawtooth.passages(cycles, limit, horizon_hours, PATHS, random)
        error = _share(sawtooth.back_test(cycles), float(cycles.peaks[-1]), limit)
        return _Futures(times=times, method="saw-tooth", back_test_error=error)
    level = _level(grid.values if cycles is None else cycles.stitched, HOUR_MILLIS / grid.interval_millis)
    count = len(level.levels)
    if not np.ptp(level.levels) and not level.rest.any():
        return _Futures(times=np.full(PATHS, np.inf), method="constant", back_test_error=0.0)
    origin, scale = float(level.levels.mean()), float(np.ptp(level.levels)) or 1.0
    grown = growth.fit((np.arange(count) + 0.5) / count, (level.levels - origin) / scale)
    lengths = _cells(horizon_hours / level.step_hours, level.rest.shape[1])
    middles = np.cumsum(lengths) - lengths / 2
    picked = grown.pick(PATHS)
    paths = grown.draw(picked, 1 + middles / (count * level.block), random)
    paths += _wander(grown, picked, lengths / level.block, random)
    highest, where = _highest(level, lengths)
    cell, days = np.arange(len(lengths)), random.integers(highest.shape[1], size=paths.shape)
    levels = origin + scale * paths
    reached = levels + highest[cell, days] >= limit
    times = _first(reached, np.cumsum(lengths) - lengths, where[cell, days]) * level.step_hours
    error = _back_test((level.levels - origin) / scale, (limit - origin) / scale)
    return _Futures(
        times=np.where(times <= horizon_hours, times, np.inf),
        method=_method(grown),
        back_test_error=error,
        course=Course(hours=middles * level.step_hours, quantiles=np.quantile(levels, QUANTILES, axis=0).T),
    )


def _back_test(levels: Floats, limit: float) -> float | None:
    """Return how far off the newest fifth of levels: float64[J] was foreseen, as a share of the way to the limit."""
    past = len(levels) - max(1, len(levels) // 5)
    if past < 8:
        return None
    times = (np.arange(len(levels)) + 0.5) / past
    foreseen = growth.fit(times[:past], levels[:past]).level(times[-1:])[0]
    return _share(float(foreseen), float(levels[-1]), limit)


def _share(foreseen: float | None, actual: float, limit: float) -> float | None:
    way = abs(limit - actual)
    return None if foreseen is None or way == 0 else abs(foreseen - actual) / way


def _level(values: Floats, per_hour: float) -> _Level:
    """Cut the values, `per_hour` of them an hour, into 32 to 64 blocks or so of level, season and rest."""
    many = max(1, min(round(per_hour), len(values) // STEPS))
    known = ~np.isnan(values)
    values = np.interp(np.arange(len(values)), np.flatnonzero(known), values[known])
    count = len(values) // many
    steps = values[-count * many :].reshape(count, many)
    middle, highest = np.median(steps, axis=1), steps.max(axis=1)
    day = min(max(1, round(DAY_HOURS * per_hour / many)), count)
    season = _profile(middle, day)
    phase = np.resize(season, -(-count // len(season)) * len(season))[-count:]
    block = next(size for size in BLOCKS if count <= 64 * size)
    blocks = count // block
    levels = np.median((middle - phase)[-blocks * block :].reshape(blocks, block), axis=1)
    smooth = np.interp(np.arange(count), count - blocks * block + (np.arange(blocks) + 0.5) * block - 0.5, levels)
    days = count // day
    rest = (highest - phase - smooth)[-days * day :].reshape(days, day)
    return _Level(levels=levels, block=block, step_hours=many / per_hour, season=season, rest=rest)


def _profile(steps: Floats, day: int) -> Floats:
    """Return the season by step of the week from three weeks on, else of the day, float64[S]; zeros where there is none.

    The first follows the last of steps: float64[T]. It is drawn to zero by the share of its variance that is noise.
    """
    size = 7 * day if len(steps) >= 21 * day else day
    count = len(steps) // size
    if count < 3 or day < 4:
        return np.zeros(day)
    rows = steps[-count * size :].reshape(count, size)
    days = rows.reshape(-1, day)
    centres = (np.arange(len(days)) + 0.5) * day - 0.5
    off = rows - np.interp(np.arange(rows.size), centres, np.median(days, axis=1)).reshape(rows.shape)
    profile = np.median(off, axis=0)
    scale = float(np.abs(off).max())
    if not 0 < scale < np.inf:
        return np.zeros(size)
    # Of squares of the largest numbers nothing would be left.
    power = float(np.var(profile / scale))
    noise = 1.6 * float(np.mean(((off - profile) / scale) ** 2)) / count
    return profile * max(0.0, 1 - noise / power) if power > 0 else np.zeros(size)


def _cells(steps: float, day: int) -> Floats:
    """Return the lengths of the stretches of the future, in steps, that together are as many as `steps` or a little more.

    Three days step by step, a month in quarters of days, two months in days, and ever longer ones.
    """
    sizes = [(3 * day, 1), (108, max(1, day // 4)), *((64, day * 2**power) for power in range(40))]
    made, left = [], float(steps)
    for many, length in sizes:
        used = min(many, int(np.ceil(left / length)))
        made.append(np.full(used, float(length)))
        left -= used * length
        if left <= 0:
            break
    return np.concatenate(made)


def _wander(grown: Growth, picked: NDArray[np.int64], blocks: Floats, random: np.random.Generator) -> Floats:
    """Return what the AR(1) residuals do in cells of `blocks` float64[F], float64[B, F], in the scale of the fit."""
    kept = grown.correlation[picked] ** blocks[:, None]
    shocks = random.standard_normal(kept.shape) * grown.sigma[picked] * np.sqrt(1 - kept**2)
    state = grown.last[picked]
    for place in range(len(blocks)):
        state = kept[place] * state + shocks[place]
        shocks[place] = state
    return shocks.T


def _highest(level: _Level, lengths: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Return the highest that season and rest together come within each cell on each day of the past, and at which step.

    Both are [F, D]; the step is counted from the cell's beginning.
    """
    day, starts = level.rest.shape[1], np.cumsum(lengths).astype(np.int64) - lengths.astype(np.int64)
    made = np.empty((len(lengths), len(level.rest)))
    where = np.empty(made.shape, np.int64)
    for length in np.unique(lengths).astype(np.int64):
        which = np.flatnonzero(lengths == length)
        steps = starts[which, None] + np.arange(min(length, day))
        sums = level.season[steps % len(level.season)][..., None] + level.rest.T[steps % day]
        made[which], where[which] = sums.max(axis=1), sums.argmax(axis=1)
    return made, where


def _first(reached: NDArray[np.bool_], starts: Floats, where: NDArray[np.int64]) -> Floats:
    """Return when each path reaches the limit, float64[B] steps, infinite for never; reached, where: [B, F]."""
    place = reached.argmax(axis=1)
    rows = np.arange(len(reached))
    return np.where(reached[rows, place], starts[place] + where[rows, place] + 1.0, np.inf)


def _method(grown: Growth) -> str:
    kinds = set(grown.kinds[0].tolist())
    if growth.CURVE in kinds:
        return "curve"
    return "line after a change" if kinds & {growth.KINK, growth.JUMP} else "line"


def _summary(found: _Futures) -> Exhaustion:
    """Return the median and the intervals of when futures reach the limit."""
    times = found.times
    levels = np.quantile(times, [0.025, 0.1, 0.5, 0.9, 0.975], method="closest_observation")
    low_95, low, hours, high, high_95 = (float(level) if np.isfinite(level) else None for level in levels)
    return Exhaustion(
        hours=hours,
        low=low,
        high=high,
        low_95=low_95,
        high_95=high_95,
        chance=float(np.isfinite(times).mean()),
        method=found.method,
        back_test_error=found.back_test_error,
        course=found.course,
        times=times,
    )
