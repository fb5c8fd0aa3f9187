from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from openmanager.api.frame.v1 import frame_pb2
from openmanager.errors import InvalidArgumentError, OpenManagerError, OutOfRangeError
from openmanager.frame import (
    Frame,
    FrameReader,
    MetricInfo,
    ServerInfo,
    decode,
    encode,
    encode_names,
    length_delimited,
    split,
)

START = 1_700_000_000_000_000_000
MILLI = 1_000_000


def same(left: Frame, right: Frame) -> bool:
    return (
        np.array_equal(left.times, right.times)
        and left.servers == right.servers
        and left.metrics == right.metrics
        and left.values.tobytes() == right.values.tobytes()
        and left.server_infos == right.server_infos
        and left.metric_infos == right.metric_infos
    )


names = st.lists(st.from_regex(r"[a-z0-9][a-z0-9._:-]{0,20}", fullmatch=True), min_size=1, max_size=5, unique=True)
keys = st.lists(
    st.from_regex(r"[a-z][a-z.]{0,10}(\{a=[a-z\"*é€]{0,5}(,b=[0-9]{1,3})?\})?", fullmatch=True),
    min_size=1,
    max_size=5,
    unique=True,
)


@st.composite
def frames(draw):
    servers, metrics = draw(names), draw(keys)
    times = draw(st.integers(1, 4))
    size = times * len(servers) * len(metrics)
    values = draw(st.lists(st.floats(width=64), min_size=size, max_size=size))
    infos = (ServerInfo(id=servers[0], role="web", labels={"a": "b"}),) if draw(st.booleans()) else ()
    about = (MetricInfo(name="m", unit="By", kind=1),) if draw(st.booleans()) else ()
    return Frame(
        times=START + np.arange(times, dtype=np.int64) * MILLI,
        servers=tuple(servers),
        metrics=tuple(metrics),
        values=np.array(values, np.float64).reshape(times, len(servers), len(metrics)),
        server_infos=infos,
        metric_infos=about,
    )


@given(frames())
@settings(max_examples=100)
def test_what_is_written_by_hand_is_what_protobuf_writes(frame: Frame):
    wire = encode(frame)
    message = frame_pb2.Frame.FromString(wire)
    assert message.SerializeToString(deterministic=True) == wire


@given(frames())
@settings(max_examples=100)
def test_the_reader_gives_what_protobuf_gives_the_first_time_and_every_time(frame: Frame):
    try:
        expected = decode(frame_pb2.Frame.FromString(encode(frame)))
    except InvalidArgumentError:
        return  # a reserved or repeated name
    reader = FrameReader()
    for _ in range(3):
        found, exact = reader.read(encode(frame))
        assert same(found, expected)
        assert exact


@given(frames(), st.binary(max_size=30), st.integers(0, 400))
@settings(max_examples=150)
def test_a_damaged_frame_is_read_as_protobuf_reads_it(frame: Frame, noise: bytes, at: int):
    wire = encode(frame)
    reader = FrameReader()
    try:
        for _ in range(2):  # so that it knows the names, and where they stand
            reader.read(wire)
    except InvalidArgumentError:
        return
    at %= len(wire) + 1
    for damaged in (wire[:at] + noise + wire[at:], wire[:at] + noise + wire[at + len(noise) :], wire + wire, wire[:at]):
        message = frame_pb2.Frame()
        try:
            message.ParseFromString(damaged)
            expected = decode(message)
        except (DecodeError, InvalidArgumentError, OutOfRangeError):
            with pytest.raises((InvalidArgumentError, OutOfRangeError)):
                reader.read(damaged)
        else:
            assert same(reader.read(damaged)[0], expected)


def test_values_in_several_chunks_are_joined():
    frame = Frame(
        times=np.array([START]), servers=("a",), metrics=("x", "y"), values=np.array([1.0, 2.0]).reshape(1, 1, 2)
    )
    whole = encode(frame)
    halves = b"".join(
        encode(Frame(times=np.array([START])[:0], servers=(), metrics=(), values=np.array([v]).reshape(1, 1, 1)))
        for v in (1.0, 2.0)
    )
    head = whole[: whole.rindex(b"\x22")]
    reader = FrameReader()
    reader.read(whole)
    assert reader.read(head + halves)[0].values.ravel().tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"servers": ["a", "a"]}, "frame.servers"),
        ({"servers": ["a", "A"]}, "frame.servers"),
        ({"servers": ["", "b"]}, "frame.servers"),
        ({"servers": ["../x", "b"]}, "frame.servers"),
        ({"servers": ["x" * 256, "b"]}, "frame.servers"),
        ({"servers": ["a\n", "b"]}, "frame.servers"),
        ({"metrics": ["x", "x"]}, "frame.metrics"),
        ({"metrics": ["", "y"]}, "frame.metrics"),
        ({"metrics": ["time", "y"]}, "frame.metrics"),
        ({"metrics": ["x{", "y"]}, "frame.metrics"),
        ({"metrics": ["x{b=1,a=2}", "y"]}, "frame.metrics"),
        ({"metrics": ["x{a=1,a=2}", "y"]}, "frame.metrics"),
        ({"metrics": ["x{x=1}", "y"]}, "frame.metrics"),
        ({"metrics": ["x\0", "y"]}, "frame.metrics"),
        ({"metrics": ["${jndi:x}", "y"]}, "frame.metrics"),
        ({"metrics": ["x" * 600, "y"]}, "frame.metrics"),
        ({"values": [1.0, 2.0, 3.0]}, "frame.values"),
        ({"values": []}, "frame.values"),
        ({"time_unix_nanos": []}, "frame.values"),
        ({"time_unix_nanos": [START, START]}, "frame.values"),
        ({"server_infos": [frame_pb2.ServerInfo()]}, "frame.server_infos.id"),
        ({"server_infos": [frame_pb2.ServerInfo(id="a", role="x" * 51)]}, "frame.server_infos.role"),
        ({"server_infos": [frame_pb2.ServerInfo(id="a", labels={"": "x"})]}, "frame.server_infos.labels"),
        ({"metric_infos": [frame_pb2.MetricInfo()]}, "frame.metric_infos.name"),
    ],
)
def test_a_malformed_frame_names_its_field(change: dict, field: str):
    good = {"time_unix_nanos": [START], "servers": ["a", "b"], "metrics": ["x", "y"], "values": [1.0, 2.0, 3.0, 4.0]}
    with pytest.raises(InvalidArgumentError) as failure:
        decode(frame_pb2.Frame(**{**good, **change}))
    assert failure.value.field == field


@pytest.mark.parametrize(
    ("time", "hint"),
    [(1_700_000_000, "seconds"), (1_700_000_000_000, "milliseconds"), (0, ""), (-1, ""), (2**63 - 1, "")],
)
def test_a_time_no_clock_shows_is_out_of_range_with_a_hint(time: int, hint: str):
    with pytest.raises(OutOfRangeError) as failure:
        decode(frame_pb2.Frame(time_unix_nanos=[time], servers=["a"], metrics=["x"], values=[1.0]))
    assert hint in failure.value.message


def test_times_are_cut_to_whole_milliseconds_and_ids_lower_cased():
    message = frame_pb2.Frame(time_unix_nanos=[START + 999_999], servers=["A"], metrics=["x"], values=[1.0])
    for _ in range(2):
        frame, exact = FrameReader().read(message.SerializeToString())
        assert (frame.times.tolist(), frame.servers, exact) == ([START], ("a",), False)


def test_names_are_remembered_up_to_a_size():
    """Else whoever makes up names enough would fill the memory."""
    reader = FrameReader(capacity_bytes=10_000)
    for at in range(50):
        metrics = tuple(f"m{at}.{each}" for each in range(100))
        made = Frame(times=np.array([10**18]), servers=("a",), metrics=metrics, values=np.ones((1, 1, 100)))
        read, _ = reader.read(encode(made))
        assert read.metrics == metrics
        assert sum(map(len, reader._names)) <= 10_000
    assert reader._names


def test_where_names_stand_is_remembered_of_so_many_lengths():
    reader = FrameReader()
    for count in range(1, 200):
        times = 10**18 + 10**6 * np.arange(count)
        made = encode(Frame(times=times, servers=("a",), metrics=("x",), values=np.ones((count, 1, 1))))
        for wire in (made, made, memoryview(made)):
            assert len(reader.read(wire)[0].times) == count
        assert len(made) in reader._outlines
        assert len(reader._outlines) <= 64


def test_long_tuples_of_names_are_not_remembered():
    long = tuple(f"m{each}" for each in range(1001))
    for names in (long, long[:100]):
        assert encode_names(3, names) == b"".join(length_delimited(3, name.encode()) for name in names)
    assert encode_names(3, long) is not encode_names(3, long)
    assert encode_names(3, long[:100]) is encode_names(3, long[:100])


def test_an_empty_frame_has_no_samples():
    assert decode(frame_pb2.Frame()).sample_count == 0


def test_a_large_frame_is_split_into_parts_with_the_same_samples():
    servers = tuple(f"s{i}" for i in range(64))
    frame = Frame(
        times=START + np.arange(4, dtype=np.int64) * MILLI,
        servers=servers,
        metrics=tuple(f"m{i}" for i in range(50)),
        values=np.arange(4 * 64 * 50, dtype=np.float64).reshape(4, 64, 50),
        server_infos=tuple(ServerInfo(id=server) for server in servers),
    )
    parts = split(frame, 20_000)
    assert all(len(encode(part)) <= 20_000 for part in parts)
    assert sum(part.values.size for part in parts) == frame.values.size
    assert np.array_equal(np.sort(np.concatenate([part.values.ravel() for part in parts])), frame.values.ravel())


@pytest.mark.parametrize(
    "wire", [b"\x0a\x00\x22\x08" + bytes(8), b"\x0a\x08" + bytes(8) + b"\x12\x7f" + b'"' * 200_000]
)
def test_bytes_in_a_form_like_that_of_a_frame_are_refused_quickly(wire: bytes):
    for form in (wire, memoryview(wire)):
        start = time.monotonic()
        with pytest.raises(OpenManagerError):
            FrameReader().read(form)
        assert time.monotonic() - start < 1.0


def test_whole_numbers_are_written_as_what_they_are_and_other_things_refused():
    frame = Frame(times=np.array([START]), servers=("a",), metrics=("m",), values=np.array([[[95]]], np.int64))
    assert decode(frame_pb2.Frame.FromString(encode(frame))).values.tolist() == [[[95.0]]]
    for wrong, field in (
        (replace(frame, times=np.array([7.5])), "frame.times"),
        (replace(frame, values=np.array([[["95"]]])), "frame.values"),
    ):
        with pytest.raises(InvalidArgumentError) as failure:
            encode(wrong)
        assert failure.value.field == field
