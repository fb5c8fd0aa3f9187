"""`grpc.health.v1.Health` behind the same edge as every other service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from grpc_health.v1 import health_pb2

from openmanager.errors import NotFoundError
from openmanager.runtime.edge import vital

HEALTH_SERVICE = "grpc.health.v1.Health"
_Status = health_pb2.HealthCheckResponse


class HealthService:
    """Health by full service name; the empty name is the server as a whole."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(("", *names))
        self._state = _Status.NOT_SERVING
        self._changed = asyncio.Event()
        # How many are told when it changes; our own clients are, and make no calls to whom is not well.
        self.watchers = 0

    def set_serving(self, *, serving: bool) -> None:
        """Set the health of every service."""
        self._state = _Status.SERVING if serving else _Status.NOT_SERVING
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Return the health of one service."""
        if request.service not in self._names:
            raise NotFoundError("there is no such service", resource=f"service/{request.service}")
        return _Status(status=self._state)

    async def List(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Return the health of all services."""
        return health_pb2.HealthListResponse(
            statuses={name: _Status(status=self._state) for name in sorted(self._names)}
        )

    @vital
    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002, N802
        """Stream the health of one service, SERVICE_UNKNOWN when there is none of that name."""
        self.watchers += 1
        try:
            while True:
                changed = self._changed
                known = request.service in self._names
                yield _Status(status=self._state if known else _Status.SERVICE_UNKNOWN)
                await changed.wait()
        finally:
            self.watchers -= 1
