"""How the metrics of one entity hang together in a training period, and how far each is from what the others say."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

_CLIP = 10.0  # standard deviations: what one value may weigh
_RIDGE = 0.03  # of a variance: metrics that are almost the same stay apart
_LEAST_RESIDUAL = 0.03  # standard deviations of a metric: what is explained better is not taken for exact
_SHARE, _LEAST_QUANTILE, _LEAST_EXCESS = 0.03, 0.7, 0.1
LEAST_HISTORY = 50  # rows


class Relation:
    """A Gaussian model of M metrics, learnt once and robustly; each metric's residual is calibrated on the training period.

    Of standardised metrics z with the regularised precision matrix P, a metric's residual given all others is
    (P z)_m / P_mm (Whittaker, "Graphical models in applied multivariate statistics", 1990): the regression of each on the
    rest. Its -log p is that of an exponential tail of log(1 + |residual|/scale) over the training period, as of `Tail`.
    """

    def __init__(self, history: Matrix) -> None:
        """Learn from history, float64[H, M] with NaN missing, H at least LEAST_HISTORY."""
        filled = np.where(np.isfinite(history).any(axis=0), history, 0.0)
        self._center = np.nanmedian(filled, axis=0)
        self._scale = _scale(filled - self._center) + 1e-3 * np.abs(self._center) + 1e-9
        z = self._standardise(history)
        precision = np.linalg.inv(np.atleast_2d(np.cov(z.T)) + _RIDGE * np.eye(z.shape[1]))
        self._weights = precision / np.diag(precision)
        residual = z @ self._weights
        self._residual_scale = np.maximum(_scale(residual), _LEAST_RESIDUAL)
        y = np.log1p(np.abs(residual) / self._residual_scale)
        self._quantile, self._excess = fit_tail(y)

    def surprise(self, values: Matrix) -> Matrix:
        """Return -log p of each value given the others': float64[T, M], 0 where missing."""
        y = np.log1p(np.abs(self._standardise(values) @ self._weights) / self._residual_scale)
        return np.where(np.isfinite(values), tail_surprise(y, self._quantile, self._excess), 0.0)

    def _standardise(self, values: Matrix) -> Matrix:
        z: Matrix = np.clip((values - self._center) / self._scale, -_CLIP, _CLIP)
        return np.nan_to_num(z, copy=False, nan=0.0)


def _scale(off: Matrix) -> Matrix:
    """Return a robust scale of deviations, float64[M]: not 0 for what is mostly constant."""
    robust: Matrix = np.maximum(1.4826 * np.nanmedian(np.abs(off), axis=0), np.nanstd(off, axis=0) / 2)
    return robust


def fit_tail(y: Matrix) -> tuple[Matrix, Matrix]:
    """Return where the tail of each column of y begins, and its mean excess."""
    quantile = np.quantile(y, 1 - _SHARE, axis=0)
    over = y > quantile
    excess = np.where(over, y - quantile, 0).sum(axis=0) / np.maximum(over.sum(axis=0), 1)
    return np.maximum(quantile, _LEAST_QUANTILE), np.maximum(excess, _LEAST_EXCESS)


def tail_surprise(y: Matrix, quantile: Matrix, excess: Matrix) -> Matrix:
    """Return -log p of y under such tails, at least 0."""
    surprise: Matrix = np.maximum((y - quantile) / excess - np.log(_SHARE), 0)
    return surprise
