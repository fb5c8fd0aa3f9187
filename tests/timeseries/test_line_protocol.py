from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from influxdb_client import Point
from openmanager_timeseries.line_protocol import (
    LineEncoder,
    attribute_name,
    attribute_value,
    attributes_of,
    split,
    tag_name,
    tag_value,
    tags_of,
)
from openmanager_timeseries.line_reader import MAX_ERRORS, Parsed, parse

from openmanager.errors import InvalidArgumentError
from openmanager.frame import Frame, ServerInfo
from openmanager.metric import check_key, make_key, parse_key

START = 1_700_000_000 * 10**9
SECOND = 10**9
NONE = math.nan

# A line: measurement, tags, fields with the bits of their values, time as it stands there.
Line = tuple[str, frozenset[tuple[str, str]], frozenset[tuple[str, bytes]], int]


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


class LineReader:
    """Reads lines by the specification, one character at a time; `pairs` is how VictoriaMetrics sees backslashes.

    InfluxDB takes `,`, `=` and space for escaped after a backslash whatever is before that, and keeps other backslashes;
    VictoriaMetrics takes two backslashes for one.
    """

    def __init__(self, *, pairs: bool) -> None:
        self.pairs = pairs

    def read(self, data: bytes) -> list[Line]:
        text = data.decode()
        assert not text or text.endswith("\n")
        return [self.line(line) for line in text.split("\n")[:-1]]

    def line(self, line: str) -> Line:
        head, fields, time = self.cut(line, " ")
        measurement, *tags = self.cut(head, ",")
        named = [self.pair(tag) for tag in tags]
        assert [name for name, _ in named] == sorted({name for name, _ in named}), (
            "tags are not sorted, or one is twice"
        )
        assert all(name and value for name, value in named)
        values = [self.pair(field) for field in self.cut(fields, ",")]
        return (
            self.plain(measurement),
            frozenset((self.plain(name), self.plain(value)) for name, value in named),
            frozenset((self.plain(name), bits(float(value))) for name, value in values),
            int(time),
        )

    def pair(self, text: str) -> tuple[str, str]:
        name, value = self.cut(text, "=")
        return name, value

    def cut(self, text: str, sign: str) -> list[str]:
        parts, begin, escaped = [], 0, False
        for at, character in enumerate(text):
            if character == sign and not escaped:
                parts.append(text[begin:at])
                begin = at + 1
            escaped = character == "\\" and not (escaped and self.pairs)
        return [*parts, text[begin:]]

    def plain(self, text: str) -> str:
        out, at = [], 0
        while at < len(text):
            at += text[at] == "\\" and text[at + 1 : at + 2] in (
                {",", "=", " ", "\\"} if self.pairs else {",", "=", " "}
            )
            out.append(text[at])
            at += 1
        return "".join(out)


def make_frame(
    values: Sequence, metrics: Sequence[str], servers: Sequence[str] = (), times: Sequence[int] = ()
) -> Frame:
    """Return a frame of values [T][S][M]."""
    array = np.asarray(values, np.float64)
    return Frame(
        times=np.asarray(times or [START + tick * SECOND for tick in range(len(array))], np.int64),
        servers=tuple(servers) or tuple(f"s{row}" for row in range(array.shape[1])),
        metrics=tuple(metrics),
        values=array,
    )


def unknown(server: str) -> ServerInfo:
    return ServerInfo(id=server)


def points(frames: Sequence[Frame], info_of=unknown) -> list[Point]:
    """Return what influxdb-client would write of frames: a point per time, server and attributes with a sample."""
    found = {}
    for frame in frames:
        for tick, server, column in np.argwhere(np.isfinite(frame.values)).tolist():
            name, attributes = parse_key(frame.metrics[column])
            key = (id(frame), tick, server, attributes)
            if key not in found:
                info = info_of(frame.servers[server])
                point = Point("server_metrics").tag("server_id", info.id).time(int(frame.times[tick]) // 10**6, "ms")
                for tag, text in (("environment", info.environment), ("role", info.role)):
                    if text:
                        point.tag(tag, tag_value(text))
                for attribute, value in attributes:
                    point.tag(tag_name(attribute), tag_value(value))
                found[key] = point
            found[key].field(name, float(frame.values[tick, server, column]))
    return list(found.values())


def point_lines(frames: Sequence[Frame], info_of=unknown) -> list[Line]:
    text = "".join(f"{point.to_line_protocol()}\n" for point in points(frames, info_of))
    return [_unsorted(line) for line in text.split("\n")[:-1]]


def _unsorted(line: str) -> Line:
    """Read a line of Point's, which sorts tags before it escapes them."""
    reader = LineReader(pairs=False)
    head, fields, time = reader.cut(line, " ")
    measurement, *tags = reader.cut(head, ",")
    return reader.line(
        f"{','.join((measurement, *sorted(tags, key=lambda tag: reader.cut(tag, '=')[0])))} {fields} {time}"
    )


# Everything that admission lets through, and more of what is special.
SPECIAL = "\\, ={}\"'⧹∅01#"
letters = st.one_of(
    st.sampled_from(SPECIAL),
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\u2028\u2029"),
)
texts = st.text(letters, max_size=8)
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.:/-]{0,8}", fullmatch=True)
attribute_names = st.one_of(
    st.text(letters, min_size=1, max_size=6),
    st.sampled_from(["server_id", "environment", "role", "location", "hostname", "host", "a", "z"]),
)
doubles = st.floats(allow_nan=True, allow_infinity=False)


def admitted(key: str) -> bool:
    try:
        check_key(key)
    except InvalidArgumentError:
        return False
    return True


keys = st.builds(make_key, names, st.dictionaries(attribute_names, texts, max_size=3)).filter(admitted)
infos = st.builds(lambda environment, role: (environment, role), texts, texts)


@st.composite
def frames(draw) -> Frame:
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5)))
    metrics = draw(st.lists(keys, min_size=shape[2], max_size=shape[2], unique=True))
    values = draw(st.lists(doubles, min_size=math.prod(shape), max_size=math.prod(shape)))
    step = draw(st.integers(1, 10**12))
    return make_frame(
        np.reshape(values, shape), metrics, times=[START + tick * step * 10**6 for tick in range(shape[0])]
    )


def expected_lines(given_frames: Sequence[Frame], info_of=unknown) -> set[Line]:
    lines: dict[tuple, set] = {}
    for frame in given_frames:
        for tick, server, column in np.argwhere(np.isfinite(frame.values)).tolist():
            name, attributes = parse_key(frame.metrics[column])
            info = info_of(frame.servers[server])
            tags = {**tags_of(attributes), "server_id": info.id}
            tags |= {
                tag: tag_value(text) for tag, text in (("environment", info.environment), ("role", info.role)) if text
            }
            line = (frozenset(tags.items()), int(frame.times[tick]) // 10**6)
            lines.setdefault(line, set()).add((name, bits(float(frame.values[tick, server, column]))))
    return {("server_metrics", tags, frozenset(fields), time) for (tags, time), fields in lines.items()}


@given(frames(), infos)
@settings(max_examples=300)
@example(make_frame([[[1.0, 2.0]]], ["x{a=b\\\\}", "x{a=\\\\\\\\\\,}"]), ("prod\\", "a b"))
def test_each_reader_finds_in_the_lines_what_the_frame_holds(frame: Frame, about: tuple[str, str]):
    def info_of(server: str) -> ServerInfo:
        return ServerInfo(id=server, environment=about[0], role=about[1])

    data = LineEncoder().encode([frame], info_of)
    expected = expected_lines([frame], info_of)
    for pairs in (False, True):
        lines = LineReader(pairs=pairs).read(data)
        assert expected == set(lines)
        assert len(expected) == len(lines)


@given(frames(), infos)
@settings(max_examples=200)
def test_the_lines_say_what_influxdb_client_would_write(frame: Frame, about: tuple[str, str]):
    def info_of(server: str) -> ServerInfo:
        return ServerInfo(id=server, environment=about[0], role=about[1])

    lines = LineReader(pairs=False).read(LineEncoder().encode([frame], info_of))
    assert Counter(point_lines([frame], info_of)) == Counter(lines)


@given(st.dictionaries(attribute_names, texts, max_size=5))
@settings(max_examples=300)
def test_attributes_come_back_from_their_tags(attributes: dict[str, str]):
    tags = tags_of(attributes.items())
    assert attributes == attributes_of(tags)
    assert not any("\\" in text for pair in tags.items() for text in pair)
    assert all(tags.values())
    assert len(attributes) == len(tags)


@given(texts)
@settings(max_examples=200)
def test_names_and_values_come_back_one_by_one(text: str):
    assert text == attribute_value(tag_value(text))
    assert text == attribute_name(tag_name(text))


def test_a_server_s_tags_are_never_an_attribute_s():
    frame = make_frame([[[1.0]]], ["x{environment=e,hostname=h,location=l,role=r,server_id=i}"])
    data = LineEncoder().encode([frame], lambda server: ServerInfo(id=server, environment="prod", role="db"))
    assert data == (
        b"server_metrics,environment=prod,om_attr_environment=e,om_attr_hostname=h,om_attr_location=l,om_attr_role=r,"
        b"om_attr_server_id=i,role=db,server_id=s0 x=1.0 1700000000000\n"
    )


def test_metrics_with_the_same_attributes_share_a_line():
    frame = make_frame(
        [[[1.0, 2.0, 3.0, 4.0], [5.0, NONE, NONE, 8.0]], [[NONE, 9.0, NONE, NONE], [NONE, NONE, NONE, NONE]]],
        ["a", "b{zone=1}", "c", "d{zone=1}"],
    )
    assert LineEncoder().encode([frame], unknown) == (
        b"server_metrics,server_id=s0 a=1.0,c=3.0 1700000000000\n"
        b"server_metrics,server_id=s0,zone=1 b=2.0,d=4.0 1700000000000\n"
        b"server_metrics,server_id=s1 a=5.0 1700000000000\n"
        b"server_metrics,server_id=s1,zone=1 d=8.0 1700000000000\n"
        b"server_metrics,server_id=s0,zone=1 b=9.0 1700000001000\n"
    )


EXTREMES = [
    0.0,
    -0.0,
    5e-324,
    -5e-324,
    2.2250738585072014e-308,
    1.7976931348623157e308,
    -1.7976931348623157e308,
    2.0**53 + 2,
    2.0**63,
    1e16,
    1e22,
    1e23,
    0.1 + 0.2,
    1 / 3,
    1e-7,
    -1.5,
    100.0,
]


def test_every_double_is_read_back_bit_for_bit():
    frame = make_frame([[EXTREMES]], [f"m{at}" for at in range(len(EXTREMES))])
    ((_, _, fields, _),) = LineReader(pairs=False).read(LineEncoder().encode([frame], unknown))
    assert {(f"m{at}", bits(value)) for at, value in enumerate(EXTREMES)} == fields


def test_what_is_not_finite_is_no_sample():
    frame = make_frame([[[math.inf, 1.0, -math.inf, NONE]]], ["a", "b", "c", "d"])
    assert LineEncoder().encode([frame], unknown) == b"server_metrics,server_id=s0 b=1.0 1700000000000\n"


@pytest.mark.parametrize("shape", [(0, 2, 2), (2, 0, 2), (2, 2, 0), (1, 2, 2)])
def test_without_a_sample_there_is_no_line(shape: tuple[int, int, int]):
    frame = make_frame(np.full(shape, NONE), [f"m{at}" for at in range(shape[2])])
    assert LineEncoder().encode([frame], unknown) == b""
    assert LineEncoder().encode([], unknown) == b""


def test_times_of_any_number_of_digits_are_milliseconds():
    times = [946_684_800_000, 999_999_999_999, 1_000_000_000_000, 7_258_118_400_000]
    frame = make_frame([[[1.0]]] * 4, ["x"], times=[time * 10**6 for time in times])
    assert times == [line[3] for line in LineReader(pairs=False).read(LineEncoder().encode([frame], unknown))]


@pytest.mark.parametrize("shape", [(400, 3, 40), (2, 700, 60), (1, 2, 40_000), (40_000, 1, 1)])
@pytest.mark.parametrize("gaps", [0.0, 0.3])
def test_a_large_frame_comes_out_whole_and_in_order(shape: tuple[int, int, int], gaps: float):
    generator = np.random.default_rng(1)
    values = generator.uniform(-100, 100, shape)
    values[generator.random(shape) < gaps] = np.nan
    frame = make_frame(values, [f"m{at}{{set={at % 3}}}" for at in range(shape[2])])
    found = parse(LineEncoder().encode([frame], unknown), precision="ms")
    samples = found.samples
    dense = np.full(shape, np.nan)
    ticks = (samples.times - START) // SECOND
    rows = np.asarray([int(server[1:]) for server in samples.servers])[samples.server_codes]
    place = {key: column for column, key in enumerate(frame.metrics)}
    columns = np.asarray([place[key] for key in samples.metrics])[samples.metric_codes]
    dense[ticks, rows, columns] = samples.values
    assert np.array_equal(values, dense, equal_nan=True)
    assert (found.error_count, found.text_count, found.repeated_count) == (0, 0, 0)


def test_one_encoder_writes_what_a_new_one_would_whatever_it_wrote_before():
    generator = np.random.default_rng(2)
    encoder = LineEncoder(capacity=50)
    about = {
        "s0": ServerInfo(id="s0", role="db"),
        "s1": ServerInfo(id="s1"),
        "s2": ServerInfo(id="s2", environment="e"),
    }
    for _ in range(200):
        shape = (int(generator.integers(1, 4)), int(generator.integers(1, 4)), int(generator.integers(1, 12)))
        values = generator.normal(size=shape)
        values[generator.random(shape) < generator.choice([0.0, 0.1])] = np.nan
        frame = make_frame(values, [f"m{at}{{set={at % 3}}}" for at in range(shape[2])])
        about["s1"] = ServerInfo(id="s1", role=str(generator.choice(["", "db", "web"])))
        assert LineEncoder().encode([frame, frame], about.__getitem__) == encoder.encode(
            [frame, frame], about.__getitem__
        )
    assert encoder._remembered <= 50
    assert encoder._remembered == sum(layout.size for layout in encoder._layouts.values())


def test_another_measurement_is_escaped():
    frame = make_frame([[[1.0]]], ["x"])
    data = LineEncoder("own name,=").encode([frame], unknown)
    assert data == b"own\\ name\\,=,server_id=s0 x=1.0 1700000000000\n"
    assert tuple(parse(data, precision="ms").samples.metrics) == ("own_name__.x",)


@given(st.lists(st.text("ab", max_size=12), max_size=20), st.integers(1, 40))
@settings(max_examples=200)
def test_pieces_end_where_lines_end(lines: list[str], limit: int):
    data = "".join(f"{line}\n" for line in lines).encode()
    pieces = list(split(data, limit))
    assert data == b"".join(pieces)
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert all(len(piece) <= limit or piece.count(b"\n") == 1 for piece in pieces)


@given(frames(), infos)
@settings(max_examples=200)
def test_what_was_written_is_read_back(frame: Frame, about: tuple[str, str]):
    info = {server: ServerInfo(id=server, environment=about[0], role=about[1]) for server in frame.servers}
    found = parse(LineEncoder().encode([frame], info.__getitem__), precision="ms")
    places = np.argwhere(np.isfinite(frame.values)).tolist()
    assert found.errors == ()
    assert {
        (frame.servers[server], frame.metrics[column], int(frame.times[tick]), bits(frame.values[tick, server, column]))
        for tick, server, column in places
    } == {(server, metric, time, bits(value)) for server, metric, time, value in rows_of(found)}
    assert len(places) == len(found.samples.values)
    assert {server: info[server] for server in found.samples.servers} == {found.id: found for found in found.infos}


def rows_of(found: Parsed) -> list[tuple[str, str, int, float]]:
    samples = found.samples
    return [
        (samples.servers[server], samples.metrics[metric], time, value)
        for server, metric, time, value in zip(
            samples.server_codes.tolist(),
            samples.metric_codes.tolist(),
            samples.times.tolist(),
            samples.values.tolist(),
            strict=True,
        )
    ]


def test_a_foreign_file_becomes_metrics_of_its_hosts():
    found = parse(
        b"# telegraf\n"
        b"\n"
        b"cpu,host=Web-1,cpu=cpu0 usage_idle=99.5,usage_user=1i 1700000000000000000\r\n"
        b"  disk,host=web-1,path=/var/log\\ a,om_x=1 free=18446744073709551615u,full=f 1700000000000999999\n"
        b"9\\ in\xe2\x82\xacut,hostname=h,host=db,location=Ulm a\\ b=.5,ok=T 1700000001000000000\n"
    )
    assert sorted(rows_of(found)) == [
        ("db", "_9_in_ut.a_b", START + SECOND, 0.5),
        ("db", "_9_in_ut.ok", START + SECOND, 1.0),
        ("web-1", "cpu.usage_idle{cpu=cpu0}", START, 99.5),
        ("web-1", "cpu.usage_user{cpu=cpu0}", START, 1.0),
        ("web-1", "disk.free{path=/var/log a,tag_om_x=1}", START, 18446744073709551615.0),
        ("web-1", "disk.full{path=/var/log a,tag_om_x=1}", START, 0.0),
    ]
    assert (ServerInfo(id="web-1"), ServerInfo(id="db", hostname="h", location="Ulm")) == found.infos
    assert found.errors == ()


def test_texts_are_skipped_and_counted_whatever_is_in_them():
    found = parse(
        b'log,host=a text="x, y=1 \\" 2",n=1 1700000000\n'
        b'log,host=a n=2,text="over\nlines, z=3 1\nand more" 1700000001\n'
        b'log,host=a,size=5" n=3,text="\\\\" 1700000002\n',
        precision="s",
    )
    assert sorted(found.samples.values.tolist()) == [1.0, 2.0, 3.0]
    assert (found.text_count, found.errors) == (3, ())
    assert {"log.n", 'log.n{size=5"}'} == set(found.samples.metrics)


def test_a_later_sample_of_a_series_and_time_counts():
    found = parse(b"x,host=a v=1 2000\nx,host=a v=2 1000\nx,host=a v=3 2000\nx,host=a v=4,v=5 2000\n", precision="us")
    assert rows_of(found) == [("a", "x.v", 10**6, 2.0), ("a", "x.v", 2 * 10**6, 5.0)]
    assert found.repeated_count == 3


@pytest.mark.parametrize(("precision", "nanos"), [("s", 10**9), ("ms", 10**6), ("us", 10**3), ("ns", 1)])
def test_times_are_read_in_their_precision(precision: str, nanos: int):
    found = parse(b"x,host=a v=1 %d\nx,host=a v=2 -%d\n" % (START // nanos, START // nanos), precision=precision)
    assert found.samples.times.tolist() == [-START, START]


def test_an_unknown_precision_is_refused():
    with pytest.raises(InvalidArgumentError, match="precision is none of s, ms, us, ns"):
        parse(b"", precision="h")


@pytest.mark.parametrize(
    "line",
    [
        b"x",
        b"x v=1 1",
        b"x,host=a 1",
        b"x,host=a v=1",
        b"x,host=a v= 1",
        b"x,host=a v 1",
        b"x,host=a =1 1",
        b"x,host=a v=1, 1",
        b"x,host=a v=1 1 1",
        b"x,host=a v=nan 1",
        b"x,host=a v=inf 1",
        b"x,host=a v=1e999 1",
        b"x,host=a v=1_0 1",
        b"x,host=a v=\xd9\xa1 1",
        b"x,host=a v=1 1.5",
        b"x,host=a v=1 99999999999999999999",
        b"x,host=a v=1 9223372036854775808",
        b"x,host=a,b v=1 1",
        b"x,host=a,b= v=1 1",
        b"x,host=a,=b v=1 1",
        b"x,host=a,b=c=d v=1 1",
        b"x,host=a,host=b v=1 1",
        b"x,host=/ v=1 1",
        b"x,host=a,b=\xff v=1 1",
        b"x,host=a,b=\x01 v=1 1",
        b",host=a v=1 1",
        b'x,host=a v="open 1',
        b'x,host=a v="a"b 1',
        b'x,host=a v="a"',
        b'x,host=a\\ v="a" 1',
        b"server_metrics,server_id=a 9=1 1",
        b"server_metrics,server_id=a,om_x=1 v=1 1",
        b"server_metrics,server_id=a time=1 1",
    ],
)
def test_a_malformed_line_is_told_by_its_number_and_the_others_are_read(line: bytes):
    found = parse(b"x,host=a v=1 1000000\n" + line + b"\n\nx,host=b v=2 1000000\n", first_line=11)
    assert [error.line for error in found.errors] == [12]
    assert found.error_count == 1
    assert rows_of(found) == [("a", "x.v", 10**6, 1.0), ("b", "x.v", 10**6, 2.0)]


def test_of_many_errors_the_first_are_told():
    found = parse(b"x\n" * 1000)
    assert found.error_count == 1000
    assert list(range(1, MAX_ERRORS + 1)) == [error.line for error in found.errors]
    assert rows_of(found) == []


def test_no_line_is_no_sample():
    found = parse(b"")
    assert (rows_of(found), found.infos, found.error_count) == ([], (), 0)


@given(st.binary(max_size=60))
@settings(max_examples=500)
def test_any_bytes_are_read_or_told(data: bytes):
    found = parse(b"x,host=a v=1 1\n" + data)
    assert len(found.samples.values) >= 1 or found.error_count


@given(st.lists(st.sampled_from(['"', "\\", " ", ",", "=", "x", "host=a", "v=1", "\n", "1", "i"]), max_size=30))
@settings(max_examples=500)
def test_any_mixture_of_what_is_special_is_read_or_told(parts: list[str]):
    found = parse(f"x,host=a v=1 1\n\n{''.join(parts)}".encode())
    assert "a" in found.samples.servers
