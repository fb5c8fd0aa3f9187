"""History as a whole, on real files: what was written is read, from the head, from blocks, and from both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openmanager_timeseries import block as parquet
from openmanager_timeseries.log import Cursor
from openmanager_timeseries.wire import accepted_frames
from timeseries.shard import NOW, SECOND, asked, frame, opened, raw

from openmanager.api.frame.v1 import frame_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.errors import InvalidArgumentError, OutOfRangeError, ResourceExhaustedError
from openmanager.frame import Frame, MetricInfo, ServerInfo, decode_trusted, encode, encode_write_request

writes = st.lists(
    st.tuples(
        st.integers(-60, 0),
        st.dictionaries(
            st.sampled_from(["a", "b", "c"]),
            st.dictionaries(
                st.sampled_from(["x", "y", "z{k=1}"]),
                st.sampled_from([0.1, -0.0, 1e300, 5e-324, 3.25, 7.0]),
                min_size=1,
            ),
            min_size=1,
        ),
    ),
    max_size=25,
)


@given(writes, st.sets(st.integers(0, 25)), st.booleans())
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_every_sample_is_read_as_written_across_seals_and_restarts(tmp_path_factory, found, seals, restart: bool):  # noqa: FBT001
    folder = tmp_path_factory.mktemp("history")
    expected: dict[tuple[str, str], dict[int, float]] = {}
    async with opened(folder) as history:
        for at, (time, values) in enumerate(found):
            await history.write(encode(frame(time, values)))
            for server, metrics in values.items():
                for metric, value in metrics.items():
                    expected.setdefault((server, metric), {})[time] = value
            if at in seals:
                await history.seal()
                history.head.drop(0)
        if not restart:
            assert repr(await raw(history)) == repr({key: sorted(expected[key].items()) for key in sorted(expected)})
    if restart:
        async with opened(folder) as history:
            assert repr(await raw(history)) == repr({key: sorted(expected[key].items()) for key in sorted(expected)})
            total = history.ledger.message(history.log)
            for consumer in total.consumers:
                assert consumer.delivered_sample_count + consumer.waiting_sample_count == total.accepted_sample_count


async def test_names_in_any_order_keep_their_values_in_a_block(tmp_path: Path):
    async with opened(tmp_path) as history:
        values = np.array([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])
        times = np.array([NOW - SECOND])
        made = Frame(times=times, servers=("b", "a"), metrics=("z", "x", "y"), values=values)
        await history.write(encode(made))
        expected = await raw(history)
        assert expected["a", "x"] == [(-1, 5.0)]
        await history.seal()
        history.head.drop(-1)
        assert await raw(history) == expected


async def test_selection_by_server_filter_name_and_attributes(tmp_path: Path):
    infos = (ServerInfo(id="a", role="web", environment="aws"), ServerInfo(id="b", role="db", labels={"team": "x"}))
    async with opened(tmp_path) as history:
        values = {"cpu{core=0}": 1.0, "cpu{core=1}": 2.0, "disk": 3.0}
        await history.write(encode(frame(-5, {"a": values, "b": values}, server_infos=infos)))
        assert set(await raw(history, servers=("A",), metrics=("cpu",))) == {("a", "cpu{core=0}"), ("a", "cpu{core=1}")}
        assert set(await raw(history, metrics=("*{core=1}",))) == {("a", "cpu{core=1}"), ("b", "cpu{core=1}")}
        assert set(await raw(history, server_filter="role=web", metrics=("disk",))) == {("a", "disk")}
        assert set(await raw(history, server_filter="labels.team=x OR environment=aws", metrics=("disk",))) == {
            ("a", "disk"),
            ("b", "disk"),
        }
        assert await raw(history, servers=("nobody",)) == {}
        with pytest.raises(InvalidArgumentError, match="server_filter"):
            await raw(history, server_filter="colour=red")


async def test_groups_and_rates(tmp_path: Path):
    infos = (ServerInfo(id="a", role="web"), ServerInfo(id="b", role="web"), ServerInfo(id="c", role="db"))
    about = (MetricInfo(name="n", kind=2, temporality=1),)
    async with opened(tmp_path) as history:
        for time, count in ((-30, 0.0), (-20, 10.0), (-10, 30.0)):
            values = {server: {"n": count * (2 if server == "c" else 1)} for server in "abc"}
            await history.write(encode(frame(time, values, server_infos=infos, metric_infos=about)))
        query = asked(-20, 0, step=10 * SECOND, aggregation="RATE", group_by="ROLE")
        answer = await history.query_range(query, 10)
        assert [name.group for name in answer.names] == ["db", "web"]
        assert answer.values is not None
        assert answer.values.tolist() == [[2.0, 4.0], [2.0, 4.0]]
        everybody = await history.query_range(replace(query, aggregation="MAX", group_by="ALL"), 10)
        assert everybody.values is not None
        assert everybody.values.tolist() == [[20.0, 60.0]]


async def test_single_samples_are_rejected_with_their_reason(tmp_path: Path):
    async with opened(tmp_path) as history:
        values = {"a": {"x": np.inf, "y": 1.0}, "b": {"x": np.nan, "y": -np.inf}}
        accepted = await history.write(encode(frame(0, values)))
        assert accepted.admitted.accepted == 1
        assert {(r.server, r.metric, r.reason) for r in accepted.admitted.rejections} == {
            ("a", "x", "VALUE_NOT_FINITE"),
            ("b", "y", "VALUE_NOT_FINITE"),
        }
        late = await history.write(encode(frame(601, {"a": {"x": 1.0}})))
        assert (late.position, late.admitted.rejections[0].reason) == (0, "TIME_IN_FUTURE")
        old = await history.write(encode(frame(-15 * 86400, {"a": {"x": 1.0}})))
        assert (old.position, old.admitted.rejections[0].reason) == (0, "TIME_TOO_OLD")
        ahead = await history.write(encode(frame(601, {"a": {"x": 1.0}})), any_future=True)
        assert ahead.position > 0
        assert set(await raw(history, end=3600)) == {("a", "x"), ("a", "y")}


async def test_series_beyond_the_limit_are_refused_and_the_others_go_on(tmp_path: Path):
    async with opened(tmp_path, max_series=3) as history:
        await history.write(encode(frame(-3, {"a": {"x": 1.0, "y": 2.0}})))
        many = await history.write(encode(frame(-2, {"b": {f"m{i}": 1.0 for i in range(5)}})))
        assert (many.admitted.accepted, many.admitted.rejected) == (1, 4)
        assert many.admitted.rejections[0].reason == "SERIES_LIMIT"
        again = await history.write(encode(frame(-1, {"a": {"x": 5.0, "y": 6.0}})))
        assert again.admitted.accepted == 2


@pytest.mark.parametrize(
    ("value", "at", "reasons"),
    [
        (1.0, 0, {"SERIES_LIMIT": 99}),
        (np.nan, 0, {}),
        (np.inf, 0, {"VALUE_NOT_FINITE": 99}),
        (1.0, -20 * 86_400, {"TIME_TOO_OLD": 100}),
        (1.0, 3600, {"TIME_IN_FUTURE": 100}),
    ],
    ids=["too many", "no samples", "no numbers", "too old", "in the future"],
)
async def test_names_of_what_is_not_taken_are_not_kept(tmp_path: Path, value: float, at: int, reasons: dict[str, int]):
    async with opened(tmp_path, max_series=1) as history:
        await history.write(encode(frame(0, {"known": {"known": 1.0}})))
        made_up = dict.fromkeys(map("m{:02}".format, range(99)), value)
        for servers in (("known",), ("made-up",)):
            columns = {"known": 2.0 if at else np.nan, **made_up}
            done = await history.write(encode(frame(at, dict.fromkeys(servers, columns))))
            found = {}
            for each in done.admitted.rejections:
                found[each.reason] = found.get(each.reason, 0) + each.sample_count
            assert found == reasons
            assert (done.admitted.accepted, done.admitted.rejected) == (0, sum(reasons.values()))
        assert (list(history.catalog.servers), list(history.catalog.metrics)) == (["known"], ["known"])
        done = await history.write(encode(frame(1, {"made-up": made_up, "known": {"known": 3.0}})))
        assert done.admitted.accepted == 1
        assert await raw(history) == {("known", "known"): [(0, 1.0), (1, 3.0)]}
    async with opened(tmp_path, max_series=1) as history:
        assert await raw(history) == {("known", "known"): [(0, 1.0), (1, 3.0)]}


async def test_names_whose_series_find_no_room_are_not_kept_while_there_is_some(tmp_path: Path):
    async with opened(tmp_path, max_series=3) as history:
        await history.write(encode(frame(0, {"known": {"known": 1.0}})))
        for number in range(5):  # of the first servers and the first metrics there is no series
            values = {f"s{number}-{at}": {f"m{number}-{(at + 2) % 4}": 1.0} for at in range(4)}
            await history.write(encode(frame(1 + number, values)))
        assert history.catalog.room == 0
        assert (len(history.catalog.servers), len(history.catalog.metrics)) == (3, 3)


async def test_what_is_told_of_strangers_is_not_kept(tmp_path: Path):
    infos = [ServerInfo(id=name, environment="x") for name in ("a", "made-up", *map("made-up-{}".format, range(9)))]
    metrics = [MetricInfo(name=f"m{number}") for number in range(9000)]
    async with opened(tmp_path) as history:
        await history.write(encode(frame(0, {"a": {"x": 1.0}}, server_infos=infos, metric_infos=metrics)))
        assert list(history.catalog.infos) == ["a"]
        assert len(history.catalog.metric_infos) < 5000
        (record,) = await history.log.read(Cursor(1, accepted=0))
        stored = decode_trusted(frame_pb2.Frame.FromString(bytes(record.payload)))
        assert [info.id for info in stored.server_infos] == ["a"]


async def test_new_series_are_rationed_by_the_minute_where_names_are_not_ours(tmp_path: Path):
    async with opened(tmp_path, max_new_series=2) as history:
        for minute, names, accepted in ((0, "abc", 2), (0, "abd", 2), (0, "e", 0), (60, "de", 2), (60, "abcde", 4)):
            history.clock.seconds = minute
            wire = encode(frame(0, {"s": dict.fromkeys(names, 1.0)}))
            done = await history.write(wire, rationed=True)
            assert done.admitted.accepted == accepted
            assert {each.reason for each in done.admitted.rejections} <= {"SERIES_RATE"}
        assert (await history.write(encode(frame(0, {"t": dict.fromkeys("abcde", 1.0)})))).admitted.accepted == 5


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"end": NOW - 3600 * SECOND}, InvalidArgumentError),
        ({"end": NOW - 3601 * SECOND}, InvalidArgumentError),
        ({"step": -SECOND}, InvalidArgumentError),
        ({"step": 1}, InvalidArgumentError),
        ({"step": 10**6}, ResourceExhaustedError),
        ({"start": -(2**63)}, OutOfRangeError),
        ({"group_by": "ALL"}, InvalidArgumentError),
        ({"metrics": ("",)}, InvalidArgumentError),
        ({"metrics": ("x{a",)}, InvalidArgumentError),
    ],
)
async def test_an_impossible_range_is_refused(tmp_path: Path, changes: dict, error: type[Exception]):
    async with opened(tmp_path) as history:
        with pytest.raises(error):
            await history.query_range(replace(asked(-3600, 0), **changes), 10)


async def test_a_range_older_than_what_is_kept_says_so(tmp_path: Path):
    async with opened(tmp_path) as history:
        await history.write(encode(frame(0, {"a": {"x": 1.0}})))
        answer = await history.query_range(asked(-30 * 86400, 0, step=3600 * SECOND), 10)
        assert "kept for a limited time" in answer.partial_reason


async def test_a_damaged_block_is_set_aside_and_the_rest_answers(tmp_path: Path):
    async with opened(tmp_path) as history:
        for time in (-20, -10):
            await history.write(encode(frame(time, {"a": {"x": float(time)}})))
            await history.seal()
        history.head.drop(0)
        victim = history.blocks.files[0].path
        content = bytearray(victim.read_bytes())
        content[4:400] = bytes(396)
        victim.write_bytes(content)
        assert await raw(history) == {("a", "x"): [(-10, -10.0)]}
        answer = await history.query_range(asked(-60, 0), 10)
        assert "damaged" in answer.partial_reason
        assert not victim.exists()
    async with opened(tmp_path) as history:
        assert history.blocks.quarantined == [victim.name]
        assert await raw(history) == {("a", "x"): [(-10, -10.0)]}


async def test_the_newest_samples_outlive_their_block(tmp_path: Path):
    async with opened(tmp_path) as history:
        await history.write(encode(frame(-9, {"a": {"x": 1.5}}, server_infos=(ServerInfo(id="a", role="web"),))))
        await history.seal()
    for lose_catalogue in (False, True):
        if lose_catalogue:
            (tmp_path / "catalog.parquet").unlink()
        async with opened(tmp_path) as history:
            selection = history.catalog.select((), "", ())
            times, values = history.catalog.last(selection.ids)
            assert (times.tolist(), values.tolist()) == ([NOW - 9 * SECOND], [1.5])


VALUES = [0.0, -0.0, 5e-324, 1.7976931348623157e308, 2.0**53, 2.0**53 + 2, 0.1, 1 / 3, 1e15 + 0.3, -123.456, 0.07]


@given(
    st.lists(
        st.one_of(
            st.sampled_from(VALUES),
            st.floats(allow_nan=False, allow_infinity=False),
            st.integers(-9999, 9999).map(lambda cents: cents / 100),
        ),
        min_size=6,
        max_size=6,
    )
)
@settings(max_examples=200)
def test_scaled_integers_are_used_only_where_they_give_the_double_back(values: list[float]):
    series = np.asarray(values)
    starts = np.arange(0, len(values), 2)
    scaled, exponents, exact = parquet.encode_values(series, starts)
    for at, start in enumerate(starts.tolist()):
        if exact[at]:
            back = scaled[start : start + 2] / 10.0 ** exponents[at]
            assert back.tobytes() == series[start : start + 2].tobytes()


async def test_blocks_are_plain_parquet(tmp_path: Path):
    import pyarrow.parquet as pq

    async with opened(tmp_path) as history:
        await history.write(encode(frame(-1, {"a": {"x": 12.34, "y": 1 / 3}})))
        await history.seal()
        table = pq.read_table(history.blocks.files[0].path).to_pylist()
    assert [(row["server"], row["metric"]) for row in table] == [("a", "x"), ("a", "y")]
    assert table[0]["scaled"] / 10 ** table[0]["exponent"] == 12.34
    assert table[1]["value"] == 1 / 3


async def test_the_service_s_own_positions_are_not_for_others_to_move(mesh):
    from openmanager.api.timeseries.v1 import timeseries_pb2
    from openmanager.runtime.peer import Peer

    async with Peer("timeseries", mesh.address("timeseries")) as peer:
        for name in ("head", "blocks", "registrar"):
            request = timeseries_pb2.ConfirmPositionRequest(consumer=name, position=1)
            with pytest.raises(InvalidArgumentError) as failure:
                await peer.unary(
                    "/openmanager.api.timeseries.v1.LogService/ConfirmPosition",
                    request,
                    timeseries_pb2.ConfirmPositionResponse,
                    seconds=5,
                )
            assert failure.value.field == "consumer"


async def test_a_stream_that_is_left_leaves_nothing_behind_and_loses_nothing(tmp_path: Path):
    async with opened(tmp_path) as history:

        async def requests() -> AsyncIterator[bytes]:
            for time in range(-100, 0):
                yield encode_write_request(frame(time, {"a": {"x": float(time)}}))

        acks = accepted_frames(history, pb.WriteFramesRequest, requests(), any_future=False)
        first = await anext(acks)
        await acks.aclose()
        assert first.accepted_sample_count == 1
        last = await history.write(encode(frame(1, {"a": {"x": 1.0}})))
        assert history._admitted == {}
        assert history.ledger.message(history.log).accepted_sample_count == last.position
        assert len((await raw(history))["a", "x"]) == last.position


async def test_frames_are_refused_in_order_and_those_before_are_acknowledged(tmp_path: Path):
    async with opened(tmp_path) as history:

        async def requests() -> AsyncIterator[bytes]:
            yield encode_write_request(frame(-2, {"a": {"x": 1.0}}))
            yield b"\x0a\x03abc"
            yield encode_write_request(frame(-1, {"a": {"x": 2.0}}))

        acks = accepted_frames(history, pb.WriteFramesRequest, requests(), any_future=False)
        assert (await anext(acks)).accepted_sample_count == 1
        with pytest.raises(InvalidArgumentError):
            await anext(acks)


async def test_what_was_read_before_is_read_again_without_the_file(tmp_path: Path):
    async with opened(tmp_path) as history:
        await history.write(encode(frame(0, {"a": {"x": 1.5, "y": 2.5}, "b": {"x": 3.5}})))
        await history.seal()
        history.head.drop(0)
        before = await raw(history)
        assert await raw(history) == before
        (file,) = history.blocks.files
        file.path.rename(file.path.with_suffix(".elsewhere"))
        assert await raw(history) == before == {("a", "x"): [(0, 1.5)], ("a", "y"): [(0, 2.5)], ("b", "x"): [(0, 3.5)]}
        assert (await raw(history, servers=("b",), metrics=("x",)))["b", "x"] == [(0, 3.5)]
        file.path.with_suffix(".elsewhere").rename(file.path)


async def test_an_answer_says_head_only_if_the_head_had_something(tmp_path: Path):
    async with opened(tmp_path) as history:
        await history.write(encode(frame(0, {"a": {"x": 1.0}})))
        assert [part.source for part in (await history.query_range(asked(-9, 9), 5)).parts] == ["head"]
        await history.seal()
        history.head.drop(-1)
        assert [part.source for part in (await history.query_range(asked(-9, 9), 5)).parts] == ["blocks"]


async def test_an_answer_of_many_buckets_is_not_made_on_the_event_loop(tmp_path: Path):
    async with opened(tmp_path) as history:
        await history.write(encode(frame(0, {"a": {f"m{at}": 1.0 for at in range(100)}})))
        planner = history._planner
        assert planner.is_light(planner.plan(asked(-60, 60, step=SECOND)))
        assert not planner.is_light(planner.plan(asked(-600, 600, step=SECOND)))


async def test_values_that_came_with_much_else_are_kept_without_it(tmp_path: Path):
    async with opened(tmp_path, max_series=10_000) as history:
        infos = tuple(ServerInfo(id=f"s{at}", labels={"text": "x" * 900}) for at in range(100))
        values = {"a": {f"m{at}": 1.0 for at in range(3000)}}
        await history.write(encode(frame(-1, values)))
        await history.write(encode(frame(0, values, server_infos=infos)))
        (chunk,) = history.head.generations[-1].chunks
        plain, told = chunk._ticks
        assert plain.base is not None
        assert told.base is None


async def test_bytes_are_counted_right_after_chunks_were_turned(tmp_path: Path):
    async with opened(tmp_path, max_series=10_000) as history:
        for at in range(50):
            await history.write(encode(frame(-at, {f"s{at}": {"x": 1.0}})))
        await history.seal()
        assert history.head.nbytes == sum(each.nbytes for each in history.head.generations)
        history.head.drop(-1)
        assert history.head.nbytes == 0


async def test_what_is_pending_when_history_is_closed_is_taken_in(tmp_path: Path):
    async with opened(tmp_path) as history:
        for at in range(200):
            history.begin_write(encode(frame(at - 300, {"a": {"x": 1.0}})))
    assert history.ledger.books["head"].position == history.log.state.head_position == 200
