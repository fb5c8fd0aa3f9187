"""Forecasts with honest intervals: a back-tested combination of simple robust members.

The members (member.py) forecast from rolling origins in the history; each is weighted by how well it did there, nearer
and further ahead apart; the errors that the combination made from those origins are the intervals (split conformal
prediction, Vovk et al. 2005, by horizon).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from openmanager.errors import invalid
from openmanager_analysis import interval, member
from openmanager_analysis.grid import Grid, fill, regularize

Floats = NDArray[np.float64]
QUANTILES = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
MAX_HORIZON = 100_000
HISTORY_DAYS, MAX_ORIGINS, WEEK = 63, 29, 7
# A member that is worse than the best by 1/15 has its weight divided by e.
SHARPNESS = 15.0
# Rows ahead lend each other their losses: by exp(−|log of their ratio| / 3).
REACH = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What is expected of the steps after the last sample, and how far to trust it.

    `quantiles` float64[H, Q] rise along Q; `points` float64[H] are the medians. `mase` is the mean absolute error in the
    back-test over that of the daily seasonal naive forecast from the same origins (of the last value where there is no
    daily season to see), NaN where nothing could be tested; `coverage` the share of the back-test inside the 80 % interval. `season_millis`
    is 0 where none was used.
    """

    time_unix_millis: NDArray[np.int64]
    levels: tuple[float, ...]
    quantiles: Floats
    points: Floats
    mase: float
    coverage: float
    season_millis: int
    history_millis: int
    interval_millis: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """rows: float64[D, P], `is_known` of them; of `block` cells a median is taken before the members see them."""

    rows: Floats
    is_known: NDArray[np.bool_]
    block: int
    is_seasonal: bool
    is_day: bool


def forecast(
    time_unix_millis: NDArray[np.int64],
    values: Floats,
    horizon: int,
    quantiles: tuple[float, ...] = QUANTILES,
) -> Forecast:
    """Return the forecast of the `horizon` steps (1 to 100,000) after the last of the samples, at their median interval.

    time_unix_millis: int64[T], strictly increasing; values: float64[T], NaN for missing; quantiles in (0, 1), rising.
    Fewer than 8 valid samples are a FailedPreconditionError, bad input an InvalidArgumentError.
    """
    _check(horizon, quantiles)
    grid = regularize(time_unix_millis, values)
    cut = _cut(grid)
    size = cut.rows.shape[1]
    ahead = -(-horizon // size)
    layout = _layout(cut, ahead)
    made, expected = _combine(cut, layout, ahead)
    if not cut.is_seasonal and len(grid.values) >= grid.per_day > 1:
        expected = (expected + _day_before(grid, expected)) / 2
    actual, is_known = _actual(cut, layout)
    is_constant = not np.ptp(cut.rows)
    if is_constant:  # to the last bit
        made[:], expected[:] = cut.rows[0, 0], cut.rows[0, 0]
    errors = interval.Errors(values=actual - made, is_known=is_known)
    found = interval.spread(errors, np.array(quantiles), ahead, is_seasonal=cut.is_seasonal)
    fan = (expected[..., None] + found.quantiles).reshape(ahead * size, -1)[:horizon]
    if is_constant:
        fan = fan + 2 * (np.array(quantiles) - 0.5) * interval.RESOLUTION * np.abs(fan)
    return Forecast(
        time_unix_millis=grid.end_unix_millis + grid.interval_millis * np.arange(1, horizon + 1),
        levels=tuple(quantiles),
        quantiles=interval.bound(fan, cut.rows),
        points=interval.bound(expected.reshape(-1)[:horizon], cut.rows),
        mase=_mase(cut, layout, errors, actual),
        coverage=found.coverage,
        season_millis=size * grid.interval_millis if cut.is_seasonal else 0,
        history_millis=len(values) * grid.interval_millis,
        interval_millis=grid.interval_millis,
    )


def _check(horizon: int, quantiles: tuple[float, ...]) -> None:
    if not 1 <= horizon <= MAX_HORIZON:
        raise invalid("horizon", f"must be 1 to {MAX_HORIZON:,} steps")
    if not quantiles or not all(0 < level < 1 for level in quantiles) or list(quantiles) != sorted(set(quantiles)):
        raise invalid("quantiles", "must be in (0, 1) and rise")


def _cut(grid: Grid) -> _Cut:
    """Cut the newest part of the history into rows of a day, of a week for daily values, else of a twelfth of it."""
    per_day = grid.per_day
    values = grid.values[-HISTORY_DAYS * max(per_day, 7) :]
    size = per_day if per_day > 1 else 7
    is_seasonal = len(values) >= 2 * size
    if not is_seasonal:
        size = max(1, len(values) // 12)
    count = len(values) // size
    known = ~np.isnan(values)
    values = fill(values, size if is_seasonal else 1)
    block = next(block for block in range(max(1, size // 24), 0, -1) if size % block == 0)
    return _Cut(
        rows=values[-count * size :].reshape(count, size),
        is_known=known[-count * size :].reshape(count, size),
        block=block,
        is_seasonal=is_seasonal,
        is_day=is_seasonal and per_day > 1,
    )


def _day_before(grid: Grid, expected: Floats) -> Floats:
    """Return the only day there is, again and again, in the shape of expected: float64[R, P]."""
    return np.resize(fill(grid.values[-grid.per_day :], 1), expected.shape)


def _layout(cut: _Cut, ahead: int) -> member.Layout:
    """Return the origins to test at, as many as leave a week before them, or a third of the history; the last is now.

    No more rows ahead than can be tested.
    """
    count = len(cut.rows)
    first = WEEK if count >= WEEK + 4 else max(1, count // 3)
    origins = np.arange(first, count + 1)[-MAX_ORIGINS:]
    return member.Layout(
        origins=origins,
        ahead=min(ahead, max(1, count - int(origins[0]))),
        is_seasonal=cut.is_seasonal,
        has_weeks=cut.is_day and first >= WEEK,
    )


def _combine(cut: _Cut, layout: member.Layout, ahead: int) -> tuple[Floats, Floats]:
    """Return the forecasts from every origin but the last, float64[O, R, P], and of `ahead` rows from the last."""
    count = len(cut.rows)
    rows = cut.rows if cut.block == 1 else np.median(cut.rows.reshape(count, -1, cut.block), axis=2)
    made = member.forecasts(rows, layout)
    place = layout.origins[:-1, None] + np.arange(layout.ahead)
    off = made[:, :-1] - rows[np.minimum(place, count - 1)]
    off = np.abs(off, out=off) @ np.full(rows.shape[1], 1 / rows.shape[1]) * (place < count)
    weights = _weights(off.sum(axis=1), (place < count).sum(axis=0))
    tested = np.einsum("mr,morp->orp", weights, made)
    now = tested[-1]
    if ahead > layout.ahead:
        beyond = member.forecasts(rows, replace(layout, origins=layout.origins[-1:], ahead=ahead))[:, 0]
        weights = np.pad(weights, ((0, 0), (0, ahead - layout.ahead)), mode="edge")
        now = np.einsum("mr,mrp->rp", weights, beyond)
    return np.repeat(tested[:-1], cut.block, axis=2), np.repeat(now, cut.block, axis=1)


def _weights(loss: Floats, counts: NDArray[np.int64]) -> Floats:
    """Return the weight of each member for each row ahead, float64[M, R]: exp of how much worse it is than the best.

    loss: float64[M, R], the sums of mean absolute errors over counts: int64[R] of rows; rows ahead borrow from those near in ratio.
    """
    reach = np.log(np.arange(1, len(counts) + 1))
    kernel = np.exp(-np.abs(reach[:, None] - reach) / REACH)
    pooled = (loss @ kernel) / np.maximum(counts @ kernel, 1)
    best = pooled.min(axis=0)
    scores: Floats = np.exp(-SHARPNESS * (pooled / np.where(best > 0, best, 1) - (best > 0)))
    scores /= scores.sum(axis=0)
    return scores


def _actual(cut: _Cut, layout: member.Layout) -> tuple[Floats, NDArray[np.bool_]]:
    """Return what came after every origin but the last, float64[O, R, P], and which of it was measured."""
    place = layout.origins[:-1, None] + np.arange(layout.ahead)
    inside = np.minimum(place, len(cut.rows) - 1)
    return cut.rows[inside], cut.is_known[inside] & (place < len(cut.rows))[..., None]


def _mase(cut: _Cut, layout: member.Layout, errors: interval.Errors, actual: Floats) -> float:
    """Return the mean absolute error of the combination over that of the day before, or of the last value."""
    before = cut.rows[layout.origins[:-1] - 1]
    naive = before if cut.is_seasonal else np.broadcast_to(before[:, -1:], before.shape)
    theirs = float(np.abs(actual - naive[:, None])[errors.is_known].sum())
    ours = float(np.abs(errors.values)[errors.is_known].sum())
    return ours / theirs if theirs > 0 else float("nan")
