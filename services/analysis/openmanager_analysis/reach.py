"""Which servers a caller sees, where it is not all of them: those that the cache service shows them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from openmanager import access
from openmanager.api.cache.v1 import cache_pb2 as pb
from openmanager.api.server.v1 import server_pb2
from openmanager.runtime.clock import Clock
from openmanager.runtime.peer import Peer

LIST = "/openmanager.api.cache.v1.CacheService/ListServers"
PAGE = 1000
SECONDS = 2.0
# What was seen holds so long.
FRESH_SECONDS = 10.0
MAX_SCOPES = 64
Sees = Callable[[str], bool]


def everything(_: str) -> bool:
    """Say that a server is seen."""
    return True


class Reach:
    """Servers by who sees them, asked for in their own name."""

    def __init__(self, cache: Peer, clock: Clock) -> None:
        self._cache = cache
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, frozenset[str]]] = OrderedDict()

    async def sees(self) -> Sees:
        """Return which servers the caller of now sees; UnavailableError when nobody can say."""
        scope = access.scope()
        if not scope:
            return everything
        now = self._clock.monotonic()
        when, servers = self._known.get(scope, (float("-inf"), frozenset()))
        if now - when > FRESH_SECONDS:
            servers = await self._list()
            self._known[scope] = now, servers
            self._known.move_to_end(scope)
            if len(self._known) > MAX_SCOPES:
                self._known.popitem(last=False)
        return servers.__contains__

    async def _list(self) -> frozenset[str]:
        found: list[str] = []
        token = ""
        while True:
            request = pb.ListServersRequest(page_size=PAGE, page_token=token, view=server_pb2.VIEW_BASIC)
            reply = await self._cache.unary(LIST, request, pb.ListServersResponse, seconds=SECONDS)
            found.extend(server.id for server in reply.servers)
            token = reply.next_page_token
            if not token:
                return frozenset(found)
