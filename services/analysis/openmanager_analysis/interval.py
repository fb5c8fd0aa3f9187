"""Intervals from the errors that a forecast made from earlier origins (split conformal prediction by rolling origin).

An error is taken as scale by phase × growth by row ahead × a variate that is the same for all; its quantiles are those of
all errors so normalised, so that they need no distribution. They are widened where errors of one row go together, which
leaves few that tell something new.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmanager.errors import FailedPreconditionError, Reason

Floats = NDArray[np.float64]
SMOOTHING = np.array([1.0, 2.0, 3.0, 2.0, 1.0]) / 9.0
# How much of a phase's scale is its own, against that of all.
OWN_SCALE = 0.7
# The widening: of everything, for errors that go together and for few origins, and of the outermost quantiles, which the past has seldom shown.
TOGETHER, FEW, OUTERMOST = 1.35, 0.6, 0.18
# How much of a median error the outer quantiles follow; the median itself never does: it is often chance.
FOLLOWED = 0.25
# What never moved is taken to be known to a thousandth of its value.
RESOLUTION = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """What came less what was forecast, values: float64[O, R, P], from each origin by row ahead and phase."""

    values: Floats
    is_known: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Quantiles of the error to expect, float64[R, P, Q], and the share of the newer errors in 80 % of the older."""

    quantiles: Floats
    coverage: float


def spread(errors: Errors, levels: Floats, ahead: int, *, is_seasonal: bool) -> Spread:
    """Return what errors to expect in each of `ahead` rows; levels: float64[Q] in (0, 1), rising.

    FailedPreconditionError where no error is known.
    """
    if not errors.is_known.any():
        raise FailedPreconditionError(
            "values are missing for so long before the end that no forecast can be tested",
            reason=Reason.TOO_LITTLE_DATA,
        )
    phases = _phases(errors, is_seasonal=is_seasonal)
    scaled = errors.values / phases
    growth = _growth(scaled, errors.is_known, ahead)
    normal = scaled / growth[: scaled.shape[1], None]
    *found, median = np.quantile(normal[errors.is_known], [*levels, 0.5])
    quantiles = _outward(np.array(found), levels, float(median))
    quantiles *= (1 + _together(normal, errors.is_known)) * (1 + OUTERMOST * (np.abs(levels - 0.5) / 0.475) ** 6)
    return Spread(
        quantiles=growth[:, None, None] * phases[:, None] * quantiles, coverage=_coverage(normal, errors.is_known)
    )


def _phases(errors: Errors, *, is_seasonal: bool) -> Floats:
    """Return the scale of the errors by phase, float64[P], never 0: of its own and its neighbours', drawn to the mean."""
    off = np.where(errors.is_known, np.abs(errors.values), 0.0).sum(axis=(0, 1))
    count = errors.is_known.sum(axis=(0, 1))
    whole = float(off.sum() / max(1, count.sum()))
    if not is_seasonal or len(off) < len(SMOOTHING) or whole == 0:
        return np.full(len(off), whole or 1.0)
    own = off / np.maximum(count, 1)
    smooth = np.convolve(np.concatenate([own[-2:], own, own[:2]]), SMOOTHING, mode="valid")
    made: Floats = OWN_SCALE * smooth + (1 - OWN_SCALE) * whole
    return made


def _growth(scaled: Floats, is_known: NDArray[np.bool_], ahead: int) -> Floats:
    """Return the scale by row ahead, float64[R], as a + b √row with b ≥ 0, fitted to the mean absolute errors.

    Rows far ahead count less, as what they tell overlaps. Beyond the rows that could be tested the line goes on.
    """
    count = is_known.sum(axis=(0, 2))
    tested = np.flatnonzero(count)
    mean = np.where(is_known, np.abs(scaled), 0.0).sum(axis=(0, 2))[tested] / count[tested]
    root = np.sqrt(np.arange(1, ahead + 1))
    weights = count[tested] / (1 + 0.5 * tested)
    weights = weights / weights.sum()
    middle, level = float(weights @ root[tested]), float(weights @ mean)
    off = root[tested] - middle
    slope = max(0.0, float((weights * off) @ (mean - level)) / max(float(weights @ (off * off)), 1e-12))
    made: Floats = np.maximum(level + slope * (root - middle), 0.3 * level)
    return made if level > 0 else np.ones(ahead)


def _outward(quantiles: Floats, levels: Floats, median: float) -> Floats:
    """Return the quantiles about a median of 0, which the outer ones follow a part of the way."""
    moved = quantiles - median * (1 - FOLLOWED * np.minimum(1.0, np.abs(levels - 0.5) * 4))
    made: Floats = np.where(levels < 0.5, np.minimum(moved, 0.0), np.maximum(moved, 0.0))
    return np.where(levels == 0.5, 0.0, made)


def _together(normal: Floats, is_known: NDArray[np.bool_]) -> float:
    """Return by how much to widen, by the number N of origins: the share of variance between rows over √N, and over N."""
    count = is_known.sum(axis=2)
    kept = count > 0
    means = np.where(is_known, normal, 0.0).sum(axis=2)[kept] / count[kept]
    whole = float(normal[is_known].var())
    if whole <= 0:
        return 0.0
    origins = float(kept.any(axis=1).sum())
    return TOGETHER * min(1.0, float(means.var()) / whole) / float(np.sqrt(origins)) + FEW / origins


def _coverage(normal: Floats, is_known: NDArray[np.bool_]) -> float:
    """Return the share of the newer half of the origins' errors that is inside 80 % of the older half's, or NaN."""
    half = len(normal) // 2
    older, newer = normal[:half][is_known[:half]], normal[half:][is_known[half:]]
    if not (older.size and newer.size):
        return float("nan")
    low, high = np.quantile(older, (0.1, 0.9))
    return float(((newer >= low) & (newer <= high)).mean())


def bound(values: Floats, rows: Floats) -> Floats:
    """Return values within what the history makes possible: not below 0 where it never is, nor far beyond its range.

    Where the history touches 100 (or 1) and never passes it, that is the bound; else as far again as it reached.
    """
    low, high = float(rows.min()), float(rows.max())
    reach = max(high - low, RESOLUTION * abs(high))
    below = max(0.0, low - reach) if low >= 0 else low - reach
    above = high if high in {1.0, 100.0} else high + reach
    return np.clip(values, below, above)
