"""A secret that may be exchanged while we run: used until it is refused, then not tried again in a hurry."""

from __future__ import annotations

import asyncio

from openmanager.config import Secret
from openmanager.runtime.clock import Clock

# Who tries refused credentials more often is locked out.
REFUSED_SECONDS = 5.0
LOOK_SECONDS = 0.5


class Credential:
    """What opens a store: the secret of the configuration, and what its file holds once that was refused."""

    def __init__(self, secret: Secret, clock: Clock) -> None:
        self._secret = secret
        self._clock = clock
        self._refused_until = float("-inf")

    def reveal(self) -> str:
        """Return the secret itself."""
        return self._secret.reveal()

    def refused(self) -> None:
        """Take note that the store has refused it."""
        self._refused_until = self._clock.monotonic() + REFUSED_SECONDS

    @property
    def is_refused(self) -> bool:
        """Whether it was refused a moment ago."""
        return self._clock.monotonic() < self._refused_until

    async def renew(self) -> bool:
        """Take what its file holds now; say whether that is another secret."""
        found = await asyncio.to_thread(self._secret.renewed)
        if found.reveal() == self.reveal():
            return False
        self._secret, self._refused_until = found, float("-inf")
        return True

    async def wait(self) -> None:
        """Return when it may be tried: its file has another one, or it was refused long enough ago."""
        while self.is_refused and not await self.renew():  # noqa: ASYNC110  (nobody tells when a file changes)
            await asyncio.sleep(LOOK_SECONDS)
