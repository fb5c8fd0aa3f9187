"""Forecasts with honest intervals: a back-tested combination of simple robust members.

The members (member.py) forecast from rolling origins in the history; each is weighted by how well it did there, nearer
and further ahead apart; the errors that the combination made from those origins are the intervals (split conformal
prediction, Vovk et al. 2005, by horizon).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmanager.errors import invalid
from openmanager_analysis import interval, member
from openmanager_analysis.grid import DAY_MILLIS, Grid, fill, regularize

Floats = NDArray[np.float64]
QUANTILES = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
MAX_HORIZON = 100_000
HISTORY_DAYS = 63
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
    made, expected = _combine(cut, layout)
    actual, is_known = _actual(cut, layout)
    errors = interval.Errors(values=actual - made, is_known=is_known)
    found = interval.spread(errors, np.array(quantiles), ahead, is_seasonal=cut.is_seasonal)
    fan = (expected[..., None] + found.quantiles).reshape(ahead * size, -1)[:horizon]
    if not errors.values.any():
        fan = fan + 2 * (np.array(quantiles) - 0.5) * interval.RESOLUTION * np.abs(fan)
    return Forecast(
        time_unix_millis=grid.end_unix_millis + grid.interval_millis * np.arange(1, horizon + 1),
        levels=tuple(quantiles),
        quantiles=interval.bound(fan, cut.rows),
        points=interval.bound(expected.reshape(-1)[:horizon], cut.rows),
        mase=_mase(cut, layout, errors),
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
    is_seasonal = len(values) >= 3 * size
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


def _layout(cut: _Cut, ahead: int) -> member.Layout:
    """Return the origins to test at: as many as leave a week before them, or a third of the history; the last is now."""
    count = len(cut.rows)
    first = 7 if count >= 11 else max(1, count // 3)
    return member.Layout(
        origins=np.arange(first, count + 1)[-29:], ahead=ahead, is_seasonal=cut.is_seasonal, is_day=cut.is_day
    )


def _combine(cut: _Cut, layout: member.Layout) -> tuple[Floats, Floats]:
    """Return the forecasts from every origin but the last, float64[O, R, P], and from the last, float64[R, P]."""
    count, size = cut.rows.shape
    rows = cut.rows if cut.block == 1 else np.median(cut.rows.reshape(count, -1, cut.block), axis=2)
    made = member.forecasts(rows, layout)
    place = np.minimum(layout.origins[:-1, None] + np.arange(layout.ahead), count - 1)
    is_known = np.repeat(
        (layout.origins[:-1, None] + np.arange(layout.ahead) < count)[..., None], rows.shape[1], axis=2
    )
    off = np.abs(made[:, :-1] - rows[place]) * is_known
    weights = _weights(off.sum(axis=(1, 3)), is_known.sum(axis=(0, 2)))
    combined = np.einsum("mr,morp->orp", weights, made)
    fine = np.repeat(combined, cut.block, axis=2)
    return fine[:-1], fine[-1]


def _weights(loss: Floats, counts: NDArray[np.int64]) -> Floats:
    """Return the weight of each member for each row ahead, float64[M, R]: exp of how much worse it is than the best.

    loss: float64[M, R], the sums of absolute errors over counts: int64[R]; rows ahead borrow from those near in ratio.
    """
    reach = np.log(np.arange(1, len(counts) + 1))
    kernel = np.exp(-np.abs(reach[:, None] - reach) / REACH)
    pooled = (loss @ kernel) / np.maximum(counts @ kernel, 1)
    best = pooled.min(axis=0)
    scores = np.exp(-SHARPNESS * (pooled / np.where(best > 0, best, 1) - (best > 0)))
    return scores / scores.sum(axis=0)


def _actual(cut: _Cut, layout: member.Layout) -> tuple[Floats, NDArray[np.bool_]]:
    """Return what came after every origin but the last, float64[O, R, P], and which of it was measured."""
    place = layout.origins[:-1, None] + np.arange(layout.ahead)
    inside = np.minimum(place, len(cut.rows) - 1)
    return cut.rows[inside], cut.is_known[inside] & (place < len(cut.rows))[..., None]


def _mase(cut: _Cut, layout: member.Layout, errors: interval.Errors) -> float:
    """Return the mean absolute error of the combination over that of the day before, or of the last value."""
    before = cut.rows[layout.origins[:-1] - 1]
    naive = before if cut.is_seasonal else np.broadcast_to(before[:, -1:], before.shape)
    actual = _actual(cut, layout)[0]
    theirs = float(np.abs(actual - naive[:, None])[errors.is_known].sum())
    ours = float(np.abs(errors.values)[errors.is_known].sum())
    return ours / theirs if theirs > 0 else float("nan")
