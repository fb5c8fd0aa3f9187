"""The state of the whole: every service asked for its own, a service that does not answer being a row like any other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

from openmanager.api.gateway.v1 import gateway_pb2 as pb
from openmanager.api.status.v1 import status_pb2
from openmanager.errors import DeadlineExceededError, OpenManagerError
from openmanager.runtime.clock import Clock
from openmanager.runtime.peer import Peer
from openmanager.runtime.status import PROBE_INTERVAL_SECONDS, worst
from openmanager_gateway.router import Upstream
from openmanager_gateway.shards.merging import joined_ledger

GET_STATUS = "/openmanager.api.status.v1.StatusService/GetStatus"
POLL_SECONDS = 0.5
PROGRESS_SECONDS = 10.0
# Longer than a busy service lets wait.
PROBE_SECONDS = 1.0


class StatusBoard:
    """Asks the services; `own` returns the gateway's row."""

    def __init__(
        self,
        *,
        peers: Sequence[Peer],
        own: Callable[[], Awaitable[status_pb2.ServiceStatus]],
        clock: Clock,
        wait: timedelta,
    ) -> None:
        self._peers = peers
        self._own = own
        self._clock = clock
        self._wait = wait.total_seconds()
        self._down_since: dict[str, int] = {}

    async def collect(self) -> pb.GetStorageStatusResponse:
        """Return the state of everything, within the wait for one service."""
        answers = await asyncio.gather(*(self._ask(peer) for peer in self._peers))
        services = [await self._own(), *(status for status, _ in answers)]
        ledgers = [ledger for _, ledger in answers if ledger is not None]
        board = pb.GetStorageStatusResponse(
            overall_state=worst([service.state for service in services]),
            services=services,
            ledger=joined_ledger(ledgers) if len(ledgers) > 1 else next(iter(ledgers), None),
        )
        board.observe_time.FromNanoseconds(self._clock.now_nanos())
        return board

    async def _ask(self, peer: Peer) -> tuple[status_pb2.ServiceStatus, status_pb2.Ledger | None]:
        request = status_pb2.GetStatusRequest()
        try:
            reply = await peer.unary(GET_STATUS, request, status_pb2.GetStatusResponse, seconds=self._wait)
        except DeadlineExceededError:
            return self._row(peer, status_pb2.STORAGE_STATE_HUNG, "does not answer"), None
        except OpenManagerError:
            return self._row(peer, status_pb2.STORAGE_STATE_DOWN, "cannot be reached"), None
        reply.status.service = peer.name  # of a shard with its number
        return reply.status, reply.ledger if reply.HasField("ledger") else None

    @staticmethod
    def _row(peer: Peer, state: status_pb2.StorageState.ValueType, reason: str) -> status_pb2.ServiceStatus:
        return status_pb2.ServiceStatus(service=peer.name, address=peer.target, state=state, reason=reason)

    async def watch(self) -> AsyncIterator[pb.GetStorageStatusResponse]:
        """Yield the state at once, whenever a state or a reason changes, and at least every PROGRESS_SECONDS."""
        shown: Any = None
        last = -PROGRESS_SECONDS
        while True:
            board = await self.collect()
            states = _states(board)
            now = self._clock.monotonic()
            if states != shown or now - last >= PROGRESS_SECONDS:
                shown, last = states, now
                yield board
            await asyncio.sleep(POLL_SECONDS)


async def probe(upstream: Upstream) -> None:
    """Ask a service whether it is alive whenever calls of it are not answered, for ever, and tell its breaker.

    A service that hangs is found here and not by calls, which may take as long as their callers like. One that cannot be
    reached is the channel's affair: it refuses calls at once, and connects again by itself. One that nobody calls is not
    asked, for nobody waits for what would be found.
    """
    request = status_pb2.GetStatusRequest()
    breaker = upstream.breaker
    state = status_pb2.STORAGE_STATE_OK
    while True:
        if state == status_pb2.STORAGE_STATE_OK and not breaker.is_open:
            await breaker.called.wait()
        breaker.called.clear()
        since = breaker.called_at
        await asyncio.sleep(PROBE_INTERVAL_SECONDS)
        state, reason = status_pb2.STORAGE_STATE_OK, ""
        if breaker.answered_at >= since and not breaker.is_open:
            continue
        try:
            await upstream.peer.unary(GET_STATUS, request, status_pb2.GetStatusResponse, seconds=PROBE_SECONDS)
        except DeadlineExceededError:
            state, reason = status_pb2.STORAGE_STATE_HUNG, "does not answer"
        except OpenManagerError:
            state = status_pb2.STORAGE_STATE_SLOW  # neither hung nor well
        breaker.probed(state, reason)


def _states(board: pb.GetStorageStatusResponse) -> list[Any]:
    return [
        (service.service, service.state, service.reason, [(s.name, s.state, s.reason) for s in service.storages])
        for service in board.services
    ]
