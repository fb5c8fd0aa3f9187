"""InfluxDB 2.x as an engine: written as line protocol, read by Flux, through influxdb-client without its batching writer.

What was measured is in docs/decisions/0013-influxdb.md.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

import aiohttp
import numpy as np

from openmanager.config import Secret
from openmanager.errors import FailedPreconditionError, Reason, store_unavailable
from openmanager.frame import LATEST_PLAUSIBLE_NANOS, NANOS_PER_MILLI, Frame
from openmanager.runtime.clock import Clock, SystemClock
from openmanager.runtime.credential import Credential
from openmanager_timeseries.engines import flux
from openmanager_timeseries.engines.buckets import reduced
from openmanager_timeseries.engines.flux import Answer, AnswerError, MixedTypesError, Part
from openmanager_timeseries.engines.port import (
    MARKER,
    Capabilities,
    Coded,
    EngineState,
    Refused,
    RefusedCredentialsError,
    Wanted,
)
from openmanager_timeseries.line_protocol import LineEncoder, split
from openmanager_timeseries.port import InfoOf

NAME = "influxdb"

# What aiohttp sends in one piece without complaint; batches of 4 MiB are not written faster.
BATCH_BYTES = 1 << 20
# So many requests may be spent on finding the bad lines of one write.
PROBES = 1000
PARSE_BYTES = 4 << 20
# 55 bytes a sample: some 10 million samples.
MAX_ANSWER_BYTES = 512 << 20
CONNECTIONS = 8
# Windows of a series cost as much as many samples where there are attributes: over so few nanoseconds samples are cheaper.
SHORT_RANGE = 600 * 10**9
# Less is refused.
SHORTEST_RETENTION = timedelta(hours=1)
LONGEST_WAIT = timedelta(seconds=30)
# The marker is written again when it is so old.
MARKER_AGE = timedelta(hours=6)

_FUNCTIONS = {name: name.lower() for name in ("COUNT", "FIRST", "LAST", "MAX", "MIN", "SUM")}
CAPABILITIES = Capabilities(
    digits=17,
    overwrites=True,
    signed_zero=True,
    ranged_delete=True,
    metric_delete=False,
    aggregations=frozenset(_FUNCTIONS),
    durable_after=timedelta(0),
    visible_after=timedelta(0),
)

_JSON = "application/json"
_NOTHING: Mapping[str, str] = MappingProxyType({})
_PERMANENT = frozenset({400, 413, 422})
_TOO_LARGE = 413
_STATUSES = {
    403: "the token may not do this",
    404: "there is no such organisation or bucket",
    429: "too many requests",
    503: "overloaded",
}
# What InfluxDB says of lines that it will never take, and what we say. The samples themselves are fit: they were admitted.
_REASONS = (
    (b"retention policy", "older than the bucket keeps"),
    (b"field type conflict", "the bucket holds the metric with another type"),
    (b"unable to parse", "no line protocol to influxdb"),
)
_OTHER_REASON = "refused by influxdb"
_TOO_LARGE_REASON = "a line too large for influxdb"
_DROPPED = re.compile(rb"dropped=(\d+)")
_SERVER = re.compile(rb"(?<!\\),server_id=([^, ]+)")
_DISK_SIZE = re.compile(r'^storage_shard_disk_size\{bucket="(\w+)".*\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Marker:
    epoch: str
    time: int


@dataclass(frozen=True, slots=True)
class _Bucket:
    """Where the samples are; a retention of 0 is for ever."""

    id: str
    retention: timedelta


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why lines were refused, and how many at least."""

    reason: str
    dropped: int


class InfluxEngine:
    """Raw samples in a bucket of InfluxDB 2.x.

    `write_timeout` and `query_timeout` are those of one request for writing and one call for reading.
    """

    name = NAME
    capabilities = CAPABILITIES

    def __init__(
        self,
        *,
        url: str,
        token: Secret,
        org: str,
        bucket: str,
        retention: timedelta,
        write_timeout: timedelta,
        query_timeout: timedelta,
        clock: Clock | None = None,
        marker: str = MARKER,
    ) -> None:
        self._marker_name = marker
        self._url, self._org, self._bucket = url, org, bucket
        self._retention = retention
        self._write_seconds = write_timeout.total_seconds()
        self._query_seconds = query_timeout.total_seconds()
        self._clock = clock or SystemClock()
        self._token = Credential(token, self._clock)
        self._encoder = LineEncoder()
        self._encoding = threading.Lock()
        self._opened: Any = None

    async def check(self) -> EngineState:
        """Return what InfluxDB says of itself; make the bucket where it is missing, and write an old marker again."""
        async with asyncio.timeout(self._query_seconds):
            version = await self._version()
            bucket = await self._find_bucket() or await self._make_bucket()
            marker = await self._marker()
            size = await self._size(bucket)
        age = timedelta(microseconds=(self._clock.now_nanos() - marker.time) // 1000)
        if marker.epoch and age > min(MARKER_AGE, self._retention / 4):
            await self._write_marker(marker.epoch, self._clock.now_nanos())
        return EngineState(
            version=version, epoch=marker.epoch, size_bytes=size, warnings=tuple(self._warnings(version, bucket))
        )

    async def mark(self, epoch: str) -> None:
        """Write the marker; it is later than every one before it."""
        async with asyncio.timeout(self._query_seconds):
            marker = await self._marker()
        await self._write_marker(epoch, max(self._clock.now_nanos(), marker.time + NANOS_PER_MILLI))

    async def write(self, frames: Sequence[Frame], info_of: InfoOf) -> Sequence[Refused]:
        """Write the samples of frames; refused are those whose lines InfluxDB refuses alone.

        When more than `PROBES` requests were needed to find these, what is left of a refused batch counts as refused.
        """
        infos = {server: info_of(server) for frame in frames for server in frame.servers}
        lines = await asyncio.to_thread(self._encode, frames, infos.__getitem__)
        refused: dict[str, list[bytes]] = defaultdict(list)
        probes = PROBES
        for batch in split(lines, BATCH_BYTES):
            probes = await self._deliver(batch, refused, probes)
        return [_refused(reason, b"".join(bad)) for reason, bad in refused.items()]

    async def read(self, wanted: Wanted) -> Coded:
        """Return samples."""
        async with asyncio.timeout(self._query_seconds):
            return await self._read(wanted)

    async def read_buckets(self, wanted: Wanted, step: int, aggregation: str) -> Coded:
        """Return aggregates by `aggregateWindow`; sums are added in another order than ours, and are equal to rounding."""
        if aggregation not in _FUNCTIONS:
            raise _cannot(f"influxdb does not compute {aggregation} as we do")
        async with asyncio.timeout(self._query_seconds):
            if wanted.end - wanted.start <= SHORT_RANGE:
                return await asyncio.to_thread(reduced, await self._read(wanted), wanted, step, aggregation)
            parts = await self._ask(flux.programs, wanted, flux.window(step, _FUNCTIONS[aggregation]))
            buckets, torn = await asyncio.to_thread(flux.coded, wanted, parts)
            if not torn:
                return buckets
            # Two series there are one of ours, and samples may be in both: only samples say what they make together.
            samples = await self._read(replace(wanted, servers=torn))
            return _with(buckets, torn, await asyncio.to_thread(reduced, samples, wanted, step, aggregation))

    async def delete(self, wanted: Wanted) -> None:
        """Delete samples; what is deleted is chosen by tags, so every metric with the same attributes must be wanted."""
        bounded = _bounded(wanted)
        if bounded is None:
            return
        async with asyncio.timeout(self._query_seconds):
            parts = await self._ask(flux.series_programs, bounded)
            predicates = flux.deletions(bounded, parts)
        if predicates is None:
            raise _cannot("influxdb deletes by server and attributes, not one metric of several")
        for predicate in predicates:
            await self._delete(bounded, predicate)

    async def close(self) -> None:
        """Let go of connections."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close()

    # Writing.

    def _encode(self, frames: Sequence[Frame], info_of: InfoOf) -> bytes:
        with self._encoding:
            return self._encoder.encode(frames, info_of)

    async def _deliver(self, batch: bytes, refused: dict[str, list[bytes]], probes: int) -> int:
        """Write lines, halving them down to those that are refused; return how many probes are left.

        InfluxDB takes nothing of a batch that it cannot parse, and the good points of one with bad points. Both are
        written again in halves: the same points twice are one.
        """
        left = [batch]
        while left:
            lines = left.pop()
            refusal = await self._post_lines(lines)
            if refusal is None:
                continue
            count = lines.count(b"\n")
            if count == 1 or refusal.dropped >= count or probes <= 0:
                refused[refusal.reason].append(lines)
                continue
            probes -= 2
            middle = lines.find(b"\n", len(lines) // 2) + 1
            if middle == len(lines):
                middle = lines.rfind(b"\n", 0, len(lines) - 1) + 1
            left += [lines[middle:], lines[:middle]]
        return probes

    async def _post_lines(self, lines: bytes) -> _Refusal | None:
        """Write lines; return why some of them will never be taken, if so."""
        query = {"org": self._org, "bucket": self._bucket, "precision": "ms"}
        async with asyncio.timeout(self._write_seconds):
            async with self._call("POST", "/api/v2/write", query, lines, "text/plain; charset=utf-8") as response:
                if response.status in _PERMANENT:
                    return _refusal(response.status, await response.read())
                # 204 is the one answer that says that points are stored.
                _expect(response, 204)
                return None

    async def _write_marker(self, epoch: str, time: int) -> None:
        tag = re.sub(r"([ ,=])", r"\\\1", epoch)
        if (
            await self._post_lines(f"{self._marker_name},epoch={tag} value=1 {time // NANOS_PER_MILLI}\n".encode())
            is not None
        ):
            raise store_unavailable(NAME)

    async def _delete(self, wanted: Wanted, predicate: str) -> None:
        # Both ends are inclusive.
        ends = {"start": flux.instant(wanted.start), "stop": flux.instant(wanted.end - 1)}
        query = {"org": self._org, "bucket": self._bucket}
        async with asyncio.timeout(self._query_seconds):
            async with self._call("POST", "/api/v2/delete", query, {**ends, "predicate": predicate}) as response:
                _expect(response, 204)

    # Reading.

    async def _read(self, wanted: Wanted) -> Coded:
        try:
            parts = await self._ask(flux.programs, wanted, flux.ONE_TABLE)
        except MixedTypesError:
            parts = await self._ask(flux.programs, wanted, "")
        samples, _ = await asyncio.to_thread(flux.coded, wanted, parts)
        return samples

    async def _ask(self, make: Callable[..., Iterator[str]], wanted: Wanted, *how: str) -> list[Part]:
        """Return the answers to the queries that `make(bucket, wanted, …)` gives."""
        bounded = _bounded(wanted)
        parts: list[Part] = []
        for program in make(self._bucket, bounded, *how) if bounded is not None else ():
            parts.extend(await self._query(program))
        return parts

    async def _query(self, program: str) -> list[Part]:
        """Return the answer to a query, read while it arrives."""
        answer, parts, size = Answer(), [], 0
        body = {"query": program, "dialect": {"header": True, "annotations": ["datatype"]}}
        async with self._call("POST", "/api/v2/query", {"org": self._org}, body) as response:
            if response.status == 400 and flux.MIXED_TYPES in await response.read():
                raise MixedTypesError
            _expect(response, 200)
            buffer = bytearray()
            async for chunk in response.content.iter_any():
                buffer += chunk
                size += len(chunk)
                if size > MAX_ANSWER_BYTES:
                    raise _cannot("influxdb's answer is larger than fits: ask for less")
                if len(buffer) >= PARSE_BYTES:
                    end = buffer.rfind(b"\r\n") + 2
                    parts.extend(await asyncio.to_thread(answer.take, bytes(buffer[:end])))
                    del buffer[:end]
            parts.extend(await asyncio.to_thread(answer.take, bytes(buffer)))
            answer.finish()
        return parts

    async def _marker(self) -> _Marker:
        """Return the newest marker; its epoch is empty when there is none."""
        newest = _Marker("", 0)
        for part in await self._query(flux.marker_program(self._bucket, self._marker_name, LATEST_PLAUSIBLE_NANOS)):
            found = (part.servers[code] for code in part.server_codes.tolist())
            newest = max(newest, *map(_Marker, found, part.times.tolist()), key=lambda marker: marker.time)
        return newest

    # What InfluxDB says of itself.

    async def _version(self) -> str:
        async with self._call("GET", "/health") as response:
            _expect(response, 200)
            return str((await response.json()).get("version", "")).removeprefix("v")

    async def _find_bucket(self) -> _Bucket | None:
        """Return the bucket; None when there is none."""
        async with self._call("GET", "/api/v2/buckets", {"org": self._org, "name": self._bucket}) as response:
            if response.status == 404:
                return None
            _expect(response, 200)
            return next(map(_bucket, (await response.json())["buckets"]), None)

    async def _make_bucket(self) -> _Bucket:
        seconds = int(max(self._retention, SHORTEST_RETENTION).total_seconds())
        async with self._call("GET", "/api/v2/orgs", {"org": self._org}) as response:
            _expect(response, 200)
            org = (await response.json())["orgs"][0]["id"]
        rules = [{"type": "expire", "everySeconds": seconds}]
        body = {"orgID": org, "name": self._bucket, "retentionRules": rules}
        async with self._call("POST", "/api/v2/buckets", {}, body) as response:
            _expect(response, 201)
            return _bucket(await response.json())

    async def _size(self, bucket: _Bucket) -> int:
        """Return the bytes on disk; 0 where the server does not tell."""
        async with self._call("GET", "/metrics") as response:
            shown = await response.text() if response.status == 200 else ""
        return sum(int(float(size)) for owner, size in _DISK_SIZE.findall(shown) if owner == bucket.id)

    def _warnings(self, version: str, bucket: _Bucket) -> Iterator[str]:
        if not version.startswith("2."):
            yield f"influxdb is {version or 'of an unknown version'}, not 2.x"
        if timedelta(0) < bucket.retention < self._retention:
            yield f"influxdb's bucket keeps samples for {bucket.retention}, and {self._retention} are wanted"

    # How it is asked.

    @asynccontextmanager
    async def _call(
        self, method: str, path: str, query: Mapping[str, str] = _NOTHING, body: object = None, kind: str = _JSON
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request, a body of another kind than JSON as bytes; yield the response, whatever its status.

        What the client, the connection and the reading of the answer raise becomes UnavailableError, without its text.
        """
        if self._token.is_refused:
            await self._renew_token()
        try:
            response = await self._client().call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params={"Content-Type": kind},
                body=body,
                _preload_content=False,
            )
            async with response:
                if response.status == HTTPStatus.UNAUTHORIZED:
                    self._token.refused()
                    raise RefusedCredentialsError(NAME)
                yield response
        except (aiohttp.ClientError, AnswerError, OSError, ValueError, LookupError) as err:
            if isinstance(err, TimeoutError):
                raise
            raise store_unavailable(NAME) from err

    async def _renew_token(self) -> None:
        """Go on with the token that its file holds now; RefusedCredentialsError when that is the one that was refused."""
        if not await self._token.renew():
            raise RefusedCredentialsError(NAME)
        await self.close()

    def _client(self) -> Any:
        """Return the client, which has to be made within a running loop."""
        if self._opened is None:
            from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync

            client: Any = InfluxDBClientAsync
            self._opened = client(
                self._url,
                self._token.reveal(),
                self._org,
                timeout=aiohttp.ClientTimeout(total=None),
                connection_pool_maxsize=CONNECTIONS,
                allow_redirects=False,
            )
        return self._opened.api_client


def _expect(response: aiohttp.ClientResponse, status: int) -> None:
    """Raise UnavailableError unless the response has the status; the cause says which it has, for the log."""
    if response.status == status:
        return
    error = store_unavailable(NAME)
    wait = response.headers.get("Retry-After", "")
    if re.fullmatch(r"\d{1,6}", wait):
        error.retry_after = min(timedelta(seconds=int(wait)), LONGEST_WAIT)
    raise error from AnswerError(f"status {response.status}: {_STATUSES.get(response.status, 'unexpected')}")


def _bucket(shown: Any) -> _Bucket:
    seconds = min((rule.get("everySeconds", 0) for rule in shown.get("retentionRules", ())), default=0)
    return _Bucket(str(shown["id"]), timedelta(seconds=seconds))


def _cannot(message: str) -> FailedPreconditionError:
    return FailedPreconditionError(message, reason=Reason.ENGINE_CANNOT)


def _refusal(status: int, body: bytes) -> _Refusal:
    dropped = _DROPPED.search(body)
    reason = next((ours for theirs, ours in _REASONS if theirs in body), _OTHER_REASON)
    return _Refusal(_TOO_LARGE_REASON if status == _TOO_LARGE else reason, int(dropped[1]) if dropped else 0)


def _refused(reason: str, lines: bytes) -> Refused:
    """Return what lines held: their fields stand between the last two spaces, and neither names nor values have commas."""
    count = sum(line.rsplit(b" ", 2)[1].count(b",") + 1 for line in lines.splitlines())
    servers = {server.decode() for server in _SERVER.findall(lines)}
    return Refused(reason=reason, sample_count=count, servers=tuple(sorted(servers)))


def _bounded(wanted: Wanted) -> Wanted | None:
    """Return what is wanted within the times that samples may have; None when that is nothing."""
    start, end = max(0, wanted.start), min(LATEST_PLAUSIBLE_NANOS + 1, wanted.end)
    return replace(wanted, start=start, end=end) if start < end and wanted.servers and wanted.metrics else None


def _with(buckets: Coded, torn: Sequence[str], whole: Coded) -> Coded:
    """Return buckets, those of the torn servers taken from `whole`."""
    codes = np.array([buckets.servers.index(server) for server in torn], np.int64)
    kept = ~np.isin(buckets.server_codes, codes)
    return replace(
        buckets,
        server_codes=np.concatenate((buckets.server_codes[kept], codes[whole.server_codes])),
        metric_codes=np.concatenate((buckets.metric_codes[kept], whole.metric_codes)),
        times=np.concatenate((buckets.times[kept], whole.times)),
        values=np.concatenate((buckets.values[kept], whole.values)),
    )
