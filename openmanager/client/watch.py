"""Watches that outlive their connection: taken up again where they broke off."""

from __future__ import annotations

from collections.abc import AsyncIterator

from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.server.v1 import server_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.client import rpc
from openmanager.client.rpc import Away, Rpc
from openmanager.errors import OutOfRangeError, Reason


class ServerWatch:
    """A watch over servers. `reset` says whether the message just yielded begins it anew: its predecessors are void."""

    def __init__(self, calls: Rpc, *, filter: str = "", full: bool = False, resume_token: str = "") -> None:  # noqa: A002
        self._calls = calls
        self._filter = filter
        self._view = server_pb2.VIEW_FULL if full else server_pb2.VIEW_BASIC
        self._token = resume_token
        self.reset = False

    async def messages(self, on_away: Away | None = None) -> AsyncIterator[gateway_pb2.WatchServersResponse]:
        """Yield every message; a token that is too old begins the watch anew."""
        async for message in self._calls.resumed(self._begin, on_away):
            yield message

    async def _begin(self) -> AsyncIterator[gateway_pb2.WatchServersResponse]:
        try:
            async for message in self._stream():
                yield message
        except OutOfRangeError as err:
            if not self._token or err.reason != Reason.HISTORY_COMPACTED:
                raise
            self._token = ""
        else:
            return
        async for message in self._stream():
            yield message

    async def _stream(self) -> AsyncIterator[gateway_pb2.WatchServersResponse]:
        request = gateway_pb2.WatchServersRequest(resume_token=self._token, filter=self._filter, view=self._view)
        fresh = not self._token
        async for message in self._calls.stream(rpc.WATCH_SERVERS, request, seconds=None):
            self.reset = fresh and message.kind == server_pb2.WATCH_KIND_CREATED
            # Until the snapshot has begun there is nothing to resume.
            if message.kind != server_pb2.WATCH_KIND_CREATED:
                self._token = message.resume_token
            yield message


async def watch_log(
    calls: Rpc, *, from_position: int = 0, consumer: str = "", resume_token: str = "", on_away: Away | None = None
) -> AsyncIterator[timeseries_pb2.WatchFramesResponse]:
    """Yield the messages of the log from a position on, or of several logs from a token on.

    OutOfRangeError when that place is no longer kept.
    """
    next_position, token = from_position, resume_token

    async def begin() -> AsyncIterator[timeseries_pb2.WatchFramesResponse]:
        nonlocal next_position, token
        request = timeseries_pb2.WatchFramesRequest(
            from_position=0 if token else next_position, consumer=consumer, resume_token=token
        )
        async for message in calls.stream(rpc.WATCH_FRAMES, request, seconds=None):
            next_position, token = message.position + 1, message.resume_token
            yield message

    async for message in calls.resumed(begin, on_away):
        yield message


async def watch_status(
    calls: Rpc, on_away: Away | None = None
) -> AsyncIterator[gateway_pb2.WatchStorageStatusResponse]:
    """Yield the state of everything at once and on every change."""

    def begin() -> AsyncIterator[gateway_pb2.WatchStorageStatusResponse]:
        return calls.stream(rpc.WATCH_STORAGE_STATUS, gateway_pb2.WatchStorageStatusRequest(), seconds=None)

    async for message in calls.resumed(begin, on_away):
        yield message
