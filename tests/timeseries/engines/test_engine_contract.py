"""What every engine promises, shown by the real store: the answer of a few lines of numpy is the answer expected."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

import numpy as np
import pytest
from openmanager_timeseries.aggregate import increases
from openmanager_timeseries.engines.port import Coded, Wanted
from openmanager_timeseries.samples import Ragged

from openmanager.errors import FailedPreconditionError, OpenManagerError, Reason, UnavailableError
from openmanager.frame import LATEST_PLAUSIBLE_NANOS, Frame, ServerInfo
from openmanager.metric import check_key, make_key

SECOND = 10**9
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
MILLI = 10**6
# Two hours ago, on the hour: old enough for everything to be settled, young enough for any retention.
START = (time.time_ns() // HOUR - 2) * HOUR
EVERYTHING = (0, LATEST_PLAUSIBLE_NANOS)
SHORT = timedelta(seconds=0.5)

REDUCERS: Mapping[str, Callable[[np.ndarray], float]] = {
    "MIN": np.min,
    "MAX": np.max,
    "SUM": np.sum,
    "COUNT": len,
    "MEAN": np.mean,
    "FIRST": lambda values: values[0],
    "LAST": lambda values: values[-1],
}
HOSTILE = (
    "with space",
    "comma,comma",
    "a=b",
    "back\\slash",
    "trailing\\",
    "trailing\\\\",
    "\\,",
    "\\ ",
    "\\=",
    "\\\\ ,=",
    '"quoted"',
    "it's",
    "{braces}",
    "[brackets]",
    "(a+)+$",
    "^.*|.+$",
    "?",
    "#hash",
    "50%",
    "$1",
    "`tick`",
    "<tag>&amp;",
    "a/b:c.d-e",
    " leading",
    "trailing ",
    "é",
    "e\u0301",
    "日本語",
    "😀",
    "🏳️‍🌈",
    "null",
    '},"values":[',
    '"],"timestamps":[',
    "]]}",
)


def info_of(server: str) -> ServerInfo:
    return ServerInfo(id=server, environment="production", role="web server")


def frame(times: Sequence[int], servers: Sequence[str], metrics: Sequence[str], values: object) -> Frame:
    table = np.array(values, np.float64).reshape(len(times), len(servers), len(metrics))
    return Frame(times=np.array(times, np.int64), servers=tuple(servers), metrics=tuple(metrics), values=table)


def random_frame(generator, times: Sequence[int], servers: Sequence[str], metrics: Sequence[str], gaps=0.2) -> Frame:
    values = np.round(generator.uniform(-1000, 1000, (len(times), len(servers), len(metrics))), 2)
    values[generator.random(values.shape) < gaps] = np.nan
    return frame(times, servers, metrics, values)


Rows = dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]


@dataclass
class Model:
    """Every sample that was written; of two of one series and time the later one."""

    samples: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)

    def add(self, written: Frame) -> None:
        for s, server in enumerate(written.servers):
            for m, metric in enumerate(written.metrics):
                for t, at in enumerate(written.times):
                    value = written.values[t, s, m]
                    if not np.isnan(value):
                        self.samples.setdefault((server, metric), {})[int(at)] = float(value)

    def read(self, wanted: Wanted) -> Rows:
        found = {}
        for server in wanted.servers:
            for metric in wanted.metrics:
                series = self.samples.get((server, metric), {})
                times = sorted(at for at in series if wanted.start <= at < wanted.end)
                if times:
                    found[server, metric] = np.array(times), np.array([series[at] for at in times])
        return found

    def read_buckets(self, wanted: Wanted, step: int, aggregation: str) -> Rows:
        found = {}
        for name, (times, values) in self.read(wanted).items():
            buckets = times // step * step
            starts = np.unique(buckets)
            found[name] = starts, np.array([REDUCERS[aggregation](values[buckets == start]) for start in starts])
        return found


def rows(coded: Coded) -> Rows:
    """Return an answer by series, having checked that it is in order."""
    ids = coded.server_codes * len(coded.metrics) + coded.metric_codes
    found: Rows = {}
    for number in np.unique(ids):
        at = np.flatnonzero(ids == number)
        assert np.array_equal(at, np.arange(at[0], at[0] + len(at)))
        assert np.all(np.diff(coded.times[at]) > 0)
        name = coded.servers[number // len(coded.metrics)], coded.metrics[number % len(coded.metrics)]
        found[name] = coded.times[at], coded.values[at]
    assert coded.times.dtype == np.int64
    assert coded.values.dtype == np.float64
    assert np.all(np.isfinite(coded.values))
    return found


def assert_same(expected: Rows, actual: Rows, digits: int) -> None:
    assert sorted(expected) == sorted(actual)
    for name, (times, values) in expected.items():
        assert times.tolist() == actual[name][0].tolist(), name
        if digits >= 17:
            assert values.tolist() == actual[name][1].tolist(), name
        else:
            np.testing.assert_allclose(actual[name][1], values, rtol=10.0 ** (1 - digits), atol=0, err_msg=str(name))


async def assert_answers(engine, model: Model, wanted: Wanted, steps: Sequence[int] = (MINUTE,)) -> None:
    """Check samples and every aggregate that the engine computes."""
    digits = engine.capabilities.digits
    assert_same(model.read(wanted), rows(await engine.read(wanted)), digits)
    for step in steps:
        whole = replace(wanted, start=wanted.start // step * step, end=-(-wanted.end // step) * step)
        for aggregation in sorted(engine.capabilities.aggregations):
            expected = model.read_buckets(whole, step, aggregation)
            # What is added in another order, and cancels out, has fewer digits than each sample.
            kept = min(digits, 14) - 3 if aggregation in {"SUM", "MEAN"} else digits
            assert_same(expected, rows(await engine.read_buckets(whole, step, aggregation)), kept)


@pytest.fixture
def generator():
    return np.random.default_rng(7)


@pytest.fixture
def write(store, engine):
    """Write frames and return when they can be seen, with a model of what must be there then."""
    model = Model()

    async def written(*frames: Frame, infos=info_of) -> Model:
        assert await engine.write(frames, infos) == []
        for each in frames:
            model.add(each)
        await store.settle()
        return model

    return written


async def marked(store, engine, epoch: str) -> None:
    """Mark, with the store made to show it soon."""
    marking = asyncio.ensure_future(engine.mark(epoch))
    while not marking.done():
        await store.settle()
        await asyncio.wait([marking], timeout=0.2)
    await marking


# Samples and buckets.


async def test_samples_and_buckets_with_gaps(engine, write, prefix, generator):
    servers, metrics = [f"{prefix}-{n}" for n in range(4)], ["load.1m", "cpu{cpu=0}", "cpu{cpu=1}", "net/io:rx-bytes"]
    times = START + np.sort(generator.choice(3600, 500, replace=False)) * SECOND
    model = await write(random_frame(generator, times.tolist(), servers, metrics))
    wanted = Wanted(servers=servers, metrics=metrics, start=START, end=START + HOUR)
    await assert_answers(engine, model, wanted, (SECOND, 10 * SECOND, MINUTE, 7 * MINUTE, HOUR))


async def test_frames_out_of_order(engine, write, prefix, generator):
    servers, metrics = [f"{prefix}-1", f"{prefix}-2"], ["a", "b"]
    parts = [
        random_frame(generator, [START + (60 * part + n) * SECOND for n in range(60)], servers, metrics)
        for part in generator.permutation(10)
    ]
    for part in parts:
        model = await write(part)
    await assert_answers(
        engine, model, Wanted(servers=servers, metrics=metrics, start=START, end=START + 10 * MINUTE), (20 * SECOND,)
    )


async def test_a_range_is_half_open_to_the_millisecond(engine, write, prefix):
    times = [START, START + MILLI, START + 999 * MILLI, START + SECOND]
    model = await write(frame(times, [prefix], ["a"], [1, 2, 3, 4]))
    for start, end in ((START, times[3]), (times[1], times[2]), (times[1], times[1]), (times[2], times[2] + MILLI)):
        wanted = Wanted(servers=[prefix], metrics=["a"], start=start, end=end)
        assert_same(model.read(wanted), rows(await engine.read(wanted)), 17)


async def test_a_sample_on_a_border_is_in_the_bucket_that_begins_there(engine, write, prefix):
    borders = [START + n * MINUTE for n in range(1, 5)]
    times = sorted(at + delta for at in borders for delta in (-MILLI, 0, MILLI))
    model = await write(frame(times, [prefix], ["a"], np.arange(len(times))))
    wanted = Wanted(servers=[prefix], metrics=["a"], start=START, end=START + 6 * MINUTE)
    await assert_answers(engine, model, wanted, (MINUTE, 2 * MINUTE))
    inner = replace(wanted, start=START + 2 * MINUTE, end=START + 4 * MINUTE)
    await assert_answers(engine, model, inner, (MINUTE, 2 * MINUTE))


async def test_buckets_without_samples_are_left_out(engine, write, prefix):
    model = await write(frame([START, START + 30 * MINUTE], [prefix], ["a"], [1, 2]))
    await assert_answers(
        engine, model, Wanted(servers=[prefix], metrics=["a"], start=START, end=START + HOUR), (SECOND, MINUTE)
    )


async def test_buckets_of_a_day(engine, write, prefix, generator):
    day = 24 * HOUR
    start = START // day * day - 2 * day
    times = start + np.sort(generator.choice(2 * 86_400, 300, replace=False)) * SECOND
    model = await write(random_frame(generator, times.tolist(), [prefix], ["a", "b{c=d}"]))
    wanted = Wanted(servers=[prefix], metrics=["a", "b{c=d}"], start=start, end=start + 2 * day)
    await assert_answers(engine, model, wanted, (5 * MINUTE, HOUR, day))


async def test_buckets_of_what_has_only_just_happened(engine, write, prefix):
    now = time.time_ns() // SECOND * SECOND
    times = [now + n * SECOND for n in range(-120, 1)]
    model = await write(frame(times, [prefix], ["a"], np.arange(len(times)) + 1))
    start = times[0] // MINUTE * MINUTE
    wanted = Wanted(servers=[prefix], metrics=["a"], start=start, end=start + 4 * MINUTE)
    await assert_answers(engine, model, wanted, (5 * SECOND, MINUTE))


# Values.


@pytest.mark.parametrize(
    "value",
    [
        0.1 + 0.2,
        1 / 3,
        np.pi,
        1e-200,
        1.7976931348623157e308,
        -1.7976931348623157e308,
        2.0**53,
        1e22,
        -273.15,
        123456789,
    ],
)
async def test_a_value_keeps_the_digits_that_are_promised(engine, write, prefix, value):
    model = await write(frame([START], [prefix], ["a"], [value]))
    wanted = Wanted(servers=[prefix], metrics=["a"], start=START, end=START + MINUTE)
    assert_same(model.read(wanted), rows(await engine.read(wanted)), engine.capabilities.digits)


async def test_every_double_comes_back_where_that_is_promised(engine, write, prefix, generator):
    values = generator.integers(0, 2**63, 2000, np.uint64).view(np.float64)
    values = np.concatenate([values[np.isfinite(values)], [5e-324, 2.2250738585072014e-308]])
    model = await write(frame(START + np.arange(len(values)) * MILLI, [prefix], ["a"], values))
    if engine.capabilities.digits < 17:
        pytest.skip(f"{engine.name} promises {engine.capabilities.digits} digits, of values of like size")
    wanted = Wanted(servers=[prefix], metrics=["a"], start=START, end=START + MINUTE)
    assert_same(model.read(wanted), rows(await engine.read(wanted)), 17)


async def test_zero_keeps_its_sign_where_that_is_promised(engine, write, prefix):
    await write(frame([START, START + SECOND], [prefix], ["a"], [-0.0, 0.0]))
    found = await engine.read(Wanted(servers=[prefix], metrics=["a"], start=START, end=START + MINUTE))
    assert found.values.tolist() == [0.0, 0.0]
    assert [engine.capabilities.signed_zero, False] == np.signbit(found.values).tolist()


async def test_a_counter_that_restarts_grows_as_much_as_it_did(engine, write, prefix, generator):
    steps = generator.integers(0, 10**6, 600)
    counter = np.cumsum(steps).astype(np.float64)
    counter[200:] -= counter[200]
    counter[450:] -= counter[450]
    model = await write(frame(START + np.arange(600) * SECOND, [prefix], ["bytes"], counter))
    wanted = Wanted(servers=[prefix], metrics=["bytes"], start=START, end=START + HOUR)
    await assert_answers(engine, model, wanted)
    found = await engine.read(wanted)
    grown = increases(Ragged(np.array([0, 600]), found.times, found.values), np.array([False]))
    expected = np.where(np.diff(counter) < 0, counter[1:], np.diff(counter))
    assert expected.tolist() == grown[1:].tolist()


async def test_writing_again_changes_nothing(engine, write, prefix, generator):
    times = [START + n * SECOND for n in range(100)]
    sent = random_frame(generator, times, [prefix], ["a", "b{c=d}"])
    for _ in range(3):
        model = await write(sent)
    await assert_answers(
        engine, model, Wanted(servers=[prefix], metrics=["a", "b{c=d}"], start=START, end=START + HOUR), (10 * SECOND,)
    )


async def test_the_later_of_two_values_counts_where_that_is_promised(engine, write, prefix):
    await write(frame([START], [prefix], ["a", "b"], [5, 1]))
    await write(frame([START], [prefix], ["a", "b"], [3, 2]))
    found = rows(await engine.read(Wanted(servers=[prefix], metrics=["a", "b"], start=START, end=START + MINUTE)))
    values = [found[prefix, key][1].tolist() for key in ("a", "b")]
    if engine.capabilities.overwrites:
        assert values == [[3.0], [2.0]]
    else:  # one of the two, and only one
        assert (values[0] in ([5.0], [3.0]), values[1] in ([1.0], [2.0])) == (True, True)


# Names.


async def test_hostile_attributes_come_back_as_they_were(engine, write, prefix):
    keys = [make_key("m", {"plain": text}) for text in HOSTILE]
    keys += [make_key("m", {text: "plain"}) for text in HOSTILE]
    keys += [make_key("m", {text: text, "other": "x"}) for text in HOSTILE]
    for key in keys:
        check_key(key)
    model = await write(frame([START], [prefix], keys, np.arange(len(keys))))
    await assert_answers(engine, model, Wanted(servers=[prefix], metrics=keys, start=START, end=START + HOUR), (HOUR,))
    for key in keys:
        wanted = Wanted(servers=[prefix], metrics=[key], start=START, end=START + HOUR)
        assert_same(model.read(wanted), rows(await engine.read(wanted)), 12)


async def test_attributes_of_any_characters_come_back_as_they_were(engine, write, prefix, generator):
    alphabet = list("\\,= \"'{}|.*a1é∅⧹0\U0001f600\u00a0")
    texts = ["".join(generator.choice(alphabet, generator.integers(1, 7))) for _ in range(200)]
    keys = sorted({make_key("m", {texts[at]: texts[-at], "b": texts[at - 1]}) for at in range(200)})
    model = await write(frame([START], [prefix], keys, np.arange(len(keys))))
    for chosen in (keys, keys[:3], keys[100:101]):
        wanted = Wanted(servers=[prefix], metrics=chosen, start=START, end=START + HOUR)
        assert_same(model.read(wanted), rows(await engine.read(wanted)), engine.capabilities.digits)


async def test_an_empty_attribute_is_not_a_missing_one(engine, write, prefix):
    keys = ["m", "m{a=}", "m{a=,b=}", "m{a=x,b=}"]
    model = await write(frame([START], [prefix], keys, np.arange(4)))
    await assert_answers(engine, model, Wanted(servers=[prefix], metrics=keys, start=START, end=START + HOUR), (HOUR,))


async def test_attributes_named_like_our_tags_are_kept_apart_from_them(engine, write, prefix):
    keys = ["m", "m{server_id=other}", "m{environment=staging}", "m{role=db,server_id=x}", "m{host=h}", "m{db=d}"]
    model = await write(frame([START], [prefix], keys, np.arange(len(keys))))
    await assert_answers(engine, model, Wanted(servers=[prefix], metrics=keys, start=START, end=START + HOUR), (HOUR,))
    assert rows(await engine.read(Wanted(servers=["other"], metrics=["m"], start=START, end=START + HOUR))) == {}


async def test_ids_and_names_are_no_patterns(engine, write, prefix):
    servers = [f"{prefix}.a:b-c_d", f"{prefix}xa:b-c_d", f"{prefix}.a:b"]
    keys = ["cpu.load", "cpu_load", "cpu/load", "cpu:load", "cpu-load", "cpuxload", "cpu"]
    model = await write(frame([START], servers, keys, np.arange(21)))
    for server in servers:
        for chosen in (keys, keys[:1]):
            wanted = Wanted(servers=[server], metrics=chosen, start=START, end=START + HOUR)
            await assert_answers(engine, model, wanted, (HOUR,))


async def test_infos_may_be_hostile_or_missing(engine, write, prefix):
    for number, text in enumerate(("", *HOSTILE)):
        server = f"{prefix}-{number}"
        infos = ServerInfo(id=server, environment=text[:50], role=text[::-1][:50])
        model = await write(frame([START], [server], ["a", "b{c=d}"], [number, -number]), infos=lambda _, i=infos: i)
    servers = [server for server, _ in model.samples]
    wanted = Wanted(servers=sorted(set(servers)), metrics=["a", "b{c=d}"], start=START, end=START + HOUR)
    await assert_answers(engine, model, wanted, (HOUR,))


async def test_a_server_whose_role_changes_stays_one_series(engine, write, prefix, generator):
    times = [START + n * SECOND for n in range(300)]
    sent = random_frame(generator, times, [prefix, f"{prefix}-other"], ["a", "b{c=d}"])
    for number, part in enumerate(np.array_split(np.arange(300), 7)):
        piece = replace(sent, times=sent.times[part], values=sent.values[part])
        model = await write(piece, infos=lambda server, n=number: ServerInfo(id=server, role=f"role-{n % 3}"))
    # Delivered once more after the change: the same samples under another role.
    again = replace(sent, times=sent.times[50:150], values=sent.values[50:150])
    model = await write(again, infos=lambda server: ServerInfo(id=server, role="role-2", environment="new"))
    wanted = Wanted(servers=sent.servers, metrics=sent.metrics, start=START, end=START + 6 * MINUTE)
    await assert_answers(engine, model, wanted, (7 * SECOND, MINUTE))


async def test_only_what_is_wanted_is_answered(engine, write, prefix, generator):
    servers = [f"{prefix}-{n}" for n in range(8)]
    keys = ["a", "b{c=1}", "b{c=2}", "b{c=3}", "b{c=1,d=1}", "b", "c"]
    sent = random_frame(generator, [START, START + MINUTE], servers, keys, 0)
    model = await write(sent, frame([START], [f"{prefix}-only"], ["b{c=9}"], [1]))
    for chosen, metrics in (
        (servers[2:3], keys[1:2]),
        (servers[::-1], ["b{c=2}", "b", "c"]),
        ([*servers[:2], f"{prefix}-only", f"{prefix}-nobody"], ["b{c=9}", "b{c=2}", "nothing", "b{c=1,d=2}"]),
    ):
        wanted = Wanted(servers=chosen, metrics=metrics, start=START, end=START + MINUTE)
        await assert_answers(engine, model, wanted)


@pytest.mark.parametrize("ask", [{"servers": ()}, {"metrics": ()}, {"metrics": ("none",)}, {"end": START}])
async def test_nothing_wanted_is_nothing_answered(engine, write, prefix, ask):
    await write(frame([START], [prefix], ["a"], [1]))
    wanted = replace(Wanted(servers=(prefix,), metrics=("a",), start=START, end=START + HOUR), **ask)
    assert rows(await engine.read(wanted)) == {}
    for aggregation in sorted(engine.capabilities.aggregations):
        assert rows(await engine.read_buckets(wanted, HOUR, aggregation)) == {}
    assert rows(await engine.read(replace(wanted, servers=(f"{prefix}-2",)))) == {}


async def test_nothing_written_is_fine(engine, prefix):
    assert await engine.write([], info_of) == []
    assert await engine.write([frame([], [prefix], ["a"], [])], info_of) == []
    assert await engine.write([frame([START], [prefix], ["a"], [np.nan])], info_of) == []


async def test_ten_thousand_series(engine, write, prefix, generator):
    servers, keys = [f"{prefix}-{n:03d}" for n in range(100)], [f"m{n % 20}{{n={n}}}" for n in range(100)]
    times = [START + n * 10 * SECOND for n in range(6)]
    model = await write(random_frame(generator, times, servers, keys))
    wanted = Wanted(servers=servers, metrics=keys, start=START, end=START + MINUTE)
    assert_same(model.read(wanted), rows(await engine.read(wanted)), engine.capabilities.digits)
    await assert_answers(engine, model, replace(wanted, servers=servers[40:60], metrics=keys[10:60:7]))


async def test_a_frame_of_many_metrics_with_long_names(engine, write, prefix):
    keys = [f"{'long.name.' * 24}{n:04d}" for n in range(2000)]
    model = await write(frame([START], [prefix], keys, np.arange(2000) / 7))
    wanted = Wanted(servers=[prefix], metrics=keys[::50], start=START, end=START + HOUR)
    assert_same(model.read(wanted), rows(await engine.read(wanted)), engine.capabilities.digits)


# Deletion.


async def test_deleting_series_as_a_whole(store, engine, write, prefix, generator):
    servers, keys = [f"{prefix}-1", f"{prefix}-2"], ["a", "a{b=c}", "a{b=c,d=e}", "z"]
    model = await write(random_frame(generator, [START, START + MINUTE], servers, keys, 0))
    start, end = EVERYTHING
    gone = [servers[0]], (["a", "a{b=c}"] if engine.capabilities.metric_delete else keys)
    await engine.delete(Wanted(servers=gone[0], metrics=gone[1], start=start, end=end))
    for server in gone[0]:
        for key in gone[1]:
            del model.samples[server, key]
    await store.settle()
    await assert_answers(engine, model, Wanted(servers=servers, metrics=keys, start=START, end=START + HOUR))


async def test_deleting_a_range_or_saying_why_not(store, engine, write, prefix, generator):
    keys = ["a", "b{c=d}"]
    model = await write(random_frame(generator, [START + n * SECOND for n in range(60)], [prefix], keys, 0))
    wanted = Wanted(servers=[prefix], metrics=keys, start=START + 10 * SECOND, end=START + 20 * SECOND)
    if engine.capabilities.ranged_delete:
        await engine.delete(wanted)
        for series in model.samples.values():
            for at in [at for at in series if wanted.start <= at < wanted.end]:
                del series[at]
    else:
        with pytest.raises(FailedPreconditionError) as failure:
            await engine.delete(wanted)
        assert failure.value.reason == Reason.ENGINE_CANNOT
    await store.settle()
    await assert_answers(engine, model, Wanted(servers=[prefix], metrics=keys, start=START, end=START + HOUR))


async def test_deleting_one_metric_or_saying_why_not(store, engine, write, prefix):
    model = await write(frame([START], [prefix], ["a", "b"], [1, 2]))
    start, end = EVERYTHING
    wanted = Wanted(servers=[prefix], metrics=["a"], start=start, end=end)
    if engine.capabilities.metric_delete:
        await engine.delete(wanted)
        del model.samples[prefix, "a"]
    else:
        with pytest.raises(FailedPreconditionError) as failure:
            await engine.delete(wanted)
        assert failure.value.reason == Reason.ENGINE_CANNOT
    await store.settle()
    await assert_answers(
        engine, model, Wanted(servers=[prefix], metrics=["a", "b"], start=START, end=START + HOUR), (HOUR,)
    )


async def test_deleting_what_is_not_there(engine, prefix):
    start, end = EVERYTHING
    await engine.delete(Wanted(servers=[prefix], metrics=["a"], start=start, end=end))


# What the engine says of itself.


async def test_the_marker_is_found_until_the_store_is_emptied(store, engine):
    await store.empty()
    assert (await engine.check()).epoch == ""
    first, second = uuid.uuid4().hex, uuid.uuid4().hex
    await marked(store, engine, first)
    assert first == (await engine.check()).epoch
    await marked(store, engine, first)
    await marked(store, engine, second)
    assert second == (await engine.check()).epoch
    await store.empty()
    assert (await engine.check()).epoch == ""
    await marked(store, engine, first)
    assert first == (await engine.check()).epoch


async def test_a_state_is_for_people_to_read(store, engine):
    state = await engine.check()
    assert isinstance(state.version, str)
    assert state.size_bytes >= 0
    for warning in state.warnings:
        assert "http" not in warning


async def test_closing_twice_is_fine(store):
    engine = store.engine()
    await engine.close()
    await engine.check()
    await engine.close()
    await engine.close()


# Faults.


@contextlib.asynccontextmanager
async def closing(engine) -> AsyncIterator[object]:
    try:
        yield engine
    finally:
        await engine.close()


async def calls(engine, prefix: str) -> AsyncIterator[tuple[str, object]]:
    """Do everything that speaks to the store, one after the other; yield what each raised, or None."""
    wanted = Wanted(servers=[prefix], metrics=["a"], start=START, end=START + HOUR)
    start, end = EVERYTHING
    doings = {
        "check": engine.check,
        "mark": lambda: engine.mark("epoch"),
        "write": lambda: engine.write([frame([START], [prefix], ["a"], [1])], info_of),
        "read": lambda: engine.read(wanted),
        "read_buckets": lambda: engine.read_buckets(wanted, MINUTE, "MIN"),
        "delete": lambda: engine.delete(replace(wanted, start=start, end=end)),
    }
    for name, do in doings.items():
        error = None
        began = time.monotonic()
        try:
            await do()
        except (OpenManagerError, TimeoutError) as err:
            error = err
        assert time.monotonic() - began < 3.0, f"{name} took too long"
        yield name, error


async def assert_all_unavailable(
    engine, prefix: str, *, kinds=(UnavailableError,), says: str = "does not answer"
) -> None:
    async for name, error in calls(engine, prefix):
        assert isinstance(error, kinds), (name, error)
        if isinstance(error, OpenManagerError):
            assert error.reason == Reason.STORE_UNAVAILABLE, name
            assert f"{engine.name} {says}" == error.message, name


async def test_a_store_that_is_down(store, prefix, unused_tcp_port):
    async with closing(store.engine(url=f"http://127.0.0.1:{unused_tcp_port}", write=SHORT, query=SHORT)) as engine:
        await assert_all_unavailable(engine, prefix)


async def test_a_store_that_hangs(store, prefix):
    if store.server is None:
        pytest.skip(f"{store.name} is not ours to stop")
    async with closing(store.engine(write=SHORT, query=SHORT)) as engine:
        await engine.check()
        with store.server.hung():
            await assert_all_unavailable(engine, prefix, kinds=(UnavailableError, TimeoutError))
        await engine.check()


GARBAGE = {
    "a page": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<html></html>",
    "an error": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 11\r\n\r\nsecret text",
    "a redirection": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    "a refusal": b'HTTP/1.1 401 Unauthorized\r\nContent-Length: 24\r\n\r\n{"code":"unauthorized"}  ',
    "a cut": b'HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n\r\n{"metric":{"__name__":"a"},"values":[1',
    "noise": bytes(range(256)),
    "another's JSON": b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{"a": [1,2]}',
}


@contextlib.asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """Serve the same bytes whatever is asked."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.mark.parametrize("answer", GARBAGE.values(), ids=GARBAGE)
async def test_something_else_that_answers_in_the_stores_place(store, prefix, answer):
    async with answering(answer) as url, closing(store.engine(url=url, write=SHORT, query=SHORT)) as engine:
        await assert_all_unavailable(engine, prefix)


async def test_a_wrong_token(store, prefix):
    if store.name != "influxdb":
        pytest.skip(f"{store.name} has no tokens")
    async with closing(store.engine_with("wrong", write=SHORT, query=SHORT)) as engine:
        await assert_all_unavailable(engine, prefix, says="refuses the credentials")


async def test_a_caller_who_gives_up_leaves_the_engine_usable(store, engine, write, prefix):
    model = await write(frame([START], [prefix], ["a"], [1]))
    wanted = Wanted(servers=[prefix], metrics=["a"], start=START, end=START + HOUR)
    for turns in range(20):
        reading = asyncio.create_task(engine.read(wanted))
        for _ in range(turns):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
    await assert_answers(engine, model, wanted)
