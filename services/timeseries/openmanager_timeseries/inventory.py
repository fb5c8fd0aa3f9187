"""The metadata service as the place where servers are registered."""

from __future__ import annotations

from collections.abc import Sequence

from openmanager.api.metadata.v1 import metadata_pb2
from openmanager.frame import ServerInfo, info_message
from openmanager.runtime.peer import Peer

REGISTER = "/openmanager.api.metadata.v1.ServerService/RegisterServers"
REGISTER_SECONDS = 2.0


class MetadataInventory:
    """Calls ServerService.RegisterServers."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def register(self, infos: Sequence[ServerInfo], seen_nanos: int) -> None:
        """Register servers; UnavailableError while metadata is away."""
        request = metadata_pb2.RegisterServersRequest(server_infos=[info_message(info) for info in infos])
        request.seen_time.FromNanoseconds(seen_nanos)
        await self._peer.unary(REGISTER, request, metadata_pb2.RegisterServersResponse, seconds=REGISTER_SECONDS)
