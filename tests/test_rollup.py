"""What is left of samples: the same numbers whoever computes them, and bytes that say what is wrong with them."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openmanager_timeseries.aggregate import increases
from openmanager_timeseries.samples import Ragged

from openmanager import rollup
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.errors import InvalidArgumentError, Reason
from openmanager.frame import MetricInfo, ServerInfo
from openmanager.rollup import COLUMNS, Grid, coarsen, decode_grid, encode_grid, reduce_samples, reduce_ticks, settle

HOUR = 3600 * 10**9
property_test = settings(max_examples=150)


@st.composite
def readings(draw, min_ticks: int = 1, max_ticks: int = 40):
    """Values of some series, float64[T, N]: decimals or not, near or far from 0; and which are counters, with restarts."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    ticks, count = draw(st.integers(min_ticks, max_ticks)), draw(st.integers(1, 6))
    scale, places = 10.0 ** draw(st.integers(-3, 12)), draw(st.integers(0, 8))
    values = random.uniform(-1.0, 1.0, (ticks, count)) * scale
    if places < 7:
        values = np.rint(values * 10.0**places) / 10.0**places + 0.0  # −0.0 is no reading
    counters = random.random(count) < 0.5
    grown = np.cumsum(np.abs(values), axis=0)
    restarts = np.cumsum(random.random((ticks, count)) < 0.15, axis=0)
    for series in range(count):
        for restart in np.unique(restarts[:, series]):
            since = np.flatnonzero(restarts[:, series] == restart)
            grown[since, series] -= grown[since[0], series] * (restart > 0)
    return np.where(counters, grown, values), counters


def of_series(values: np.ndarray, counters: np.ndarray, ticks_each: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the buckets of all series, series by series: so many ticks in each."""
    ticks, count = values.shape
    cells = np.add.outer(np.arange(count) * 1000, np.arange(ticks) // ticks_each).ravel()
    return reduce_samples(values.T.ravel(), cells, np.repeat(counters, ticks))


def bits(columns) -> dict[str, bytes]:
    return {name: np.asarray(columns[name], np.float64).tobytes() for name in COLUMNS}


# ── the numbers ────────────────────────────────────────────────────────────────────────────────────────────────────


@given(readings())
@property_test
def test_ticks_leave_what_their_samples_leave_bit_for_bit(given_):
    values, counters = given_
    _, columns = of_series(values, counters, len(values))
    assert bits(columns) == bits(reduce_ticks(values, counters))


@given(readings(), st.integers(1, 9))
@property_test
def test_a_bucket_says_what_its_samples_say(given_, ticks_each: int):
    values, counters = given_
    cells, columns = of_series(values, counters, ticks_each)
    for at, cell in enumerate(cells.tolist()):
        series, bucket = divmod(cell, 1000)
        own = values[bucket * ticks_each : (bucket + 1) * ticks_each, series]
        found = {name: float(columns[name][at]) for name in COLUMNS}
        assert (found["min"], found["max"], found["count"]) == (own.min(), own.max(), len(own))
        assert found["last"] == own[-1]
        assert math.isclose(found["sum"], math.fsum(own), rel_tol=1e-12, abs_tol=1e-9 * np.abs(own).max())
        if counters[series]:
            assert found["first"] == own[0]
        else:
            assert math.isnan(found["first"])
            assert math.isnan(found["growth"])


@given(readings(2), st.integers(1, 5), st.integers(1, 5))
@property_test
def test_a_coarser_bucket_is_that_of_all_its_samples(given_, ticks_each: int, factor: int):
    values, counters = given_
    fine_cells, fine = of_series(values, counters, ticks_each)
    cells, found = coarsen(fine, fine_cells // 1000 * 1000 + fine_cells % 1000 // factor)
    whole_cells, whole = of_series(values, counters, ticks_each * factor)
    assert cells.tolist() == whole_cells.tolist()
    for name in ("min", "max", "first", "last", "count"):
        assert np.array_equal(whole[name], found[name], equal_nan=True)
    reach = np.maximum(np.abs(whole["min"]), np.abs(whole["max"])) * whole["count"]
    for name in ("sum", "growth"):
        off = np.abs(found[name] - whole[name])
        assert (off[~np.isnan(off)] <= 1e-13 * reach[~np.isnan(off)] * whole["count"][~np.isnan(off)]).all()
        assert np.array_equal(np.isnan(found[name]), np.isnan(whole[name]))


@given(readings(2), st.integers(1, 9), st.integers(1, 9))
@property_test
def test_the_growth_of_buckets_is_the_sum_of_the_increases_of_their_samples(given_, ticks_each: int, factor: int):
    values, _ = given_
    values = np.abs(values)
    ticks, count = values.shape
    counters = np.ones(count, np.bool_)
    offsets = np.arange(0, ticks * count + 1, ticks)
    ragged = Ragged(times=np.tile(np.arange(ticks), count), values=values.T.ravel(), offsets=offsets)
    expected = np.nansum(increases(ragged, np.zeros(count, np.bool_)).reshape(count, ticks), axis=1)
    cells, fine = of_series(values, counters, ticks_each)
    for columns, group in ((fine, cells), *[coarsen(fine, cells // 1000 * 1000 + cells % 1000 // factor)[::-1]]):
        series = group // 1000
        gap = np.where(series[1:] == series[:-1], rollup.between(columns["last"][:-1], columns["first"][1:]), 0.0)
        found = np.bincount(series, columns["growth"] + np.append(0.0, gap), count)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_no_samples_leave_no_buckets():
    nothing, none = np.empty(0), np.empty(0, np.int64)
    for cells, columns in (
        reduce_samples(nothing, none, np.empty(0, np.bool_)),
        coarsen(dict.fromkeys(COLUMNS, nothing), none),
    ):
        assert len(cells) == 0
        assert {name: len(columns[name]) for name in COLUMNS} == dict.fromkeys(COLUMNS, 0)


def test_a_sum_of_decimals_is_the_decimal_whatever_the_order_was():
    values = [0.1] * 10 + [0.7, 1234.56]
    wanted = 1 + 0.7 + 1234.56
    for order in (values, values[::-1]):
        total = np.asarray([float(np.add.accumulate(order)[-1])])
        assert settle(total, np.asarray([12.0]), np.asarray([1234.56])).tolist() == [round(wanted, 2)]


@given(st.integers(0, 1 << 30), st.integers(0, 6), st.integers(-2, 9), st.integers(1, 400))
@property_test
def test_what_is_settled_is_the_exact_sum_of_the_decimals_meant(seed: int, places: int, scale: int, count: int):
    random = np.random.default_rng(seed)
    numbers = np.rint(random.uniform(-1, 1, (count, 5)) * 10.0 ** (scale + places))
    values = numbers / 10.0**places
    total = reduce_ticks(values, np.zeros(5, np.bool_))["sum"]
    reach = np.abs(values).max(axis=0)
    exact = [float(Fraction(int(number), 10**places)) for number in numbers.sum(axis=0)]
    certain = count * count * 2.0**-53 * reach < 0.2 * 10.0**-places
    assert total[certain].tolist() == [number for number, sure in zip(exact, certain.tolist(), strict=True) if sure]


def test_what_is_no_decimal_and_what_is_no_number_stays():
    sums = np.asarray([math.pi, 1 / 3, np.nan, np.inf, 1e300, 2.0**60])
    found = settle(sums, np.full(6, 2.0), np.asarray([3.0, 1.0, 1.0, 1.0, 1e300, 2.0**60]))
    assert np.array_equal(found, sums, equal_nan=True)


# ── on the wire ────────────────────────────────────────────────────────────────────────────────────────────────────


def grid(**changes) -> Grid:
    """Return two buckets of two servers and two metrics, the second a counter; one has no samples."""
    random = np.random.default_rng(1)
    values = np.cumsum(random.uniform(0, 9, (12, 8)), axis=0)
    counters = np.tile([False, True], 4)
    columns = {name: column.reshape(2, 2, 2) for name, column in reduce_ticks(values, counters).items()}
    for name in COLUMNS:
        columns[name][1, 1, 1] = 0.0 if name == "count" else np.nan
    of = {
        "times": np.asarray([5 * HOUR, 7 * HOUR]),
        "servers": ("web-01", "web-02"),
        "metrics": ("cpu_usage", "disk.io{disk=sda}"),
        "columns": columns,
    }
    return Grid(**{**of, **changes})


def frame(**columns) -> timeseries_pb2.RollupFrame:
    """Return the message of the grid with other values at (0, 0, 0)."""
    message = timeseries_pb2.RollupFrame.FromString(encode_grid("1h", grid()))
    for name, value in columns.items():
        getattr(message, name)[0] = value
    return message


INFOS = {
    "server_infos": (ServerInfo(id="web-01", role="web", labels={"rack": "r1"}),),
    "metric_infos": (MetricInfo(name="cpu_usage", unit="%", kind=1),),
}


@pytest.mark.parametrize("infos", [{}, INFOS])
def test_what_is_encoded_is_what_protobuf_writes_and_is_decoded_again(infos: dict):
    written = grid(**infos)
    wire = encode_grid("1h", written)
    message = timeseries_pb2.RollupFrame.FromString(wire)
    assert message.SerializeToString(deterministic=True) == wire
    tier, found = decode_grid(wire)
    assert tier == "1h"
    assert found.times.tolist() == written.times.tolist()
    assert (found.servers, found.metrics) == (written.servers, written.metrics)
    assert (found.server_infos, found.metric_infos) == (written.server_infos, written.metric_infos)
    assert bits(found.columns) == bits(written.columns)


def test_what_is_known_of_no_counter_is_left_out_of_the_bytes():
    unknown = {name: np.full((2, 2, 2), np.nan) for name in ("first", "growth")}
    wire = encode_grid("1h", grid(columns={**grid().columns, **unknown}))
    message = timeseries_pb2.RollupFrame.FromString(wire)
    assert (len(message.first), len(message.growth), len(message.last)) == (0, 0, 8)
    assert np.isnan(decode_grid(wire)[1].columns["growth"]).all()


def test_an_empty_frame_has_no_buckets():
    _, found = decode_grid(b"")
    assert {found.columns[name].shape for name in COLUMNS} == {(0, 0, 0)}


@pytest.mark.parametrize(
    ("columns", "field", "why"),
    [
        ({"count": 1.5}, "count", "must hold whole numbers"),
        ({"count": -1.0}, "count", "must hold whole numbers"),
        ({"count": math.nan}, "count", "must hold whole numbers"),
        ({"count": math.inf}, "count", "must hold whole numbers"),
        ({"count": 2.0**53}, "count", "must hold whole numbers"),
        ({"min": math.nan}, "min", "must be finite where count is not 0"),
        ({"max": math.inf}, "max", "must be finite where count is not 0"),
        ({"sum": -math.inf}, "sum", "must be finite where count is not 0"),
        ({"last": math.nan}, "last", "must be finite where count is not 0"),
        ({"first": math.inf}, "first", "must be finite, or NaN"),
        ({"growth": -math.inf}, "growth", "must be finite, or NaN"),
        ({"min": 1e9}, "min", "must not be above max"),
        ({"last": 1e9}, "last", "must be between min and max"),
        ({"first": 1e9, "growth": 0.0}, "first", "must be between min and max"),
        ({"growth": 0.0}, "first", "must be known where growth is"),
    ],
)
def test_a_value_that_cannot_be_names_its_column(columns: dict[str, float], field: str, why: str):
    with pytest.raises(InvalidArgumentError, match=why) as caught:
        decode_grid(frame(**columns).SerializeToString())
    assert caught.value.field == f"frame.{field}"


@pytest.mark.parametrize("field", COLUMNS)
@pytest.mark.parametrize("change", ["shorter", "longer", "away"])
def test_a_column_of_another_size_is_named(field: str, change: str):
    message = frame()
    column = getattr(message, field)
    if change == "shorter":
        del column[-1]
    elif change == "longer":
        column.append(1.0)
    else:
        del column[:]
    if change == "away" and field in {"first", "growth"}:
        # Without the other one, which is known.
        with pytest.raises(InvalidArgumentError, match="must be known where growth is") as caught:
            decode_grid(message.SerializeToString())
        assert caught.value.field == "frame.first"
        return
    with pytest.raises(InvalidArgumentError, match="2 times × 2 servers × 2 metrics make 8") as caught:
        decode_grid(message.SerializeToString())
    assert caught.value.field == f"frame.{field}"


@pytest.mark.parametrize(
    ("name", "values", "field"),
    [
        ("time_unix_nanos", [7 * HOUR, 7 * HOUR], "frame.time_unix_nanos"),
        ("time_unix_nanos", [7 * HOUR, 5 * HOUR], "frame.time_unix_nanos"),
        ("servers", ["web-01", "web-01"], "frame.servers"),
        ("servers", ["web-01", "no id"], "frame.servers"),
        ("metrics", ["cpu_usage", "cpu_usage"], "frame.metrics"),
        ("metrics", ["cpu_usage", "{}"], "frame.metrics"),
    ],
)
def test_names_and_times_that_cannot_be_are_named(name: str, values: list, field: str):
    message = frame()
    getattr(message, name)[:] = values
    with pytest.raises(InvalidArgumentError) as caught:
        decode_grid(message.SerializeToString())
    assert caught.value.field == field


def test_infos_that_cannot_be_are_named():
    message = frame()
    message.server_infos.add(id="no id")
    with pytest.raises(InvalidArgumentError) as caught:
        decode_grid(message.SerializeToString())
    assert caught.value.field == "frame.server_infos.id"
    message = frame()
    message.metric_infos.add(unit="%")
    with pytest.raises(InvalidArgumentError) as caught:
        decode_grid(message.SerializeToString())
    assert caught.value.field == "frame.metric_infos.name"


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05ab", b"\x2a\x03abc"])
def test_bytes_that_are_no_message_say_so(data: bytes):
    with pytest.raises(InvalidArgumentError) as caught:
        decode_grid(data)
    assert caught.value.reason == Reason.MALFORMED_MESSAGE


@given(st.binary(max_size=200), st.integers(0, 400))
@property_test
def test_damaged_bytes_are_refused_or_are_buckets(junk: bytes, at: int):
    wire = encode_grid("1h", grid())
    at = min(at, len(wire))
    try:
        _, found = decode_grid(wire[:at] + junk + wire[at + len(junk) :])
    except InvalidArgumentError:
        return
    shape = len(found.times), len(found.servers), len(found.metrics)
    assert {found.columns[name].shape for name in COLUMNS} == {shape}
