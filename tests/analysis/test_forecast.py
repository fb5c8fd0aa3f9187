"""Forecasts: what they expect, how sure they are, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from openmanager_analysis.forecast import QUANTILES, forecast

from openmanager.errors import FailedPreconditionError, InvalidArgumentError

HOUR = 3_600_000
START = 1_700_000_000_000


def _times(count: int, step: int = HOUR) -> np.ndarray:
    return START + step * np.arange(count)


def _daily(count: int, per_day: int = 24, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 2, count)
    return 50 + 20 * np.sin(2 * np.pi * np.arange(count) / per_day) + noise


def test_a_day_comes_again_and_beats_the_day_before():
    history, coming = np.split(_daily(672 + 168), [672])

    expected = forecast(_times(672), history, 168)

    naive = np.abs(coming - np.tile(history[-24:], 7)).mean()
    assert np.abs(coming - expected.points).mean() < 0.8 * naive
    assert expected.mase < 0.85
    assert expected.season_millis == 24 * HOUR
    np.testing.assert_array_equal(_times(672 + 168)[672:], expected.time_unix_millis)


def test_a_weekend_is_foreseen():
    hours = np.arange(24 * 35)
    values = np.where((hours // 24) % 7 >= 5, 10.0, 40.0) + np.random.default_rng(0).normal(0, 1, len(hours))

    expected = forecast(_times(24 * 28), values[: 24 * 28], 168).points

    assert np.abs(expected - values[24 * 28 :]).mean() < 3


def test_intervals_hold_what_they_say():
    inside = []
    for seed in range(30):
        values = _daily(504 + 168, seed=seed)
        fan = forecast(_times(504), values[:504], 168).quantiles
        inside.append([(values[504:] > fan[:, low]) & (values[504:] < fan[:, -1 - low]) for low in (1, 0)])

    eighty, ninety_five = np.mean(inside, axis=(0, 2))
    assert 0.75 < eighty < 0.9
    assert 0.92 < ninety_five < 0.995


@pytest.mark.parametrize("count", [8, 9, 23, 24, 30, 50, 72, 100, 168, 200, 400])
def test_a_short_history_has_an_answer_that_is_finite_and_in_order(count):
    fan = forecast(_times(count), _daily(count), 168).quantiles

    assert fan.shape == (168, len(QUANTILES))
    assert np.isfinite(fan).all()
    assert (np.diff(fan, axis=1) >= 0).all()


def test_less_history_is_less_sure():
    def width(count: int) -> float:
        fan = forecast(_times(count), _daily(672)[-count:], 168).quantiles
        return float((fan[:, 5] - fan[:, 1]).mean())

    assert width(16) > 2 * width(96)


def test_five_minutes_are_forecast_too():
    values = _daily(21 * 288, per_day=288)

    expected = forecast(_times(14 * 288, 300_000), values[: 14 * 288], 7 * 288)

    assert np.abs(expected.points - values[14 * 288 :]).mean() < 2.5
    assert expected.interval_millis == 300_000


def test_gaps_and_uneven_times_are_bridged():
    values = _daily(672)
    values[100:160] = np.nan
    values[::17] = np.nan
    times = _times(672) + np.random.default_rng(0).integers(-600_000, 600_000, 672)

    expected = forecast(times, values, 24)

    assert abs(expected.interval_millis - HOUR) < 60_000
    assert np.abs(expected.points - _daily(696)[672:]).mean() < 6


def test_what_never_was_negative_stays_so_and_a_full_percentage_too():
    random = np.random.default_rng(0)
    counts = forecast(_times(504), random.poisson(0.3, 504).astype(float), 168).quantiles
    full = forecast(_times(504), np.minimum(100, random.normal(97, 5, 504)), 168).quantiles

    assert counts.min() >= 0
    assert full.max() <= 100


def test_a_constant_goes_on_within_a_narrow_interval():
    fan = forecast(_times(400), np.full(400, 42.0), 24).quantiles

    np.testing.assert_array_equal(np.full(24, 42.0), fan[:, 3])
    assert (fan[:, -1] > fan[:, 0]).all()
    assert fan.max() < 42.1


def test_a_horizon_far_beyond_the_history_is_unsure():
    walk = 1000 + np.cumsum(np.random.default_rng(0).normal(0, 1, 60))

    fan = forecast(_times(60, 60_000), walk, 100_000).quantiles

    assert fan.shape == (100_000, len(QUANTILES))
    assert fan[-1, 5] - fan[-1, 1] > 2 * (fan[0, 5] - fan[0, 1])


def test_the_same_history_has_the_same_forecast():
    first, second = (forecast(_times(400), _daily(400), 24).quantiles for _ in range(2))

    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full(100, np.nan), "there are 0 valid samples"),
        (np.where(np.arange(100) < 7, 1.0, np.nan), "there are 7 valid samples"),
        (np.where(np.arange(100) < 10, 1.0, np.nan), "missing for so long before the end"),
    ],
)
def test_too_little_is_refused(values, message):
    with pytest.raises(FailedPreconditionError, match=message):
        forecast(_times(100), values, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 0}, "horizon must be 1 to 100,000 steps"),
        ({"quantiles": (0.5, 0.1)}, "quantiles must be in"),
        ({"quantiles": (0.5, 1.0)}, "quantiles must be in"),
        ({"values": np.full(99, 1.0)}, "values must be as many as the times"),
        ({"values": np.where(np.arange(100) == 5, np.inf, 1.0)}, "values must be finite"),
        ({"time_unix_millis": np.zeros(100, np.int64)}, "time_unix_millis must increase strictly"),
    ],
)
def test_bad_input_is_named(change, message):
    good = {"time_unix_millis": _times(100), "values": _daily(100), "horizon": 10, "quantiles": QUANTILES}

    with pytest.raises(InvalidArgumentError, match=message):
        forecast(**{**good, **change})
