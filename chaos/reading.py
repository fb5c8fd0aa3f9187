"""What is there when a run is over: the samples in every place that has them, the books of the log, the inventory."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from chaos import journal
from chaos.checker import Found, Verdict, check
from chaos.journal import SYNC_SECONDS, Kind
from chaos.load import INVENTORY, METRICS, TIMESERIES, WRITERS, registered, server_of
from chaos.mesh import START_SECONDS, wait_until
from chaos.stores import VICTORIAMETRICS
from openmanager.api.metadata.v1 import metadata_pb2
from openmanager.api.status.v1 import status_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.errors import OpenManagerError
from openmanager.frame import NANOS_PER_MILLI
from openmanager.runtime.peer import Peer

LEDGER = "/openmanager.api.timeseries.v1.LogService/GetLedger"
SECONDS = 60.0
# Within which the readers of the log come to where its head was.
DRAIN_SECONDS = 20.0
POLL_SECONDS = 0.1
T = TypeVar("T")
Read = Callable[[Peer, int, np.ndarray], Awaitable[Found]]


async def look(peer: Peer, path: Path) -> Verdict:
    """Judge a mesh under load, by what was answered until now."""
    until = time.monotonic()
    found = await _everything(peer, queried, journal.load(path))
    rows = await _rows_until(path, time.monotonic())
    verdict = check(rows, found, until)
    check_books(verdict, await _ledger(peer))
    await _check_inventory(verdict, peer, rows[rows["at"] < until - DRAIN_SECONDS])
    return verdict


async def _rows_until(path: Path, moment: float) -> np.ndarray:
    """Return the rows of a journal that is being written when all that was sent before a moment is among them."""
    while True:
        rows = journal.load(path)
        if rows["at"][rows["kind"] == Kind.INVOKED].max() > moment:
            return rows
        await asyncio.sleep(SYNC_SECONDS)


async def read_back(peer: Peer, path: Path, engine: str = "") -> Verdict:
    """Judge a mesh by every sample, as a query and as an export has it, by its books and by its inventory.

    An `engine` has to answer the queries, for every shard; TimeoutError when it does not come to that.
    """
    rows = journal.load(path)
    if engine:
        await wait_until(partial(_is_asked, peer, rows, engine), 2 * SECONDS)
    verdict = check(rows, await _everything(peer, queried, rows))
    _compare(verdict, check(rows, await _everything(peer, exported, rows)), "exported")
    check_books(verdict, await _ledger(peer))
    await _check_inventory(verdict, peer, rows)
    return verdict


async def _is_asked(peer: Peer, rows: np.ndarray, engine: str) -> bool:
    """Say whether an engine answers for every writer, and nothing else in its place."""
    with contextlib.suppress(OpenManagerError):
        for writer in range(WRITERS):
            async for data in peer.server_stream(f"{TIMESERIES}/QueryRange", _of(writer, rows), seconds=SECONDS):
                part = pb.QueryRangeResponse.FromString(data)
                about = part.header.provenance
                if part.HasField("header") and (about.degraded or about.partial or engine not in about.source):
                    return False
        return True
    return False


async def judge(peer: Peer, path: Path, restart: Callable[[], None]) -> Verdict:
    """Judge a mesh that has been left in peace: as it is, and again after an orderly restart."""
    rows = journal.load(path)
    verdict = check(rows, await _everything(peer, queried, rows))
    await _check_drained(verdict, peer)
    await _check_inventory(verdict, peer, rows)
    await asyncio.to_thread(restart)
    await _check_drained(verdict, peer)
    for what, read in (("restarted", queried), ("exported", exported)):
        _compare(verdict, check(rows, await _everything(peer, read, rows)), what)
    await _check_inventory(verdict, peer, rows)
    return verdict


def _compare(verdict: Verdict, other: Verdict, what: str) -> None:
    """Count in a verdict what is wrong in another reading and was not in the first."""
    for name, count in other.defects.items():
        if more := max(0, count - getattr(verdict, name)):
            verdict.count(name, more, f"{what}: {'; '.join(other.examples[:1])}")


# ── samples ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _everything(peer: Peer, read: Read, rows: np.ndarray) -> list[Found]:
    """Return what there is of every writer, read in one way."""
    return [await patiently(partial(read, peer, writer, rows)) for writer in range(WRITERS)]


async def queried(peer: Peer, writer: int, rows: np.ndarray) -> Found:
    """Return everything that a query of raw samples finds of a writer."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    async for data in peer.server_stream(f"{TIMESERIES}/QueryRange", _of(writer, rows), seconds=SECONDS):
        for series in pb.QueryRangeResponse.FromString(data).batch.series:
            columns = np.asarray(series.time_unix_nanos, np.int64), np.asarray(series.values)
            found.setdefault(series.metric, []).append(columns)
    return {metric: _joined(parts) for metric, parts in found.items()}


def _of(writer: int, rows: np.ndarray) -> pb.QueryRangeRequest:
    """Return what asks for all raw samples of a writer."""
    begin, end = _range(rows)
    request = pb.QueryRangeRequest(series_per_message=len(METRICS))
    request.selector.servers.append(server_of(writer))
    request.start_time.FromNanoseconds(begin)
    request.end_time.FromNanoseconds(end)
    return request


async def exported(peer: Peer, writer: int, rows: np.ndarray) -> Found:
    """Return the same from an export, which reads files and memory in its own way."""
    begin, end = _range(rows)
    request = pb.ExportSeriesRequest()
    request.selector.servers.append(server_of(writer))
    request.start_time.FromNanoseconds(begin)
    request.end_time.FromNanoseconds(end)
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    async for data in peer.server_stream(f"{TIMESERIES}/ExportSeries", request, seconds=SECONDS):
        part = pb.ExportSeriesResponse.FromString(data)
        if part.WhichOneof("part") != "chunk":
            continue
        table = pq.read_table(io.BytesIO(part.chunk.parquet))
        for metric in pc.unique(table["metric"]).to_pylist():
            some = table.filter(pc.equal(table["metric"], metric))
            times = some["time"].cast("int64").to_numpy() * NANOS_PER_MILLI
            found.setdefault(metric, []).append((times, some["value"].to_numpy()))
    return {metric: _joined(parts) for metric, parts in found.items()}


def _range(rows: np.ndarray) -> tuple[int, int]:
    times = rows["time"][rows["kind"] == Kind.INVOKED]
    return int(times.min()) - 10**9, int(times.max()) + 60 * 10**9


def _joined(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    times, values = zip(*parts, strict=True)
    return np.concatenate(times), np.concatenate(values)


# ── books and inventory ──────────────────────────────────────────────────────────────────────────────────────────────


async def _ledger(peer: Peer) -> status_pb2.Ledger:
    reply = await patiently(lambda: peer.unary(LEDGER, pb.GetLedgerRequest(), pb.GetLedgerResponse, seconds=5))
    return reply.ledger


async def _drained(peer: Peer, head: int) -> status_pb2.Ledger:
    """Return the ledger when every reader of the log has come to a position, or has had the time for it."""
    end = time.monotonic() + DRAIN_SECONDS
    while True:
        ledger = await _ledger(peer)
        if (
            all(row.position >= head for row in ledger.consumers if row.name != VICTORIAMETRICS)
            or time.monotonic() > end
        ):
            return ledger
        await asyncio.sleep(POLL_SECONDS)


async def _check_drained(verdict: Verdict, peer: Peer) -> None:
    head = (await _ledger(peer)).head_position
    check_books(verdict, await _drained(peer, head), head)


def check_books(verdict: Verdict, ledger: status_pb2.Ledger, head: int = 0) -> None:
    """Check that every reader of the log has come to a position, with all samples and with books that add up."""
    for row in ledger.consumers:
        parts = (
            row.delivered_sample_count,
            row.waiting_sample_count,
            row.dead_lettered_sample_count,
            row.resynced_sample_count,
            row.damaged_sample_count,
        )
        if min(parts) < 0 or sum(parts) != ledger.accepted_sample_count:
            verdict.count("unbalanced", 1, f"{row.name}: {parts} of {ledger.accepted_sample_count}")
        # What a VictoriaMetrics was given is believed when it can no longer lose it, which takes a minute.
        if row.position < head and row.name != VICTORIAMETRICS:
            verdict.count("behind", 1, f"{row.name} is at {row.position}, the head was at {head}")
        verdict.count("dead_lettered", row.dead_lettered_sample_count, row.name)
        verdict.count("damaged", row.damaged_sample_count, row.name)


async def _check_inventory(verdict: Verdict, peer: Peer, rows: np.ndarray) -> None:
    check_inventory(verdict, rows, await patiently(lambda: _inventory(peer)))


def check_inventory(verdict: Verdict, rows: np.ndarray, there: set[str]) -> None:
    """Check that the inventory has all servers that it took, and all that have written."""
    numbers = rows["time"][rows["kind"] == Kind.REGISTERED].tolist()
    writers = np.unique(rows["writer"][rows["kind"] == Kind.OK]).tolist()
    if missing := sorted({*map(registered, numbers), *map(server_of, writers)} - there):
        verdict.count("unregistered", len(missing), ", ".join(missing[:3]))


async def _inventory(peer: Peer) -> set[str]:
    found, token = set[str](), ""
    while True:
        request = metadata_pb2.ListServersRequest(page_size=1000, page_token=token)
        reply = await peer.unary(f"{INVENTORY}/ListServers", request, metadata_pb2.ListServersResponse, seconds=5)
        found.update(server.id for server in reply.servers)
        if not (token := reply.next_page_token):
            return found


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Return an answer of a service that may be dying at a failpoint just now, or starting."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            return await ask()
        except OpenManagerError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(POLL_SECONDS)
