"""Reads InfluxDB's line protocol: the lines of a file as columns of samples.

What InfluxDB's own reader would take is taken, its way with escapes included; a line that it would refuse is an error.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from openmanager.errors import InvalidArgumentError, invalid
from openmanager.frame import NANOS_PER_MILLI, ServerInfo, checked_info, info_message
from openmanager.metric import RESERVED, RESERVED_PREFIX, check_key, make_key
from openmanager_timeseries.engines.port import Coded
from openmanager_timeseries.line_protocol import MEASUREMENT, SERVER_TAG, attribute_name, attribute_value

# Nanoseconds of the units in which a file may have its times.
PRECISIONS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
MAX_ERRORS = 100
# A quoted text may go on over so many lines before its quote counts as one too many.
MAX_CONTINUED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class LineError:
    """A line that was not understood; lines are counted from 1."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parsed:
    """What lines say: samples, and the servers as their tags describe them.

    Of `text_count` fields with text nothing is kept; `repeated_count` samples were replaced by a later one of the same
    series and time; `error_count` lines were not understood and left out, `errors` are the first of them.
    """

    samples: Coded
    infos: tuple[ServerInfo, ...]
    text_count: int
    repeated_count: int
    error_count: int
    errors: tuple[LineError, ...]


def parse(data: bytes, *, precision: str = "ns", first_line: int = 1) -> Parsed:
    """Return what the lines of a file say; its times are in `precision`, one of PRECISIONS.

    The server is the tag `server_id`, else `host`; `environment`, `role`, `location` and `hostname` describe it; other
    tags are attributes. A metric has its field's name in our own measurement, and is `measurement.field` in others, what
    admission does not take replaced by `_`. A boolean is 1 or 0; times are cut to whole milliseconds. `first_line` is the
    number of the first line, for what is read in parts.
    """
    if precision not in PRECISIONS:
        raise invalid("precision", f"is none of {', '.join(PRECISIONS)}")
    reader = _Reader(PRECISIONS[precision])
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    at = 0
    while at < len(lines):
        number, line = first_line + at, lines[at]
        at += 1
        if line.lstrip()[:1] in {"", "#"}:
            continue
        try:
            at = _read_line(reader, lines, at)
        except _MalformedLineError as err:
            reader.refuse(number, str(err))
    return reader.parsed()


def _read_line(reader: _Reader, lines: Sequence[str], at: int) -> int:
    """Read the line before index `at`, and those after it that its quoted text goes on over; return the next index."""
    line, limit = lines[at - 1], min(len(lines), at + MAX_CONTINUED)
    while True:
        try:
            reader.read(line.rstrip("\r"))
        except _OpenQuoteError:
            closing = next((index for index in range(at, limit) if '"' in lines[index]), None)
            if closing is None:
                raise
            line, at = "\n".join((line, *lines[at : closing + 1])), closing + 1
        else:
            return at


class _MalformedLineError(ValueError):
    """A line is none; the text continues `line 12`."""


class _OpenQuoteError(_MalformedLineError):
    """A quoted text has no end."""


_TIME = re.compile(r"-?[0-9]{1,19}")
# Of these characters `float` takes what is a number in line protocol, and nothing else.
_DIGITS = re.compile(r"[0-9.eE+,-]+")
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}[iu]")
_TRUTH = {"t": 1.0, "T": 1.0, "true": 1.0, "True": 1.0, "TRUE": 1.0}
_TRUTH |= {"f": 0.0, "F": 0.0, "false": 0.0, "False": 0.0, "FALSE": 0.0}
# InfluxDB looks at the one character before; whether that is itself escaped does not matter.
_HEAD_END, _TAG_END, _NAME_END = (re.compile(rf"(?<!\\){sign}") for sign in " ,=")
_FIELD = re.compile(r'((?:[^\\,= ]|\\.)+)=("(?:[^"\\]|\\.)*"|[^", ]+)', re.DOTALL)
_OPEN_QUOTE = re.compile(r'(?:[^\\,= ]|\\.)+="')
_ESCAPED = re.compile(r"\\([,= ])")
_NO_NAME = re.compile(r"[^A-Za-z0-9_.:/-]")


@dataclass(frozen=True, slots=True, eq=False)
class _Head:
    """What a line says before its fields: the server by its number, and how its fields are named.

    `codes` are the numbers of metrics by field, as far as they were seen; servers with the same attributes share them.
    """

    server: int
    prefix: str
    attributes: Mapping[str, str]
    codes: dict[str, int]


class _Reader:
    """Reads lines, one at a time."""

    def __init__(self, unit: int) -> None:
        self._unit = unit
        self._heads: dict[str, _Head] = {}
        self._codes: dict[tuple[str, frozenset[tuple[str, str]]], dict[str, int]] = {}
        self._servers: dict[str, int] = {}
        self._metrics: dict[str, int] = {}
        self._infos: dict[str, ServerInfo] = {}
        self._server_codes, self._metric_codes, self._times = array("q"), array("q"), array("q")
        self._values = array("d")
        self._text_count = 0
        self._error_count = 0
        self._errors: list[LineError] = []

    def read(self, line: str) -> None:
        """Take the samples of a line; _MalformedLineError, and none is taken, when it is not one."""
        plain = "\\" not in line and '"' not in line
        text, names, values, time = _split_plain(line) if plain else _split_quoted(line)
        head = self._heads.get(text) or self._new_head(text)
        if not _TIME.fullmatch(time) or abs(nanos := int(time) * self._unit) >= 1 << 63:
            raise _MalformedLineError("has a time that is no number, or too large a one")
        numbers = _numbers(values)
        if len(names) > len(numbers):
            names = [name for name, value in zip(names, values, strict=True) if value[0] != '"']
        try:
            codes = [head.codes[name] for name in names]
        except KeyError:
            codes = [self._code(head, name) for name in names]
        self._text_count += len(values) - len(numbers)
        self._server_codes.extend([head.server] * len(numbers))
        self._metric_codes.extend(codes)
        self._times.extend([nanos - nanos % NANOS_PER_MILLI] * len(numbers))
        self._values.extend(numbers)

    def refuse(self, line: int, reason: str) -> None:
        """Count a line that was not understood."""
        self._error_count += 1
        if self._error_count <= MAX_ERRORS:
            self._errors.append(LineError(line=line, reason=reason))

    def parsed(self) -> Parsed:
        """Return all that was read, by series and time."""
        servers, metrics = (np.asarray(codes, np.int64) for codes in (self._server_codes, self._metric_codes))
        times, values = np.asarray(self._times, np.int64), np.asarray(self._values, np.float64)
        series = servers * len(self._metrics) + metrics
        order = np.lexsort((times, series))
        series, times = series[order], times[order]
        newest = np.ones(len(order), np.bool_)
        newest[:-1] = (series[1:] != series[:-1]) | (times[1:] != times[:-1])
        kept = order[newest]
        return Parsed(
            samples=Coded(
                servers=tuple(self._servers),
                server_codes=servers[kept],
                metrics=tuple(self._metrics),
                metric_codes=metrics[kept],
                times=times[newest],
                values=values[kept],
            ),
            infos=tuple(self._infos.values()),
            text_count=self._text_count,
            repeated_count=len(order) - len(kept),
            error_count=self._error_count,
            errors=tuple(self._errors),
        )

    def _new_head(self, text: str) -> _Head:
        measurement, tags = _measurement_and_tags(text)
        native = measurement == MEASUREMENT
        if native:
            tags = {tag: attribute_value(value) for tag, value in tags.items()}
        server = tags.pop(SERVER_TAG, None) or tags.pop("host", None)
        if server is None:
            raise _MalformedLineError("has no tag server_id or host")
        info = _described(server, *(tags.pop(tag, "") for tag in ("hostname", "environment", "role", "location")))
        name = attribute_name if native else _foreign_attribute
        attributes = {name(tag): value for tag, value in tags.items()}
        if len(attributes) < len(tags):
            raise _MalformedLineError("has two tags that become one attribute")
        head = _Head(
            server=self._servers.setdefault(info.id, len(self._servers)),
            prefix="" if native else f"{measurement}.",
            attributes=attributes,
            codes=self._codes.setdefault((measurement, frozenset(attributes.items())), {}),
        )
        self._infos[info.id] = _joined(self._infos.get(info.id, info), info)
        self._heads[text] = head
        return head

    def _code(self, head: _Head, field: str) -> int:
        if field in head.codes:
            return head.codes[field]
        name = _ESCAPED.sub(r"\1", field)
        key = make_key(_admitted(head.prefix + name) if head.prefix else name, head.attributes)
        try:
            check_key(key)
        except InvalidArgumentError as err:
            raise _MalformedLineError(f"has a bad metric: {err.message}") from err
        code = head.codes[field] = self._metrics.setdefault(key, len(self._metrics))
        return code


# Head, names and values of fields, time.
_Split = tuple[str, Sequence[str], Sequence[str], str]


def _split_plain(line: str) -> _Split:
    """Return head, fields and time of a line without quotes and backslashes."""
    parts = [part for part in line.split(" ") if part]
    if len(parts) != 3:
        raise _MalformedLineError("is not `measurement,tags fields time`")
    fields = [field.split("=") for field in parts[1].split(",")]
    if not all(len(field) == 2 and field[0] and field[1] for field in fields):
        raise _MalformedLineError("has a field that is not name=value")
    return parts[0], [field[0] for field in fields], [field[1] for field in fields], parts[2]


def _split_quoted(line: str) -> _Split:
    """Return head, fields and time of any line."""
    line = line.strip(" ")
    end = _HEAD_END.search(line)
    if end is None:
        raise _MalformedLineError("is not `measurement,tags fields time`")
    at = len(line) - len(line[end.end() :].lstrip(" "))
    names, values = [], []
    while True:
        found = _FIELD.match(line, at)
        if found is None:
            if _OPEN_QUOTE.match(line, at):
                raise _OpenQuoteError("has a text without an end")
            raise _MalformedLineError("has a field that is not name=value")
        names.append(found[1])
        values.append(found[2])
        at = found.end() + 1
        if line[at - 1 : at] != ",":
            break
    if line[at - 1 : at] != " ":
        raise _MalformedLineError("is not `measurement,tags fields time`")
    return line[: end.start()], names, values, line[at:].lstrip(" ")


def _measurement_and_tags(text: str) -> tuple[str, dict[str, str]]:
    """Return the name and the tags of a head, without escapes."""
    if not text.isascii() and text != text.encode(errors="replace").decode():
        raise _MalformedLineError("is not UTF-8")
    measurement, *pairs = _TAG_END.split(text)
    tags = {}
    for pair in pairs:
        name, *value = _NAME_END.split(pair)
        if not name or len(value) != 1 or not value[0]:
            raise _MalformedLineError("has a tag that is not name=value")
        tags[_ESCAPED.sub(r"\1", name)] = _ESCAPED.sub(r"\1", value[0])
    if not measurement or len(tags) < len(pairs):
        raise _MalformedLineError("has no measurement, or a tag twice")
    return _ESCAPED.sub(r"\1", measurement), tags


def _numbers(values: Sequence[str]) -> list[float]:
    """Return the values of fields but for texts; _MalformedLineError when one is neither."""
    try:
        if _DIGITS.fullmatch(",".join(values)):
            numbers = [float(value) for value in values]
        else:
            numbers = [_number(value) for value in values if value[0] != '"']
    except ValueError as err:
        raise _MalformedLineError("has a field with neither a number, a truth value nor a text") from err
    if math.inf in numbers or -math.inf in numbers:
        raise _MalformedLineError("has a number that no double holds")
    return numbers


def _number(text: str) -> float:
    """Return a number or 1 for true and 0 for false; ValueError when it is neither."""
    if text in _TRUTH:
        return _TRUTH[text]
    digits = text[:-1] if _INTEGER.fullmatch(text) else text
    if not _DIGITS.fullmatch(digits):
        raise ValueError(text)
    return float(digits)


@lru_cache(maxsize=4096)
def _described(server: str, hostname: str, environment: str, role: str, location: str) -> ServerInfo:
    info = ServerInfo(id=server, hostname=hostname, environment=environment, role=role, location=location)
    try:
        return checked_info(info_message(info), "tags")
    except InvalidArgumentError as err:
        raise _MalformedLineError(f"has bad tags: {err.message}") from err


def _joined(known: ServerInfo, info: ServerInfo) -> ServerInfo:
    """Return what is known of a server, with what a later line says."""
    return ServerInfo(
        id=info.id,
        hostname=info.hostname or known.hostname,
        environment=info.environment or known.environment,
        role=info.role or known.role,
        location=info.location or known.location,
    )


def _admitted(name: str) -> str:
    """Return a metric's name with what admission refuses replaced."""
    name = _NO_NAME.sub("_", name)
    return f"_{name}" if name[0] in ".:/-0123456789" or name.startswith(RESERVED_PREFIX) else name


def _foreign_attribute(tag: str) -> str:
    """Return a tag as an attribute, named anew where admission refuses the name."""
    return f"tag_{tag}" if tag in RESERVED or tag.startswith(RESERVED_PREFIX) else tag
