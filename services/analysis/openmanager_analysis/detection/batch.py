"""A whole table through the detector: one causal pass, rows in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmanager.errors import invalid
from openmanager_analysis.detection.detector import Detector, Scores
from openmanager_analysis.detection.joint import Joint

Ints = NDArray[np.int64]
Matrix = NDArray[np.float64]
Show = Callable[[float], None]

WEEK_MILLIS = 7 * 86_400_000
MOST_BLAMED = 20
_SHOW_EVERY = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """score: float64[T] in [0, 1]; alarm: bool[T]; blame: int64[T, K], the indices of metrics, the most to blame first, -1
    where there are no more; K is 0 for one metric."""

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
    metrics = values.shape[1]
    detector = Detector(metrics)
    times = _increasing(time_unix_millis)
    if history is not None:
        before = _increasing(history.time_unix_millis)
        if before[-1] >= times[0]:  # as whole weeks, so that the hours and weekdays stay what they are
            before = before - (int(before[-1] - times[0]) // WEEK_MILLIS + 1) * WEEK_MILLIS
        times, values = np.concatenate([before, times]), np.concatenate([history.values, values])
    first = len(times) - len(time_unix_millis)
    judged = _one(detector, times, values, show) if metrics == 1 else _many(detector, times, values, show)
    return Judged(score=judged.score[first:], alarm=judged.alarm[first:], blame=judged.blame[first:])


def _increasing(times: Ints) -> Ints:
    """Return whole milliseconds that increase, where the stamps were closer than that."""
    places = np.arange(len(times))
    increasing: Ints = np.maximum.accumulate(times - places) + places
    return increasing


def _scores(detector: Detector, times: Ints, values: Matrix, show: Show) -> Iterator[Scores]:
    for row, (time, value) in enumerate(zip(times.tolist(), values, strict=True)):
        if row % _SHOW_EVERY == 0:
            show(row / len(times))
        yield detector.observe(time, value)


def _one(detector: Detector, times: Ints, values: Matrix, show: Show) -> Judged:
    score, alarm = np.empty(len(times)), np.empty(len(times), dtype=np.bool_)
    for row, scores in enumerate(_scores(detector, times, values, show)):
        score[row], alarm[row] = scores.score[0], scores.alarm[0]
    return Judged(score=score, alarm=alarm, blame=np.empty((len(times), 0), dtype=np.int64))


def _many(detector: Detector, times: Ints, values: Matrix, show: Show) -> Judged:
    metrics = values.shape[1]
    joint = Joint([np.arange(metrics)])
    score, alarm = np.empty(len(times)), np.empty(len(times), dtype=np.bool_)
    blame = np.empty((len(times), min(metrics, MOST_BLAMED)), dtype=np.int64)
    for row, scores in enumerate(_scores(detector, times, values, show)):
        verdict = joint.observe(scores.moment, scores.evidence, scores.confidence.astype(np.float32))
        score[row], alarm[row] = verdict.score[0], verdict.alarm[0]
        order = np.argsort(-scores.evidence, kind="stable")[: blame.shape[1]]
        blame[row] = np.where(scores.evidence[order] > 0, order, -1)
    return Judged(score=score, alarm=alarm, blame=blame)
