"""Who is at a browser: what a request comes with, and the sessions of those who have signed in.

A session's tokens stay here; the browser holds a random id that is good for nothing elsewhere, in a cookie that no script
and no other site gets to see.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

from openmanager.client.credential import Credential, Metadata, Token, bearer
from openmanager.client.people import Sessions as Calls
from openmanager.client.people import Tokens
from openmanager.errors import OpenManagerError, UnauthenticatedError
from openmanager.runtime.address import FORWARDED_FOR
from openmanager.runtime.clock import Clock

MAX_SESSIONS = 1000
ANYBODY = Token()

_showing: ContextVar[Credential] = ContextVar("showing", default=ANYBODY)
# The address of whoever is served now: the gateway counts wrong credentials by it, where it trusts the console.
source: ContextVar[str] = ContextVar("source", default="")


class Shown:
    """The credential of whoever a call is made for; what a client of all of them is given."""

    def metadata(self) -> Metadata:
        """Return what goes with every call."""
        shown, address = _showing.get().metadata(), source.get()
        return (*shown, (FORWARDED_FOR, address)) if address else shown

    async def renew(self) -> bool:
        """Try to get something that is taken after this was refused."""
        return await _showing.get().renew()


@contextmanager
def showing(credential: Credential) -> Iterator[None]:
    """Make calls with a credential for the length of the context."""
    token = _showing.set(credential)
    try:
        yield
    finally:
        _showing.reset(token)


class Session:
    """One that somebody has begun by name and password; its access token is renewed as it ends."""

    def __init__(self, name: str, tokens: Tokens, calls: Calls) -> None:
        self.name = name
        self.end_time = tokens.session_end_time
        self._tokens = tokens
        self._calls = calls
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return "Session(***)"

    def metadata(self) -> Metadata:
        """Return what goes with every call."""
        return (bearer(self._tokens.access_token),)

    async def renew(self) -> bool:
        """Exchange the refresh token, once for all who wait for it: it can be used once."""
        refused = self._tokens
        async with self._lock:
            if self._tokens is not refused:
                return True
            try:
                with showing(ANYBODY):
                    self._tokens = await self._calls.refresh(refused.refresh_token)
            except OpenManagerError:
                return False
        return True


class Sessions:
    """The sessions that are open here, a bounded number: beyond it the one that was used least recently goes."""

    def __init__(self, calls: Calls, clock: Clock) -> None:
        self._calls = calls
        self._clock = clock
        self._open: OrderedDict[str, Session] = OrderedDict()

    async def begin(self, name: str, password: str) -> tuple[str, Session]:
        """Sign in and return the id for the cookie; UnauthenticatedError when name or password are wrong."""
        with showing(ANYBODY):
            tokens = await self._calls.begin(name, password)
        ident = secrets.token_urlsafe(32)
        self._open[ident] = session = Session(name, tokens, self._calls)
        if len(self._open) > MAX_SESSIONS:
            self._open.popitem(last=False)
        return ident, session

    def find(self, ident: str) -> Session:
        """Return a session; UnauthenticatedError when there is none of that id any more."""
        session = self._open.get(ident)
        now = datetime.fromtimestamp(self._clock.now_nanos() / 1e9, UTC)
        if session is None or session.end_time <= now:
            self._open.pop(ident, None)
            raise UnauthenticatedError("the session has ended: sign in again")
        self._open.move_to_end(ident)
        return session

    async def end(self, ident: str) -> None:
        """Sign out, here at once and at the gateway if it answers."""
        session = self._open.pop(ident, None)
        if session is not None:
            with showing(session):
                await self._calls.end()
