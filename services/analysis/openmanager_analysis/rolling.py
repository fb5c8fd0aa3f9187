"""How good forecasts, times to a limit and probabilities are: made again from times of the past, held against what came."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from openmanager.errors import FailedPreconditionError
from openmanager_analysis import crossing
from openmanager_analysis.exhaustion import time_to_limit
from openmanager_analysis.forecast import QUANTILES, forecast

Floats = NDArray[np.float64]
DAY_HOURS = 24
HOUR_MILLIS = 3_600_000
HISTORY_DAYS = 28
"""Days before the range that are looked at."""

MAX_MADE, MAX_TIMES = 300, 150
"""Forecasts that are made, and times from which probabilities are: the newest share evenly."""

LEAST_HISTORY_HOURS = 2 * DAY_HOURS
_EDGES = (0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8)
_EVEN = 0.5
_LOW_95, _LOW_80, _HIGH_80, _HIGH_95 = 0, 1, 5, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """K series of which `metrics` are the metrics and `limits` float64[K] the thresholds, and what was measured of them.

    hours: float64[K, T], means of whole hours, of which those from `first` on are scored; highest: float64[K, U], of steps of
    crossing.STEP_MINUTES that end when the hours do, of which those from `near_first` on are scored.
    """

    metrics: tuple[str, ...]
    limits: Floats
    hours: Floats
    first: int
    highest: Floats
    near_first: int


@dataclass(slots=True, kw_only=True)
class ForecastScore:
    """Of one metric: sums of absolute errors, ours and those of the last day again, and how much came within intervals."""

    metric: str
    forecast_count: int = 0
    error: float = 0.0
    naive_error: float = 0.0
    value_count: int = 0
    within_80: int = 0
    within_95: int = 0


@dataclass(slots=True, kw_only=True)
class ExhaustionScore:
    """Of times to a limit: `errors` are relative, of those that were reached and foreseen."""

    answer_count: int = 0
    reached_count: int = 0
    missed_count: int = 0
    false_count: int = 0
    within_80: int = 0
    errors: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionScore:
    """Of probabilities `chances` float64[N] and what came of them, `came` bool[N], within `seconds`; `leads` in seconds."""

    seconds: int
    chances: Floats
    came: NDArray[np.bool_]
    leads: tuple[float, ...] = ()

    @property
    def brier(self) -> float:
        """Mean squared difference (Brier 1950)."""
        return float(((self.chances - self.came) ** 2).mean())

    @property
    def skill(self) -> float | None:
        """How much less that is than of the share that came, said always; None where all or nothing came."""
        share = float(self.came.mean())
        return 1 - self.brier / (share * (1 - share)) if 0 < share < 1 else None

    def bins(self) -> Iterator[tuple[int, float, float]]:
        """Yield how many probabilities there were of about a size, their mean, and the share of them that came."""
        place = np.searchsorted(_EDGES, self.chances, side="right")
        for each in np.unique(place).tolist():
            inside = place == each
            yield int(inside.sum()), float(self.chances[inside].mean()), float(self.came[inside].mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Rolled:
    """All of it; what is empty or None could not be made, and `omissions` say why."""

    forecasts: tuple[ForecastScore, ...]
    exhaustion: ExhaustionScore | None
    predictions: tuple[PredictionScore, ...]
    omissions: tuple[str, ...]


def roll(recorded: Recorded, is_over: Callable[[], bool] = lambda: False) -> Rolled:
    """Return how good what would have been said in the range was. It ends early when nobody waits for it any more."""
    forecasts = _forecasts(recorded, is_over)
    exhaustion = _exhaustion(recorded, is_over)
    predictions = _predictions(recorded, is_over)
    return Rolled(
        forecasts=forecasts,
        exhaustion=exhaustion if exhaustion.answer_count else None,
        predictions=predictions,
        omissions=tuple(
            text
            for text, is_there in (
                ("forecasts: a day of the range with two days of values before it is needed", forecasts),
                (
                    "times to a threshold: a day of the range with two days of values below it before is needed",
                    exhaustion.answer_count,
                ),
                (
                    f"probabilities: an hour of the range with {crossing.LEAST_DAYS} days of samples before is needed",
                    predictions,
                ),
            )
            if not is_there
        ),
    )


def _origins(recorded: Recorded) -> list[tuple[int, int]]:
    """Return (series, first hour to come) pairs, a day apart and a day at least before the end, thinned to MAX_MADE."""
    days = range(recorded.first, recorded.hours.shape[1] - DAY_HOURS + 1, DAY_HOURS)
    pairs = [(row, at) for at in days for row in range(len(recorded.hours))]
    return pairs[:: -(-len(pairs) // MAX_MADE)] if pairs else []


def _pasts(recorded: Recorded, is_over: Callable[[], bool]) -> Iterator[tuple[int, int, NDArray[np.int64], Floats]]:
    """Yield each origin with its past, as far as it is long enough."""
    for row, at in _origins(recorded):
        if is_over():
            return
        past = recorded.hours[row, max(0, at - HISTORY_DAYS * DAY_HOURS) : at]
        known = np.flatnonzero(~np.isnan(past))
        if len(known) >= LEAST_HISTORY_HOURS and len(past) - 1 - known[-1] == 0:
            kept = past[known[0] :]
            yield row, at, np.arange(at - len(kept), at, dtype=np.int64) * HOUR_MILLIS, kept


def _forecasts(recorded: Recorded, is_over: Callable[[], bool]) -> tuple[ForecastScore, ...]:
    found: dict[str, ForecastScore] = {}
    for row, at, times, past in _pasts(recorded, is_over):
        came = recorded.hours[row, at : at + DAY_HOURS]
        naive = past[-DAY_HOURS:]
        known = ~np.isnan(came) & ~np.isnan(naive)
        if not known.any():
            continue
        try:
            said = forecast(times, past, DAY_HOURS, QUANTILES)
        except FailedPreconditionError:
            continue
        score = found.setdefault(recorded.metrics[row], ForecastScore(metric=recorded.metrics[row]))
        came, quantiles = came[known], said.quantiles[known]
        score.forecast_count += 1
        score.value_count += len(came)
        score.error += float(np.abs(came - said.points[known]).sum())
        score.naive_error += float(np.abs(came - naive[known]).sum())
        score.within_80 += int(((came >= quantiles[:, _LOW_80]) & (came <= quantiles[:, _HIGH_80])).sum())
        score.within_95 += int(((came >= quantiles[:, _LOW_95]) & (came <= quantiles[:, _HIGH_95])).sum())
    return tuple(found[name] for name in sorted(found))


def _exhaustion(recorded: Recorded, is_over: Callable[[], bool]) -> ExhaustionScore:
    score = ExhaustionScore()
    for row, at, times, past in _pasts(recorded, is_over):
        limit, came = recorded.limits[row], recorded.hours[row, at:]
        if past[-1] >= limit:
            continue
        try:
            said = time_to_limit(times, past, limit, len(came), is_floor=False)
        except FailedPreconditionError:
            continue
        if said.hours == 0:
            continue
        reached = np.flatnonzero(came >= limit)
        hours = float(reached[0] + 1) if len(reached) else None
        score.answer_count += 1
        if hours is None:
            score.false_count += said.hours is not None
            continue
        score.reached_count += 1
        low, high = said.low, said.high
        score.within_80 += low is not None and low <= hours + 1 and (high is None or hours - 1 <= high)
        if said.hours is None:
            score.missed_count += 1
        else:
            score.errors.append(abs(said.hours - hours) / hours)
    return score


def _predictions(recorded: Recorded, is_over: Callable[[], bool]) -> tuple[PredictionScore, ...]:
    highest, limits = recorded.highest, recorded.limits
    hour = 60 // crossing.STEP_MINUTES
    times = np.arange(max(recorded.near_first, 1), highest.shape[1] - hour + 1, hour)
    times = times[:: -(-len(times) // MAX_TIMES)] if len(times) else times
    chances = np.full((len(times), *(len(limits), len(crossing.HORIZON_HOURS))), np.nan)
    for row, at in enumerate(times.tolist()):
        if is_over():
            break
        past = highest[:, max(0, at - crossing.HISTORY_DAYS * crossing.DAY) : at]
        chances[row] = crossing.chances(past, limits)
        chances[row, ~(past[:, -1] < limits)] = np.nan  # passed already, or not known
    made = (_judged(recorded, times, chances[:, :, at], hours) for at, hours in enumerate(crossing.HORIZON_HOURS))
    return tuple(each for each in made if len(each.chances))


def _judged(recorded: Recorded, times: NDArray[np.int64], chances: Floats, hours: int) -> PredictionScore:
    """Hold the chances float64[N, K] from some times against what came within `hours`, where all of that is known."""
    count = hours * 60 // crossing.STEP_MINUTES
    after = [recorded.highest[:, at : at + count] for at in times.tolist()]
    came = np.array([(each >= recorded.limits[:, None]).any(axis=1) for each in after]).reshape(chances.shape)
    ended = np.array([each.shape[1] == count for each in after], np.bool_)
    is_known = np.array([(~np.isnan(each)).mean(axis=1) >= crossing.LEAST_KNOWN for each in after])
    use = ~np.isnan(chances) & ended[:, None] & is_known.reshape(chances.shape)
    return PredictionScore(
        seconds=hours * 3_600,
        chances=chances[use],
        came=came[use],
        leads=tuple(_leads(recorded, times, chances, count)),
    )


def _leads(recorded: Recorded, times: NDArray[np.int64], chances: Floats, count: int) -> Iterable[float]:
    """Yield how long before its limit was passed a series was first given one half, of each time that it was passed."""
    for row, limit in enumerate(recorded.limits.tolist()):
        over = recorded.highest[row] >= limit
        begins = np.flatnonzero(over[1:] & ~over[:-1]) + 1
        for begin in begins[begins > recorded.near_first].tolist():
            warned = (times > begin - count) & (times <= begin) & (chances[:, row] >= _EVEN)
            if warned.any():
                yield float((begin - times[warned][0]) * crossing.STEP_MINUTES * 60)


def together(some: Sequence[Rolled]) -> Rolled:
    """Return the scores of several as one."""
    metrics = sorted({each.metric for rolled in some for each in rolled.forecasts})
    forecasts = []
    for metric in metrics:
        total = ForecastScore(metric=metric)
        for each in (one for rolled in some for one in rolled.forecasts if one.metric == metric):
            for name in ("forecast_count", "error", "naive_error", "value_count", "within_80", "within_95"):
                setattr(total, name, getattr(total, name) + getattr(each, name))
        forecasts.append(total)
    exhaustion = ExhaustionScore()
    for one in (rolled.exhaustion for rolled in some if rolled.exhaustion is not None):
        for name in ("answer_count", "reached_count", "missed_count", "false_count", "within_80", "errors"):
            setattr(exhaustion, name, getattr(exhaustion, name) + getattr(one, name))
    predictions = []
    for seconds in sorted({each.seconds for rolled in some for each in rolled.predictions}):
        same = [each for rolled in some for each in rolled.predictions if each.seconds == seconds]
        predictions.append(
            PredictionScore(
                seconds=seconds,
                chances=np.concatenate([each.chances for each in same]),
                came=np.concatenate([each.came for each in same]),
                leads=tuple(lead for each in same for lead in each.leads),
            )
        )
    return Rolled(
        forecasts=tuple(forecasts),
        exhaustion=exhaustion if exhaustion.answer_count else None,
        predictions=tuple(predictions),
        omissions=tuple(dict.fromkeys(text for rolled in some for text in rolled.omissions)),
    )
