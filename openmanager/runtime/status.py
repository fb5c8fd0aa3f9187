"""The state of a process and its stores: probed in the background, answered from memory.

A store that is well is left alone for a while, unless somebody asks how it is, or a call of it fails: then it is looked at
at once, and again and again for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from openmanager.api.status.v1 import status_pb2
from openmanager.api.status.v1.status_pb2 import StorageState
from openmanager.runtime.breaker import Breaker
from openmanager.runtime.clock import Clock, until_next
from openmanager.watch import Bell

PROBE_INTERVAL_SECONDS = 0.4
# Of a store that is well, when for so long nobody has asked how it is and no call of it has failed.
REST_SECONDS, REST_INTERVAL_SECONDS = 5.0, 5.0
PROBE_TIMEOUT_SECONDS = 0.5
SLOW_SECONDS = 0.25
_SETTLE = 2  # so many equal findings make a state, unless the connection itself is gone

log = logging.getLogger(__name__)

# From harmless to grave: the state of the whole is the gravest of its parts.
_GRAVITY = [
    status_pb2.STORAGE_STATE_OK,
    status_pb2.STORAGE_STATE_RECOVERING,
    status_pb2.STORAGE_STATE_SLOW,
    status_pb2.STORAGE_STATE_EMPTY,
    status_pb2.STORAGE_STATE_READONLY,
    status_pb2.STORAGE_STATE_HUNG,
    status_pb2.STORAGE_STATE_DOWN,
]


def worst(states: Sequence[StorageState.ValueType]) -> StorageState.ValueType:
    """Return the gravest state, OK for none."""
    return max(states, key=_GRAVITY.index, default=status_pb2.STORAGE_STATE_OK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a probe saw of a store."""

    state: StorageState.ValueType = status_pb2.STORAGE_STATE_OK
    engine: str = ""
    version: str = ""
    reason: str = ""
    size_bytes: int = 0
    item_count: int = 0
    hit_count: int = 0
    miss_count: int = 0
    warnings: tuple[str, ...] = ()
    # Whoever found it has looked for long enough: it need not be found twice.
    certain: bool = False


Probe = Callable[[], Awaitable[Finding]]


@dataclass(slots=True, kw_only=True)
class Storage:
    """A store as a service reports it: `check` returns a finding, raises OSError when the store cannot be reached.

    Its breakers are told what is found: nobody else closes them.
    """

    name: str
    role: str
    engine: str
    check: Probe
    clock: Clock
    breakers: Sequence[Breaker] = ()
    finding: Finding = field(
        default_factory=lambda: Finding(state=status_pb2.STORAGE_STATE_RECOVERING, reason="starting")
    )
    latency: timedelta = timedelta()
    since_nanos: int = 0
    # How often it was looked at, and what rings when it was, or is to be.
    looks: int = 0
    bell: Bell = field(default_factory=Bell)
    # Whether nobody looks at it until it is stirred, or until its rest is over.
    resting: bool = False
    _stirred: float = float("-inf")
    _candidate: StorageState.ValueType = status_pb2.STORAGE_STATE_RECOVERING
    _seen: int = 0

    def __post_init__(self) -> None:
        """Be told of calls that fail."""
        for breaker in self.breakers:
            breaker.on_failure = self.stir

    async def probe(self) -> None:
        """Look at the store once and settle its state."""
        start = self.clock.monotonic()
        found = await self._look()
        self.latency = timedelta(seconds=self.clock.monotonic() - start)
        if found.state == status_pb2.STORAGE_STATE_OK and self.latency.total_seconds() > SLOW_SECONDS:
            found = _with_state(found, status_pb2.STORAGE_STATE_SLOW, "answers slowly")
        for breaker in self.breakers:
            breaker.probed(found.state, found.reason)
        shown = as_calls_find(found, self.breakers)
        self._settle(shown, certain=found.certain or _certain(shown.state) or shown.state != found.state)
        self.looks += 1
        self.bell.ring()

    def stir(self) -> None:
        """Have it looked at now if it rests, and often for a while."""
        self._stirred = self.clock.monotonic()
        self.bell.ring()

    def rests(self) -> bool:
        """Say whether the last look found it well, and there is no reason to look again soon."""
        well = self._candidate == self.finding.state == status_pb2.STORAGE_STATE_OK
        return well and self.clock.monotonic() - self._stirred >= REST_SECONDS

    async def look_again(self) -> None:
        """Have it looked at if it rests; one that does not tell at once how it is answers slowly, whatever is found then."""
        resting, looks = self.resting, self.looks
        self.stir()
        if resting and not await self.bell.wait_until(lambda: self.looks > looks, SLOW_SECONDS):
            self._settle(_with_state(self.finding, status_pb2.STORAGE_STATE_SLOW, "answers slowly"), certain=True)

    def _settle(self, found: Finding, *, certain: bool) -> None:
        """Take over what was found, at once or when it is found again."""
        self._seen = self._seen + 1 if found.state == self._candidate else 1
        self._candidate = found.state
        starting = self.since_nanos == 0
        if found.state == self.finding.state or starting or self._seen >= _SETTLE or certain:
            if found.state != self.finding.state or starting:
                self.since_nanos = self.clock.now_nanos()
            self.finding = found

    async def _look(self) -> Finding:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                return await self.check()
        except TimeoutError:
            state, reason = status_pb2.STORAGE_STATE_HUNG, "does not answer"
        except OSError:
            state, reason = status_pb2.STORAGE_STATE_DOWN, "cannot be reached"
        except Exception:
            # A probe that ended would leave the last good news standing for ever.
            state, reason = status_pb2.STORAGE_STATE_DOWN, "cannot be asked"
            log.exception("the probe of %s failed", self.name)
        return _with_state(self.finding, state, reason)

    def message(self) -> status_pb2.StorageStatus:
        """Return the store's row."""
        found = self.finding
        row = status_pb2.StorageStatus(
            name=self.name,
            role=self.role,
            engine=found.engine or self.engine,
            state=found.state,
            version=found.version,
            reason=found.reason,
            size_bytes=found.size_bytes,
            item_count=found.item_count,
            warnings=found.warnings,
            hit_count=found.hit_count,
            miss_count=found.miss_count,
        )
        row.latency.FromTimedelta(self.latency)
        row.since_time.FromNanoseconds(self.since_nanos)
        return row


def as_calls_find(found: Finding, breakers: Sequence[Breaker]) -> Finding:
    """Return what a probe found, or why calls are still kept from a store that it found well."""
    if found.state != status_pb2.STORAGE_STATE_OK:
        return _with_state(found, found.state, f"{found.reason}, flapping") if _flaps(breakers) else found
    kept = max((each for each in breakers if each.is_open), key=lambda each: _GRAVITY.index(each.state), default=None)
    return found if kept is None else _with_state(found, kept.state, kept.reason)


def _flaps(breakers: Sequence[Breaker]) -> bool:
    return any(breaker.flapping for breaker in breakers)


def _certain(state: StorageState.ValueType) -> bool:
    """Say whether one finding is enough: good news, and a connection that is gone."""
    return state in {status_pb2.STORAGE_STATE_OK, status_pb2.STORAGE_STATE_DOWN}


def _with_state(found: Finding, state: StorageState.ValueType, reason: str) -> Finding:
    return replace(found, state=state, reason=reason)


class StatusReporter:
    """The servicer of StatusService, and the task that probes the stores."""

    def __init__(
        self,
        *,
        service: str,
        address: str,
        version: str,
        clock: Clock,
        storages: Sequence[Storage] = (),
        ledger: Callable[[], status_pb2.Ledger] | None = None,
        warnings: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._service, self._address, self._version = service, address, version
        self._clock = clock
        self._start_nanos = clock.now_nanos()
        self._storages = tuple(storages)
        self._ledger = ledger
        self._warnings = warnings

    @contextlib.asynccontextmanager
    async def probing(self) -> AsyncIterator[None]:
        """Probe the stores now, and then twice a second or more; those that rest, every few seconds."""
        tasks = [asyncio.create_task(self._probe(storage)) for storage in self._storages]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _probe(self, storage: Storage) -> None:
        task = asyncio.current_task()
        # A driver that is cancelled may make an error of its own of that: then the loop has to see to its end itself.
        while task is None or not task.cancelling():
            await storage.probe()
            storage.resting = storage.rests()
            if storage.resting:
                await storage.bell.wait_until(lambda: not storage.rests(), until_next(REST_INTERVAL_SECONDS))
                storage.resting = False
            else:
                await asyncio.sleep(until_next(PROBE_INTERVAL_SECONDS))

    def message(self) -> status_pb2.ServiceStatus:
        """Return the row of this process."""
        rows = [storage.message() for storage in self._storages]
        state = worst([row.state for row in rows])
        # A store that is away is somebody else's trouble as long as answers come from the next best place.
        reason = ", ".join(f"{row.name} {row.reason}" for row in rows if row.state != status_pb2.STORAGE_STATE_OK)
        status = status_pb2.ServiceStatus(
            service=self._service,
            address=self._address,
            version=self._version,
            state=state,
            storages=rows,
            reason=reason,
            warnings=self._warnings(),
        )
        status.start_time.FromNanoseconds(self._start_nanos)
        return status

    async def GetStatus(self, request: status_pb2.GetStatusRequest, context: Any) -> status_pb2.GetStatusResponse:  # noqa: ARG002, N802
        """Return the state of this process and of its stores; of those that rest after another look at them."""
        await asyncio.gather(*(storage.look_again() for storage in self._storages))
        response = status_pb2.GetStatusResponse(status=self.message())
        if self._ledger is not None:
            response.ledger.CopyFrom(self._ledger())
        return response
