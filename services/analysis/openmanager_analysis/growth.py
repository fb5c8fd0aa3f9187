"""How a level grows: lines with kinks and jumps, and curves, weighed against each other; futures drawn from them.

Residuals of a level are seldom independent, so every candidate is fitted to quasi-differences (Cochrane and Orcutt 1949).
Candidates are weighed by exp(−BIC/2) (Schwarz 1978), a kink or a jump costing two parameters, its place and its size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CONSTANT, LINE, KINK, JUMP, CURVE, NONE = range(6)
MAX_BREAKS = 3
PLACES = 32
CURVES = (-4.0, -2.0, -1.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
COLUMNS = 2 + MAX_BREAKS
MAX_CORRELATION = 0.97
KEPT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Candidates for the level at times in [0, 1] and beyond, the best first.

    kinds: int64[C, K] and params: float64[C, K] say what the columns are; mean: float64[C, K] and root: float64[C, K, K]
    are the coefficients and the Cholesky factor of their covariance; weights: float64[C] sum to 1. The residuals follow
    an AR(1) process with `correlation` from one time to the next, of which `last` is the newest and `sigma` the spread.
    """

    kinds: NDArray[np.int64]
    params: Floats
    mean: Floats
    root: Floats
    weights: Floats
    correlation: float
    sigma: float
    last: float

    def level(self, times: Floats) -> Floats:
        """Return the level that the best candidate expects at times: float64[F]."""
        made: Floats = columns(self.kinds[0], self.params[0], times) @ self.mean[0]
        return made

    def draw(self, times: Floats, count: int, random: np.random.Generator) -> Floats:
        """Return `count` levels that may come at times: float64[F], as float64[count, F], without the residuals."""
        picked = np.searchsorted(np.cumsum(self.weights), (np.arange(count) + 0.5) / count)
        picked = np.minimum(picked, len(self.weights) - 1)
        normal = random.standard_normal((count, COLUMNS))
        sizes = self.mean[picked] + np.einsum("bij,bj->bi", self.root[picked], normal)
        used, which = np.unique(picked, return_inverse=True)
        made = np.stack([columns(self.kinds[one], self.params[one], times) for one in used])
        drawn: Floats = np.einsum("bfk,bk->bf", made[which], sizes)
        return drawn


def columns(kinds: NDArray[np.int64], params: Floats, times: Floats) -> Floats:
    """Return the columns of one candidate at times: float64[F], float64[F, K]."""
    made = np.zeros((len(times), len(kinds)))
    for place, (kind, param) in enumerate(zip(kinds.tolist(), params.tolist(), strict=True)):
        if kind == CONSTANT:
            made[:, place] = 1.0
        elif kind == LINE:
            made[:, place] = times
        elif kind == KINK:
            made[:, place] = np.maximum(times - param, 0.0)
        elif kind == JUMP:
            made[:, place] = times >= param
        elif kind == CURVE:
            made[:, place] = np.expm1(np.minimum(param * times, 50.0)) / param
    return made


@dataclass(slots=True, kw_only=True)
class _Pool:
    """Everything that was fitted so far."""

    kinds: list[NDArray[np.int64]]
    params: list[Floats]
    mean: list[Floats]
    root: list[Floats]
    score: list[Floats]


def fit(times: Floats, levels: Floats) -> Growth:
    """Return the candidates for levels: float64[J] at times: float64[J] in [0, 1], rising, J at least 4."""
    correlation = _correlation(times, levels)
    pool = _Pool(kinds=[], params=[], mean=[], root=[], score=[])
    kinds, params = np.array([CONSTANT, LINE]), np.zeros(2)
    _try(pool, kinds[None], params[None], times, levels, correlation)
    curves = np.array(CURVES)
    _try(
        pool,
        np.broadcast_to([CONSTANT, CURVE], (len(curves), 2)),
        np.column_stack([np.zeros_like(curves), curves]),
        times,
        levels,
        correlation,
    )
    inner = times[2:-2]
    places = inner[:: max(1, len(inner) // PLACES)]
    for _ in range(MAX_BREAKS if len(times) >= 10 else 0):
        kinds, params = _best_with_breaks(pool, kinds, params, places, times, levels, correlation)
    return _weigh(pool, times, levels, correlation)


def _best_with_breaks(
    pool: _Pool,
    kinds: NDArray[np.int64],
    params: Floats,
    places: Floats,
    times: Floats,
    levels: Floats,
    correlation: float,
) -> tuple[NDArray[np.int64], Floats]:
    """Try a kink and a jump more at every place; return the columns of the best of these."""
    more = np.repeat([KINK, JUMP], len(places))
    all_kinds = np.column_stack([np.broadcast_to(kinds, (len(more), len(kinds))), more])
    all_params = np.column_stack([np.broadcast_to(params, (len(more), len(params))), np.tile(places, 2)])
    best = int(np.argmin(_try(pool, all_kinds, all_params, times, levels, correlation)))
    return all_kinds[best], all_params[best]


def _try(
    pool: _Pool, kinds: NDArray[np.int64], params: Floats, times: Floats, levels: Floats, correlation: float
) -> Floats:
    """Fit candidates of k columns, put them into the pool, return their scores float64[C]."""
    count, width = kinds.shape
    design = np.stack([columns(one, param, times) for one, param in zip(kinds, params, strict=True)])
    white, target = _whitened(design, correlation), _whitened(levels[None, :, None], correlation)[0, :, 0]
    square = np.einsum("cjk,cjl->ckl", white, white) + 1e-9 * np.eye(width)
    inverse = np.linalg.inv(square)
    mean = np.einsum("ckl,cjl,j->ck", inverse, white, target, optimize=True)
    left = target - np.einsum("cjk,ck->cj", white, mean)
    freedom = max(1, len(times) - width)
    variance = np.maximum((left * left).sum(axis=1) / freedom, 1e-12)
    cost = 2 + 2 * (width - 2) + (kinds[:, 1] == CURVE) * 1
    score = len(times) * np.log(variance * freedom / len(times)) + cost * np.log(len(times))
    pad = COLUMNS - width
    pool.kinds.append(np.pad(kinds, ((0, 0), (0, pad)), constant_values=NONE))
    pool.params.append(np.pad(params, ((0, 0), (0, pad))))
    pool.mean.append(np.pad(mean, ((0, 0), (0, pad))))
    root = np.linalg.cholesky(inverse * variance[:, None, None])
    pool.root.append(np.pad(root, ((0, 0), (0, pad), (0, pad))))
    pool.score.append(score)
    return score


def _whitened(design: Floats, correlation: float) -> Floats:
    """Return quasi-differences along the second axis of design: float64[C, J, K]; the first is scaled (Prais-Winsten)."""
    first = design[:, :1] * np.sqrt(1 - correlation**2)
    return np.concatenate([first, design[:, 1:] - correlation * design[:, :-1]], axis=1)


def _correlation(times: Floats, levels: Floats) -> float:
    """Return the correlation of residuals next to each other, around a line with four kinks, corrected for its bias."""
    count = len(times)
    knots = np.linspace(0, 1, 6)[1:-1] if count >= 20 else np.zeros(0)
    design = np.column_stack([np.ones(count), times, *[np.maximum(times - knot, 0) for knot in knots]])
    left = levels - design @ np.linalg.lstsq(design, levels, rcond=None)[0]
    power = float(left @ left)
    if power <= 1e-9 * max(1e-12, float(np.var(levels))) * count:
        return 0.0
    found = float(left[1:] @ left[:-1]) / power
    return float(np.clip(found + design.shape[1] * (1 + found) / (2 * count), 0.0, MAX_CORRELATION))


def _weigh(pool: _Pool, times: Floats, levels: Floats, correlation: float) -> Growth:
    score = np.concatenate(pool.score)
    order = np.argsort(score)[:KEPT]
    weights = np.exp(-(score[order] - score[order[0]]) / 2)
    kinds, params = np.concatenate(pool.kinds)[order], np.concatenate(pool.params)[order]
    mean, root = np.concatenate(pool.mean)[order], np.concatenate(pool.root)[order]
    left = levels - columns(kinds[0], params[0], times) @ mean[0]
    return Growth(
        kinds=kinds,
        params=params,
        mean=mean,
        root=root,
        weights=weights / weights.sum(),
        correlation=correlation,
        sigma=float(np.sqrt(np.mean(left * left))),
        last=float(left[-1]),
    )
