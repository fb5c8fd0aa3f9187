r"""InfluxDB's line protocol: frames as lines.

A line is one server's samples of one time and one set of attributes::

    server_metrics,cpu=3,environment=prod,role=db,server_id=db-1,state=user system.cpu.time=1.5 1700000000000

Tags are `server_id`, the server's `environment` and `role` where they are known, and the attributes; fields are named
after the metrics; times are milliseconds. What line protocol, or the way its readers differ, has no room for:

- An attribute that is named like a tag or a property of the server (`SERVER_TAGS`) gets the prefix `om_attr_`, which
  no admitted attribute begins with.
- A backslash. For InfluxDB it escapes the `,`, `=` or space behind it and can stand for itself only elsewhere; for
  VictoriaMetrics two of them are one. So none is written: `⧹` (U+29F9) stands for it, `∅1` for `⧹`, `∅0` for `∅`.
- An empty value: `∅` (U+2205).

InfluxDB's reader is `models/points.go` of its 2.x branches, VictoriaMetrics' `lib/protoparser/influx/parser.go`.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from openmanager.frame import NANOS_PER_MILLI, Frame, ServerInfo
from openmanager.metric import parse_key
from openmanager_timeseries.port import InfoOf
from openmanager_timeseries.samples import Bools, Floats, Ints

MEASUREMENT = "server_metrics"
SERVER_TAG = "server_id"
# Tags that say something about the server and are no attributes.
SERVER_TAGS = frozenset({SERVER_TAG, "environment", "role", "location", "hostname"})
RENAMED = "om_attr_"
EMPTY = "∅"

# So many values are written at once: what they and their lines take stays in a core's cache.
BLOCK_SAMPLES = 1 << 15
# A plan for more times than this is not remembered: it would take more room than the names of its series.
KEPT_TICKS = 4

_Bytes = NDArray[np.uint8]
_ENCODED = str.maketrans({"\\": "⧹", "⧹": "∅1", "∅": "∅0"})
_DECODED = {"⧹": "\\", "∅1": "⧹", "∅0": "∅"}
_CODE = re.compile("⧹|∅1|∅0")
_COMMA, _SPACE, _NEWLINE = b", \n"
# The opening bracket of the values is no part of the first.
_FIRST = np.ones(1, np.int32)


def tag_name(attribute: str) -> str:
    """Return the tag of an attribute."""
    return RENAMED + attribute if attribute in SERVER_TAGS else attribute.translate(_ENCODED)


def attribute_name(tag: str) -> str:
    """Undo `tag_name`."""
    return _decoded(tag.removeprefix(RENAMED))


def tag_value(text: str) -> str:
    """Return what a tag holds for an attribute's value, or for a server's environment or role."""
    return text.translate(_ENCODED) or EMPTY


def attribute_value(text: str) -> str:
    """Undo `tag_value`."""
    return "" if text == EMPTY else _decoded(text)


def tags_of(attributes: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the tags of a key's attributes."""
    return {tag_name(name): tag_value(value) for name, value in attributes}


def attributes_of(tags: Mapping[str, str]) -> dict[str, str]:
    """Undo `tags_of`; what tags say about the server is left out."""
    return {attribute_name(tag): attribute_value(value) for tag, value in tags.items() if tag not in SERVER_TAGS}


def _decoded(text: str) -> str:
    return _CODE.sub(lambda found: _DECODED[found[0]], text)


def split(data: bytes, max_bytes: int) -> Iterator[bytes]:
    """Yield lines in pieces of at most `max_bytes`, cut at line ends; a line that is longer comes alone."""
    start = 0
    while start < len(data):
        end = len(data)
        if end - start > max_bytes:
            end = data.rfind(b"\n", start, start + max_bytes) + 1 or data.find(b"\n", start + max_bytes) + 1 or end
        yield data[start:end]
        start = end


class LineEncoder:
    """Writes frames as lines; remembers the names of frames, which hardly ever change from frame to frame.

    `capacity` is the number of series (a metric of a server) whose names are remembered, at about 20 to 100 bytes each.
    One encoder may not be used by two threads at once.
    """

    def __init__(self, measurement: str = MEASUREMENT, *, capacity: int = 1 << 20) -> None:
        self._measurement = measurement.replace(",", "\\,").replace(" ", "\\ ")
        self._capacity = capacity
        self._remembered = 0
        self._layouts: OrderedDict[_Names, _Layout] = OrderedDict()

    def encode(self, frames: Sequence[Frame], info_of: InfoOf) -> bytes:
        """Return the lines of all samples, each ending in a newline.

        Times are milliseconds, values read back to the very double. What is not finite is no sample. Nothing is written
        for a server's time and attributes without any.
        """
        out = BytesIO()
        for frame in frames:
            for part in self._parts(frame, info_of):
                out.write(part)
        return out.getvalue()

    def _parts(self, frame: Frame, info_of: InfoOf) -> Iterator[memoryview]:
        if frame.values.size == 0:
            return
        tags = tuple(_server_tags(info_of(server), server) for server in frame.servers)
        rows = max(1, BLOCK_SAMPLES // len(frame.metrics))
        for row in range(0, len(tags), rows):
            layout = self._layout((tags[row : row + rows], frame.metrics))
            ticks = max(1, BLOCK_SAMPLES // layout.size)
            for tick in range(0, len(frame.times), ticks):
                part = slice(tick, tick + ticks)
                yield layout.encode(frame.times[part], frame.values[part, row : row + rows])

    def _layout(self, names: _Names) -> _Layout:
        found = self._layouts.get(names)
        if found is not None:
            self._layouts.move_to_end(names)
            return found
        made = _Layout(self._measurement, *names)
        self._layouts[names] = made
        self._remembered += made.size
        while self._remembered > self._capacity and len(self._layouts) > 1:
            _, oldest = self._layouts.popitem(last=False)
            self._remembered -= oldest.size
        return made


# The escaped environment, role and id of servers, each `,tag=value` or nothing; and metric keys.
_ServerTags = tuple[str, str, str]
_Names = tuple[tuple[_ServerTags, ...], tuple[str, ...]]


def _server_tags(info: ServerInfo, server: str) -> _ServerTags:
    environment = f",environment={_escape(tag_value(info.environment))}" if info.environment else ""
    role = f",role={_escape(tag_value(info.role))}" if info.role else ""
    return environment, role, f",{SERVER_TAG}={server}"


def _escape(text: str) -> str:
    return text.replace(",", "\\,").replace("=", "\\=").replace(" ", "\\ ")


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """The metrics of a frame, those with the same attributes beside each other.

    `order`: int64[M], the frame's columns; `groups`: int64[M], which of the G sets of attributes each then has;
    `fields`: what stands before the values; `tags`: of each set those that sort before, between and after the server's.
    """

    order: Ints
    groups: Ints
    fields: Sequence[bytes]
    tags: Sequence[tuple[str, str, str, str]]


@lru_cache(maxsize=16)
def _columns(metrics: tuple[str, ...]) -> _Columns:
    """Return the columns of some metrics, the sets of attributes in the order of their first metrics."""
    groups: dict[tuple[tuple[str, str], ...], int] = {}
    names, codes = [], []
    for key in metrics:
        name, attributes = parse_key(key)
        names.append(name)
        codes.append(groups.setdefault(attributes, len(groups)))
    order = np.argsort(codes, kind="stable")
    return _Columns(
        order=order,
        groups=np.asarray(codes, np.int64)[order],
        fields=[f"{names[column]}=".encode() for column in order.tolist()],
        tags=[_around(tags_of(attributes)) for attributes in groups],
    )


def _around(tags: Mapping[str, str]) -> tuple[str, str, str, str]:
    """Return tags as they stand before `environment`, then before `role`, then before `server_id`, then behind it."""
    pairs = sorted((_escape(tag), _escape(value)) for tag, value in tags.items())
    edges = [bisect(pairs, (tag,)) for tag in ("environment", "role", SERVER_TAG)]
    parts = (pairs[low:high] for low, high in pairwise((0, *edges, len(pairs))))
    first, second, third, last = ("".join(f",{tag}={value}" for tag, value in part) for part in parts)
    return first, second, third, last


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """Of which pieces the lines of some samples are made.

    `shape` is that of their grid, [T, S, M]. `pieces` are the numbers of pieces in the order in which they are written,
    as pyarrow's int32; `last` (int64[L]) is the number of the last sample of each line.
    """

    shape: tuple[int, ...]
    pieces: Any
    last: Ints


class _Layout:
    r"""Servers and metrics, and the pieces of which their lines are made.

    A line is a head (`measurement,tag=value… `), then each sample's field (`name=`) and its value with what ends it
    (`1.5,`), then the time (`1700000000000\n`). Pieces are numbered: values, then heads by server and set of attributes,
    then fields, then times. To write lines is to take pieces by number, and pyarrow copies one in 5 ns.
    """

    def __init__(self, measurement: str, servers: Sequence[_ServerTags], metrics: tuple[str, ...]) -> None:
        columns = _columns(metrics)
        self.size = len(servers) * len(metrics)
        self._order = None if np.array_equal(columns.order, np.arange(len(metrics))) else columns.order
        self._groups = columns.groups
        self._group_count = len(columns.tags)
        self._head_count = len(servers) * self._group_count
        heads = [
            f"{measurement}{first}{environment}{second}{role}{third}{server}{rest} ".encode()
            for environment, role, server in servers
            for first, second, third, rest in columns.tags
        ]
        pieces = [*heads, *columns.fields]
        self._text: _Bytes = np.frombuffer(b"".join(pieces), np.uint8)
        self._ends = np.cumsum(np.fromiter(map(len, pieces), np.int32, len(pieces)), dtype=np.int32)
        self._whole: _Plan | None = None
        self._partial: tuple[Bools, _Plan | None] = (np.empty(0, np.bool_), None)

    def encode(self, times: Ints, values: Floats) -> memoryview:
        """Return the lines of values float64[T, S, M] at times int64[T]."""
        if self._order is not None:
            values = values.take(self._order, axis=2)
        present: Bools = np.isfinite(values)
        if present.all():
            return self._written(self._plan_of_all(values.shape), times, values.ravel())
        samples = values[present]
        if len(samples) == 0:
            return memoryview(b"")
        return self._written(self._plan_of(present), times, samples)

    def _plan_of_all(self, shape: tuple[int, ...]) -> _Plan:
        plan = self._whole
        if plan is None or plan.shape != shape:
            plan = self._plan(shape, np.arange(shape[0] * self.size))
            self._whole = plan if shape[0] <= KEPT_TICKS else self._whole
        return plan

    def _plan_of(self, present: Bools) -> _Plan:
        known, plan = self._partial
        if plan is None or not np.array_equal(known, present):
            plan = self._plan(present.shape, np.flatnonzero(present))
            self._partial = (present, plan) if len(present) <= KEPT_TICKS else self._partial
        return plan

    def _plan(self, shape: tuple[int, ...], at: Ints) -> _Plan:
        """Return the plan for the samples at int64[K], ascending indices into the flattened values."""
        count, metric_count = len(at), shape[2]
        rows, columns = np.divmod(at, metric_count)
        ticks, servers = np.divmod(rows, shape[1])
        groups = self._groups[columns]
        begins = np.ones(count, np.bool_)
        begins[1:] = (rows[1:] != rows[:-1]) | (groups[1:] != groups[:-1])
        first = np.flatnonzero(begins)
        lines = np.arange(len(first))
        last = np.append(first[1:], count) - 1
        heads, fields = count, count + self._head_count
        pieces = np.empty(2 * (count + len(first)), np.int32)
        place = 2 * (np.arange(count) + np.cumsum(begins)) - 1
        pieces[place] = fields + columns
        pieces[place + 1] = np.arange(count)
        pieces[2 * (first + lines)] = heads + servers[first] * self._group_count + groups[first]
        pieces[2 * (last + lines) + 3] = fields + metric_count + ticks[first]
        return _Plan(shape, pa.array(pieces), last)

    def _written(self, plan: _Plan, times: Ints, samples: Floats) -> memoryview:
        """Return the lines of samples float64[K]."""
        values, value_ends = _listed(samples)
        stamps, stamp_ends = _listed(times // NANOS_PER_MILLI)
        stamps[stamp_ends - 1] = _NEWLINE
        values[value_ends[plan.last] - 1] = _SPACE
        text = np.concatenate((values, self._text, stamps[1:]))
        ends = np.concatenate(
            (_FIRST, value_ends, self._ends + len(values), stamp_ends + (len(values) + len(self._text) - 1)),
            dtype=np.int32,
            casting="same_kind",
        )
        every = pa.Array.from_buffers(pa.binary(), len(ends) - 1, [None, pa.py_buffer(ends), pa.py_buffer(text)])
        _, taken_ends, taken = every.take(plan.pieces).buffers()
        size = int(np.frombuffer(taken_ends, np.int32)[len(plan.pieces)])
        return memoryview(taken)[:size]


def _listed(numbers: Ints | Floats) -> tuple[_Bytes, Ints]:
    """Return `[1.5,2.0,`, the shortest digits that read back to each number, and where each ends with its comma."""
    text = np.frombuffer(bytearray(orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)), np.uint8)
    text[-1] = _COMMA
    return text, np.flatnonzero(text == _COMMA) + 1
