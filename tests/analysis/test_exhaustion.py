"""Times to a limit: growth of many kinds, clearing, no growth, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from openmanager_analysis.exhaustion import time_to_limit

from openmanager.errors import FailedPreconditionError, InvalidArgumentError

HOUR = 3_600_000
HOURS = np.arange(672)


def _noise(seed: int = 0, size: float = 0.3) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, size, len(HOURS))


def _ask(values: np.ndarray, limit: float, horizon: float = 2160, step: int = HOUR):
    return time_to_limit(1_700_000_000_000 + step * np.arange(len(values)), values, limit, horizon)


def test_a_line_reaches_its_limit():
    found = _ask(40 + 0.05 * HOURS + _noise(), 90)

    assert found.hours == pytest.approx((90 - 40) / 0.05 - 672, rel=0.06)
    assert found.low_95 <= found.low <= found.hours <= found.high <= found.high_95
    assert found.method == "line"
    assert found.chance == 1.0
    assert found.back_test_error < 0.1


def test_intervals_hold_what_they_say():
    inside = []
    for seed in range(30):
        # A noise that is correlated from hour to hour, as levels are.
        noise = np.convolve(np.random.default_rng(seed).normal(0, 0.2, 683), np.ones(12), "valid")
        found = _ask(40 + 0.05 * HOURS + noise, 90)
        inside.append(found.low - 8 <= 328 <= found.high + 8)

    assert np.mean(inside) > 0.7


def test_a_limit_below_is_fallen_to():
    rising, falling = _ask(40 + 0.05 * HOURS + _noise(), 90), _ask(60 - 0.05 * HOURS - _noise(), 10)

    assert falling.hours == pytest.approx(rising.hours, rel=0.02)


def test_growth_that_changed_counts_from_the_change():
    values = 40 + 0.01 * HOURS + np.maximum(HOURS - 500, 0) * 0.1 + _noise()

    found = _ask(values, 90)

    assert found.hours == pytest.approx((90 - values[-24:].mean()) / 0.11, rel=0.1)
    assert found.method == "line after a change"


def test_growth_that_accelerates_is_followed():
    values = 40 + 20 * np.expm1(3 * HOURS / 672) / np.expm1(3) + _noise()

    found = _ask(values, 90)

    assert found.hours == pytest.approx(198, rel=0.15)
    assert found.method == "curve"


def test_a_saw_tooth_below_the_limit_never_reaches_it():
    found = _ask(40 + (HOURS % 72) * 0.4 + _noise(), 90)

    assert found.hours is None
    assert found.chance == 0
    assert found.method == "saw-tooth"


def test_a_saw_tooth_reaches_the_limit_where_its_peaks_do():
    found = _ask(40 + (HOURS % 72) * 0.4 + 0.03 * HOURS + _noise(), 90)

    future = np.arange(672, 3000)
    truth = future[40 + (future % 72) * 0.4 + 0.03 * future >= 90][0] - 672
    assert found.hours == pytest.approx(truth, rel=0.1)


def test_a_clean_up_does_not_hide_growth():
    values = 40 + 0.05 * HOURS + _noise()
    values[300:] -= 12

    assert _ask(values, 90).hours == pytest.approx((90 - 61.6) / 0.05, rel=0.1)


def test_a_season_reaches_the_limit_before_the_trend_does():
    plain = 40 + 0.05 * HOURS + _noise()

    found = _ask(plain + 6 * np.sin(2 * np.pi * HOURS / 24), 90)

    assert _ask(plain, 90).hours - 150 < found.hours < _ask(plain, 90).hours - 80


@pytest.mark.parametrize("values", [np.full(672, 50.0), 50 + _noise(), 50 + _noise(1, 2.0)])
def test_what_does_not_grow_is_not_within_the_horizon(values):
    found = _ask(values, 90)

    assert found.hours is None
    assert found.low is None


def test_the_horizon_is_kept():
    assert _ask(40 + 0.05 * HOURS + _noise(), 90, horizon=100).hours is None


def test_what_is_missing_at_the_end_is_no_standstill():
    values = 40 + 0.05 * HOURS + _noise()
    values[600:] = np.nan

    assert _ask(values, 90).hours == pytest.approx((90 - 40) / 0.05 - 672, rel=0.1)


def test_one_step_up_is_no_growth():
    assert _ask(50 + _noise() + 20 * (HOURS > 400), 90).hours is None


def test_over_the_limit_is_now():
    found = _ask(40 + 0.05 * HOURS + _noise(), 60)

    assert (found.hours, found.low, found.high) == (0, 0, 0)
    assert found.method == "reached"


@pytest.mark.parametrize("seed", range(5))
def test_a_level_above_its_limit_that_does_not_fall_has_reached_it_unless_the_limit_is_a_floor(seed):
    values = 60 + _noise(seed)

    assert _ask(values, 50).hours == 0
    assert time_to_limit(1_700_000_000_000 + HOUR * HOURS, values, 50, is_floor=True).hours is None


def test_a_leak_of_hours_is_seen_in_minutes():
    minutes = np.arange(120)
    values = 50 + 0.1 * minutes + np.random.default_rng(0).normal(0, 0.2, 120)

    assert _ask(values, 95, step=60_000).hours == pytest.approx((95 - 62) / 0.1 / 60, rel=0.1)


@pytest.mark.parametrize("count", [8, 10, 15, 30])
def test_a_short_history_has_an_answer(count):
    found = _ask(40 + 0.5 * np.arange(count) + _noise()[:count], 90)

    assert found.hours == pytest.approx(100 - count, rel=0.35)


def test_how_large_the_numbers_are_makes_no_difference():
    values = 40 + 0.05 * HOURS + 3 * np.sin(2 * np.pi * HOURS / 24) + _noise()
    plain = _ask(values, 90)

    assert _ask(values * 2.0**600, 90 * 2.0**600).hours == pytest.approx(plain.hours)


def test_too_little_and_bad_input_are_refused():
    with pytest.raises(FailedPreconditionError, match="there are 5 valid samples"):
        _ask(np.arange(5.0), 90)
    with pytest.raises(InvalidArgumentError, match="limit must be finite"):
        _ask(np.arange(50.0), np.nan)
    with pytest.raises(InvalidArgumentError, match="horizon must be more than 0"):
        _ask(np.arange(50.0), 90, horizon=0)
