"""What would have been forecast in a range, held against what came."""

from __future__ import annotations

import numpy as np
import pytest
from openmanager_analysis import crossing
from openmanager_analysis.rolling import PredictionScore, Recorded, roll, together

DAYS, SCORED = 20, 5
STEPS = crossing.DAY // 24


def recorded(kind: str, *, days: int = DAYS, scored: int = SCORED) -> Recorded:
    """Two series: a load by the hour of the day, or a disk that grows to its limit of 90 on the day before the last."""
    random = np.random.default_rng(1)
    steps = np.arange(days * crossing.DAY)
    if kind == "load":
        values = 70 + 15 * np.sin(steps / crossing.DAY * 2 * np.pi) + random.normal(0, 1, (2, len(steps)))
    else:
        values = 90 + (steps - (days - 1) * crossing.DAY) * 0.02 + random.normal(0, 0.1, (2, len(steps)))
    return Recorded(
        metrics=("cpu_usage", "cpu_usage"),
        limits=np.array([84.0 if kind == "load" else 90.0] * 2),
        hours=values.reshape(2, -1, STEPS).mean(axis=2),
        first=(days - scored) * 24,
        highest=values,
        near_first=(days - scored) * crossing.DAY,
    )


def test_forecasts_of_a_season_hold_what_they_say():
    (score,) = roll(recorded("load")).forecasts
    assert (score.metric, score.forecast_count, score.value_count) == ("cpu_usage", 2 * SCORED, 2 * SCORED * 24)
    assert score.error < score.naive_error
    assert 0.6 < score.within_80 / score.value_count < 0.98
    assert score.within_95 > score.within_80


def test_times_to_a_limit_are_held_against_when_it_was_reached():
    found = roll(recorded("disk")).exhaustion
    assert found is not None
    assert found.answer_count == found.reached_count == 2 * SCORED
    assert (found.missed_count, found.false_count) == (0, 0)
    assert np.median(found.errors) < 0.1


def test_what_was_not_foreseen_is_missed_and_what_did_not_come_is_false():
    jumps, stays = recorded("disk"), recorded("disk")
    jumps.hours[:, jumps.first + 96 :] = 95
    jumps.hours[:, : jumps.first + 96] = 40 + 0.01 * np.random.default_rng(1).normal(0, 1, jumps.first + 96)
    stays.hours[:, stays.first + 60 :] = 80
    missed, false = roll(jumps).exhaustion, roll(stays).exhaustion
    assert missed is not None
    assert missed.reached_count == missed.missed_count == 2 * SCORED
    assert false is not None
    assert (false.reached_count, false.false_count > 0) == (0, True)


def test_probabilities_of_a_peak_are_skilled_and_warn_before_it():
    one, six, day = roll(recorded("load")).predictions
    assert (one.seconds, six.seconds, day.seconds) == (3_600, 21_600, 86_400)
    assert one.skill is not None
    assert six.skill is not None
    assert min(one.skill, six.skill) > 0.3
    assert min(six.leads) > 0
    assert sum(count for count, _, _ in six.bins()) == len(six.chances)
    assert day.skill is None or day.brier < 0.1


def test_an_answer_sees_nothing_of_what_came_after():
    whole, other = recorded("load"), recorded("load")
    other.hours[:, whole.first + 24 :] += 500
    first = roll(Recorded(**{**_fields(whole), "hours": whole.hours[:, : whole.first + 24]})).forecasts
    assert roll(Recorded(**{**_fields(other), "hours": other.hours[:, : other.first + 24]})).forecasts == first


def _fields(found: Recorded) -> dict:
    return {name: getattr(found, name) for name in Recorded.__slots__}


def test_too_little_is_said_and_nothing_made_up():
    found = roll(recorded("load", days=1, scored=1))
    assert (found.forecasts, found.exhaustion, found.predictions) == ((), None, ())
    assert [text.partition(":")[0] for text in found.omissions] == [
        "forecasts",
        "times to a threshold",
        "probabilities",
    ]


def test_it_ends_when_nobody_waits():
    found = roll(recorded("load"), lambda: True)
    assert (found.forecasts, found.exhaustion, found.predictions) == ((), None, ())


def test_scores_add_up():
    one = roll(recorded("load"))
    both = together([one, one])
    assert both.forecasts[0].forecast_count == 2 * one.forecasts[0].forecast_count
    assert both.predictions[0].brier == pytest.approx(one.predictions[0].brier)
    assert len(both.predictions[0].leads) == 2 * len(one.predictions[0].leads)


def test_brier_and_skill_are_what_they_are_defined_as():
    score = PredictionScore(
        seconds=60, chances=np.array([0.9, 0.1, 0.2, 0.8]), came=np.array([True, False, False, False])
    )
    assert score.brier == pytest.approx((0.01 + 0.01 + 0.04 + 0.64) / 4)
    assert score.skill == pytest.approx(1 - score.brier / (0.25 * 0.75))
    assert PredictionScore(seconds=60, chances=np.zeros(2), came=np.zeros(2, bool)).skill is None
