"""A circuit breaker: a store that fails again and again is not asked for a while, and a probe says when it is back.

::

    closed ──► open    five failures in a row; half of the calls of ten seconds failed or slow; a probe that is refused,
                       or gets no answer twice in a row
    open ──► closed    a good probe when its time is over, or two in a row before

Nobody's call is risked to find out whether a store is well again: the probe in the background does that, once a second.
A store that flaps is left alone for longer each time.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from typing import Literal

from openmanager.api.status.v1 import status_pb2
from openmanager.api.status.v1.status_pb2 import StorageState
from openmanager.errors import Reason, UnavailableError
from openmanager.runtime.clock import Clock

FAILURES = 5
SILENCES = 2
GOOD_PROBES = 2
WINDOW_SECONDS = 10.0
LEAST_CALLS = 20
BAD_SHARE = 0.5
# The newest calls of the window stand for all of it.
MAX_CALLS = 512
OPEN_SECONDS, MAX_OPEN_SECONDS = 1.0, 30.0
SPREAD = 0.2
# Who opens again so soon after it was closed is left alone for twice as long.
CALM_SECONDS = 30.0
# So many times in a row is flapping.
FLAPS = 3

log = logging.getLogger(__name__)


Operation = Literal["reads", "writes", "calls"]


class NotAskedError(UnavailableError):
    """The store is not asked for a while: `state` says how it is, `why` the reason, for our own eyes."""

    def __init__(self, store: str, reason: Reason, state: StorageState.ValueType, why: str) -> None:
        super().__init__(f"{store} does not answer", reason=reason)
        self.state = state
        self.why = why


class Breaker:
    """Guards one kind of operation on one store, or the calls of a service: whoever sees it open goes to the next best place.

    A call that was answered is `answered`, one that found the store in trouble `failed`. What says nothing about the
    store is not counted: a caller who gave up, a value that does not exist, a request that is wrong.
    """

    def __init__(
        self,
        store: str,
        operation: Operation,
        clock: Clock,
        jitter: random.Random,
        *,
        slow_seconds: float = 0.5,
        least_calls: int = LEAST_CALLS,
    ) -> None:
        self.store = store
        self.operation = operation
        self.is_open = False
        # Why it is open: the state of the store, and a reason in words.
        self.state: StorageState.ValueType = status_pb2.STORAGE_STATE_OK
        self.reason = ""
        # Called when a call has failed.
        self.on_failure: Callable[[], None] = lambda: None
        # Set by a call that begins; and when the last one began, and one was answered.
        self.called = asyncio.Event()
        self.called_at = self.answered_at = float("-inf")
        self._clock = clock
        self._jitter = jitter
        self._slow_seconds = slow_seconds
        self._least_calls = least_calls
        # When a call ended, the seconds it took, and whether that is bad.
        self._calls: deque[tuple[float, float, bool]] = deque(maxlen=MAX_CALLS)
        self._failures = self._silences = self._good_probes = 0
        self._openings = 0
        self._opens_until = 0.0
        self._closed_at = float("-inf")

    def check(self) -> None:
        """Raise NotAskedError while it is open; every call begins with it."""
        self.called.set()
        self.called_at = self._clock.monotonic()
        if self.is_open:
            reason = Reason.SERVICE_UNAVAILABLE if self.operation == "calls" else Reason.STORE_UNAVAILABLE
            raise NotAskedError(self.store, reason, self.state, self.reason)

    # ── calls ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def answered(self, start: float, allowance: float = 0.0) -> None:
        """Take note of an answer to a call that began at `start`; a large one may take `allowance` seconds longer."""
        now = self._clock.monotonic()
        seconds = now - start
        slow = seconds > self._slow_seconds + allowance
        self._failures = self._silences = 0
        self.answered_at = now
        self._calls.append((now, seconds, slow))
        if slow and not self.is_open:
            self._judge(now)

    def failed(self, start: float, state: StorageState.ValueType, reason: str) -> None:
        """Take note that a call which began at `start` found the store in a state, and why in words."""
        self.on_failure()
        if self.is_open:
            return  # it was under way before
        now = self._clock.monotonic()
        self._failures += 1
        self._calls.append((now, now - start, True))
        if self._failures >= FAILURES:
            self.open(state, reason)
        else:
            self._judge(now)

    def _judge(self, now: float) -> None:
        """Open when too many calls of the window are bad."""
        calls = self._calls
        while calls[0][0] < now - WINDOW_SECONDS:
            calls.popleft()
        if len(calls) >= self._least_calls and sum(bad for *_, bad in calls) >= BAD_SHARE * len(calls):
            self.open(status_pb2.STORAGE_STATE_SLOW, f"answers slowly: p95 {self._p95() * 1000:,.0f} ms")

    def _p95(self) -> float:
        ascending = sorted(seconds for _, seconds, _ in self._calls)
        return ascending[int(0.95 * (len(ascending) - 1))]

    def open(self, state: StorageState.ValueType, reason: str) -> None:
        """Let nobody ask the store for a while; at once for what is certain, credentials that are refused, say."""
        self._good_probes = 0
        if self.is_open:
            return
        now = self._clock.monotonic()
        self._openings = self._openings + 1 if now - self._closed_at < CALM_SECONDS else 1
        seconds = min(MAX_OPEN_SECONDS, OPEN_SECONDS * 2 ** min(self._openings - 1, 10))
        self._opens_until = now + seconds * self._jitter.uniform(1 - SPREAD, 1 + SPREAD)
        self.is_open, self.state = True, state
        self.reason = f"{reason}, flapping" if self.flapping else reason
        log.warning("%s: no %s for a while: %s", self.store, self.operation, self.reason)

    @property
    def flapping(self) -> bool:
        """Whether it has opened again and again."""
        return self._openings >= FLAPS and (self.is_open or self._clock.monotonic() - self._closed_at < CALM_SECONDS)

    # ── probes ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def probed(self, state: StorageState.ValueType, reason: str = "") -> None:
        """Take note of what the probe in the background found."""
        if state == status_pb2.STORAGE_STATE_OK or (
            # A store that takes no writes is well for whoever reads.
            state == status_pb2.STORAGE_STATE_READONLY and self.operation == "reads"
        ):
            self._good()
        elif state == status_pb2.STORAGE_STATE_SLOW:
            self._good_probes = 0
        elif state == status_pb2.STORAGE_STATE_HUNG and self._silences + 1 < SILENCES:
            self._silences += 1
            self._good_probes = 0
        else:
            self.open(state, reason)

    def _good(self) -> None:
        self._silences = 0
        self._good_probes += 1
        if not self.is_open:
            return
        now = self._clock.monotonic()
        if now >= self._opens_until or self._good_probes >= GOOD_PROBES:
            self.is_open, self.state, self.reason = False, status_pb2.STORAGE_STATE_OK, ""
            self._closed_at = now
            self._failures = 0
            self._calls.clear()
            log.warning("%s: %s again", self.store, self.operation)
