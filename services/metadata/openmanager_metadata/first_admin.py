"""The first start: nobody is there yet, and somebody must be able to let the others in."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from openmanager.access import Grant, Role
from openmanager.datadir import write_durably
from openmanager.errors import AlreadyExistsError, FailedPreconditionError
from openmanager_metadata.users import MAX_INVITATION_LIFETIME, Users

NAME = "admin"

log = logging.getLogger(__name__)


class FirstAdmin:
    """Makes the user `admin` when there is no user, and writes the invitation to a file that its owner alone can read.

    An invitation that was never taken and whose file is gone is made again.
    """

    def __init__(self, users: Users, file: Path) -> None:
        self._users = users
        self._file = file
        self._done = file == Path()

    async def look(self) -> None:
        """See once whether anybody is there."""
        if self._done:
            return
        users, _ = await self._users.list(2, "")
        try:
            if not users:
                _, made = await self._users.create(NAME, (Grant(Role.ADMIN),), MAX_INVITATION_LIFETIME)
            elif len(users) == 1 and users[0].password_hash is None and not self._file.exists():
                made = await self._users.invite(users[0].id, MAX_INVITATION_LIFETIME)
            else:
                self._done = True
                if any(user.password_hash for user in users):
                    await asyncio.to_thread(self._file.unlink, missing_ok=True)  # it is of no use any more
                return
        except (AlreadyExistsError, FailedPreconditionError):
            self._done = True  # another metadata service was faster, or there is no key to make one with
            return
        await asyncio.to_thread(_write, self._file, made.text)
        self._done = True
        log.warning("first start: the invitation of the user %s is in %s", NAME, self._file)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_durably(file, f"{text}\n")
