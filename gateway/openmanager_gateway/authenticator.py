"""Who comes to the gateway with a credential: asked of the metadata service once, and again now and then while it is used.

What was found holds for a call without asking. Every credential in use is asked about again within `RECHECK_SECONDS`, so
that one which was revoked is refused, and streams opened with it end, within a minute. While the metadata service is
away, who was known stays known for the grace of the configuration.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass
from datetime import timedelta

from openmanager.access import Identity, known_grants
from openmanager.api.metadata.v1 import identity_pb2 as pb
from openmanager.errors import OpenManagerError, Reason, UnauthenticatedError, UnavailableError, credentials_invalid
from openmanager.runtime.attempts import Attempts
from openmanager.runtime.clock import Clock
from openmanager.runtime.gate import Pass
from openmanager.runtime.peer import Peer

AUTHENTICATE = "/openmanager.api.metadata.v1.SessionService/Authenticate"
ASK_SECONDS = 1.0
RECHECK_SECONDS = 20.0
# One that nobody came with for so long is forgotten; streams keep what they came with in use.
FORGET_SECONDS = 300.0
REFUSED_SECONDS = 10.0
MAX_KNOWN = 10_000

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Entry:
    held: Pass
    asked: float
    used: float


class Authenticator:
    """Knows people and programs by asking `metadata`."""

    def __init__(self, metadata: Peer, clock: Clock, grace: timedelta) -> None:
        self._metadata = metadata
        self._clock = clock
        self._grace = grace.total_seconds()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._refused: OrderedDict[str, float] = OrderedDict()
        self._asking: dict[str, asyncio.Task[Identity]] = {}
        self._attempts = Attempts(clock)

    def known(self, credential: str) -> Pass | None:
        """Return whose a credential is, where that is known already."""
        entry = self._entries.get(credential)
        if entry is None or entry.held.identity.end * 1e9 <= self._clock.now_nanos():
            return None
        entry.used = self._clock.monotonic()
        return entry.held

    async def find(self, credential: str, source: str) -> Pass:
        """Return whose a credential is; UnauthenticatedError when it is nobody's."""
        self._attempts.check(source, "")
        now = self._clock.monotonic()
        if self._refused.get(credential, 0.0) > now:
            self._attempts.failed(source, "")
            raise credentials_invalid()
        try:
            identity = await self._ask_once(credential)
        except UnauthenticatedError:
            self._attempts.failed(source, "")
            self._refuse(credential)
            raise
        found = _Entry(Pass(identity), now, now)
        self._entries[credential] = found
        if len(self._entries) > MAX_KNOWN:
            self._end(next(iter(self._entries)), credentials_invalid())
        return found.held

    async def run(self) -> None:
        """Ask again about every credential in use, for ever."""
        while True:
            await asyncio.sleep(RECHECK_SECONDS)
            try:
                await self._recheck()
            except Exception:
                log.exception("credentials could not be asked about again")

    async def _recheck(self) -> None:
        for credential, entry in list(self._entries.items()):
            now = self._clock.monotonic()
            if entry.held.identity.end * 1e9 <= self._clock.now_nanos():
                self._end(credential, credentials_invalid())
            elif now - entry.used > FORGET_SECONDS and not entry.held.streams:
                del self._entries[credential]
            else:
                await self._ask_again(credential, entry)

    async def _ask_again(self, credential: str, entry: _Entry) -> None:
        try:
            identity = await self._ask(credential)
        except UnauthenticatedError as err:
            self._end(credential, err)
            self._refuse(credential)
        except OpenManagerError as err:
            if self._clock.monotonic() - entry.asked > self._grace:
                self._end(credential, UnavailableError("who is calling cannot be checked", reason=err.reason))
        else:
            if identity != entry.held.identity:
                # What streams were opened with does not hold any more: they are opened again with what does.
                self._end(
                    credential, UnavailableError("what the caller may do has changed", reason=Reason.GRANTS_CHANGED)
                )
                now = self._clock.monotonic()
                self._entries[credential] = _Entry(Pass(identity), now, entry.used)
            entry.asked = self._clock.monotonic()

    def _end(self, credential: str, error: OpenManagerError) -> None:
        self._entries.pop(credential).held.end(error)

    def _refuse(self, credential: str) -> None:
        self._refused.pop(credential, None)
        self._refused[credential] = self._clock.monotonic() + REFUSED_SECONDS
        if len(self._refused) > MAX_KNOWN:
            self._refused.popitem(last=False)

    async def _ask_once(self, credential: str) -> Identity:
        """Ask; all who come with the same credential at once share the answer."""
        task = self._asking.get(credential)
        if task is None:
            task = self._asking[credential] = asyncio.create_task(self._ask(credential))
            task.add_done_callback(lambda _: self._asking.pop(credential, None))
        try:
            return await asyncio.shield(task)
        except UnavailableError as err:
            raise UnavailableError("who is calling cannot be checked", reason=err.reason) from err

    async def _ask(self, credential: str) -> Identity:
        request = pb.AuthenticateRequest(credential=credential)
        reply = await self._metadata.unary(AUTHENTICATE, request, pb.AuthenticateResponse, seconds=ASK_SECONDS)
        message = reply.identity
        grants = known_grants((each.role, each.server_filter) for each in message.grants)
        end = message.end_time.ToNanoseconds() / 1e9 if message.HasField("end_time") else float("inf")
        return Identity(message.subject, grants, end=end, session=message.session)
