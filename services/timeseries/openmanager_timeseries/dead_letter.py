"""Dead letters: what a consumer of the log could not take, kept aside with the reason until somebody deals with it.

A letter says which samples they are, not what they were: when it is tried again, the consumer gets what history holds of
them then. So nothing comes back that was written anew or deleted in between, and a letter is small.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from openmanager import durable
from openmanager.errors import NotFoundError
from openmanager_timeseries.disk import Disk

LETTERS = "dead_letters.json"
MAX_LETTERS = 1000
MAX_CHARACTERS = 4 << 20  # of the names of servers
# A reason that goes on makes one letter, until it has been quiet for so many positions, or concerns another day.
_NEAR = 10_000
_NEAR_NANOS = 86_400 * 10**9

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Samples that were refused: of which servers, in [start, end) nanoseconds, at which positions, why, how many."""

    reason: str
    servers: tuple[str, ...]
    start: int
    end: int
    first: int
    last: int
    sample_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A refusal that stands: when it was made and changed, in nanoseconds, and how often it was tried again."""

    id: str
    consumer: str
    refusal: Refusal
    created: int
    updated: int
    retries: int = 0


class DeadLetters:
    """The letters of one log, oldest first. Changes are in memory at once, and durable when `save` returns."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._letters: dict[str, DeadLetter] = {}
        self._number = 0
        # Letters that had to make room for others.
        self.forgotten = 0
        self._changed = False
        self._load()

    def _load(self) -> None:
        try:
            raw = self._disk.read(LETTERS, 0, 1 << 26)
        except FileNotFoundError:
            return
        except OSError as err:
            if err.errno != errno.EIO:
                raise
            raw = b""
        try:
            stored = durable.decode(raw)
            letters = [_letter(each) for each in stored["letters"]]
            self._number, self.forgotten = int(stored["number"]), int(stored["forgotten"])
        except (ValueError, LookupError, TypeError):
            log.exception("the dead letters are damaged and begin anew")
            with contextlib.suppress(OSError):
                self._disk.replace(f"{LETTERS}.damaged", raw)
            return
        self._letters = {letter.id: letter for letter in letters}

    def encode(self) -> bytes | None:
        """Return what is to be stored, None when nothing has changed since this was asked before."""
        if not self._changed:
            return None
        self._changed = False
        return durable.encode(
            {
                "number": self._number,
                "forgotten": self.forgotten,
                "letters": [asdict(letter) for letter in self._letters.values()],
            }
        )

    def save(self, raw: bytes) -> None:
        """Make what `encode` returned durable (blocking)."""
        try:
            self._disk.replace(LETTERS, raw)
        except OSError:
            self._changed = True
            raise

    # ── asking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def __len__(self) -> int:
        return len(self._letters)

    def of(self, consumer: str = "") -> list[DeadLetter]:
        """Return the letters of a consumer, of all for an empty name, oldest first."""
        return [letter for letter in self._letters.values() if consumer in {"", letter.consumer}]

    def find(self, consumer: str, ids: Sequence[str]) -> list[DeadLetter]:
        """Return the letters of a consumer, or those of them with some ids; NotFoundError when there is no such one."""
        found = {letter.id: letter for letter in self.of(consumer)}
        for each in ids:
            if each not in found:
                raise NotFoundError("there is no such dead letter", resource=f"dead_letter/{each}")
        return [found[each] for each in dict.fromkeys(ids)] if ids else list(found.values())

    # ── changing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, consumer: str, refusal: Refusal, now: int) -> None:
        """Keep what was refused."""
        for letter in reversed(self._letters.values()):
            before = letter.refusal
            same = (letter.consumer, before.reason, before.servers) == (consumer, refusal.reason, refusal.servers)
            if same and refusal.first <= before.last + _NEAR and refusal.start <= before.end + _NEAR_NANOS:
                self._put(replace(letter, refusal=_both(before, refusal), updated=now))
                return
        self._number += 1
        self._put(DeadLetter(id=str(self._number), consumer=consumer, refusal=refusal, created=now, updated=now))
        self._make_room()

    def _put(self, letter: DeadLetter) -> None:
        self._letters[letter.id] = letter
        self._changed = True

    def _make_room(self) -> None:
        size = sum(sum(map(len, letter.refusal.servers)) for letter in self._letters.values())
        while len(self._letters) > MAX_LETTERS or (size > MAX_CHARACTERS and len(self._letters) > 1):
            oldest = next(iter(self._letters))
            size -= sum(map(len, self._letters.pop(oldest).refusal.servers))
            self.forgotten += 1

    def refused_again(self, letter: DeadLetter, reason: str, now: int) -> None:
        """Take note that a letter was tried again, and why in vain; it may have grown meanwhile."""
        found = self._letters.get(letter.id)
        if found is not None:
            again = replace(found.refusal, reason=reason)
            self._put(replace(found, refusal=again, updated=now, retries=found.retries + 1))

    def shorten(self, letter: DeadLetter, until: int) -> DeadLetter:
        """Take note that a letter was taken after all up to a time, unless it has grown since; return what is left of it.

        Its samples count as dead until all of them were taken: nobody knows which of them are in a part.
        """
        if self._letters.get(letter.id) != letter or not letter.refusal.start < until < letter.refusal.end:
            return letter
        left = replace(letter, refusal=replace(letter.refusal, start=until))
        self._put(left)
        return left

    def take(self, letter: DeadLetter) -> int:
        """Delete a letter that was taken after all; return how many samples: what it has grown by meanwhile stays."""
        found = self._letters.get(letter.id)
        if found is None:
            return 0
        count = letter.refusal.sample_count
        if (rest := found.refusal.sample_count - count) > 0:
            self._put(replace(found, refusal=replace(found.refusal, sample_count=rest, first=letter.refusal.last + 1)))
        else:
            self.remove(found)
        return count

    def remove(self, letter: DeadLetter) -> bool:
        """Delete a letter; say whether it was there."""
        found = self._letters.pop(letter.id, None) is not None
        self._changed |= found
        return found

    def clear(self, consumer: str) -> None:
        """Delete the letters of a consumer: it gets everything anew."""
        for letter in self.of(consumer):
            self.remove(letter)


def _both(one: Refusal, other: Refusal) -> Refusal:
    return replace(
        one,
        start=min(one.start, other.start),
        end=max(one.end, other.end),
        first=min(one.first, other.first),
        last=max(one.last, other.last),
        sample_count=one.sample_count + other.sample_count,
    )


def _letter(stored: dict[str, Any]) -> DeadLetter:
    about = stored["refusal"]
    return DeadLetter(**{**stored, "refusal": Refusal(**{**about, "servers": tuple(about["servers"])})})


def windows(refusal: Refusal, width: int, many: int) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """Yield the servers, at most `many` at once, with the parts of the time, at most `width` nanoseconds each."""
    for start in range(refusal.start, refusal.end, width):
        for first in range(0, len(refusal.servers), many):
            yield refusal.servers[first : first + many], start, min(start + width, refusal.end)
