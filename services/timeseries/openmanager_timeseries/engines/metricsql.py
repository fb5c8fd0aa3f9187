"""What VictoriaMetrics is asked, and its answers as arrays: no object is made for a sample.

Escaping is that of MetricsQL, whose strings are those of Go and whose label names take a backslash before whatever is
no letter, digit or underscore.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from openmanager.frame import NANOS_PER_MILLI
from openmanager.metric import make_key, parse_key
from openmanager_timeseries.engines.port import Coded, Wanted
from openmanager_timeseries.line_protocol import MEASUREMENT, SERVER_TAG, attributes_of, tags_of
from openmanager_timeseries.samples import Bools, Floats, Ints

METRIC_PREFIX = f"{MEASUREMENT}_"
NAME_LABEL = "__name__"
# Measured with 500,000 series: more in one selector is as slow as fewer, since the index is then searched value by value.
ALTERNATIVES = 100
# -search.maxQueryLen is 16 KiB: so many bytes each of servers and of metrics, of which escaping may make three times
# as many.
ALTERNATIVE_BYTES = 2000


@dataclass(frozen=True, slots=True)
class Selector:
    """Series of some servers whose name and labels are each one of some values: at least those of `keys`."""

    servers: Sequence[str]
    labels: Mapping[str, Sequence[str]]
    keys: frozenset[str]

    @property
    def series(self) -> int:
        """How many series of ours are asked for."""
        return len(self.servers) * len(self.keys)

    def text(self) -> str:
        """Return it as MetricsQL."""
        matchers = [_matcher(tag, values) for tag, values in {**self.labels, SERVER_TAG: self.servers}.items()]
        return f"{{{','.join(matchers)}}}"


class Answers:
    """What was answered: runs of samples of one series, in the order of arrival."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._servers = {server: code for code, server in enumerate(wanted.servers)}
        self._metrics = {metric: code for code, metric in enumerate(wanted.metrics)}
        self._known: dict[bytes, tuple[int, str]] = {}
        self._rows: list[Ints] = [np.empty(0, np.int64)]
        self._times: list[Ints] = [np.empty(0, np.int64)]
        self._values: list[Floats] = [np.empty(0, np.float64)]

    def add_lines(self, lines: bytes) -> None:
        """Add lines of an export."""
        rows, counts, times, values = [], [], [], []
        for line in lines.splitlines():
            # Inside a JSON string a quote has a backslash before it: these cannot be part of a label.
            labels, _, rest = line.partition(b'},"values":[')
            numbers, _, stamps = rest.partition(b'],"timestamps":[')
            if not (labels.startswith(b'{"metric":{') and stamps.endswith(b"]}")):
                raise ValueError(labels)
            row, _ = self._row(labels[10:] + b"}")
            if row >= 0:
                rows.append(row)
                counts.append(stamps.count(b",") + 1)
                times.append(stamps[:-2])
                values.append(numbers)
        self._add(rows, counts, _numbers(times, pa.int64()), _numbers(values, pa.float64()))

    def add_matrix(self, body: bytes, width: int, keys: frozenset[str]) -> None:
        """Add the rollups of buckets of `width` ms at their last milliseconds, of `keys` only."""
        at = body.find(b'"result":[') + 10
        if at < 10 or not body.startswith(b'{"status":"success"') or b'"isPartial":true' in body[:at]:
            raise ValueError(body[:at])
        rows, counts, pairs = [], [], []
        while body.startswith(b'{"metric":{', at):
            labels_end = body.index(b'},"values":[[', at)
            end = body.index(b"]]}", labels_end)
            row, key = self._row(body[at + 10 : labels_end + 1])
            if row >= 0 and key in keys:
                rows.append(row)
                pairs.append(body[labels_end + 13 : end].translate(None, b'[]"'))
                counts.append((pairs[-1].count(b",") + 1) // 2)
            at = end + 4
        numbers = _numbers(pairs, pa.float64()).reshape(-1, 2)
        ends = np.rint(numbers[:, 0] * 1000).astype(np.int64)
        self._add(rows, counts, ends - (width - 1), np.ascontiguousarray(numbers[:, 1]))

    def _row(self, labels: bytes) -> tuple[int, str]:
        """Return the row of a series and its key; a row of −1 when it was not wanted."""
        found = self._known.get(labels)
        if found is None:
            server, key = _identity(json.loads(labels))
            server_code, metric_code = self._servers.get(server, -1), self._metrics.get(key, -1)
            row = -1 if min(server_code, metric_code) < 0 else server_code * len(self._metrics) + metric_code
            found = self._known[labels] = row, key
        return found

    def _add(self, rows: list[int], counts: list[int], millis: Ints, values: Floats) -> None:
        if not sum(counts) == len(millis) == len(values):
            raise ValueError(len(values))
        times = millis * NANOS_PER_MILLI
        good = np.isfinite(values) & (times >= self._wanted.start) & (times < self._wanted.end)
        every = np.repeat(np.array(rows, np.int64), counts)
        self._rows.append(every[good])
        self._times.append(times[good])
        self._values.append(values[good])

    def samples(self) -> Coded:
        """Return them in order; of two samples of one time the larger one."""
        rows, times, values = self._ordered()
        ends = _begins((rows[1:] != rows[:-1]) | (times[1:] != times[:-1]), len(rows))[1:]
        last = np.append(ends, len(rows))[: len(rows)] - 1
        return self._coded(rows[last], times[last], values[last])

    def buckets(self, aggregation: str) -> tuple[Coded, list[str]]:
        """Return them in order, and the servers of which a bucket is there twice and cannot be made one."""
        rows, times, values = self._ordered()
        begins = _begins((rows[1:] != rows[:-1]) | (times[1:] != times[:-1]), len(rows))
        if len(begins) == len(rows):
            return self._coded(rows, times, values), []
        if aggregation in _MERGES:
            return self._coded(rows[begins], times[begins], _MERGES[aggregation].reduceat(values, begins)), []
        twice = np.diff(np.append(begins, len(rows))) > 1
        torn = np.unique(rows[begins[twice]] // len(self._metrics))
        return self._coded(rows[begins], times[begins], values[begins]), [self._wanted.servers[code] for code in torn]

    def _ordered(self) -> tuple[Ints, Ints, Floats]:
        """Return rows, times and values by row, time and value."""
        rows, times, values = np.concatenate(self._rows), np.concatenate(self._times), np.concatenate(self._values)
        begins = _begins((rows[1:] != rows[:-1]) | (times[1:] <= times[:-1]), len(rows))
        # What arrives is ascending in long runs, so it is mostly enough to put these in order.
        runs = np.lexsort((times[begins], rows[begins]))
        counts = np.diff(np.append(begins, len(rows)))[runs]
        order = np.repeat(begins[runs] - np.cumsum(counts) + counts, counts) + np.arange(len(rows))
        rows, times, values = rows[order], times[order], values[order]
        if np.any((rows[1:] == rows[:-1]) & (times[1:] <= times[:-1])):
            order = np.lexsort((values, times, rows))
            rows, times, values = rows[order], times[order], values[order]
        return rows, times, values

    def _coded(self, rows: Ints, times: Ints, values: Floats) -> Coded:
        servers, metrics = np.divmod(rows, max(1, len(self._metrics)))
        return Coded(
            servers=self._wanted.servers,
            server_codes=servers,
            metrics=self._wanted.metrics,
            metric_codes=metrics,
            times=times,
            values=values,
        )


_Item = TypeVar("_Item")
_MERGES = {"MIN": np.minimum, "MAX": np.maximum}


def _begins(changes: Bools, count: int) -> Ints:
    """Return where runs begin in `count` items; `changes` says of each but the first that it begins one."""
    return np.append(0, np.flatnonzero(changes) + 1)[:count]


def _identity(labels: Mapping[str, str]) -> tuple[str, str]:
    """Return the server and the metric key that labels stand for."""
    attributes = attributes_of({label: value for label, value in labels.items() if label != NAME_LABEL})
    return labels.get(SERVER_TAG, ""), make_key(labels[NAME_LABEL].removeprefix(METRIC_PREFIX), attributes)


def _numbers(parts: list[bytes], kind: Any) -> Any:
    """Return the numbers of lists with commas between them as one array."""
    text = b",".join(parts)
    if not text:
        return np.empty(0, kind.to_pandas_dtype())
    if b"n" in text:  # null, NaN and "Infinity", which somebody else wrote
        text = text.replace(b"null", b"nan").replace(b'"', b"")
    return pc.split_pattern(pa.array([text], pa.string()), ",").values.cast(kind).to_numpy(zero_copy_only=False)


def selectors(wanted: Wanted) -> Iterator[Selector]:
    """Return selectors that together choose what is wanted, and sometimes more."""
    alike: defaultdict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
    for key in wanted.metrics:
        name, attributes = parse_key(key)
        labels = {NAME_LABEL: METRIC_PREFIX + name, **tags_of(attributes)}
        alike[tuple(labels)].append((key, *labels.values()))
    for tags, entries in alike.items():
        for some in _pieces(sorted(entries), lambda entry: 2 * len(entry[0].encode())):
            choices = {tag: sorted({entry[at] for entry in some}) for at, tag in enumerate(tags, 1)}
            for servers in _pieces(wanted.servers, len):
                yield Selector(servers, choices, frozenset(entry[0] for entry in some))


def _pieces(items: Sequence[_Item], size: Callable[[_Item], int]) -> Iterator[Sequence[_Item]]:
    """Cut items into pieces that selectors may name."""
    start, total = 0, 0
    for at, item in enumerate(items):
        total += size(item)
        if at - start == ALTERNATIVES or (total > ALTERNATIVE_BYTES and at > start):
            yield items[start:at]
            start, total = at, size(item)
    if start < len(items):
        yield items[start:]


def exact_selectors(wanted: Wanted, series: Sequence[Mapping[str, str]]) -> list[str]:
    """Return selectors of just the wanted ones of some series, which are all there are of their names."""
    servers, metrics = set(wanted.servers), set(wanted.metrics)
    every: defaultdict[str, set[str]] = defaultdict(set)
    for labels in series:
        every[labels[NAME_LABEL]].update(labels)
    found = []
    for labels in series:
        server, key = _identity(labels)
        if server in servers and key in metrics:
            matchers = [_matcher(label, [labels.get(label, "")]) for label in sorted(every[labels[NAME_LABEL]])]
            found.append(f"{{{','.join(matchers)}}}")
    return found


def _matcher(tag: str, values: Sequence[str]) -> str:
    """Return a label matcher: `tag="value"` or `tag=~"value|value"`."""
    name = re.sub(r"^[0-9]|[^A-Za-z0-9_]", r"\\\g<0>", tag)
    if len(values) == 1:
        return f'{name}="{_quoted(values[0])}"'
    pattern = "|".join(re.sub(r"[\\.+*?()|\[\]{}^$]", r"\\\g<0>", value) for value in values)
    return f'{name}=~"{_quoted(pattern)}"'


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def seconds(millis: int) -> str:
    """Return milliseconds as seconds which come out as the same milliseconds, be they truncated there or rounded."""
    return f"{millis // 1000}.{millis % 1000:03d}25"


def without(coded: Coded, servers: Sequence[str]) -> Coded:
    """Return an answer without some servers."""
    kept = ~np.isin(coded.server_codes, [coded.servers.index(server) for server in servers])
    return _chosen(coded, kept)


def _chosen(coded: Coded, index: Any) -> Coded:
    return replace(
        coded,
        server_codes=coded.server_codes[index],
        metric_codes=coded.metric_codes[index],
        times=coded.times[index],
        values=coded.values[index],
    )


def joined(wanted: Wanted, parts: Sequence[Coded]) -> Coded:
    """Return disjoint answers to parts of what is wanted as one."""
    code_of = {server: code for code, server in enumerate(wanted.servers)}
    codes = [np.array([code_of[server] for server in part.servers], np.int64)[part.server_codes] for part in parts]
    joined = Coded(
        servers=wanted.servers,
        server_codes=np.concatenate(codes),
        metrics=wanted.metrics,
        metric_codes=np.concatenate([part.metric_codes for part in parts]),
        times=np.concatenate([part.times for part in parts]),
        values=np.concatenate([part.values for part in parts]),
    )
    return _chosen(joined, np.lexsort((joined.times, joined.metric_codes, joined.server_codes)))
