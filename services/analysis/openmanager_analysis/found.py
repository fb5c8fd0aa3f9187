"""What the detector has found, of all servers: our own shard's, or through the gateway that of every shard."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from openmanager.api.analysis.v1 import analysis_pb2 as pb
from openmanager_analysis.anomaly import Anomaly

if TYPE_CHECKING:
    from openmanager.runtime.peer import Peer
    from openmanager_analysis.watcher import Watcher

LIST = "/openmanager.api.analysis.v1.AnomalyService/ListAnomalies"
PAGE = 1000
SECONDS = 5.0


class Found:
    """The anomalies that were found; those of other shards are asked for through `gateway`, where there is one."""

    def __init__(self, watcher: Watcher, gateway: Peer | None) -> None:
        self._watcher = watcher
        self._gateway = gateway

    async def between(self, start: int, end: int) -> Iterable[Anomaly]:
        """Return those that end after `start` and start before `end`, nanoseconds, and maybe others."""
        return self._watcher.register if self._gateway is None else await self._everywhere(self._gateway, start, end)

    @staticmethod
    async def _everywhere(gateway: Peer, start: int, end: int) -> list[Anomaly]:
        request = pb.ListAnomaliesRequest(page_size=PAGE)
        request.start_time.FromNanoseconds(start)
        request.end_time.FromNanoseconds(end)
        found: list[Anomaly] = []
        while True:
            reply = await gateway.unary(LIST, request, pb.ListAnomaliesResponse, seconds=SECONDS)
            found.extend(_anomaly(each, end) for each in reply.anomalies)
            if not reply.next_page_token:
                return found
            request.page_token = reply.next_page_token


def _anomaly(message: pb.Anomaly, now: int) -> Anomaly:
    """Return an anomaly as far as it is told; one that goes on was last seen now."""
    ended = message.end_time.ToNanoseconds() if message.HasField("end_time") else 0
    return Anomaly(
        id=message.id,
        server=message.server,
        environment="",
        start_nanos=message.start_time.ToNanoseconds(),
        last_nanos=ended or now,
        end_nanos=ended,
        score=message.score,
        confidence=message.confidence,
        blames=(),
        incident_id=message.incident_id,
    )
