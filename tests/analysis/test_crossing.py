"""How likely a limit is passed within hours."""

from __future__ import annotations

import numpy as np
import pytest
from openmanager_analysis.crossing import DAY, HORIZON_HOURS, LEAST_DAYS, chances

DAYS = 14
HOUR = DAY // 24


def load(series: int, *, days: int = DAYS, seed: int = 1, noise: float = 1.0) -> np.ndarray:
    """A load that peaks at noon, with noise that lasts for hours: float64[K, T]."""
    random = np.random.default_rng(seed)
    shocks = random.normal(0, noise * np.sqrt(1 - 0.95**2), (series, days * DAY))
    for step in range(1, shocks.shape[1]):
        shocks[:, step] += 0.95 * shocks[:, step - 1]
    hours = np.arange(days * DAY) / DAY
    return 50 + 10 * np.sin((hours - 0.25) * 2 * np.pi) + shocks


def test_probabilities_come_true_as_often_as_they_say():
    values = load(40, days=DAYS + 8)
    limit = np.full(40, 61.0)
    said, came = [], []
    for now in range(DAYS * DAY, (DAYS + 7) * DAY, 3 * HOUR + 1):
        below = values[:, now - 1] < limit
        said.append(chances(values[:, now - DAYS * DAY : now], limit)[below])
        ahead = [values[:, now : now + hours * HOUR].max(axis=1) >= limit for hours in HORIZON_HOURS]
        came.append(np.stack(ahead, axis=1)[below])
    said, came = np.concatenate(said), np.concatenate(came)

    for column in range(len(HORIZON_HOURS)):
        share = came[:, column].mean()
        assert 0.02 < share < 0.98
        skill = 1 - ((said[:, column] - came[:, column]) ** 2).mean() / (share * (1 - share))
        assert said[:, column].mean() == pytest.approx(share, abs=0.1)
        assert skill > (0.1, 0.1, -1)[column]
    for column in (0, 1):  # a day ahead all of these are alike
        likely = said[:, column] > 0.2
        assert came[likely, column].mean() > 3 * came[~likely, column].mean()


def test_the_highest_until_then_decides_and_not_the_end():
    """At midnight a load that passes its limit at every noon is low, and so it is after 24 hours."""
    values = load(1, noise=0.3)
    (chance,) = chances(values, np.array([58.0]))

    assert values[0, -1] < 42
    assert chance[0] < 0.02
    assert chance[2] > 0.9


def test_near_and_far_limits_differ_and_longer_is_no_less_likely():
    values = np.repeat(load(1), 3, axis=0)
    made = chances(values, np.array([45.0, 61.0, 90.0]))

    assert (np.diff(made, axis=1) >= 0).all()
    assert made[0, 2] > made[1, 2] > made[2, 2]
    assert made[2, 2] < 0.05
    assert ((made >= 0) & (made <= 1)).all()


def test_a_level_that_has_left_its_usual_one_is_followed():
    values = np.repeat(load(1), 2, axis=0)
    values[1, -2 * HOUR :] += 15
    usual, high = chances(values, np.full(2, 57.0))
    assert high[0] > usual[0] + 0.05


def test_what_is_at_its_limit_has_passed_it():
    values = load(1)
    assert chances(values, values[:, -1]).tolist() == [[1.0, 1.0, 1.0]]


def test_the_unit_does_not_matter():
    values, limits = load(3), np.array([58.0, 61.0, 65.0])
    assert chances(values * 1e9, limits * 1e9) == pytest.approx(chances(values, limits), rel=1e-6)


@pytest.mark.parametrize("unknown", ["long ago", "most", "the last hour", "all"])
def test_too_little_is_said_and_the_others_are_answered(unknown: str):
    values = load(2)
    gap = {
        "long ago": np.s_[: -(LEAST_DAYS * DAY) + 1],
        "most": np.s_[np.arange(values.shape[1]) % 5 != 0],
        "the last hour": np.s_[-HOUR:],
        "all": np.s_[:],
    }[unknown]
    values[0][gap] = np.nan
    made = chances(values, np.full(2, 61.0))
    assert np.isnan(made[0]).all()
    assert not np.isnan(made[1]).any()


def test_a_young_series_is_judged_from_its_beginning():
    values = load(1)
    young = values.copy()
    young[:, : -4 * DAY] = np.nan
    assert chances(young, np.array([61.0])) == pytest.approx(chances(values[:, -4 * DAY :], np.array([61.0])))


def test_no_series_and_nothing_measured_are_nothing():
    assert chances(np.empty((0, DAYS * DAY)), np.empty(0)).shape == (0, 3)
    assert np.isnan(chances(np.empty((1, 0)), np.array([1.0]))).all()


def test_a_constant_is_never_beyond_itself():
    (chance,) = chances(np.full((1, DAYS * DAY), 5.0), np.array([6.0]))
    assert (chance < 0.05).all()
