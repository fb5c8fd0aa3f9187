"""Dead letters: what a consumer of the log could not take, kept aside with the reason until somebody deals with it.

A letter says which samples they are, not what they were: when it is tried again, the consumer gets what history holds of
them then. So nothing comes back that was written anew or deleted in between, and a letter is small.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from openmanager.errors import NotFoundError
from openmanager_timeseries.disk import Disk

LETTERS = "dead_letters.json"
MAX_LETTERS = 1000
MAX_CHARACTERS = 4 << 20  # of the names of servers
# A reason that goes on makes one letter, until it has been quiet for so many positions.
_NEAR = 10_000

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
        self._stored = b""
        self._load()

    def _load(self) -> None:
        try:
            raw = self._disk.read(LETTERS, 0, 1 << 26)
        except OSError:
            return  # none yet; or the disk is damaged, and what is on it cannot be had
        body, _, checksum = raw.rpartition(b"\n")
        try:
            if zlib.crc32(body) != int(checksum, 16):
                raise ValueError  # noqa: TRY301  (the same as a checksum that is no number)
            stored = json.loads(body)
            letters = [_letter(each) for each in stored["letters"]]
            self._number, self.forgotten = int(stored["number"]), int(stored["forgotten"])
        except (ValueError, LookupError, TypeError):
            log.exception("the dead letters are damaged and begin anew")
            return
        self._letters = {letter.id: letter for letter in letters}
        self._stored = raw

    def encode(self) -> bytes | None:
        """Return what is to be stored, None when it is stored."""
        stored = {
            "number": self._number,
            "forgotten": self.forgotten,
            "letters": [asdict(letter) for letter in self._letters.values()],
        }
        body = json.dumps(stored).encode()
        raw = body + b"\n%08x" % zlib.crc32(body)
        return raw if raw != self._stored and (self._stored or self._number) else None

    def save(self, raw: bytes) -> None:
        """Make what `encode` returned durable (blocking)."""
        self._disk.replace(LETTERS, raw)
        self._stored = raw

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

    def add(self, consumer: str, refusal: Refusal, now: int) -> int:
        """Keep what was refused; return how many samples of it are new here: it may have been refused before."""
        for letter in reversed(self._letters.values()):
            before = letter.refusal
            same = (letter.consumer, before.reason, before.servers) == (consumer, refusal.reason, refusal.servers)
            if same and refusal.first <= before.last + _NEAR and before.first <= refusal.last + _NEAR:
                if before.first <= refusal.first and refusal.last <= before.last:
                    return 0
                self._put(replace(letter, refusal=_both(before, refusal), updated=now))
                return refusal.sample_count
        self._number += 1
        self._put(DeadLetter(id=str(self._number), consumer=consumer, refusal=refusal, created=now, updated=now))
        self._make_room()
        return refusal.sample_count

    def _put(self, letter: DeadLetter) -> None:
        self._letters[letter.id] = letter

    def _make_room(self) -> None:
        size = sum(sum(map(len, letter.refusal.servers)) for letter in self._letters.values())
        while len(self._letters) > MAX_LETTERS or (size > MAX_CHARACTERS and len(self._letters) > 1):
            oldest = next(iter(self._letters))
            size -= sum(map(len, self._letters.pop(oldest).refusal.servers))
            self.forgotten += 1

    def refused_again(self, letter: DeadLetter, reason: str, now: int) -> None:
        """Take note that a letter was tried again, and why in vain."""
        if letter.id in self._letters:
            again = replace(letter.refusal, reason=reason)
            self._put(replace(letter, refusal=again, updated=now, retries=letter.retries + 1))

    def remove(self, letter: DeadLetter) -> bool:
        """Delete a letter; say whether it was there."""
        return self._letters.pop(letter.id, None) is not None

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


def windows(refusal: Refusal, width: int) -> Iterator[tuple[str, int, int]]:
    """Yield each server with the parts of its time, at most `width` nanoseconds each."""
    for server in refusal.servers:
        for start in range(refusal.start, refusal.end, width):
            yield server, start, min(start + width, refusal.end)
