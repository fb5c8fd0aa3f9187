"""Frames: samples of S servers and M metrics at T times, as numpy arrays, and their wire form.

The wire form is that of `openmanager.api.frame.v1.Frame`. Reading goes through protobuf, whose repeated fields hand
numpy a copy at memcpy speed; writing is framed by hand, because protobuf takes packed values only one Python object
at a time: a fixed-width packed field *is* the little-endian array.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from itertools import compress, islice
from typing import Any, ParamSpec, TypeVar

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from openmanager.api.frame.v1 import frame_pb2
from openmanager.errors import InvalidArgumentError, OutOfRangeError, Reason, invalid, missing
from openmanager.metric import check_key
from openmanager.runtime import validate

P = ParamSpec("P")
T = TypeVar("T")
N = TypeVar("N", bound=np.generic)

MAX_FRAME_BYTES = 4 * 1024 * 1024 - 1024
NANOS_PER_MILLI = 1_000_000
MAX_SERVER_ID = 255
MAX_LABELS = 64
MAX_LABEL_BYTES = 1024

# Before this, a time is not a late sample but a wrong unit or an unset clock (2000-01-01T00:00:00Z).
EARLIEST_PLAUSIBLE_NANOS = 946_684_800 * 10**9
# A wrong unit the other way round; far beyond any clock (2200-01-01T00:00:00Z).
LATEST_PLAUSIBLE_NANOS = 7_258_118_400 * 10**9

# Of tuples of names: how many are remembered, and how long they may be.
_REMEMBERED, _REMEMBERED_NAMES = 256, 1000
# How many outlines of frames a reader remembers, and how long they may be.
_OUTLINES, _OUTLINE_BYTES = 64, 1 << 16
_SERVER_ID = re.compile(r"[a-z0-9][a-z0-9._:-]*")
# The byte is also the length of a name of 34 characters: after so many of them it is for protobuf to look.
_MAX_CANDIDATES = 1000
_VALUES_TAG = re.compile(rb"\x22")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")
_INFO_LIMITS = {"hostname": 255, "environment": 50, "role": 50, "location": 100}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What a producer knows of a server; empty means unknown."""

    id: str
    hostname: str = ""
    environment: str = ""
    role: str = ""
    location: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricInfo:
    """What a producer knows of a metric; `kind` and `temporality` are the numbers of the proto enums."""

    name: str
    unit: str = ""
    kind: int = 0
    temporality: int = 0
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """Samples of S servers and M metrics at T times.

    `times`: int64[T], nanoseconds since the epoch in whole milliseconds, strictly increasing.
    `values`: float64[T, S, M], NaN where there is no sample.
    """

    times: NDArray[np.int64]
    servers: tuple[str, ...]
    metrics: tuple[str, ...]
    values: NDArray[np.float64]
    server_infos: tuple[ServerInfo, ...] = ()
    metric_infos: tuple[MetricInfo, ...] = ()

    @property
    def sample_count(self) -> int:
        """The number of non-NaN values."""
        return int(self.values.size - np.count_nonzero(np.isnan(self.values)))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def length_delimited(number: int, payload: bytes | memoryview) -> bytes:
    """Return a length-delimited protobuf field: tag, length, payload."""
    return b"".join((_varint(number << 3 | 2), _varint(len(payload)), payload))


def _remembered(function: Callable[P, T]) -> Callable[P, T]:
    """Remember what a function gives for a tuple of names, its last argument, unless it is a long one.

    Memory for whatever names come would be as large as whoever makes them up wants.
    """
    remembering = lru_cache(maxsize=_REMEMBERED)(function)

    @wraps(function)
    def call(*args: P.args, **more: P.kwargs) -> T:
        return (remembering if len(args[-1]) <= _REMEMBERED_NAMES else function)(*args, **more)  # type: ignore[arg-type]

    return call


@_remembered
def encode_names(number: int, names: tuple[str, ...]) -> bytes:
    """Return a repeated string field on the wire."""
    return b"".join(length_delimited(number, name.encode()) for name in names)


def packed(number: int, array: NDArray[np.int64] | NDArray[np.float64]) -> bytes:
    """Return a packed repeated sfixed64 or double field: tag, length, little-endian values; nothing when empty."""
    return b"".join(_packed(number, array))


def _packed(number: int, array: NDArray[np.int64] | NDArray[np.float64]) -> tuple[bytes | memoryview, ...]:
    """Return the parts of a packed field, to be joined with others: values are copied once then."""
    if array.size == 0:
        return ()
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return _varint(number << 3 | 2), _varint(little.nbytes), little.data.cast("B")


def encode(frame: Frame) -> bytes:
    """Return the wire form of a frame, equal to what protobuf would write.

    Whole or shorter numbers become what a frame holds; InvalidArgumentError for arrays of anything else.
    """
    parts = [
        *_packed(1, _as(frame.times, np.int64, "frame.times")),
        encode_names(2, frame.servers),
        encode_names(3, frame.metrics),
        *_packed(4, _as(frame.values, np.float64, "frame.values")),
    ]
    parts.extend(length_delimited(5, info_message(info).SerializeToString()) for info in frame.server_infos)
    parts.extend(length_delimited(6, metric_message(info).SerializeToString()) for info in frame.metric_infos)
    return b"".join(parts)


def _as(array: NDArray[Any], kind: type[N], field: str) -> NDArray[N]:
    try:
        return array.astype(kind, casting="same_kind", copy=False)
    except TypeError as err:
        raise invalid(field, f"must be of {kind.__name__}, and not of {array.dtype}") from err


def encode_write_request(frame: Frame) -> bytes:
    """Return the wire form of a WriteFrame[s]Request that holds the frame."""
    return length_delimited(1, encode(frame))


def info_message(info: ServerInfo) -> frame_pb2.ServerInfo:
    """Return the message of a server info."""
    return frame_pb2.ServerInfo(
        id=info.id,
        hostname=info.hostname,
        environment=info.environment,
        role=info.role,
        location=info.location,
        labels=dict(info.labels),
    )


def metric_message(info: MetricInfo) -> frame_pb2.MetricInfo:
    """Return the message of a metric info."""
    return frame_pb2.MetricInfo(
        name=info.name,
        unit=info.unit,
        kind=frame_pb2.MetricKind.ValueType(info.kind),
        temporality=frame_pb2.Temporality.ValueType(info.temporality),
        description=info.description,
    )


def frame_of(cls: type[Any], data: bytes) -> bytes | memoryview:
    """Return the frame of a request: cut out where it is all there is in it, else through protobuf."""
    only = _only_field(data)
    if only is not None:
        return only
    request: Any = validate.decode(cls, data)
    if not request.HasField("frame"):
        raise missing("frame")
    encoded: bytes = request.frame.SerializeToString()
    return encoded


def _only_field(data: bytes) -> memoryview | None:
    """Return the content of a message that is one length-delimited field 1 and nothing else."""
    if data[:1] != b"\x0a":
        return None
    size = shift = 0
    for at in range(1, min(len(data), 6)):
        size |= (data[at] & 0x7F) << shift
        shift += 7
        if data[at] < 0x80:
            return memoryview(data)[at + 1 :] if at + 1 + size == len(data) else None
    return None


@dataclass(frozen=True, slots=True)
class _Names:
    """The names of a frame as they stood on the wire, checked: the bytes of its fields 2 and 3, complete."""

    servers: tuple[str, ...]
    metrics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Outline:
    """What stands around the times and the values of a frame without infos."""

    place: _Places
    before: bytes
    between: bytes
    names: _Names

    def fits(self, wire: bytes | memoryview) -> bool:
        """Say whether as many bytes are parted in the same way: then they say the same but for times and values."""
        place = self.place
        # A view is compared byte by byte, what it is copied to all at once.
        return bytes(wire[: place.times]) == self.before and bytes(wire[place.times_end : place.values]) == self.between


class FrameReader:
    """Reads frames from the wire; remembers the names it has seen, which hardly ever change from frame to frame.

    A frame in the form that `encode` writes, with names that were seen before, is read without protobuf: the values are
    a view of the bytes. Everything else goes through protobuf and `decode`, and gives the same.
    """

    def __init__(self, capacity: int = 1024, capacity_bytes: int = 16 << 20) -> None:
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._bytes = 0
        self._names: dict[bytes | memoryview, _Names] = {}
        # The newest of each length: to compare with it takes less than to look names up.
        self._outlines: dict[int, _Outline] = {}

    def read(self, wire: bytes | memoryview) -> tuple[Frame, bool]:
        """Return the checked frame of some bytes, and whether the bytes say just that: nothing was lower-cased or cut.

        Errors as `decode`, and InvalidArgumentError for bytes that are no frame.
        """
        outline = self._outlines.get(len(wire))
        if outline is not None and outline.fits(wire):
            known = _read_known(wire, outline.place, outline.names)
            if known is not None:
                return known
        place = _places(wire)
        if place is not None:
            found = self._names.get(wire[place.times_end : place.names_end])
            if found is not None:
                known = _read_known(wire, place, found)
                if known is not None:
                    self._outline(wire, place, found)
                    return known
        message = frame_pb2.Frame()
        try:
            message.ParseFromString(bytes(wire))
        except DecodeError as err:
            raise InvalidArgumentError("the bytes are not a Frame", reason=Reason.MALFORMED_MESSAGE) from err
        validate.check_unknown(message, len(wire))
        frame = decode(message)
        if place is not None:
            self._remember(bytes(wire[place.times_end : place.names_end]), message, frame)
        same_times = np.array_equal(frame.times, np.asarray(message.time_unix_nanos, np.int64))
        return frame, same_times and frame.servers == tuple(message.servers)

    def _outline(self, wire: bytes | memoryview, place: _Places, names: _Names) -> None:
        if place.values_end == len(wire) and place.values <= _OUTLINE_BYTES:
            if len(self._outlines) >= _OUTLINES:
                self._outlines.clear()
            before, between = bytes(wire[: place.times]), bytes(wire[place.times_end : place.values])
            self._outlines[len(wire)] = _Outline(place, before, between, names)

    def _remember(self, names: bytes, message: frame_pb2.Frame, frame: Frame) -> None:
        """Remember names whose bytes are exactly those that make them: then equal bytes mean equal names."""
        ids = tuple(message.servers)
        if ids == frame.servers and encode_names(2, ids) + encode_names(3, frame.metrics) == names:
            self._bytes += len(names)
            if len(self._names) >= self._capacity or self._bytes > self._capacity_bytes:
                self._names.clear()
                self._outlines.clear()
                self._bytes = len(names)
            self._names[names] = _Names(frame.servers, frame.metrics)


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the parts of a frame in the usual form are."""

    times: int
    times_end: int
    names_end: int
    values: int
    values_end: int


def _places(wire: bytes | memoryview) -> _Places | None:
    """Return where the parts are if this is times, names, values, infos in that order; None when it cannot be."""
    if wire[:1] != b"\x0a":
        return None
    times, size = _read_varint(wire, 1)
    times_end = times + size
    if not size:
        return None
    # The first tag whose length ends where nothing or infos begin.
    for tag in islice(_VALUES_TAG.finditer(wire, times_end, len(wire) - 1), _MAX_CANDIDATES):
        at = tag.start()
        values, size = _read_varint(wire, at + 1)
        end = values + size
        if (
            size
            and size % (times_end - times) == 0
            and end <= len(wire)
            and wire[end : end + 1] in {b"", b"\x2a", b"\x32"}
        ):
            return _Places(times, times_end, at, values, end)
    return None


def _read_varint(wire: bytes | memoryview, at: int) -> tuple[int, int]:
    """Return the offset after a varint and its value; a value too large to be meant for one that does not end."""
    value = 0
    for offset in range(5):
        if at + offset >= len(wire):
            break
        byte = wire[at + offset]
        value |= (byte & 0x7F) << 7 * offset
        if byte < 0x80:
            return at + offset + 1, value
    return at, 1 << 62


def _read_known(wire: bytes | memoryview, place: _Places, names: _Names) -> tuple[Frame, bool] | None:
    times = np.frombuffer(wire, "<i8", (place.times_end - place.times) // 8, place.times)
    shape = (len(times), len(names.servers), len(names.metrics))
    if (place.times_end - place.times) % 8 or place.values_end - place.values != 8 * shape[0] * shape[1] * shape[2]:
        return None
    infos: frame_pb2.Frame | None = None
    if place.values_end < len(wire):
        infos = frame_pb2.Frame()
        try:
            infos.ParseFromString(bytes(wire[place.values_end :]))
        except DecodeError:
            return None
        if infos.time_unix_nanos or infos.servers or infos.metrics or infos.values:
            return None  # a second part of a field: protobuf knows how to join them
    whole, exact = _checked_times(times)
    frame = Frame(
        times=whole,
        servers=names.servers,
        metrics=names.metrics,
        values=np.frombuffer(wire, "<f8", shape[0] * shape[1] * shape[2], place.values).reshape(shape),
        server_infos=tuple(checked_info(item) for item in infos.server_infos) if infos else (),
        metric_infos=tuple(checked_metric_info(item) for item in infos.metric_infos) if infos else (),
    )
    return frame, exact


def decode(message: frame_pb2.Frame) -> Frame:
    """Return the checked frame of a message: ids lower-cased, times truncated to whole milliseconds.

    Raises InvalidArgumentError naming the field for what is malformed, and OutOfRangeError with a hint for a time that
    no clock shows. Single bad values are left in: they are the receiver's to reject.
    """
    frame = decode_trusted(message)
    count = len(frame.times) * len(frame.servers) * len(frame.metrics)
    if len(message.values) != count:
        shape = f"{len(frame.times)} times × {len(frame.servers)} servers × {len(frame.metrics)} metrics"
        raise invalid("frame.values", f"has {len(message.values)} values where {shape} make {count}")
    return Frame(
        times=_checked_times(frame.times)[0],
        servers=check_servers(frame.servers),
        metrics=check_metrics(frame.metrics),
        values=frame.values,
        server_infos=tuple(checked_info(item) for item in message.server_infos),
        metric_infos=tuple(checked_metric_info(item) for item in message.metric_infos),
    )


def decode_trusted(message: frame_pb2.Frame) -> Frame:
    """Return the frame of a message that was checked before it was stored."""
    times, servers, metrics = np.asarray(message.time_unix_nanos, np.int64), message.servers, message.metrics
    shape = (len(times), len(servers), len(metrics))
    values = np.asarray(message.values, np.float64)
    return Frame(
        times=times,
        servers=tuple(servers),
        metrics=tuple(metrics),
        values=values.reshape(shape) if values.size == shape[0] * shape[1] * shape[2] else values.reshape(-1, 1, 1),
        server_infos=tuple(server_info(item) for item in message.server_infos),
        metric_infos=tuple(_metric_info(item) for item in message.metric_infos),
    )


def server_info(message: Any) -> ServerInfo:
    """Return what a message tells of a server: a ServerInfo, or a Server of the inventory or of hot state."""
    return ServerInfo(
        id=message.id,
        hostname=message.hostname,
        environment=message.environment,
        role=message.role,
        location=message.location,
        labels=dict(message.labels),
    )


def _metric_info(message: frame_pb2.MetricInfo) -> MetricInfo:
    return MetricInfo(
        name=message.name,
        unit=message.unit,
        kind=message.kind,
        temporality=message.temporality,
        description=message.description,
    )


def _checked_times(times: NDArray[np.int64]) -> tuple[NDArray[np.int64], bool]:
    """Return times in whole milliseconds, and whether they were that."""
    if len(times) == 0:
        return times, True
    rest = times % NANOS_PER_MILLI
    exact = not rest.any()
    whole = times if exact else times - rest
    if len(whole) > 1 and np.any(whole[1:] <= whole[:-1]):
        raise invalid("frame.time_unix_nanos", "must be strictly increasing in whole milliseconds")
    first, last = int(whole[0]), int(whole[-1])
    if first < EARLIEST_PLAUSIBLE_NANOS or last > LATEST_PLAUSIBLE_NANOS:
        raise OutOfRangeError(
            f"frame.time_unix_nanos holds {first if first < EARLIEST_PLAUSIBLE_NANOS else last}, which is not between "
            f"2000 and 2200{_unit_hint(first)}",
            reason=Reason.TIME_OUT_OF_RANGE,
            field="frame.time_unix_nanos",
        )
    return whole, exact


def _unit_hint(first: int) -> str:
    for unit, nanos in (("seconds", 10**9), ("milliseconds", 10**6), ("microseconds", 10**3)):
        if EARLIEST_PLAUSIBLE_NANOS <= first * nanos <= LATEST_PLAUSIBLE_NANOS:
            return f": it looks like {unit}; nanoseconds are expected"
    return ""


@_remembered
def check_servers(servers: tuple[str, ...]) -> tuple[str, ...]:
    """Return the ids lower-cased; InvalidArgumentError when one is malformed or there twice."""
    lowered = tuple(check_server_id(server, "frame.servers") for server in servers)
    if len(set(lowered)) != len(lowered):
        raise invalid("frame.servers", "holds an id twice")
    return lowered


def check_server_id(server: str, name: str) -> str:
    """Return the id lower-cased; InvalidArgumentError naming the field `name` when it is malformed."""
    lowered = server.lower()
    if not lowered:
        raise invalid(name, "holds an empty id" if name.endswith("s") else "is required")
    if len(lowered) > MAX_SERVER_ID or not _SERVER_ID.fullmatch(lowered):
        shown = repr(server if len(server) <= 40 else server[:37] + "…")
        raise invalid(name, f"holds {shown}: an id is 1–{MAX_SERVER_ID} characters of {_SERVER_ID.pattern}")
    return lowered


@_remembered
def check_metrics(metrics: tuple[str, ...]) -> tuple[str, ...]:
    """Return the keys; InvalidArgumentError when one is malformed or there twice."""
    for key in metrics:
        check_key(key)
    if len(set(metrics)) != len(metrics):
        raise invalid("frame.metrics", "holds a key twice")
    return metrics


def checked_info(message: frame_pb2.ServerInfo, field: str = "frame.server_infos") -> ServerInfo:
    """Return the checked info of a message, its id lower-cased; InvalidArgumentError naming the field below `field`."""
    info = server_info(message)
    name = check_server_id(info.id, f"{field}.id")
    for key, limit in _INFO_LIMITS.items():
        check_text(f"{field}.{key}", getattr(info, key), limit)
    check_labels(f"{field}.labels", info.labels)
    return ServerInfo(
        id=name,
        hostname=info.hostname,
        environment=info.environment,
        role=info.role,
        location=info.location,
        labels=info.labels,
    )


def checked_metric_info(message: frame_pb2.MetricInfo) -> MetricInfo:
    """Return the checked info of a message; InvalidArgumentError naming the field."""
    if not message.name:
        raise invalid("frame.metric_infos.name", "is required")
    for name, limit in (("name", 255), ("unit", 63), ("description", 1024)):
        check_text(f"frame.metric_infos.{name}", getattr(message, name), limit)
    for name, enum in (("kind", frame_pb2.MetricKind), ("temporality", frame_pb2.Temporality)):
        if getattr(message, name) not in enum.values():
            raise invalid(f"frame.metric_infos.{name}", "is not a known value")
    return _metric_info(message)


def check_text(name: str, text: str, limit: int) -> None:
    """Raise InvalidArgumentError when a text is longer than `limit` characters or has a control character."""
    if len(text) > limit:
        raise invalid(name, f"is longer than {limit} characters")
    if _UNPRINTABLE.search(text):
        raise invalid(name, "has a control character")


def check_labels(name: str, labels: Mapping[str, str]) -> None:
    """Raise InvalidArgumentError when there are too many labels or one is empty, too long or unprintable."""
    if len(labels) > MAX_LABELS:
        raise invalid(name, f"has more than {MAX_LABELS} labels")
    for key, value in labels.items():
        if not key or max(len(key.encode()), len(value.encode())) > MAX_LABEL_BYTES:
            raise invalid(
                name, f"has a label whose name is empty, or whose name or value is over {MAX_LABEL_BYTES} bytes"
            )
        if _UNPRINTABLE.search(key) or _UNPRINTABLE.search(value):
            raise invalid(name, "has a control character")


def split(frame: Frame, limit: int = MAX_FRAME_BYTES) -> Sequence[Frame]:
    """Return frames with the same samples whose wire forms are at most `limit` bytes: halved by time, then by server."""
    size = frame.values.nbytes + frame.times.nbytes
    size += sum(map(len, frame.servers)) + sum(map(len, frame.metrics)) + 4 * (len(frame.servers) + len(frame.metrics))
    size += sum(64 + sum(map(len, info.labels.values())) for info in frame.server_infos) * 4
    if size <= limit or (len(frame.times) <= 1 and len(frame.servers) <= 1):
        return [frame]
    halves = _halve_times(frame) if len(frame.times) > 1 else _halve_servers(frame)
    return [part for half in halves for part in split(half, limit)]


def _halve_times(frame: Frame) -> tuple[Frame, Frame]:
    middle = len(frame.times) // 2
    first = Frame(
        times=frame.times[:middle],
        servers=frame.servers,
        metrics=frame.metrics,
        values=frame.values[:middle],
        server_infos=frame.server_infos,
        metric_infos=frame.metric_infos,
    )
    rest = Frame(times=frame.times[middle:], servers=frame.servers, metrics=frame.metrics, values=frame.values[middle:])
    return first, rest


def _halve_servers(frame: Frame) -> tuple[Frame, Frame]:
    upper = np.arange(len(frame.servers)) >= len(frame.servers) // 2
    return of_servers(frame, ~upper), of_servers(frame, upper)


def of_servers(frame: Frame, chosen: NDArray[np.bool_]) -> Frame:
    """Return the part of a frame that is of some of its servers: bool[S]."""
    servers = tuple(compress(frame.servers, chosen))
    known = set(servers)
    return Frame(
        times=frame.times,
        servers=servers,
        metrics=frame.metrics,
        values=frame.values[:, chosen],
        server_infos=tuple(info for info in frame.server_infos if info.id in known),
        metric_infos=frame.metric_infos,
    )
