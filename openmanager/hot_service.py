"""The edge of the four hot reads, the same for the cache service and the gateway: their messages are wire-identical."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from openmanager import access
from openmanager.api.cache.v1 import cache_pb2 as pb
from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.api.server.v1 import server_pb2
from openmanager.errors import Reason, UnavailableError, missing
from openmanager.frame import check_server_id, length_delimited
from openmanager.hot import HotFleet, ListQuery, lookup
from openmanager.progress import progress_seconds
from openmanager.runtime import validate
from openmanager.runtime.edge import raw

Describe = Callable[[], provenance_pb2.Provenance]
DescribeOne = Callable[[str], provenance_pb2.Provenance]


class HotService:
    """GetServer, ListServers, WatchServers and GetFleetSummary from a fleet.

    `describe` says where it came from, `describe_one` where one server did, if that is not the same; `known` whether it was
    ever filled: until then nobody is told NOT_FOUND.
    """

    def __init__(
        self, fleet: HotFleet, describe: Describe, known: Callable[[], bool], describe_one: DescribeOne | None = None
    ) -> None:
        self._fleet = fleet
        self._describe = describe
        self._describe_one = describe_one or (lambda _: describe())
        self._known = known

    def _check_known(self, server_id: str = "") -> None:
        if server_id in self._fleet:
            return
        # What is known in part only does not tell what there is not.
        if not self._known() or (server_id and self._describe_one(server_id).partial):
            raise UnavailableError("the state of the fleet is not known yet", reason=Reason.STORE_UNAVAILABLE)

    @raw
    async def GetServer(self, data: bytes, context: Any) -> bytes:  # noqa: ARG002, N802
        """Return one server."""
        request: Any = validate.decode(pb.GetServerRequest, data)
        if not request.id:
            raise missing("id")
        server_id = check_server_id(request.id, "id")
        self._check_known(server_id)
        if access.scope():
            access.check_reaches(lookup(self._fleet.get(server_id).message), server_id)
        reply = self._fleet.reply(server_id, full=request.view != server_pb2.VIEW_BASIC)
        return reply + length_delimited(2, self._describe_one(server_id).SerializeToString())

    @raw
    async def ListServers(self, data: bytes, context: Any) -> bytes:  # noqa: ARG002, N802
        """List servers."""
        request: Any = validate.decode(pb.ListServersRequest, data)
        self._check_known()
        query = ListQuery(
            page_size=request.page_size,
            page_token=request.page_token,
            filter=access.narrowed(request.filter),
            order_by=request.order_by,
            full=request.view == server_pb2.VIEW_FULL,
        )
        return self._fleet.list_reply(query) + length_delimited(3, self._describe().SerializeToString())

    @raw
    async def WatchServers(self, data: bytes, context: Any) -> AsyncIterator[bytes]:  # noqa: ARG002, N802
        """Stream the servers."""
        request: Any = validate.decode(pb.WatchServersRequest, data)
        self._check_known()
        full = request.view == server_pb2.VIEW_FULL
        async for message in self._fleet.watch(
            request.resume_token,
            access.narrowed(request.filter),
            full=full,
            describe=self._describe,
            progress=progress_seconds(request),
        ):
            yield message

    @raw
    async def GetFleetSummary(self, data: bytes, context: Any) -> bytes:  # noqa: ARG002, N802
        """Return counts and means."""
        validate.decode(pb.GetFleetSummaryRequest, data)
        self._check_known()
        response = pb.GetFleetSummaryResponse(summary=self._fleet.summary(access.scope()), provenance=self._describe())
        return response.SerializeToString()
