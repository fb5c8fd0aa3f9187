"""Checkpoints: what the whole log was, signed, in the database and in a second place.

The second place is what finds a log that was replaced together with its database. A key is exchanged by putting the new
one before the old one in its file: the log says so, the old key signs the checkpoint that covers this, and from then on
the new one signs.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from openmanager.audit import KEY_REPLACED, KEY_ROTATED
from openmanager.config import Secret
from openmanager.errors import ConfigurationError, DataLossError, OpenManagerError
from openmanager.runtime.clock import Clock
from openmanager_metadata.audit.entry import NO_HASH, Checkpoint
from openmanager_metadata.audit.head import catch_up, lock, log_of
from openmanager_metadata.audit.log import AuditLog
from openmanager_metadata.audit.signing import Signer, signers
from openmanager_metadata.backends import Database, Row, Statements

STDOUT = "-"
COPIES = 1000
# More than a line has.
TAIL_BYTES = 64 * 1024
RETRY_SECONDS = 1.0
FINISH_SECONDS = 1.0

log = logging.getLogger(__name__)

_LAST = "SELECT * FROM audit_checkpoints ORDER BY size DESC LIMIT 1"
_AFTER = "SELECT * FROM audit_checkpoints WHERE size > $1 ORDER BY size LIMIT $2"
_INSERT = (
    "INSERT INTO audit_checkpoints (size, root, time_unix_nanos, previous, key_id, signature)"
    " VALUES ($1, $2, $3, $4, $5, $6)"
)
_ROTATION = "SELECT max(number) AS number FROM audit_entries WHERE action = $1 AND object = $2"


def checkpoint(row: Row, log_id: bytes) -> Checkpoint:
    """Return the checkpoint of a row."""
    return Checkpoint(
        log_id=log_id,
        size=row["size"],
        root=bytes(row["root"]),
        time_unix_nanos=row["time_unix_nanos"],
        previous=bytes(row["previous"]),
        key_id=bytes(row["key_id"]),
        signature=bytes(row["signature"]),
    )


async def newest_checkpoint(statements: Statements, log_id: bytes) -> Checkpoint | None:
    """Return the newest checkpoint, None while there is none."""
    rows = await statements.fetch(_LAST)
    return checkpoint(rows[0], log_id) if rows else None


class Checkpoints:
    """Makes checkpoints and copies them; `warnings` are what an operator should know of."""

    def __init__(
        self,
        database: Database,
        audit: AuditLog,
        clock: Clock,
        *,
        key: Secret,
        copy: str = "",
        entries: int = 1000,
        seconds: float = 60.0,
    ) -> None:
        self._database, self._audit, self._clock = database, audit, clock
        self._secret = key
        self._signers = signers(key)
        self._copy = Copy(copy) if copy else None
        self._entries, self._seconds = entries, seconds
        self._covered = 0
        self._unfit = self._uncopied = self._shorter = self._damaged = ""

    @property
    def copied_size(self) -> int:
        """Up to which size checkpoints are in the second place."""
        return self._copy.size if self._copy else 0

    @property
    def public_key(self) -> bytes:
        """The public half of the key that signs, 32 bytes; empty without one."""
        return self._signers[0].public if self._signers else b""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What an operator should know of."""
        found = [] if self._signers else ["the audit log is not signed: metadata.audit_key is not set"]
        if self._copy is None:
            found.append("audit checkpoints are not copied to a second place: metadata.audit_checkpoints is not set")
        found += [self._unfit, self._uncopied, self._shorter, self._damaged, *self._audit.warnings]
        return tuple(dict.fromkeys(each for each in found if each))

    async def keep(self) -> None:
        """Make a checkpoint when so many entries are new, or when the oldest new one has waited for so long; for ever."""
        while True:
            # Entries from before the start, or of another replica, are covered by the first.
            wait = self._seconds
            try:
                await self.make()
                await self.copy()
                self._damaged = ""
            except OpenManagerError as err:
                wait = RETRY_SECONDS  # of a store that is away its status says so
                self._damaged = err.message if isinstance(err, DataLossError) else ""
            except Exception:
                log.exception("a checkpoint of the audit log could not be made")
            await self._until_due(wait)

    async def _until_due(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while self._audit.head.size - self._covered < self._entries:
                    self._audit.grown.clear()
                    await self._audit.grown.wait()
        except TimeoutError:
            return

    async def finish(self) -> None:
        """Cover what is left before the service ends, if the database is there to do so."""
        with contextlib.suppress(OpenManagerError, TimeoutError):
            async with asyncio.timeout(FINISH_SECONDS):
                await self.make()
                await self.copy()

    async def make(self) -> Checkpoint | None:
        """Make a checkpoint of all there is and return it; None where the newest one covers it already."""
        await self._announce()
        return await self._database.transaction(self._make)

    async def _announce(self) -> None:
        """Record that another key signs from now on, before it does."""
        await self._renew()
        if not self._signers:
            return
        first = self._signers[0]
        rows = await self._database.fetch(_LAST)
        if not rows or not rows[0]["key_id"] or bytes(rows[0]["key_id"]) == first.id:
            return
        old = bytes(rows[0]["key_id"])
        action = KEY_ROTATED if any(each.id == old for each in self._signers[1:]) else KEY_REPLACED
        found = await self._database.fetch(_ROTATION, action, f"keys/{first.id.hex()}")
        if found[0]["number"] is None:
            details = {"new_key": first.public.hex(), "old_key_id": old.hex()}
            await self._audit.own_event(action, f"keys/{first.id.hex()}", details)

    async def _renew(self) -> None:
        secret = await asyncio.to_thread(self._secret.renewed)
        if secret.reveal() == self._secret.reveal():
            return
        try:
            self._secret, self._signers, self._unfit = secret, signers(secret), ""
        except ConfigurationError as err:
            self._unfit = err.message

    async def _make(self, statements: Statements) -> Checkpoint | None:
        await lock(statements)
        head, _ = await catch_up(self._audit.head, statements)
        last = await newest_checkpoint(statements, head.log_id)
        self._covered = last.size if last else 0
        if head.size <= self._covered:
            return None
        signer = await self._signer(last, statements)
        made = Checkpoint(
            log_id=head.log_id,
            size=head.size,
            root=head.tree.root(),
            time_unix_nanos=max(self._clock.now_nanos(), head.time_unix_nanos),
            previous=last.digest() if last else NO_HASH,
            key_id=signer.id if signer else b"",
        )
        signature = signer.sign(made.body()) if signer else b""
        await statements.fetch(
            _INSERT, made.size, made.root, made.time_unix_nanos, made.previous, made.key_id, signature
        )
        self._covered = made.size
        return made

    async def _signer(self, last: Checkpoint | None, statements: Statements) -> Signer | None:
        """Return whose turn it is: the first key's, unless the one before has not handed over yet."""
        if not self._signers:
            return None
        first = self._signers[0]
        if last is None or not last.key_id or last.key_id == first.id:
            return first
        before = next((each for each in self._signers[1:] if each.id == last.key_id), None)
        if before is None:
            return first
        rows = await statements.fetch(_ROTATION, KEY_ROTATED, f"keys/{first.id.hex()}")
        return first if (rows[0]["number"] or last.size + 1) <= last.size else before

    async def copy(self) -> None:
        """Bring the second place up to date."""
        if self._copy is None:
            return
        try:
            await asyncio.to_thread(self._copy.open)
            await self._go_back()
            log_id = await log_of(self._database)
            while rows := await self._database.fetch(_AFTER, self._copy.size, COPIES):
                await asyncio.to_thread(self._copy.append, [checkpoint(row, log_id) for row in rows])
            self._uncopied = ""
        except OSError as err:
            self._uncopied = f"audit checkpoints cannot be copied to the second place: {err.strerror}"
            log.warning("%s", self._uncopied)

    async def _go_back(self) -> None:
        """Take note of a log that is shorter than what the second place has of it; what comes now is copied all the same."""
        assert self._copy is not None  # noqa: S101  (it is only called where there is one)
        rows = await self._database.fetch(_LAST)
        size = rows[0]["size"] if rows else 0
        if size < self._copy.size:
            self._shorter = (
                f"the audit log has {size} of the {self._copy.size} entries that the second place vouches for"
            )
            log.error("%s", self._shorter)
        if size < self._copy.size or (self._copy.size == 0 and self._copy.is_stream):
            self._copy.size = max(0, size - 1)


class Copy:
    """The second place: a file that is appended to and synced, or standard output. Blocking."""

    def __init__(self, path: str) -> None:
        self.size = 0
        self.is_stream = path == STDOUT
        self._path = Path(path)
        self._known = self.is_stream

    def open(self) -> None:
        """Find out what is there already; OSError for what is no file of checkpoints."""
        if not self._known and self._path.exists():
            with self._path.open("r+b") as file:
                length = file.seek(0, os.SEEK_END)
                file.seek(max(0, length - TAIL_BYTES))
                tail = file.read()
                whole = tail[: tail.rfind(b"\n") + 1]
                file.truncate(length - len(tail) + len(whole))  # a crash may have cut the last line
            try:
                self.size = int(json.loads(whole.splitlines()[-1])["size"]) if whole else 0
            except (ValueError, KeyError, TypeError) as err:
                raise OSError(errno.EINVAL, "the file has something else in it") from err
        self._known = True

    def append(self, made: Sequence[Checkpoint]) -> None:
        """Write checkpoints."""
        lines = "".join(each.line() for each in made)
        if self.is_stream:
            sys.stdout.write(lines)
            sys.stdout.flush()
        else:
            with self._path.open("a", encoding="ascii") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        self.size = made[-1].size
