"""Trends: slopes, tests, changes, seasons, periods; and what capacity they ask for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from openmanager_analysis import capacity
from openmanager_analysis.forecast import forecast
from openmanager_analysis.trend import trend
from scipy.stats import theilslopes

from openmanager.errors import FailedPreconditionError, InvalidArgumentError

HOUR, DAY = 3_600_000, 86_400_000
MONDAY = 1_704_067_200_000  # 2024-01-01 00:00 UTC
HOURS = np.arange(120 * 24)
TIMES = MONDAY + HOUR * HOURS


def _noise(seed: int, size: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, size, len(HOURS))


def test_slopes_have_an_interval_and_a_test():
    values = np.column_stack([10 + 0.2 * HOURS / 24 + _noise(0, 5), 10 + _noise(1, 5)])

    found = trend(TIMES, values)

    days = values.reshape(120, 24, 2).mean(axis=1)
    for place in range(2):
        assert theilslopes(days[:, place])[0] == pytest.approx(found.slope[place])
    assert found.low[0] < 0.2 < found.high[0]
    assert found.low[1] < 0 < found.high[1]
    assert found.p_value[0] < 1e-6
    assert found.p_value[1] > 0.05


def test_an_interval_of_any_confidence_is_one_of_slopes():
    values = (10 + _noise(2, 5))[:, None]

    half, usual, sure = (trend(TIMES, values, confidence=each) for each in (0.5, 0.95, math.nextafter(1, 0)))

    assert sure.low[0] < usual.low[0] < half.low[0] < half.high[0] < usual.high[0] < sure.high[0]


def test_days_that_resemble_each_other_are_no_trend():
    refused = 0
    for seed in range(40):
        days = np.zeros(220)
        shocks = np.random.default_rng(seed).normal(0, 1, 220)
        for day in range(1, 220):
            days[day] = 0.6 * days[day - 1] + shocks[day]
        refused += trend(TIMES, np.repeat(days[100:], 24)[:, None]).p_value[0] < 0.05

    assert refused <= 6


def test_hours_and_weekdays_are_told_apart():
    day, is_weekend = np.sin(2 * np.pi * HOURS / 24), (HOURS // 24) % 7 >= 5
    values = np.column_stack([50 + 10 * day + _noise(0), 50 - 7 * is_weekend + _noise(1), 50 + _noise(2)])

    found = trend(TIMES, values)

    assert found.by_hour[0] == pytest.approx(10 * np.sin(2 * np.pi * np.arange(24) / 24), abs=0.5)
    assert found.by_weekday[1] == pytest.approx([2, 2, 2, 2, 2, -5, -5], abs=0.3)
    assert found.hour_strength[0] > 0.95
    assert found.weekday_strength[1] > 0.95
    assert max(found.hour_strength[2], found.weekday_strength[2]) < 0.1


def test_a_lasting_step_is_found_on_its_day_and_a_slope_is_none():
    values = np.column_stack([50 + _noise(0) + 8 * (HOURS >= 70 * 24), 50 + _noise(1) + 0.1 * HOURS / 24])

    stepped, sloped = trend(TIMES, values).changes

    assert [round((change.time_unix_millis - MONDAY) / DAY) for change in stepped] == [70]
    assert stepped[0].after - stepped[0].before == pytest.approx(8, abs=0.5)
    assert sloped == ()


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_steady_growth_is_neither_a_season_nor_a_change(noise: float):
    hours = HOURS[: 60 * 24]
    values = (50 + hours / 24)[:, None] + noise * np.column_stack([_noise(seed, 5)[: len(hours)] for seed in range(20)])

    found = trend(TIMES[: len(hours)], values)

    assert found.hour_strength.max() < 0.1
    assert np.median(found.weekday_strength) < 0.05
    assert sum(map(len, found.changes)) == 0


def test_a_period_is_compared_with_the_one_before():
    values = np.where(HOURS < 90 * 24, 10.0, 14.0)[:, None]

    found = trend(TIMES, values, period_days=30)

    assert (found.before[0], found.recent[0]) == (10, 14)


def test_missing_hours_and_whole_series_are_borne():
    values = np.column_stack([10 + 0.2 * HOURS / 24 + _noise(0), np.full(len(HOURS), np.nan)])
    values[::7, 0] = np.nan
    values[500:600, 0] = np.nan

    found = trend(TIMES, values)

    assert found.slope[0] == pytest.approx(0.2, abs=0.02)
    assert np.isnan(found.slope[1])


def test_minutes_are_taken_by_the_hour():
    minutes = np.arange(20 * 24 * 12)
    found = trend(MONDAY + 300_000 * minutes, (minutes / 288)[:, None])

    assert found.slope[0] == pytest.approx(1.0)


def test_too_few_days_and_bad_input_are_refused():
    with pytest.raises(FailedPreconditionError, match="fewer than 8 days"):
        trend(TIMES[:100], np.ones((100, 1)))
    with pytest.raises(InvalidArgumentError, match="period_days must be 1 to 60"):
        trend(TIMES, np.ones((len(TIMES), 1)), period_days=61)
    with pytest.raises(InvalidArgumentError, match="a row for each time"):
        trend(TIMES, np.ones((5, 1)))
    with pytest.raises(InvalidArgumentError, match="must increase strictly"):
        trend(TIMES[::-1], np.ones((len(TIMES), 1)))


# ── Capacity ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_capacity_is_added_by_how_far_a_use_comes_over_its_limit():
    use = 60 + 20 * np.sin(2 * np.pi * HOURS[:672] / 24) + _noise(0)[:672]
    expected = forecast(TIMES[:672], use, 168)

    for certainty in (0.8, 0.95):
        found = capacity.need(expected, 70, certainty)
        assert found.factor == pytest.approx(81 / 70, rel=0.03)
        assert found.by_unix_millis is not None
        assert TIMES[671] < found.by_unix_millis <= TIMES[671] + DAY
    assert capacity.need(expected, 70, 0.95).factor > capacity.need(expected, 70, 0.8).factor


def test_no_capacity_is_added_below_the_limit():
    found = capacity.need(forecast(TIMES[:672], 50 + _noise(0)[:672], 168), 90, 0.95)

    assert (found.factor, found.by_unix_millis) == (1, None)


def test_capacity_comes_in_whole_units():
    assert capacity.to_add(10, 1.15) == 2
    assert capacity.to_add(500, 1.1, 100) == 100
    assert capacity.to_add(10, 1.0) == 0
    with pytest.raises(InvalidArgumentError, match="unit must be more than 0"):
        capacity.to_add(10, 1.1, 0)
    with pytest.raises(InvalidArgumentError, match="certainty must be more than"):
        capacity.upper(forecast(TIMES[:100], _noise(0)[:100], 5), 0.99)
