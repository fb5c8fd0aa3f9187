"""The client: one connection to a gateway, everything the mesh can be asked."""

from __future__ import annotations

import random
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from functools import partial
from typing import Self

import numpy as np

from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.server.v1 import server_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.client import codec, enumeration, history, model, rpc
from openmanager.client.alerts import Alerts
from openmanager.client.analysis import Analysis
from openmanager.client.audit import Audit
from openmanager.client.credential import Credential, Token
from openmanager.client.dead_letters import DeadLetters
from openmanager.client.entries import Entries
from openmanager.client.interactions import Interactions
from openmanager.client.inventory import Inventory
from openmanager.client.people import Keys, Sessions, Users
from openmanager.client.retention import Retention
from openmanager.client.rpc import DEADLINE_SECONDS, Away, Rpc, closable
from openmanager.client.simulation import Faults, Simulator
from openmanager.client.watch import ServerWatch, watch_log, watch_status
from openmanager.client.write import WritePipeline
from openmanager.errors import invalid
from openmanager.frame import Frame, ServerInfo, decode_trusted, encode_write_request
from openmanager.rollup import Grid
from openmanager.runtime.tls import Tls

DEFAULT_TARGET = "127.0.0.1:50050"
# A deletion rewrites every file that holds a part of what goes.
DELETE_SECONDS = 300.0
# Imports fill the log as fast as it takes them: one frame may wait for others to be sealed.
IMPORT_SECONDS = 60.0


class Client:
    """A connection to the gateway at `host:port`, for one event loop; use it as an async context manager.

    Every call has a deadline of `seconds`, and a watch is taken up again when its connection breaks. Reads that fail
    with UNAVAILABLE are tried three times by the channel; so is writing a frame, which changes nothing when repeated.
    Async iterators that are left early are closed at once inside `contextlib.aclosing`.

    With `tls` the connection is encrypted, and the gateway's certificate must name the host of `target`, or what
    `tls.server_name` says; ConfigurationError when a file of it cannot be used. `credential` is a key or an access token,
    or what can renew itself.

    `analysis`, `alerts`, `inventory`, `interactions`, `retention`, `simulation`, `faults`, `entries`, `users`, `keys`,
    `sessions` and `audit` hold what concerns these; `rpc` calls with messages.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: Tls | None = None,
        credential: Credential | str = "",
        jitter: random.Random | None = None,
    ) -> None:
        shown = Token(credential) if isinstance(credential, str) else credential
        self.rpc = Rpc(target, jitter=jitter or random.Random(), tls=tls, credential=shown)  # noqa: S311  (it only spreads reconnections)
        self.users = Users(self.rpc)
        self.keys = Keys(self.rpc)
        self.sessions = Sessions(self.rpc)
        self.inventory = Inventory(self.rpc)
        self.analysis = Analysis(self.rpc)
        self.alerts = Alerts(self.rpc)
        self.interactions = Interactions(self.rpc)
        self.retention = Retention(self.rpc)
        self.dead_letters = DeadLetters(self.rpc)
        self.audit = Audit(self.rpc)
        self.simulation = Simulator(self.rpc)
        self.faults = Faults(self.rpc)
        self.entries = Entries(self.rpc)

    async def __aenter__(self) -> Self:
        """Connect in the background; a gateway that is away shows at the first call."""
        await self.rpc.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close the connection; calls under way are cancelled."""
        await self.rpc.__aexit__(*error)

    # ── writing ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def write_frame(self, frame: Frame, *, seconds: float = DEADLINE_SECONDS) -> model.WriteAck:
        """Write one frame of at most 4 MiB − 1 KiB (see `split`); when this returns it is on disk."""
        reply = await self.rpc.call(rpc.WRITE_FRAME, encode_write_request(frame), seconds=seconds)
        return codec.ack(reply.ack)

    async def write(
        self,
        *,
        times: Sequence[int] | model.Ints,
        servers: Sequence[str],
        metrics: Sequence[str],
        values: Sequence[object] | model.Floats,
        server_infos: Sequence[ServerInfo] = (),
        seconds: float = DEADLINE_SECONDS,
    ) -> model.WriteAck:
        """Write samples: `times` int64[T] nanoseconds since the epoch, `values` float64[T, S, M], NaN for no sample."""
        grid = np.asarray(values, np.float64)
        shape = (len(times), len(servers), len(metrics))
        if grid.shape != shape:
            raise invalid("values", f"has the shape {grid.shape} where times, servers and metrics make {shape}")
        frame = Frame(
            times=np.asarray(times, np.int64),
            servers=tuple(servers),
            metrics=tuple(metrics),
            values=grid,
            server_infos=tuple(server_infos),
        )
        return await self.write_frame(frame, seconds=seconds)

    async def write_frames(
        self, frames: AsyncIterable[Frame], *, in_flight: int = 16, seconds: float = DEADLINE_SECONDS
    ) -> AsyncIterator[model.WriteAck]:
        """Write frames on one stream and yield their acknowledgements in order.

        At most `in_flight` frames wait for theirs; none may take longer than `seconds`. An error ends the stream: what
        was acknowledged stays, the rest may be written again, which changes nothing where it had arrived.
        """
        pipeline = WritePipeline(self.rpc, rpc.WRITE_FRAMES, encode_write_request, in_flight=in_flight, seconds=seconds)
        async with aclosing(closable(pipeline.replies(frames))) as replies:
            async for reply in replies:
                yield codec.ack(reply.ack)

    async def import_frames(
        self, frames: AsyncIterable[Frame], *, in_flight: int = 8, seconds: float = IMPORT_SECONDS
    ) -> AsyncIterator[model.WriteAck]:
        """Write frames of the past and of the future on one stream, otherwise as `write_frames` does."""
        pipeline = WritePipeline(
            self.rpc, rpc.IMPORT_FRAMES, encode_write_request, in_flight=in_flight, seconds=seconds
        )
        async with aclosing(closable(pipeline.replies(frames))) as replies:
            async for reply in replies:
                yield codec.ack(reply.ack)

    async def import_rollups(
        self, tier: str, grids: AsyncIterable[Grid], *, in_flight: int = 4, seconds: float = IMPORT_SECONDS
    ) -> AsyncIterator[model.RollupAck]:
        """Write buckets, at most 4 MiB at a time, straight into a rollup tier; the acknowledgements come in order.

        Of a bucket that exists the one with more samples stays.
        """
        encode = partial(codec.rollup_request, tier)
        pipeline = WritePipeline(self.rpc, rpc.IMPORT_ROLLUPS, encode, in_flight=in_flight, seconds=seconds)
        async with aclosing(closable(pipeline.replies(grids))) as replies:
            async for reply in replies:
                yield codec.rollup_ack(reply)

    # ── hot state ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def get_server(self, server_id: str, *, seconds: float = DEADLINE_SECONDS) -> model.Server:
        """Return a server as it is now, with all its metrics; NotFoundError when nobody of that id ever sent."""
        request = gateway_pb2.GetServerRequest(id=server_id, view=server_pb2.VIEW_FULL)
        reply = await self.rpc.call(rpc.GET_SERVER, request, seconds=seconds)
        return codec.server(reply.server, reply.provenance)

    async def list_servers(
        self,
        filter: str = "",  # noqa: A002  (the contract's word)
        *,
        order_by: str = "",
        limit: int | None = None,
        full: bool = False,
        seconds: float = DEADLINE_SECONDS,
    ) -> AsyncIterator[model.Server]:
        """Yield servers, page after page; `seconds` is for one page, `full` for all metrics of each."""
        view = server_pb2.VIEW_FULL if full else server_pb2.VIEW_BASIC
        request = gateway_pb2.ListServersRequest(filter=filter, order_by=order_by, view=view)
        async for page in self.rpc.pages(rpc.LIST_SERVERS, request, limit=limit, seconds=seconds):
            for each in page.servers:
                yield codec.server(each, page.provenance)

    async def fleet_summary(self, *, seconds: float = DEADLINE_SECONDS) -> model.FleetSummary:
        """Return counts and means over the fleet."""
        request = gateway_pb2.GetFleetSummaryRequest()
        return codec.fleet_summary(await self.rpc.call(rpc.GET_FLEET_SUMMARY, request, seconds=seconds))

    async def watch_servers(
        self,
        filter: str = "",  # noqa: A002  (the contract's word)
        *,
        full: bool = False,
        resume_token: str = "",
        on_away: Away | None = None,
    ) -> AsyncIterator[model.ServerEvent]:
        """Yield the servers as they are and then every change, for ever.

        A broken connection is taken up again where it broke off; where that is no longer possible the watch begins
        anew and says so by `reset`. UnavailableError only when the first connection fails; `on_away` hears of others.
        """
        watch = ServerWatch(self.rpc, filter=filter, full=full, resume_token=resume_token)
        decoder = codec.EventDecoder()
        async with aclosing(closable(watch.messages(on_away))) as messages:
            async for message in messages:
                yield decoder.event(message, reset=watch.reset)

    # ── history ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def query_range(
        self,
        metrics: Sequence[str] | str = (),
        *,
        start: datetime | int,
        end: datetime | int | None = None,
        servers: Sequence[str] | str = (),
        where: str = "",
        step: timedelta | None = None,
        aggregation: str = enumeration.Aggregation.MEAN,
        group_by: str = enumeration.GroupBy.SERVER,
        seconds: float = DEADLINE_SECONDS,
    ) -> model.RangeResult:
        """Return samples of [start, end): buckets of `step`, aligned to epoch multiples, or raw ones without a step.

        `metrics` are keys, names or globs; `where` is a filter on servers; `end` is now unless given. Times are aware
        datetimes or nanoseconds since the epoch.
        """
        request = history.range_request(
            history.selector(metrics, servers, where),
            start=start,
            end=end,
            step=step,
            aggregation=aggregation,
            group_by=group_by,
        )
        return await history.query_range(self.rpc, request, seconds)

    async def query_latest(
        self,
        metrics: Sequence[str] | str = (),
        *,
        servers: Sequence[str] | str = (),
        where: str = "",
        seconds: float = DEADLINE_SECONDS,
    ) -> model.Latest:
        """Return the newest sample of each chosen series."""
        return await history.query_latest(self.rpc, history.selector(metrics, servers, where), seconds)

    async def list_series(
        self,
        metrics: Sequence[str] | str = (),
        *,
        servers: Sequence[str] | str = (),
        where: str = "",
        limit: int | None = None,
        seconds: float = DEADLINE_SECONDS,
    ) -> AsyncIterator[model.SeriesInfo]:
        """Yield the series that exist, by server and metric, page after page; `seconds` is for one page."""
        request = timeseries_pb2.ListSeriesRequest(selector=history.selector(metrics, servers, where))
        async for page in self.rpc.pages(rpc.LIST_SERIES, request, limit=limit, seconds=seconds):
            for each in page.series:
                yield codec.series_info(each)

    async def export_series(
        self,
        metrics: Sequence[str] | str = (),
        *,
        start: datetime | int,
        end: datetime | int | None = None,
        servers: Sequence[str] | str = (),
        where: str = "",
        tier: str = "raw",
        resume_token: str = "",
        on_away: Away | None = None,
    ) -> AsyncIterator[model.ExportChunk]:
        """Yield the rows of [start, end), by metric, server and time, as chunks that are Parquet files.

        `tier` is `raw` or the name of a rollup tier. A broken connection is taken up after the last chunk; so is an
        export that ended, with the same arguments and the `resume_token` of the last chunk that came.
        """
        request = history.export_request(
            history.selector(metrics, servers, where), start=start, end=end, tier=tier, resume_token=resume_token
        )
        async with aclosing(closable(history.export_series(self.rpc, request, on_away))) as chunks:
            async for chunk in chunks:
                yield chunk

    async def delete_series(
        self,
        metrics: Sequence[str] | str = (),
        *,
        servers: Sequence[str] | str = (),
        where: str = "",
        start: datetime | int | None = None,
        end: datetime | int | None = None,
        validate_only: bool = False,
        seconds: float = DELETE_SECONDS,
    ) -> model.Deletion:
        """Delete the samples of the chosen series in [start, end) from every tier; with `validate_only` only count them.

        FailedPreconditionError, reason LEGAL_HOLD, when a hold covers one of them, or ENGINE_CANNOT.
        """
        request = history.delete_request(
            history.selector(metrics, servers, where), start=start, end=end, validate_only=validate_only
        )
        return codec.deletion(await self.rpc.call(rpc.DELETE_SERIES, request, seconds=seconds))

    async def watch_frames(
        self, *, from_position: int = 0, consumer: str = "", resume_token: str = "", on_away: Away | None = None
    ) -> AsyncIterator[model.LogRecord]:
        """Yield the frames of the log from a position on, for ever; a broken connection is taken up again.

        0 begins after the confirmed position of `consumer`, or now. OutOfRangeError, reason HISTORY_COMPACTED, when
        the position is no longer kept: then read `query_latest` and watch from the position after its own. Where history
        has several shards the place is a `resume_token` of a record, or of `query_latest`.
        """
        messages = closable(
            watch_log(
                self.rpc, from_position=from_position, consumer=consumer, resume_token=resume_token, on_away=on_away
            )
        )
        async with aclosing(messages):
            async for message in messages:
                if message.HasField("frame"):
                    yield model.LogRecord(
                        position=message.position,
                        frame=decode_trusted(message.frame),
                        receive_time=codec.moment(message, "receive_time"),
                        trace_parent=message.trace_parent,
                        resume_token=message.resume_token,
                        shard=message.shard,
                    )

    # ── status ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def storage_status(self, *, seconds: float = DEADLINE_SECONDS) -> model.Board:
        """Return the state of every service and store, and the ledger."""
        request = gateway_pb2.GetStorageStatusRequest()
        return codec.board(await self.rpc.call(rpc.GET_STORAGE_STATUS, request, seconds=seconds))

    async def watch_storage_status(self, *, on_away: Away | None = None) -> AsyncIterator[model.Board]:
        """Yield the state at once and on every change, for ever; a broken connection is taken up again."""
        async with aclosing(closable(watch_status(self.rpc, on_away))) as messages:
            async for message in messages:
                yield codec.board(message.status)

    async def ledger(self, *, seconds: float = DEADLINE_SECONDS) -> model.Ledger:
        """Return the books of the log."""
        reply = await self.rpc.call(rpc.GET_LEDGER, timeseries_pb2.GetLedgerRequest(), seconds=seconds)
        return codec.ledger(reply.ledger)
