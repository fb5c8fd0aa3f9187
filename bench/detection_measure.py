"""How well scores find labelled windows: a NAB-style score, AUC-PR and VUS-PR, from their published formulae.

NAB-style: Lavin and Ahmad, "Evaluating real-time anomaly detection algorithms" (2015). AUC-PR is average precision.
VUS-PR: Paparrizos et al., "Volume under the surface" (2022): the PR area with labels softened by a buffer, mean over buffers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Windows = list[tuple[int, int]]
PROFILES = {"standard": (0.11, 1.0), "low FP": (0.22, 1.0), "low FN": (0.11, 2.0)}  # weight of a false alarm, of a miss


def _sigmoid(position: Floats | float) -> Floats:
    position = np.asarray(position, dtype=float)
    return np.where(position > 3, -1.0, 2 / (1 + np.exp(5 * np.minimum(position, 3))) - 1)


def _weights(count: int, windows: Windows) -> tuple[Floats, NDArray[np.int64]]:
    """Return what a detection at each row is worth if it is the first in its window, and the window of each row or -1."""
    worth, owner = np.full(count, -1.0), np.full(count, -1)
    rows = np.arange(count)
    for i, (left, right) in enumerate(windows):
        width = right - left + 1
        after = rows > right
        worth[after] = _sigmoid((rows[after] - right) / max(width - 1, 1))
        inside = (rows >= left) & (rows <= right)
        worth[inside] = _sigmoid(-(right - rows[inside] + 1) / width) / _sigmoid(-1.0)
        owner[inside] = i
    return worth, owner


def probation(count: int) -> int:
    return int(0.15 * min(count, 5000))


class Nab:
    """The NAB-style score of a corpus at any threshold."""

    def __init__(self, scores: list[Floats], windows: list[Windows]) -> None:
        self._files = []
        for score, labelled in zip(scores, windows, strict=True):
            worth, owner = _weights(len(score), labelled)
            first = probation(len(score))
            self._files.append((score[first:], worth[first:], owner[first:], len(labelled)))
        self._windows = sum(len(w) for w in windows)

    def parts(self, threshold: float) -> tuple[float, float, int]:
        """Return the sums over true and over false detections, and the windows missed."""
        true, false, missed = 0.0, 0.0, 0
        for score, worth, owner, count in self._files:
            hits = np.flatnonzero(score >= threshold)
            _, first = np.unique(owner[hits], return_index=True)
            firsts = hits[first]
            firsts = firsts[owner[firsts] >= 0]
            true += worth[firsts].sum()
            missed += count - len(firsts)
            false += worth[hits[owner[hits] < 0]].sum()
        return true, false, missed

    def score(self, profile: str, threshold: float) -> float:
        true, false, missed = self.parts(threshold)
        fp, fn = PROFILES[profile]
        raw = true + fp * false - fn * missed
        return float(100 * (raw + fn * self._windows) / (self._windows * (1 + fn)))

    def best(self, profile: str) -> tuple[float, float]:
        """Return the best score over thresholds, and its threshold."""
        pool = np.concatenate([np.sort(f[0][np.isfinite(f[0])])[-200:] for f in self._files])
        tries = np.unique(np.quantile(pool, np.linspace(0, 1, 160)))
        # Peaks decide: scores of held-back repeats crowd below the threshold.
        tries = np.unique(np.concatenate([tries, np.quantile(pool, 1 - np.geomspace(1e-5, 0.2, 160))]))
        found = [(self.score(profile, t), float(t)) for t in tries]
        return max(found)


def auc_pr(score: Floats, label: Floats) -> float:
    """Return average precision; label may be soft, in [0, 1]."""
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(label[order])
    last = np.append(np.diff(score[order]) != 0, True)
    precision = hits / np.arange(1, len(hits) + 1)
    recall = hits / hits[-1]
    return float(np.sum(np.diff(np.concatenate([[0], recall[last]])) * precision[last]))


def vus_pr(score: Floats, label: NDArray[np.bool_], buffer: int) -> float:
    """Return the mean of the range PR areas over buffers 0…buffer rows.

    Labels fall off as sqrt(1 - d/l) over a buffer l; recall is discounted by the share of events found, as in the source.
    """
    return float(
        np.mean([_range_pr(score, label, width) for width in np.unique(np.linspace(0, buffer, 5).astype(int))])
    )


def _range_pr(score: Floats, label: NDArray[np.bool_], width: int) -> float:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], label.astype(int), [0]])))
    starts, ends = edges[::2], edges[1::2]
    soft = label.astype(float)
    for start, end in zip(starts, ends, strict=True):
        ramp = np.sqrt(1 - np.arange(1, width // 2 + 1) / max(width, 1))
        before, after = soft[max(0, start - len(ramp)) : start], soft[end : end + len(ramp)]
        np.maximum(before, ramp[: len(before)][::-1], out=before)
        np.maximum(after, ramp[: len(after)], out=after)
    positives = (label.sum() + soft.sum()) / 2
    levels = np.sort(score)[::-1][np.linspace(0, len(score) - 1, 250).astype(int)]
    points = [(0.0, 1.0)]
    for level in np.unique(levels)[::-1]:
        found = score >= level
        tp = soft[found].sum()
        events = np.mean(
            [found[max(0, s - width // 2) : e + width // 2].any() for s, e in zip(starts, ends, strict=True)]
        )
        points.append((min(tp / positives, 1.0) * float(events), tp / found.sum()))
    recall, precision = np.array(points).T
    return float(np.sum(np.diff(recall) * precision[1:]))
