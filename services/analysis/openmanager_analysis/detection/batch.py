"""A whole table through the detector: one causal pass, rows in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmanager.errors import invalid
from openmanager_analysis.detection.decision import Verdict
from openmanager_analysis.detection.detector import Detector, Scores
from openmanager_analysis.detection.joint import Joint, Known

Ints = NDArray[np.int64]
Matrix = NDArray[np.float64]
Show = Callable[[float], None]

WEEK_MILLIS = 7 * 86_400_000
MOST_BLAMED = 20
_SHOW_EVERY = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What is said of each row.

    score: float64[T] in [0, 1]; alarm: bool[T]; blame: int64[T, K], the indices of metrics, the most to blame first, -1
    where there are no more; K is 0 for one metric.
    """

    score: Matrix
    alarm: NDArray[np.bool_]
    blame: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A training period: time_unix_millis int64[H], values float64[H, M]."""

    time_unix_millis: Ints
    values: Matrix


def judge(time_unix_millis: Ints, values: Matrix, history: History | None, show: Show) -> Judged:
    """Judge values, float64[T, M] with NaN missing, after the history. Raises InvalidArgumentError for no value at all."""
    if not np.isfinite(values).any():
        raise invalid("value", "there is no value at all")
    times, known = _increasing(time_unix_millis), None
    if history is not None:
        before = _increasing(history.time_unix_millis)
        if before[-1] >= times[0]:  # as whole weeks, so that the hours and weekdays stay what they are
            before = before - (int(before[-1] - times[0]) // WEEK_MILLIS + 1) * WEEK_MILLIS
        known = Known.learn(history.values) if values.shape[1] > 1 else None
        times, values = np.concatenate([before, times]), np.concatenate([history.values, values])
    judged = _judge(times, values, known, show)
    first = len(times) - len(time_unix_millis)
    return Judged(score=judged.score[first:], alarm=judged.alarm[first:], blame=judged.blame[first:])


def _increasing(times: Ints) -> Ints:
    """Return whole milliseconds that increase, where the stamps were closer than that."""
    places = np.arange(len(times))
    increasing: Ints = np.maximum.accumulate(times - places) + places
    return increasing


def _judge(times: Ints, values: Matrix, known: Known | None, show: Show) -> Judged:
    rows, metrics = values.shape
    detector = Detector(metrics)
    joint = Joint([np.arange(metrics)])
    score, alarm = np.empty(rows), np.empty(rows, dtype=np.bool_)
    blame = np.empty((rows, min(metrics, MOST_BLAMED) if metrics > 1 else 0), dtype=np.int64)
    for row, (time, value) in enumerate(zip(times.tolist(), values, strict=True)):
        if row % _SHOW_EVERY == 0:
            show(row / rows)
        scores = detector.observe(time, value)
        verdict: Scores | Verdict = scores
        if metrics > 1:
            verdict, weights = known.observe(scores, value) if known else _together(joint, scores)
            order = np.argsort(-weights, kind="stable")[: blame.shape[1]]
            blame[row] = np.where(weights[order] > 0, order, -1)
        score[row], alarm[row] = verdict.score[0], verdict.alarm[0]
    return Judged(score=score, alarm=alarm, blame=blame)


def _together(joint: Joint, scores: Scores) -> tuple[Verdict, NDArray[np.float32]]:
    """Return the verdict on a row, and how much each metric is to blame, float32[M]."""
    sure = scores.confidence.astype(np.float32)
    return joint.observe(scores.moment, scores.evidence, sure, np.isfinite(scores.value)), scores.evidence
