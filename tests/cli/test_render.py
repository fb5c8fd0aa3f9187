"""Times, numbers, bars and plots for people."""

from __future__ import annotations

import itertools
import math
import re
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmanager.cli import plot, render
from openmanager.cli.query import label, parse_moment, rfc3339
from openmanager.client import SeriesName

NOW = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def in_seoul(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Seoul")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("now", NOW),
        ("90m", NOW - timedelta(minutes=90)),
        ("-1h30m", NOW - timedelta(minutes=90)),
        ("2d ago", NOW - timedelta(days=2)),
        ("2026-06-30T10:00:00Z", datetime(2026, 6, 30, 10, tzinfo=UTC)),
        ("2026-06-30T10:00+02:00", datetime(2026, 6, 30, 8, tzinfo=UTC)),
        ("1782900000", datetime(2026, 7, 1, 10, tzinfo=UTC)),
        ("1782900000.5", datetime(2026, 7, 1, 10, 0, 0, 500_000, tzinfo=UTC)),
        ("1782900000500", datetime(2026, 7, 1, 10, 0, 0, 500_000, tzinfo=UTC)),
        ("1782900000500000000", datetime(2026, 7, 1, 10, 0, 0, 500_000, tzinfo=UTC)),
    ],
)
def test_a_moment_is_read(text, moment):
    assert parse_moment(text, NOW) == moment


@pytest.mark.usefixtures("in_seoul")
@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-07-01T12:00", datetime(2026, 7, 1, 3, tzinfo=UTC)),
        ("2026-07-01", datetime(2026, 6, 30, 15, tzinfo=UTC)),
        ("09:30", datetime(2026, 7, 1, 0, 30, tzinfo=UTC)),
        ("9:30", datetime(2026, 7, 1, 0, 30, tzinfo=UTC)),
        ("22:00", datetime(2026, 6, 30, 13, tzinfo=UTC)),  # not yet today: yesterday's
    ],
)
def test_a_moment_without_a_zone_is_local(text, moment):
    assert parse_moment(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "soon", "2026-13-01", "1h of fun", "25:00", "9" * 40, "-", "١٢"])
def test_a_moment_that_is_none_is_refused(text):
    with pytest.raises((ValueError, OverflowError)):
        parse_moment(text, NOW)


def test_times_are_written_as_rfc_3339_to_the_millisecond():
    assert rfc3339(np.array([0, 1_782_900_000_123_000_000])) == ["1970-01-01T00:00:00.000Z", "2026-07-01T10:00:00.123Z"]


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (timedelta(microseconds=300), "0.3 ms"),
        (timedelta(milliseconds=250), "250 ms"),
        (timedelta(seconds=45), "45 s"),
        (timedelta(minutes=3), "3 m"),
        (timedelta(hours=2), "2 h"),
        (timedelta(days=9), "9 d"),
    ],
)
def test_a_length_is_shown_in_its_unit(length, text):
    assert render.show_length(length) == text


@given(st.floats(0, 1e9))
def test_a_length_is_short(seconds):
    assert len(render.show_length(timedelta(seconds=seconds))) <= 8


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (10 << 20, "10.0 MiB"),
        (300 << 30, "300 GiB"),
        (5 << 40, "5.0 TiB"),
    ],
)
def test_a_size_is_shown_in_binary_units(size, text):
    assert render.show_bytes(size) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, "–"),
        (0.0, "0.00"),
        (12.345, "12.35"),
        (-3.0, "-3.00"),
        (0.00012345, "0.000123"),
        (8.3e9, "8,300,000,000"),
    ],
)
def test_a_value_is_shown_for_people(value, text):
    assert render.show_value(value) == text


@given(st.one_of(st.none(), st.floats(0, 100)), st.integers(1, 30))
def test_a_bar_has_its_width_and_the_figure(percent, width):
    assert len(render.bar(percent, width, warning=70, critical=85).plain) == width + 5


def test_a_bar_is_full_at_a_hundred_and_dotted_at_nothing():
    assert render.bar(100, 4, warning=70, critical=85).plain == "████  100"
    assert render.bar(0, 4, warning=70, critical=85).plain == "····  0.0"
    assert render.bar(None, 4, warning=70, critical=85).plain.strip() == "–"


def test_a_series_is_called_by_what_tells_it_apart():
    names = [SeriesName(server="a", metric="m"), SeriesName(server="b", metric="m")]
    assert [label(name, names) for name in names] == ["a", "b"]
    both = [*names, SeriesName(server="", metric="n", group="web")]
    assert [label(name, both) for name in both] == ["a m", "b m", "web n"]


@given(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12))
def test_a_scale_encloses_its_range_with_few_round_numbers(one, other):
    low, high = min(one, other), max(one, other)
    marks = plot.scale(low, high)
    slack = 1e-9 * max(abs(low), abs(high), 1.0)
    assert marks[0] <= low + slack
    assert marks[-1] >= high - slack
    assert 2 <= len(marks) <= 8
    assert all(one < other for one, other in itertools.pairwise(marks))


@pytest.mark.usefixtures("in_seoul")
def test_ticks_fall_on_round_local_times():
    start = int(datetime(2026, 6, 30, 14, 10, tzinfo=UTC).timestamp()) * 10**9
    found = plot.ticks(start, start + 2 * 3600 * 10**9, 5)
    assert [text for _, text in found] == ["23:30", "01 Jul", "00:30", "01:00"]
    assert found[0][0] == start + 20 * 60 * 10**9


def test_a_gap_is_where_three_intervals_are_empty():
    times = np.array([0, 10, 20, 30, 61, 70, 80, 111])
    assert plot.gaps(times).tolist() == [4, 7]
    assert plot.gaps(np.array([0, 100])).tolist() == []


def test_a_plot_draws_no_line_across_a_gap():
    second = 10**9
    times = np.concatenate([np.arange(0, 100), np.arange(500, 600)]) * second
    drawn = plot.draw(
        [plot.Line(times=times, values=np.full(200, 5.0))], start=0, end=600 * second, width=80, height=10
    ).plain
    row = next(line for line in drawn.splitlines() if re.search(r"[⠁-⣿]", line))
    assert re.search(r"[⠁-⣿] {40,}[⠁-⣿]", row)
    assert max(map(len, drawn.splitlines())) <= 80


def test_a_plot_of_nothing_is_an_empty_frame():
    nothing = plot.Line(times=np.array([10**9]), values=np.array([np.nan]))
    drawn = plot.draw([nothing], start=0, end=10 * 10**9, width=60, height=8).plain
    assert not re.search(r"[⠁-⣿]", drawn)


def test_a_long_series_keeps_its_gaps_when_it_is_thinned():
    second = 10**9
    times = np.concatenate([np.arange(0, 20_000), np.arange(60_000, 80_000)]) * second
    line = plot.Line(times=times, values=np.sin(times / 1e12))
    drawn = plot.draw([line], start=0, end=80_000 * second, width=80, height=10).plain
    assert all(re.search(r" {30,}", row) for row in drawn.splitlines() if "│" in row)
