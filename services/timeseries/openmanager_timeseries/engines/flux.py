"""Flux: queries as text, and the annotated CSV that answers them as columns.

Which texts InfluxDB runs close to its files, and which it does not, is measured in docs/decisions/0013-influxdb.md.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product

import numpy as np
import pyarrow as pa
from pyarrow import csv as pa_csv

from openmanager.metric import make_key, parse_key
from openmanager_timeseries.engines.port import Coded, Wanted
from openmanager_timeseries.line_protocol import MEASUREMENT, SERVER_TAG, SERVER_TAGS, attributes_of, tags_of
from openmanager_timeseries.samples import Bools, Floats, Ints

# A filter of n servers costs n × the n servers' fields: 100 servers take 1 s in one filter, and 0.1 s in small ones.
SERVERS_PER_STREAM = 4
STREAMS_PER_QUERY = 32
# A chain of `or` may have some 200 links before it is "nested too deep"; an alternation of names may be long.
ALTERNATIVES = 20
NAMES_BYTES = 32_000

EARLIEST = 0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MIXED_TYPES = b"schema collision"
_END = b"\r\n"
_LARGEST = np.iinfo(np.int64).max - 1
_NUMBERS = frozenset({"double", "long", "unsignedLong"})
_OWN_COLUMNS = frozenset({"", "result", "table", "_time", "_value"})
_UNUSED = ", ".join(f'"{name}"' for name in ("_start", "_stop", "_measurement", *sorted(SERVER_TAGS - {SERVER_TAG})))
_DROP = f"|> drop(columns: [{_UNUSED}])"


class AnswerError(Exception):
    """An answer is cut off, says that the query failed, or cannot be read."""


class MixedTypesError(Exception):
    """Series cannot be one table: somebody else wrote integers or texts into our measurement."""


def literal(text: str) -> str:
    """Return a string literal; no part of the text is ever code."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${")
    return f'"{escaped}"'


def instant(nanos: int) -> str:
    """Return a time literal of nanoseconds since the epoch."""
    seconds, rest = divmod(int(nanos), 10**9)
    return f"{_EPOCH + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"


def source(bucket: str, start: int, end: int) -> str:
    """Return where the samples of [start, end) nanoseconds come from."""
    return f"from(bucket: {literal(bucket)}) |> range(start: {instant(start)}, stop: {instant(end)})"


def programs(bucket: str, wanted: Wanted, then: str) -> Iterator[str]:
    """Yield the queries for samples of wanted series, and of others beside them; `then` is done to every series."""
    for fields in _field_filters(wanted.metrics):
        yield from _streams(bucket, wanted, fields, then)


def series_programs(bucket: str, wanted: Wanted) -> Iterator[str]:
    """Yield the queries for one sample of every series of the wanted servers, whatever the metric."""
    yield from _streams(bucket, wanted, "", "|> first()")


def marker_program(bucket: str, measurement: str, end: int) -> str:
    """Return the query for the last marker of every epoch; the epoch is read as if it was a server."""
    marked = f"|> filter(fn: (r) => r._measurement == {literal(measurement)}) |> last()"
    return f'{source(bucket, EARLIEST, end)} {marked} |> rename(columns: {{epoch: "{SERVER_TAG}"}}) {_DROP}'


# With attributes every series as a table of its own takes twice as long as all of them as one.
ONE_TABLE = "|> group()"


def window(step: int, function: str) -> str:
    """Return the aggregation over half-open buckets of `step` nanoseconds, named by their starts."""
    return f'|> aggregateWindow(every: {step}ns, fn: {function}, createEmpty: false, timeSrc: "_start")'


def _streams(bucket: str, wanted: Wanted, fields: str, then: str) -> Iterator[str]:
    """Yield queries of several streams each: a filter of few servers is looked up in the index, one of many is not."""
    measured = f" |> filter(fn: (r) => r._measurement == {literal(MEASUREMENT)}{fields})"
    base = f"base = () => {source(bucket, wanted.start, wanted.end)}{measured}\n"
    filters = [
        " or ".join(_equals(SERVER_TAG, server) for server in wanted.servers[at : at + SERVERS_PER_STREAM])
        for at in range(0, len(wanted.servers), SERVERS_PER_STREAM)
    ]
    for at in range(0, len(filters), STREAMS_PER_QUERY):
        yield base + "".join(
            f'base() |> filter(fn: (r) => {servers}) {then} {_DROP} |> yield(name: "{number}")\n'
            for number, servers in enumerate(filters[at : at + STREAMS_PER_QUERY])
        )


def _equals(column: str, value: str) -> str:
    return f"r[{literal(column)}] == {literal(value)}"


def _field_filters(metrics: Sequence[str]) -> Iterator[str]:
    """Yield conditions that choose the fields of metrics: with their attributes where they are few."""
    if len(metrics) <= ALTERNATIVES:
        if metrics:
            yield f" and ({' or '.join(_field_equals(key) for key in metrics)})"
        return
    names = sorted({parse_key(key)[0] for key in metrics})
    while names:
        size = count = 0
        while count < len(names) and size < NAMES_BYTES:
            size += len(names[count]) + 1
            count += 1
        alternatives = "|".join(re.sub(r"([./])", r"\\\1", name) for name in names[:count])
        yield f" and r._field =~ /^(?:{alternatives})$/"
        names = names[count:]


def _field_equals(key: str) -> str:
    name, attributes = parse_key(key)
    tags = tags_of(attributes)
    return f"({' and '.join([_equals('_field', name), *(_equals(tag, value) for tag, value in tags.items())])})"


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Samples of R runs, one after the other: a run is samples of one series, ascending in time.

    `servers` and `metrics` are names; `server_codes`, `metric_codes` and `lengths` are int64[R]; `times` int64[K] in
    nanoseconds; `values` float64[K].
    """

    servers: Sequence[str]
    metrics: Sequence[str]
    server_codes: Ints
    metric_codes: Ints
    lengths: Ints
    times: Ints
    values: Floats


class Answer:
    """Reads annotated CSV (`datatype` and header) in pieces that end at line ends.

    Tables of the same columns are read as one: the columns change with the attributes, and each reading costs 0.1 ms.
    """

    def __init__(self) -> None:
        self._head = b""
        self._end = b""

    def take(self, lines: bytes) -> list[Part]:
        """Return the samples of some lines; AnswerError where they are none."""
        self._end = (self._end + lines[-4:])[-4:]
        bodies: dict[bytes, list[bytes]] = {}
        for block in (self._head + lines).split(_END + _END):
            kind, names, body = (*block.removeprefix(_END).split(_END, 2), b"", b"")[:3]
            if kind and not kind.startswith(b"#datatype,"):
                raise AnswerError("the answer is not annotated CSV")
            if names.startswith(b",error,"):
                raise MixedTypesError if MIXED_TYPES in body else AnswerError("the query failed")
            self._head = b"".join(line + _END for line in (kind, names) if line)
            if body:
                bodies.setdefault(self._head, []).append(body)
        parts = [_part(head, _END.join(found)) for head, found in bodies.items()]
        return [part for part in parts if part is not None]

    def finish(self) -> None:
        """Raise AnswerError when what was read is not a whole answer."""
        if self._end not in {b"", _END, _END + _END}:
            raise AnswerError("the answer is cut off")


def _part(head: bytes, body: bytes) -> Part | None:
    """Return the samples of the rows of one kind of table; None when their values are no numbers."""
    try:
        kinds, names = list(csv.reader(head.decode().split("\r\n")[:2]))
        tags = [name for name in names if name not in _OWN_COLUMNS]
        if kinds[names.index("_value")] not in _NUMBERS or "_field" not in tags or SERVER_TAG not in tags:
            return None
        table = _read_rows(body, names, tags)
    except (ValueError, IndexError, pa.ArrowInvalid, pa.ArrowKeyError) as err:
        raise AnswerError("the answer cannot be read") from err
    times = table.column("_time").cast(pa.int64()).to_numpy()
    values = table.column("_value").to_numpy()
    columns = {name: _coded(table.column(name)) for name in tags}
    begins = np.flatnonzero(_changes([codes for codes, _ in columns.values()], times))
    servers, metrics = columns.pop(SERVER_TAG), columns
    keys, metric_codes = _keys({name: (codes[begins], texts) for name, (codes, texts) in metrics.items()})
    return Part(
        servers=servers[1],
        metrics=keys,
        server_codes=servers[0][begins],
        metric_codes=metric_codes,
        lengths=np.diff(np.append(begins, len(times))),
        times=times,
        values=values,
    )


def _read_rows(body: bytes, names: Sequence[str], tags: Sequence[str]) -> pa.Table:
    # Every byte in one block: then every dictionary is one for all rows.
    read = pa_csv.ReadOptions(use_threads=False, block_size=len(body) + 1, column_names=names)
    kinds: dict[str, pa.DataType] = {name: pa.dictionary(pa.int32(), pa.string()) for name in tags}
    kinds |= {"_time": pa.timestamp("ns", "UTC"), "_value": pa.float64()}
    convert = pa_csv.ConvertOptions(column_types=kinds, include_columns=list(kinds), null_values=[""])
    return pa_csv.read_csv(pa.py_buffer(body), read_options=read, convert_options=convert)


def _coded(column: pa.ChunkedArray) -> tuple[Ints, list[str]]:
    """Return the codes of a column of names, and the names."""
    found = column.combine_chunks()
    if isinstance(found, pa.ChunkedArray):
        found = found.chunk(0)
    return found.indices.to_numpy(zero_copy_only=False).astype(np.int64), found.dictionary.to_pylist()


def _changes(codes: Sequence[Ints], times: Ints) -> Bools:
    """Return where a run begins: bool[K]."""
    begins = np.ones(len(times), np.bool_)
    begins[1:] = times[1:] <= times[:-1]
    for column in codes:
        begins[1:] |= column[1:] != column[:-1]
    return begins


def _keys(columns: Mapping[str, tuple[Ints, Sequence[str]]]) -> tuple[list[str], Ints]:
    """Return metric keys, and which of them each row of codes is."""
    combined = np.zeros(len(columns["_field"][0]), np.int64)
    for codes, texts in columns.values():
        if combined.max(initial=0) >= _LARGEST // len(texts):
            combined = np.unique(combined, return_inverse=True)[1].reshape(-1)
        combined = combined * len(texts) + codes
    _, first, inverse = np.unique(combined, return_index=True, return_inverse=True)
    keys = []
    for row in first.tolist():
        # A tag is never empty: the series has none of that name, and others in the table have.
        tags = {name: text for name, (codes, texts) in columns.items() if (text := texts[codes[row]])}
        keys.append(make_key(tags.pop("_field", ""), attributes_of(tags)))
    return keys, inverse.reshape(-1)


def coded(wanted: Wanted, parts: Sequence[Part]) -> tuple[Coded, list[str]]:
    """Return the wanted samples, one for a time, and the servers that have series with two for a time.

    A server whose environment or role has changed has two series where we have one. Of two samples of one time the one
    of the series counts that goes on for longer: it has the tags of today.
    """
    server_codes, metric_codes, times, values = _rows(wanted, parts)
    series = server_codes * max(1, len(wanted.metrics)) + metric_codes
    begins = np.ones(len(series), np.bool_)
    begins[1:] = (series[1:] != series[:-1]) | (times[1:] <= times[:-1])
    first = np.flatnonzero(begins)
    torn: list[str] = []
    if len(np.unique(series[first])) != len(first):
        lasts = times[np.append(first[1:], len(times)) - 1]
        order = np.lexsort((np.repeat(lasts, np.diff(np.append(first, len(times)))), times, series))
        series, times = series[order], times[order]
        newest = np.ones(len(series), np.bool_)
        newest[:-1] = (series[1:] != series[:-1]) | (times[1:] != times[:-1])
        torn = [wanted.servers[code] for code in np.unique(server_codes[order][~newest]).tolist()]
        order, times = order[newest], times[newest]
        server_codes, metric_codes, values = server_codes[order], metric_codes[order], values[order]
    return (
        Coded(
            servers=wanted.servers,
            server_codes=server_codes,
            metrics=wanted.metrics,
            metric_codes=metric_codes,
            times=times,
            values=values,
        ),
        torn,
    )


def _rows(wanted: Wanted, parts: Sequence[Part]) -> tuple[Ints, Ints, Ints, Floats]:
    """Return the codes, times and values of the rows that are wanted."""
    server_of = {name: code for code, name in enumerate(wanted.servers)}
    metric_of = {key: code for code, key in enumerate(wanted.metrics)}
    server_codes, metric_codes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    times, values = [np.empty(0, np.int64)], [np.empty(0, np.float64)]
    for part in parts:
        servers = np.array([server_of.get(name, -1) for name in part.servers], np.int64)[part.server_codes]
        metrics = np.array([metric_of.get(key, -1) for key in part.metrics], np.int64)[part.metric_codes]
        kept = (servers >= 0) & (metrics >= 0)
        server_codes.append(np.repeat(servers[kept], part.lengths[kept]))
        metric_codes.append(np.repeat(metrics[kept], part.lengths[kept]))
        rows = np.repeat(kept, part.lengths) if not kept.all() else slice(None)
        times.append(part.times[rows])
        values.append(part.values[rows])
    return np.concatenate(server_codes), np.concatenate(metric_codes), np.concatenate(times), np.concatenate(values)


def deletions(wanted: Wanted, parts: Sequence[Part]) -> list[str] | None:
    """Return predicates that delete the wanted series of those that there are; None when others would go too.

    A predicate says which tags a series has, not which it lacks, and nothing of fields.
    """
    there: dict[str, set[str]] = {}
    for part in parts:
        for server, metric in zip(part.server_codes.tolist(), part.metric_codes.tolist(), strict=True):
            there.setdefault(part.servers[server], set()).add(part.metrics[metric])
    keys = set(wanted.metrics)
    predicates: list[str] = []
    for server, metrics in there.items():
        chosen = _chosen(metrics, keys)
        if chosen is None:
            return None
        predicates.extend(_predicate({SERVER_TAG: server, **tags_of(attributes)}) for attributes in chosen)
    return predicates


_Attributes = tuple[tuple[str, str], ...]


def _chosen(metrics: set[str], keys: set[str]) -> list[_Attributes] | None:
    """Return the sets of attributes that choose the metrics that are among `keys`; None when they choose others."""
    if metrics <= keys:
        return [()]
    chosen = {parse_key(key)[1] for key in metrics & keys}
    for attributes, key in product(chosen, metrics - keys):
        if set(attributes) <= set(parse_key(key)[1]):
            return None
    return sorted(chosen)


def _predicate(tags: Mapping[str, str]) -> str:
    pairs = [("_measurement", MEASUREMENT), *tags.items()]
    return " AND ".join(f"{_quoted(tag)}={_quoted(value)}" for tag, value in pairs)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
