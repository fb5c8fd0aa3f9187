"""Intervals from the errors that a forecast made from earlier origins, by how far ahead they were made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Rows ahead whose errors are pooled: the first day, then ever more days.
BORDERS = (0, 1, 3, 7, 14, 28, 56)
# An interval from k independent stretches of errors is widened by 1 + WIDENING / k.
WIDENING = 0.35
SMOOTHING = np.array([1.0, 2.0, 3.0, 2.0, 1.0]) / 9.0
OWN_SCALE = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """What came less what was forecast, values: float64[O, R, P], from each origin by row ahead and phase."""

    values: Floats
    is_known: NDArray[np.bool_]


def spread(errors: Errors, levels: Floats, ahead: int, *, is_seasonal: bool) -> Floats:
    """Return the quantiles of the error to expect, float64[R, P, Q], for each row ahead and phase."""
    scale = _scale(errors, is_seasonal=is_seasonal)
    normal = errors.values / scale
    made = np.empty((ahead, len(scale), len(levels)))
    quantiles = np.zeros(len(levels))
    borders = [border for border in BORDERS if border < ahead] + [ahead]
    reached = 0
    for start, end in zip(borders, borders[1:], strict=False):
        is_known = errors.is_known[:, start:end]
        found = normal[:, start:end][is_known]
        growth = 1.0
        if found.size >= 1:
            quantiles = np.quantile(found, levels)
            rows_known = int(is_known.any(axis=2).sum())
            independent = 1 + rows_known / (start + end)
            quantiles = quantiles * (1 + WIDENING * 2 / independent)
            reached = end
        else:
            growth = np.sqrt((start + end) / max(1, 2 * reached))
        made[start:end] = scale[:, None] * quantiles * growth
    return made


def _scale(errors: Errors, *, is_seasonal: bool) -> Floats:
    """Return the scale of the errors by phase, float64[P], never 0: of its own and its neighbours', drawn to the mean."""
    off = np.abs(errors.values) * errors.is_known
    count = errors.is_known.sum(axis=(0, 1))
    size = len(count)
    whole = float(off.sum() / max(1, count.sum()))
    if not is_seasonal or size < len(SMOOTHING) or whole == 0:
        return np.full(size, whole or 1.0)
    own = off.sum(axis=(0, 1)) / np.maximum(count, 1)
    padded = np.concatenate([own[-2:], own, own[:2]])
    return OWN_SCALE * np.convolve(padded, SMOOTHING, mode="valid") + (1 - OWN_SCALE) * whole


def bound(values: Floats, rows: Floats) -> Floats:
    """Return values within what the history makes possible: not below 0 where it never is, and the same for above.

    Where the history touches 100 (or 1) and never passes it, that is the bound; else as far again as it reached.
    """
    low, high = float(rows.min()), float(rows.max())
    reach = high - low
    below = max(0.0, low - reach) if low >= 0 else low - reach
    above = high if high in {1.0, 100.0} else high + reach
    return np.clip(values, below, above)
