"""The detector: what it finds, what it lets pass, and that its state is all there is to it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from openmanager_analysis.detection import THRESHOLD, Detector, state

START = 1_700_006_400_000
MINUTES_5 = 300_000
DAY = 288


def watch(values, *, step=MINUTES_5, detector=None, first=0, **options):
    """Every score, evidence and alarm of values, float64[T] or [T, S]."""
    values = np.asarray(values, dtype=float)
    if values.ndim == 1:
        values = values[:, None]
    detector = detector or Detector(values.shape[1], **options)
    found = [detector.observe(START + (first + row) * step, value) for row, value in enumerate(values)]
    return np.array([scores.score for scores in found]), np.array([scores.alarm for scores in found])


def noise(rows, series=1, seed=1):
    return np.random.default_rng(seed).standard_normal((rows, series))


def daily(rows, swing=30.0):
    return 50 + swing * np.sin(np.arange(rows) / DAY * 2 * np.pi)[:, None]


def stored(arrays, damage=lambda data: data):
    """Arrays as they are read from what was written of them."""
    out = io.BytesIO()
    state.write(out, arrays)
    return state.read(io.BytesIO(damage(out.getvalue())))


def test_a_spike_is_an_alarm_in_the_row_where_it_is():
    values = 50 + noise(2000)
    values[1500] += 25
    score, alarm = watch(values)
    assert alarm[1500, 0]
    assert score[1500, 0] == score[600:].max()


def test_an_alarm_is_a_score_from_the_threshold():
    values = 50 + noise(2000)
    values[1500:1700] += 25
    score, alarm = watch(values)
    assert alarm.any()
    assert np.array_equal(score >= THRESHOLD, alarm)


def test_pure_noise_of_any_kind_rarely_alarms():
    rng = np.random.default_rng(3)
    kinds = [rng.normal(size=3000), rng.lognormal(size=3000), rng.poisson(0.3, 3000), rng.pareto(3.0, 3000)]
    _, alarm = watch(np.column_stack(kinds))
    assert alarm[450:].sum(axis=0).max() <= 4


def test_repeats_in_one_event_are_held_back_but_stay_above_what_is_normal():
    values = 50 + noise(2000)
    values[1500:1540] += 25
    score, alarm = watch(values)
    assert alarm[1500:1540].sum() == 1
    assert (score[1501:1520] < THRESHOLD).all()
    assert score[1501:1520].min() > np.quantile(score[600:1500], 0.99)


def test_a_new_level_is_adopted_in_the_end():
    values = 50 + noise(4000)
    values[1500:] += 30
    score, alarm = watch(values)
    assert alarm[1500:1510].sum() == 1
    assert alarm[1510:].sum() <= 1
    assert score[3000:].mean() < 0.25


def test_a_busy_noon_is_normal_once_it_has_been_seen_and_a_quiet_one_is_not():
    values = daily(DAY * 12) + noise(DAY * 12)
    quiet = slice(DAY * 11 + 40, DAY * 11 + 110)
    values[quiet] = 50 + noise(70, seed=2)
    _, alarm = watch(values)
    assert alarm[DAY * 3 : quiet.start].sum() == 0
    assert alarm[quiet].any()


def test_an_hour_that_is_odd_for_its_weekday_alarms():
    hours = np.arange(24 * 7 * 8)
    weekend = hours // 24 % 7 >= 5
    busy = 50 + 30 * np.sin(hours / 24 * 2 * np.pi)
    values = np.where(weekend, 50, busy) + 0.5 * noise(len(hours))[:, 0]
    odd = slice(24 * 54 + 2, 24 * 54 + 10)
    values[odd] = busy[odd]
    _, alarm = watch(values, step=3_600_000)
    assert weekend[odd].all()
    assert alarm[odd].any()
    assert alarm[24 * 28 : odd.start].sum() <= 1


def test_a_constant_that_moves_alarms():
    values = np.full(1000, 7.0)
    values[800:] = 7.5
    _, alarm = watch(values)
    assert np.flatnonzero(alarm).tolist()[0] == 800
    assert alarm.sum() <= 2


def test_a_constant_never_alarms():
    score, alarm = watch(np.full(1000, 7.0))
    assert not alarm.any()
    assert score.max() < THRESHOLD


def test_missing_values_score_zero_and_change_nothing():
    values = 50 + noise(1500)
    values[700:720] = np.nan
    score, alarm = watch(values)
    assert (score[700:720] == 0).all()
    assert not alarm[720:800].any()


def test_a_series_that_begins_late_is_learnt_like_any_other():
    values = 50 + noise(3000, 2)
    values[:1000, 1] = np.nan
    values[2800] += 25
    _, alarm = watch(values)
    assert alarm[2800].all()
    assert not alarm[1000:1300, 1].any()


def test_a_counter_is_judged_by_its_growth_and_a_reset_is_none():
    grown = np.cumsum(100 + 5 * noise(2000), axis=0)
    grown[1200:] -= grown[1200] - 3
    grown[1700:] += 5000
    _, alarm = watch(grown, counters=np.array([True]))
    assert np.flatnonzero(alarm[450:]).tolist()[0] == 1700 - 450


def test_the_first_hours_are_unsure_and_say_so():
    detector = Detector(1)
    confidence = [detector.observe(START + row * MINUTES_5, np.array([50.0])).confidence[0] for row in range(2000)]
    assert confidence[0] == 0
    assert confidence[11] < 0.1
    assert confidence[-1] > 0.9
    assert np.all(np.diff(confidence) >= 0)


def test_what_is_expected_is_a_range_around_the_values():
    detector = Detector(1)
    for row, value in enumerate(50 + noise(1000)):
        scores = detector.observe(START + row * MINUTES_5, value)
    assert 44 < scores.low[0] < 49
    assert 51 < scores.high[0] < 56


def test_irregular_times_and_a_changed_interval_are_no_anomaly():
    rng = np.random.default_rng(4)
    steps = np.concatenate([rng.integers(200_000, 400_000, 1000), rng.integers(8_000, 12_000, 3000)])
    detector, alarms = Detector(1), 0
    for time, value in zip(START + np.cumsum(steps), 50 + rng.normal(size=4000), strict=True):
        alarms += detector.observe(int(time), np.array([value])).alarm[0]
    assert alarms <= 2


def test_a_restored_detector_answers_bit_by_bit_the_same():
    values = daily(1200) + noise(1200, 5)
    values[300:310, 2] = np.nan
    values[590:650, 1] += 40
    counters = np.array([False, False, False, True, False])
    whole = Detector(5, counters=counters)
    expected, _ = watch(values, detector=whole)
    before = Detector(5, counters=counters)
    watch(values[:600], detector=before)
    after = Detector.from_arrays(stored(before.arrays()))
    actual, _ = watch(values[600:], detector=after, first=600)
    assert np.array_equal(expected[600:], actual)
    for name, array in whole.arrays().items():
        assert np.array_equal(array, after.arrays()[name], equal_nan=array.dtype.kind == "f")


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: b"", lambda data: b"PK" + data[40:]])
def test_a_damaged_state_is_refused(damage):
    with pytest.raises(ValueError, match="damaged"):
        stored(Detector(3).arrays(), damage)


def test_a_state_without_an_array_is_refused():
    arrays = Detector(3).arrays()
    for name in arrays:
        with pytest.raises(ValueError, match="damaged"):
            Detector.from_arrays({key: array for key, array in arrays.items() if key != name})


def test_a_state_of_another_version_is_refused(monkeypatch):
    def later(data: bytes) -> bytes:
        monkeypatch.setattr(state, "VERSION", 99)
        return data

    with pytest.raises(ValueError, match="version"):
        stored(Detector(3).arrays(), later)


def test_a_series_takes_at_most_four_kilobytes():
    large, small = (sum(each.nbytes for each in Detector(count).arrays().values()) for count in (2000, 1000))
    assert (large - small) / 1000 <= 4096


def test_values_of_another_shape_or_a_time_gone_back_are_refused():
    detector = Detector(2)
    detector.observe(START, np.zeros(2))
    with pytest.raises(ValueError, match="shape"):
        detector.observe(START + 1, np.zeros(3))
    with pytest.raises(ValueError, match="order"):
        detector.observe(START, np.zeros(2))


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e9, 1e300])
def test_any_magnitude_is_judged_without_a_warning(scale):
    values = (50 + noise(800)) * scale
    values[700] = 100 * scale
    score, alarm = watch(values)
    assert np.isfinite(score).all()
    assert ((score >= 0) & (score <= 1)).all()
    assert alarm[700, 0] or scale > 1e29
