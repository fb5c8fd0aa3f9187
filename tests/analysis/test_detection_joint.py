"""Several metrics of one entity: one score, and whom to blame."""

from __future__ import annotations

import numpy as np
import pytest
from openmanager_analysis.detection import THRESHOLD, Detector
from openmanager_analysis.detection.batch import History, judge
from openmanager_analysis.detection.joint import Joint

from openmanager.errors import InvalidArgumentError

START, MINUTE = 1_700_006_400_000, 60_000
METRICS = 6


def related(rows, seed=1):
    """Metrics that follow one load, each with its own noise, float64[rows, METRICS]."""
    rng = np.random.default_rng(seed)
    load = np.sin(np.arange(rows) / 200)[:, None] + 0.3 * rng.standard_normal((rows, 1))
    return 10 + load * np.arange(1, METRICS + 1) + 0.2 * rng.standard_normal((rows, METRICS))


def times(rows, first=0):
    return START + (first + np.arange(rows)) * MINUTE


def judged(values, history=None, first=0):
    past = None if history is None else History(time_unix_millis=times(len(history)), values=history)
    return judge(times(len(values), first), values, past, lambda _: None)


def test_a_metric_that_leaves_the_others_is_found_within_its_own_range_and_blamed():
    history, values = related(1500), related(800, seed=2)
    values[500:520, 3] = 20 - values[500:520, 3]  # its mirror: nothing that it has not been
    found = judged(values, history, first=1500)
    assert found.alarm[500:520].any()
    assert found.blame[505, 0] == 3
    assert not found.alarm[:500].any()


def test_a_fault_of_several_metrics_ranks_above_what_is_normal_without_a_history():
    values = related(1500)
    values[1200:1220, :4] += 12
    found = judged(values)
    assert found.alarm[1200:1205].any()
    assert set(found.blame[1201, :4].tolist()) == {0, 1, 2, 3}
    assert found.score[1200:1220].min() > np.quantile(found.score[300:1200], 0.99)


def test_a_history_whose_times_are_those_of_the_file_counts_as_the_weeks_before():
    found = judged(related(300, seed=2), related(300), first=0)
    assert found.score.shape == (300,)


def test_a_history_gives_one_metric_its_past():
    past, values = 50 + np.random.default_rng(1).normal(size=(1500, 2)), np.full((20, 1), 50.0)
    values[10] = 80
    alone = judged(values, first=1500)
    after = judged(values, past[:, :1], first=1500)
    assert not alone.alarm.any()
    assert after.alarm[10]


def test_no_value_at_all_and_too_short_a_history_are_refused():
    with pytest.raises(InvalidArgumentError, match="no value"):
        judged(np.full((10, 1), np.nan))
    with pytest.raises(InvalidArgumentError, match="at least"):
        judged(related(100), related(10), first=10)


def test_metrics_that_are_constant_or_missing_do_no_harm():
    history, values = related(500), related(300, seed=2)
    history[:, 1], values[:, 1] = 7.0, 7.0
    history[:, 2], values[:, 2] = np.nan, np.nan
    values[200, 1] = 9.0
    found = judged(values, history, first=500)
    assert np.isfinite(found.score).all()
    assert found.alarm[200:205].any()
    assert found.blame[200, 0] == 1


def test_servers_are_judged_side_by_side():
    rng = np.random.default_rng(5)
    values = 50 + rng.normal(size=(1200, 12))
    values[1000:1010, 4:7] += 15
    detector, joint = Detector(12), Joint([np.arange(4), np.arange(4, 9), np.arange(9, 12)])
    alarms = np.zeros(3)
    for time, row in zip(times(1200).tolist(), values, strict=True):
        scores = detector.observe(time, row)
        verdict = joint.observe(scores.moment, scores.evidence, scores.confidence.astype(np.float32))
        alarms += verdict.alarm
        if time == times(1200)[1001]:
            assert verdict.evidence.argmax() == 1
            assert set(np.argsort(-scores.evidence)[:3].tolist()) == {4, 5, 6}
    assert alarms[1] >= 1
    assert alarms[[0, 2]].max() <= 1


def test_an_entity_without_a_series_is_refused():
    with pytest.raises(ValueError, match="series"):
        Joint([np.arange(0)])


def test_an_alarm_of_a_row_is_its_score_from_the_threshold():
    values = related(1200)
    values[900:930, :3] += 10
    found = judged(values)
    assert np.array_equal(found.score >= THRESHOLD, found.alarm)
