"""VictoriaMetrics as an engine: written as line protocol, read by export and by rollups over just the windows we mean.

`write_url` and `read_url` are what `/write` and `/api/v1/export` are appended to. Of a single node both are
`http://host:8428`; of a cluster they go up to the tenant: `http://vminsert:8480/insert/0/influx` and
`http://vmselect:8481/select/0/prometheus`. What was measured is in docs/decisions/0012-victoriametrics.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any

import aiohttp
import numpy as np

from openmanager.errors import FailedPreconditionError, Reason, store_unavailable
from openmanager.frame import EARLIEST_PLAUSIBLE_NANOS, LATEST_PLAUSIBLE_NANOS, NANOS_PER_MILLI, Frame
from openmanager.metric import parse_key
from openmanager.runtime.clock import Clock, SystemClock
from openmanager_timeseries.engines.buckets import reduced
from openmanager_timeseries.engines.metricsql import (
    Answers,
    exact_selectors,
    joined,
    seconds,
    selectors,
    without,
)
from openmanager_timeseries.engines.port import MARKER, Capabilities, Coded, EngineState, Refused, Wanted
from openmanager_timeseries.line_protocol import LineEncoder, split
from openmanager_timeseries.port import InfoOf
from openmanager_timeseries.samples import Floats, Ints

NAME = "victoriametrics"

# nginx's default limit of a body, and what aiohttp still sends in one piece.
BATCH_BYTES = 1 << 20
# -influx.maxLineSize is 262,144: a longer line is answered with 400, and everything in its batch is lost.
LINE_BYTES = 240_000
# -maxLabelsPerTimeseries is 30 besides the name; what is over is cut off in silence. Three are ours.
MAX_ATTRIBUTES = 27
# Samples further ahead are dropped in silence.
AHEAD = timedelta(days=2)
FAR = timedelta(days=3)
# The answers of a store that keeps its own metrics to itself: -metricsAuthKey, or a proxy before it.
CLOSED = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)
# The selectors of one request.
MATCHES = 500
ROWS_PER_LINE = 10_000
READ_BYTES = 1 << 20
PARSE_BYTES = 4 << 20
MAX_ANSWER_BYTES = 256 << 20
# -search.maxPointsPerTimeseries is 30,000; and as many points in all as an answer of about 64 MiB holds.
POINTS_PER_SERIES = 10_000
POINTS_PER_QUERY = 2_000_000
# query_range makes up the points of the last 30 s (-search.latencyOffset) and more when clocks differ: not asked for.
UNSETTLED = timedelta(seconds=90)
# The marker is written again when it is so old: retention is at least a day.
MARKER_AGE = timedelta(hours=6)

CAPABILITIES = Capabilities(
    digits=12,
    overwrites=False,
    signed_zero=False,
    ranged_delete=False,
    metric_delete=True,
    aggregations=frozenset({"MIN", "MAX", "FIRST", "LAST"}),
    durable_after=timedelta(seconds=60),
    visible_after=timedelta(seconds=30),
)
DEDUPLICATION = "dedup.minScrapeInterval"
# What counts samples that were accepted and dropped, or labels that were cut off.
LOSSES = ("vm_rows_ignored_total", "vm_metrics_with_dropped_labels_total")
# A sample that was delivered twice is there twice, and counts twice, unless -dedup.minScrapeInterval=1ms.
DEDUPLICATED = CAPABILITIES.aggregations | {"SUM", "COUNT"}
_ROLLUPS = {name: f"{name.lower()}_over_time" for name in DEDUPLICATED}


class VictoriaEngine:
    """Raw samples in VictoriaMetrics.

    `write_timeout` and `query_timeout` are those of one request for writing and one call for reading.
    Of two samples of one series and time both are kept, and the larger one is read; MIN sees both. `capabilities` has SUM
    and COUNT once `check` has seen that the store removes repeated samples.
    """

    name = NAME

    def __init__(
        self,
        *,
        write_url: str,
        read_url: str,
        write_timeout: timedelta,
        query_timeout: timedelta,
        clock: Clock | None = None,
        marker: str = MARKER,
    ) -> None:
        self._marker_name = marker
        self._write_url = write_url.rstrip("/")
        self._read_url = (read_url or write_url).rstrip("/")
        self._write_seconds = write_timeout.total_seconds()
        self._query_seconds = query_timeout.total_seconds()
        self._clock = clock or SystemClock()
        self._encoder = LineEncoder()
        self._encoding = threading.Lock()
        self._session: aiohttp.ClientSession | None = None
        self.capabilities = CAPABILITIES

    async def check(self) -> EngineState:
        """Return what the store says of itself; write the marker again before retention takes it."""
        async with asyncio.timeout(self._query_seconds):
            marker = await self._marker()
            shown = await self._own_metrics()
        if marker.epoch and self._clock.now_nanos() - marker.time > _nanos(MARKER_AGE):
            await self._write_marker(marker.epoch, self._clock.now_nanos())
        found = _described(shown, cluster="/select/" in self._read_url)
        self.capabilities = replace(
            CAPABILITIES, aggregations=DEDUPLICATED if found.deduplicated else CAPABILITIES.aggregations
        )
        return replace(found.state, epoch=marker.epoch)

    async def mark(self, epoch: str) -> None:
        """Write the marker and wait until `check` finds it, which takes some seconds; TimeoutError when it never does.

        After a TimeoutError, or when the caller gave up waiting, the marker may still appear: ask `check` first.
        """
        async with asyncio.timeout(self._query_seconds):
            marker = await self._marker()
        await self._write_marker(epoch, max(self._clock.now_nanos(), marker.time + NANOS_PER_MILLI))
        async with asyncio.timeout(CAPABILITIES.visible_after.total_seconds()):
            while marker.epoch != epoch:
                await asyncio.sleep(0.2)
                marker = await self._marker()

    async def write(self, frames: Sequence[Frame], info_of: InfoOf) -> Sequence[Refused]:
        """Write the samples of frames; refused are those with too many attributes or from beyond two days ahead."""
        latest = self._clock.now_nanos() + _nanos(AHEAD)
        refused: list[Refused] = []
        kept = [_admit(frame, latest, refused) for frame in frames]
        infos = {server: info_of(server) for frame in kept for server in frame.servers}
        for batch in await asyncio.to_thread(self._encode, kept, infos.__getitem__):
            await self._post_lines(batch)
        return refused

    async def read(self, wanted: Wanted) -> Coded:
        """Return samples."""
        async with asyncio.timeout(self._query_seconds):
            return await self._export(wanted)

    async def read_buckets(self, wanted: Wanted, step: int, aggregation: str) -> Coded:
        """Return aggregates: from rollups where these are settled, and by us from samples for the last buckets."""
        if aggregation not in self.capabilities.aggregations or step % NANOS_PER_MILLI:
            raise _cannot(f"the engine does not compute {aggregation} in steps of {step} ns")
        wanted = self._possible(wanted, step)
        unsettled = self._clock.now_nanos() - _nanos(UNSETTLED)
        middle = min(wanted.end, max(wanted.start, unsettled // step * step))
        async with asyncio.timeout(self._query_seconds):
            settled = await self._roll_up(replace(wanted, end=middle), step, aggregation)
            rest = await self._reduce(replace(wanted, start=middle), step, aggregation)
        return joined(wanted, [settled, rest])

    async def delete(self, wanted: Wanted) -> None:
        """Delete series whole, that is when [start, end) goes from 2000 or before to 2200 or after.

        A sample that is not yet visible to queries may survive.
        """
        if wanted.start > EARLIEST_PLAUSIBLE_NANOS or wanted.end < LATEST_PLAUSIBLE_NANOS:
            raise _cannot("the engine deletes series as a whole, not samples of a range of time")
        async with asyncio.timeout(self._query_seconds):
            series = await self._label_sets(wanted)
            url = self._read_url.replace("/select/", "/delete/") + "/api/v1/admin/tsdb/delete_series"
            for form in _batched([("match[]", selector) for selector in exact_selectors(wanted, series)]):
                await self._post(url, form, HTTPStatus.NO_CONTENT)

    async def close(self) -> None:
        """Let go of connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _encode(self, frames: Sequence[Frame], info_of: InfoOf) -> Iterator[bytes]:
        with self._encoding:  # a caller who gave up does not stop the thread
            lines = self._encoder.encode(frames, info_of)
        return _batches(lines)

    # What is asked.

    async def _export(self, wanted: Wanted) -> Coded:
        first, end = max(0, -(-wanted.start // NANOS_PER_MILLI)), -(-wanted.end // NANOS_PER_MILLI)
        found = Answers(wanted)
        if first < end:
            ends = [("start", seconds(first)), ("end", seconds(end - 1)), ("max_rows_per_line", str(ROWS_PER_LINE))]
            matches = [("match[]", selector.text()) for selector in selectors(wanted)]
            for form in _batched(matches):
                await self._stream(self._read_url + "/api/v1/export", [*form, *ends], found.add_lines)
        return await asyncio.to_thread(found.samples)

    async def _roll_up(self, wanted: Wanted, step: int, aggregation: str) -> Coded:
        """Return aggregates by query_range. Its windows are (t−d, t]: [s, s+d) is the one at s+d−1 ms."""
        found = Answers(wanted)
        width = step // NANOS_PER_MILLI
        first, end = wanted.start // NANOS_PER_MILLI, wanted.end // NANOS_PER_MILLI
        for selector in selectors(wanted):
            count = min(POINTS_PER_SERIES, max(1, POINTS_PER_QUERY // selector.series)) * width
            for start in range(first, end, count):
                form = [
                    ("query", f"{_ROLLUPS[aggregation]}({selector.text()}[{width}ms]) keep_metric_names"),
                    ("start", seconds(start + width - 1)),
                    ("end", seconds(min(start + count, end) - 1)),
                    ("step", f"{width}ms"),
                    ("nocache", "1"),  # otherwise times are moved to multiples of the step
                ]
                body = await self._post(self._read_url + "/api/v1/query_range", form)
                await _parse(partial(found.add_matrix, width=width, keys=selector.keys), body)
        buckets, torn = await asyncio.to_thread(found.buckets, aggregation)
        if not torn:
            return buckets
        # Series that we hold as one are two there, since tags changed: only their samples say what both make together.
        whole = await self._reduce(replace(wanted, servers=torn), step, aggregation)
        return joined(wanted, [without(buckets, torn), whole])

    async def _reduce(self, wanted: Wanted, step: int, aggregation: str) -> Coded:
        if wanted.start >= wanted.end:
            return Answers(wanted).samples()
        samples = await self._export(wanted)
        return await asyncio.to_thread(reduced, samples, wanted, step, aggregation)

    async def _label_sets(self, wanted: Wanted) -> list[dict[str, str]]:
        """Return the labels of every series of the metrics' names."""
        names = sorted({parse_key(key)[0] for key in wanted.metrics})
        everywhere = replace(wanted, metrics=names)
        ends = [("start", "1"), ("end", self._far_end())]  # 0 would be the last five minutes
        found = []
        for form in _batched([("match[]", selector.text()) for selector in selectors(everywhere)]):
            body = await self._post(self._read_url + "/api/v1/series", [*form, *ends])
            found.extend(_data(body))
        return found

    async def _marker(self) -> _Marker:
        """Return the newest marker; its epoch is empty when there is none."""
        found: list[_Marker] = []
        form = [("match[]", f'{{__name__="{self._marker_name}_value"}}'), ("start", "0"), ("end", self._far_end())]
        await self._stream(self._read_url + "/api/v1/export", form, lambda lines: found.extend(_markers(lines)))
        return max(found, key=lambda marker: marker.time, default=_Marker("", 0))

    def _far_end(self) -> str:
        """Return a time after every sample: without one, the newest samples are not answered."""
        return str((self._clock.now_nanos() + _nanos(FAR)) // 10**9)

    def _possible(self, wanted: Wanted, step: int) -> Wanted:
        """Return what is wanted without the buckets in which no sample can be."""
        start = EARLIEST_PLAUSIBLE_NANOS // step * step
        end = (self._clock.now_nanos() + _nanos(FAR)) // step * step
        return replace(wanted, start=min(max(wanted.start, start), wanted.end), end=min(wanted.end, end))

    async def _write_marker(self, epoch: str, time: int) -> None:
        tag = re.sub(r"([\\ ,=])", r"\\\1", epoch)
        await self._post_lines(f"{self._marker_name},epoch={tag} value=1 {time // NANOS_PER_MILLI}\n".encode())

    async def _own_metrics(self) -> str:
        """Return what the store exposes of itself; nothing where that is closed to us."""
        root = self._read_url.partition("/select/")[0]
        async with self._answer(root + "/metrics", b"", HTTPStatus.OK, *CLOSED) as answer:
            shown = await _whole(answer) if answer.status == HTTPStatus.OK else b""
        return shown.decode(errors="replace")

    # How it is asked.

    async def _post_lines(self, lines: bytes) -> None:
        async with (
            asyncio.timeout(self._write_seconds),
            self._answer(self._write_url + "/write?precision=ms", lines, HTTPStatus.NO_CONTENT),
        ):
            pass

    async def _post(self, url: str, form: Sequence[tuple[str, str]], status: int = HTTPStatus.OK) -> bytes:
        """Return an answer as a whole."""
        async with self._answer(url, aiohttp.FormData(form), status) as answer:
            return await _whole(answer)

    async def _stream(self, url: str, form: Sequence[tuple[str, str]], take: Callable[[bytes], None]) -> None:
        """Hand an answer to `take`, in a thread, some MiB of whole lines at a time."""
        buffer, size = bytearray(), 0
        async with self._answer(url, aiohttp.FormData(form), HTTPStatus.OK) as answer:
            async for piece in answer.content.iter_any():
                buffer += piece
                size += len(piece)
                _check_size(size)
                if len(buffer) >= PARSE_BYTES:
                    whole = buffer.rfind(b"\n") + 1
                    if not whole:
                        raise store_unavailable(NAME)  # no line of its is so long
                    await _parse(take, bytes(buffer[:whole]))
                    del buffer[:whole]
        if buffer and not buffer.endswith(b"\n"):
            raise store_unavailable(NAME)  # cut off
        await _parse(take, bytes(buffer))

    @contextlib.asynccontextmanager
    async def _answer(
        self, url: str, data: bytes | aiohttp.FormData, *statuses: int
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open the answer to a POST; UnavailableError for every other answer, and for none."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None),  # the caller's deadline is the only one
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept-Encoding": "identity"},
                read_bufsize=READ_BYTES,
            )
        try:
            async with self._session.post(url, data=data, allow_redirects=False) as answer:
                if answer.status not in statuses:
                    raise store_unavailable(NAME)
                yield answer
        except (aiohttp.ClientError, OSError) as err:
            raise store_unavailable(NAME) from err


@dataclass(frozen=True, slots=True)
class _Marker:
    """A marker and when it was written, in nanoseconds."""

    epoch: str
    time: int


@dataclass(frozen=True, slots=True)
class _Described:
    """What the store's own metrics say."""

    state: EngineState
    deduplicated: bool


async def _parse(take: Callable[[bytes], None], lines: bytes) -> None:
    """Let `take` have lines, in a thread; UnavailableError when they are not what the store would answer."""
    try:
        await asyncio.to_thread(take, lines)
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise store_unavailable(NAME) from err


async def _whole(answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in answer.content.iter_any():
        body += piece
        _check_size(len(body))
    return bytes(body)


def _check_size(size: int) -> None:
    if size > MAX_ANSWER_BYTES:
        raise store_unavailable(NAME)


def _batched(matches: Sequence[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Return matches of as many series as one request may name."""
    for start in range(0, len(matches), MATCHES):
        yield list(matches[start : start + MATCHES])


def _nanos(duration: timedelta) -> int:
    return duration // timedelta(microseconds=1) * 1000


def _cannot(why: str) -> FailedPreconditionError:
    return FailedPreconditionError(why, reason=Reason.ENGINE_CANNOT)


@lru_cache(maxsize=256)
def _over(metrics: tuple[str, ...]) -> Ints:
    """Return the indices of metrics with too many attributes."""
    return np.array([at for at, key in enumerate(metrics) if len(parse_key(key)[1]) > MAX_ATTRIBUTES], np.int64)


def _admit(frame: Frame, latest: int, refused: list[Refused]) -> Frame:
    """Return a frame without what the store would drop or distort in silence; add that to `refused`."""
    over = _over(frame.metrics)
    if len(over):
        why = f"more than {MAX_ATTRIBUTES} attributes, where the engine cuts the rest off"
        _refuse(why, frame, frame.values[:, :, over], refused)
        kept = np.setdiff1d(np.arange(len(frame.metrics)), over)
        frame = replace(frame, metrics=tuple(frame.metrics[at] for at in kept), values=frame.values[:, :, kept])
    count = int(np.searchsorted(frame.times, latest))
    if count < len(frame.times):
        _refuse("more than two days ahead", frame, frame.values[count:], refused)
        frame = replace(frame, times=frame.times[:count], values=frame.values[:count])
    return frame


def _refuse(why: str, frame: Frame, values: Floats, refused: list[Refused]) -> None:
    present = ~np.isnan(values)
    servers = tuple(frame.servers[at] for at in np.flatnonzero(present.any(axis=(0, 2))))
    if servers:
        refused.append(Refused(reason=why, sample_count=int(np.count_nonzero(present)), servers=servers))


def _batches(lines: bytes) -> Iterator[bytes]:
    """Cut lines into batches, and lines that are too long into lines of fewer fields."""
    ends = np.flatnonzero(np.frombuffer(lines, np.uint8) == ord("\n"))
    if np.diff(ends, prepend=-1).max(initial=0) > LINE_BYTES:
        lines = b"\n".join([*(part for line in lines.splitlines() for part in _shortened(line)), b""])
    return split(lines, BATCH_BYTES)


def _shortened(line: bytes) -> Iterator[bytes]:
    """Return a line as lines that are short enough."""
    if len(line) <= LINE_BYTES:
        yield line
        return
    tags = re.match(rb"(?:[^\\ ]|\\.)* ", line, re.DOTALL)
    head = tags.group() if tags else b""
    fields, _, stamp = line[len(head) :].rpartition(b" ")
    room = LINE_BYTES - len(head) - len(stamp) - 1
    while len(fields) > room:
        cut = fields.rindex(b",", 0, room)
        yield head + fields[:cut] + b" " + stamp
        fields = fields[cut + 1 :]
    yield head + fields + b" " + stamp


def _markers(lines: bytes) -> list[_Marker]:
    """Return the newest of each epoch."""
    found = [json.loads(line) for line in lines.splitlines()]
    return [_Marker(each["metric"]["epoch"], max(each["timestamps"]) * NANOS_PER_MILLI) for each in found]


def _data(body: bytes) -> Any:
    """Return the data of an answer of the query API."""
    try:
        answer = json.loads(body)
        if answer["status"] != "success" or answer.get("isPartial"):
            raise store_unavailable(NAME)
        return answer["data"]
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise store_unavailable(NAME) from err


# The few of some thousand lines that are looked at.
_SHOWN = re.compile(
    rf'^(vm_app_version|vm_app_start_timestamp|vm_data_size_bytes|{"|".join(LOSSES)}|flag(?={{name="{DEDUPLICATION}"))'
    r"(?:\{(.*)\})? ([0-9.e+]{1,20})$",
    re.MULTILINE,
)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def _described(shown: str, *, cluster: bool) -> _Described:
    """Return what the store's own metrics say."""
    found: defaultdict[str, list[tuple[dict[str, str], str]]] = defaultdict(list)
    for name, labels, value in _SHOWN.findall(shown):
        found[name].append((dict(_LABEL.findall(labels)), value))
    deduplication = next((labels["value"] for labels, _ in found["flag"]), "")
    state = EngineState(
        version=next((labels.get("short_version", "") for labels, _ in found["vm_app_version"]), ""),
        epoch="",
        started="" if cluster else next((value for _, value in found["vm_app_start_timestamp"]), ""),
        size_bytes=sum(int(float(value)) for _, value in found["vm_data_size_bytes"]),
        warnings=tuple(_warnings(found, deduplication, cluster=cluster)),
    )
    return _Described(state, deduplication == "1ms")


def _warnings(
    found: Mapping[str, Sequence[tuple[Mapping[str, str], str]]], deduplication: str, *, cluster: bool
) -> Iterator[str]:
    if cluster:
        yield "a crash of a vmstorage goes unnoticed: what it had not yet written is not delivered again"
    elif not found["vm_app_start_timestamp"]:
        yield "the engine's own metrics are closed: a crash of it goes unnoticed"
    if deduplication not in {"", "0s", "1ms"}:
        yield f"the engine keeps one sample of each {deduplication}: the others are missing from its answers"
    elif deduplication != "1ms":
        yield f"it is not known to run with -{DEDUPLICATION}=1ms, without which it computes neither SUM nor COUNT"
    lost = sum(int(float(value)) for name in LOSSES for _, value in found[name])
    if lost:
        yield f"the engine has dropped {lost} samples or labels since it started"
