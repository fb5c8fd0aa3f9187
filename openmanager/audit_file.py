"""Verify an exported audit log against checkpoints, without a server and without trust in whoever wrote it.

Written from docs/audit.md, and on purpose with nothing of what writes the log: the standard library, and Ed25519. Memory
is bounded by the largest entry, whatever the length of the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MAGIC = b"OMAUDIT1"
BODY = b"OpenManager audit checkpoint v1\n"
# version, kind, number, time, intent, code, count: the beginning of every entry.
HEAD = struct.Struct(">BBQQQIQ")
MAX_ENTRY = 1 << 20
READ_BYTES = 1 << 20
TOLERANCE_NANOS = 5 * 10**9
MAX_PROBLEMS = 20
KINDS = (1, 2, 3)
INTENT, OUTCOME = 1, 2
_TEXT_COUNT, _BYTES_COUNT = 9, 3
_ACTION, _OBJECT = 2, 3
_SHOW_EVERY = 1 << 16

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that cannot be: where it is, and what is wrong."""

    where: str
    what: str


@dataclass(slots=True)
class Verdict:
    """What was found. The log is as its checkpoints vouch for where `problems` is empty."""

    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    log_id: str = ""
    first_number: int = 0
    last_number: int = 0
    entry_count: int = 0
    covered_number: int = 0
    checkpoint_count: int = 0
    signed_count: int = 0
    root: str = ""

    @property
    def is_sound(self) -> bool:
        """Whether nothing was found."""
        return not self.problems

    @property
    def uncovered_count(self) -> int:
        """How many entries came after the last checkpoint: nobody vouches for them."""
        return max(0, self.last_number - max(self.covered_number, self.first_number - 1))

    def add(self, where: str, what: str) -> None:
        """Take note of a problem; only the first ones are kept, what follows is mostly their echo."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(where, what))


class _StopError(Exception):
    """Nothing more can be said: what follows depends on what is wrong."""


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    line: int
    log: bytes
    size: int
    root: bytes
    time: int
    key_id: bytes
    previous: bytes
    signature: bytes

    @property
    def body(self) -> bytes:
        return (
            BODY
            + self.log
            + struct.pack(">Q", self.size)
            + self.root
            + struct.pack(">Q", self.time)
            + (self.key_id or bytes(32))
            + self.previous
        )


def public_key(data: bytes) -> Ed25519PublicKey:
    """Return a public key from PEM; ValueError when it is none of Ed25519."""
    key = serialization.load_pem_public_key(data)
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("it is not an Ed25519 key")  # noqa: TRY004  (as for any other file that is no key)
    return key


def verify(
    file: Path,
    checkpoints: Path,
    keys: Iterable[Ed25519PublicKey] = (),
    *,
    tolerance_nanos: int = TOLERANCE_NANOS,
    progress: Progress | None = None,
) -> Verdict:
    """Return what is wrong with a log; OSError when a file cannot be read. Without keys no signature is checked.

    `progress` hears now and then of the bytes that were read, and of all there are.
    """
    with file.open("rb") as log, checkpoints.open("rb") as lines:
        shown = None if progress is None else partial(_show, log, file.stat().st_size, progress)
        return verify_streams(log, lines, keys, tolerance_nanos=tolerance_nanos, show=shown)


def verify_streams(
    log: BinaryIO,
    lines: BinaryIO,
    keys: Iterable[Ed25519PublicKey] = (),
    *,
    tolerance_nanos: int = TOLERANCE_NANOS,
    show: Callable[[], None] | None = None,
) -> Verdict:
    """Return what is wrong with a log, from where both are read; `show` is called every 65,536 entries."""
    verdict = Verdict()
    with contextlib.suppress(_StopError):
        vouchers = _Vouchers(_lines(lines, verdict), keys, verdict)
        _Walk(verdict, vouchers, tolerance_nanos).run(log, show)
    return verdict


def _show(log: BinaryIO, total: int, progress: Progress) -> None:
    progress(log.tell(), total)


# ── checkpoints ────────────────────────────────────────────────────────────────────────────────────────────────────


def _lines(file: BinaryIO, verdict: Verdict) -> Iterator[_Checkpoint]:
    """Yield the checkpoints of a file, as far as they are some."""
    for number, line in enumerate(file, 1):
        try:
            found = _parsed(number, json.loads(line))
        except (ValueError, KeyError, TypeError, RecursionError):
            verdict.add(f"checkpoints, line {number}", "is no checkpoint")
            return
        yield found


def _parsed(number: int, document: Any) -> _Checkpoint:
    if set(document) != {"log", "size", "root", "time_unix_nanos", "key_id", "previous", "signature"}:
        raise ValueError("other names")
    sizes = {"log": (16,), "root": (32,), "previous": (32,), "key_id": (0, 32), "signature": (0, 64)}
    parts = {name: _unhex(document[name]) for name in sizes}
    if any(len(parts[name]) not in allowed for name, allowed in sizes.items()):
        raise ValueError("another length")
    size, time = document["size"], document["time_unix_nanos"]
    if type(size) is not int or type(time) is not int or not 0 < size < 1 << 63 or not 0 <= time < 1 << 64:
        raise ValueError("another number")
    return _Checkpoint(
        line=number,
        log=parts["log"],
        size=size,
        root=parts["root"],
        time=time,
        key_id=parts["key_id"],
        previous=parts["previous"],
        signature=parts["signature"],
    )


def _unhex(text: Any) -> bytes:
    if not isinstance(text, str) or text != text.lower():
        raise ValueError("no hexadecimal digits")
    found = bytes.fromhex(text)
    if found.hex() != text:
        raise ValueError("other characters between the digits")
    return found


class _Vouchers:
    """The checkpoints in order, each checked for its signature and for following the one before.

    A key that the log introduces by `audit.key_rotated` is trusted once a trusted key has signed that entry, and the key
    before is not any more.
    """

    def __init__(self, found: Iterator[_Checkpoint], keys: Iterable[Ed25519PublicKey], verdict: Verdict) -> None:
        self._found = found
        self._keys = {_key_id(key): key for key in keys}
        self._introduced: list[tuple[int, bytes, Ed25519PublicKey]] = []
        self._retired: set[bytes] = set()
        self.checked = bool(self._keys)
        self._verdict = verdict
        self._before: _Checkpoint | None = None
        self._unsigned: list[str] = []
        self.next: _Checkpoint | None = None
        self._read()
        if self.next is None:
            verdict.add("checkpoints", "there is none: nobody vouches for this log")

    def introduce(self, number: int, public: bytes) -> None:
        """Take note of a key that the log says takes over."""
        try:
            key = Ed25519PublicKey.from_public_bytes(public)
        except ValueError:
            self._verdict.add(f"entry {number}", "introduces a key that is none")
            return
        self._introduced.append((number, _key_id(key), key))

    def take(self) -> _Checkpoint:
        """Return the next checkpoint, of a size that was reached, once its signature holds."""
        found = self.next
        assert found is not None  # noqa: S101  (its size was looked at)
        self._sign(found)
        self._verdict.checkpoint_count += 1
        self._before = found
        self._read()
        return found

    def end(self) -> None:
        """Say what nobody has signed for."""
        if self._unsigned:
            self._verdict.add(self._unsigned[0], "is not signed, and none after it is")

    def _read(self) -> None:
        found = next(self._found, None)
        before = self._before
        if found is not None:
            where = f"checkpoints, line {found.line}"
            if before is None:
                if found.previous != bytes(32):
                    self._verdict.notices.append("the file of checkpoints does not begin with the first one")
            elif found.previous != hashlib.sha256(before.body).digest():
                self._verdict.add(where, f"does not follow line {before.line}: one is missing, or was changed")
            if before is not None and found.size <= before.size:
                self._verdict.add(where, f"is of {found.size} entries, after one of {before.size}: the log was another")
                raise _StopError
        self.next = found

    def _sign(self, found: _Checkpoint) -> None:
        where = f"checkpoints, line {found.line}"
        if not self.checked:
            return
        if not found.key_id and not found.signature:
            self._unsigned = self._unsigned or [where]
            return
        key = self._keys.get(found.key_id)
        if key is None:
            self._verdict.add(where, f"is signed with the key {found.key_id.hex()[:16]}…, which nobody vouches for")
            return
        if found.key_id in self._retired:
            self._verdict.add(where, f"is signed with the key {found.key_id.hex()[:16]}…, which was exchanged before")
            return
        try:
            key.verify(found.signature, found.body)
        except (InvalidSignature, ValueError):
            self._verdict.add(where, "has a signature that does not hold")
            return
        self._verdict.signed_count += 1
        if self._unsigned:
            # Each names the one before by its hash: who signs one vouches for what came before it.
            self._verdict.notices.append(f"{self._unsigned[0]} and on: not signed, but followed by one that is")
            self._unsigned = []
        self._hand_over(found)

    def _hand_over(self, found: _Checkpoint) -> None:
        """Trust the keys that this checkpoint covers the introduction of."""
        for number, ident, key in self._introduced:
            if number <= found.size and ident != found.key_id:
                self._keys[ident] = key
                self._retired.add(found.key_id)
                self._retired.discard(ident)
        self._introduced = [each for each in self._introduced if each[0] > found.size]


def _key_id(key: Ed25519PublicKey) -> bytes:
    return hashlib.sha256(key.public_bytes_raw()).digest()


# ── entries ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Walk:
    """Goes over the entries once: their form, their numbers, their times, and the tree over them."""

    def __init__(self, verdict: Verdict, vouchers: _Vouchers, tolerance: int) -> None:
        self._verdict, self._vouchers, self._tolerance = verdict, vouchers, tolerance
        self._edge: list[bytes] = []
        self._size = 0
        self._log = b""
        # No entry may be older than this, but for the tolerance; nor newer than the checkpoint that covers it.
        self._floor = 0
        self._newest = 0
        self._pruned = 0
        self._evidence = False

    def run(self, file: BinaryIO, show: Callable[[], None] | None) -> None:
        """Verify the whole file."""
        self._begin(file)
        self._catch_up()
        for entry in _records(file, self._verdict, self._size + 1):
            self._entry(entry)
            if show is not None and not self._size % _SHOW_EVERY:
                show()
        self._end()

    def _begin(self, file: BinaryIO) -> None:
        head = file.read(36)
        if len(head) != 36 or head[:8] != MAGIC:
            self._verdict.add("head", "is not that of an audit log")
            raise _StopError
        self._log = head[8:24]
        first, count = struct.unpack(">QI", head[24:])
        size = first - 1
        hashes = file.read(32 * min(count, 64))
        if not 0 <= size < 1 << 62 or count != size.bit_count() or len(hashes) != 32 * count:
            self._verdict.add("head", "does not say what came before the first entry")
            raise _StopError
        self._edge = [hashes[at : at + 32] for at in range(0, len(hashes), 32)]
        self._size = self._pruned = size
        self._verdict.log_id = self._log.hex()
        self._verdict.first_number, self._verdict.last_number = first, size

    def _catch_up(self) -> None:
        """Pass the checkpoints of entries that were deleted before the first that is left."""
        while (due := self._vouchers.next) is not None and due.size < self._size:
            self._vouchers.take()
            self._floor = max(self._floor, due.time)
        if self._size:
            self._compare()

    def _entry(self, entry: bytes) -> None:
        number = self._size + 1
        kind, time = self._check(entry, number)
        node, rest = hashlib.sha256(b"\0" + entry).digest(), self._size
        while rest & 1:
            node = hashlib.sha256(b"\1" + self._edge.pop() + node).digest()
            rest >>= 1
        self._edge.append(node)
        self._size = number
        self._verdict.last_number = number
        self._verdict.entry_count += 1
        steps_back = False
        if b"audit." in entry:
            steps_back = self._special(entry, number, kind)
        if time < self._floor - self._tolerance and not steps_back:
            self._verdict.add(
                f"entry {number}",
                f"is of {_shown(time)}, {(self._floor - time) / 1e9:,.0f} s before what came before it",
            )
        self._floor = time if steps_back else max(self._floor, time)
        self._newest = time if steps_back else max(self._newest, time)
        due = self._vouchers.next
        if due is not None and due.size == number:
            self._compare()

    def _check(self, entry: bytes, number: int) -> tuple[int, int]:
        if len(entry) < HEAD.size:
            self._verdict.add(f"entry {number}", "is shorter than an entry can be")
            raise _StopError
        version, kind, said, time, intent, code, count = HEAD.unpack_from(entry)
        if version != 1 or kind not in KINDS:
            self._verdict.add(f"entry {number}", "is of a version or a kind that does not exist")
            raise _StopError
        if said != number:
            self._verdict.add(f"entry {number}", _misplaced(said, number))
            raise _StopError
        if (kind == OUTCOME) != bool(intent) or intent >= number or not count or (kind == INTENT and code):
            self._verdict.add(f"entry {number}", "says of itself what cannot be")
        return kind, time

    def _special(self, entry: bytes, number: int, kind: int) -> bool:
        """Look at what the log says of itself; say whether the clock was set back here."""
        texts, details = _parts(entry)
        if kind in {INTENT, OUTCOME} or not texts:
            return False
        action, of = texts[_ACTION], texts[_OBJECT]
        if action == b"audit.key_rotated":
            try:
                self._vouchers.introduce(number, bytes.fromhex(details.get(b"new_key", b"").decode()))
            except ValueError:
                self._verdict.add(f"entry {number}", "introduces a key that is none")
        elif action == b"audit.pruned" and of == b"entries/1-%d" % self._pruned:
            self._evidence = True
        elif action == b"audit.clock_set_back":
            self._verdict.notices.append(f"entry {number}: the clock of the server was set back")
            return True
        elif action in {b"audit.key_replaced", b"audit.log_restored"}:
            self._verdict.notices.append(f"entry {number}: {action.decode()}")
        return False

    def _compare(self) -> None:
        """Compare the tree with the checkpoint of this size, if there is one."""
        due = self._vouchers.next
        if due is None or due.size != self._size:
            return
        where = f"checkpoints, line {due.line}"
        if due.log != self._log:
            self._verdict.add(where, "is of another log")
            raise _StopError
        found = self._vouchers.take()
        if _root(self._edge) != found.root:
            since = max(self._verdict.covered_number + 1, self._verdict.first_number)
            self._verdict.add(
                f"entries {since}–{self._size}",
                f"are not those of the checkpoint of {self._size} entries: something was changed",
            )
            raise _StopError
        if self._newest > found.time + self._tolerance:
            self._verdict.add(
                where, f"is of {_shown(found.time)}, before an entry that it covers ({_shown(self._newest)})"
            )
        self._floor = max(self._floor, found.time)
        self._verdict.covered_number = self._size

    def _end(self) -> None:
        self._verdict.root = _root(self._edge).hex()
        due = self._vouchers.next
        if due is not None:
            self._verdict.add(
                f"entries {self._size + 1}–{due.size}",
                f"are missing: a checkpoint (line {due.line}) covers {due.size} entries, the log ends with {self._size}"
                " (a copy from before that checkpoint has to be made again)",
            )
        if self._pruned and not self._evidence:
            self._verdict.add(
                f"entries 1–{self._pruned}", "are missing, and the log does not say that they were deleted"
            )
        self._vouchers.end()
        if not self._vouchers.checked:
            self._verdict.notices.append("no key was given: signatures were not checked")


def _records(file: BinaryIO, verdict: Verdict, first: int) -> Iterator[bytes]:
    """Yield the entries of a file; a tail that is cut is a problem."""
    data, at, number = b"", 0, first
    while True:
        if len(data) - at < 4 or (size := int.from_bytes(data[at : at + 4])) > len(data) - at - 4:
            more = file.read(READ_BYTES)
            if not more:
                if at < len(data):
                    verdict.add(f"entry {number}", "is cut: the file ends within it")
                return
            data, at = data[at:] + more, 0
            if len(data) >= 4 and int.from_bytes(data[:4]) > MAX_ENTRY:
                verdict.add(f"entry {number}", "is longer than an entry can be")
                raise _StopError
            continue
        yield data[at + 4 : at + 4 + size]
        at += 4 + size
        number += 1


def _parts(entry: bytes) -> tuple[list[bytes], dict[bytes, bytes]]:
    """Return the texts and the details of an entry; none where it is not made as it should be."""
    at = HEAD.size
    found: list[bytes] = []
    try:
        for _ in range(_TEXT_COUNT + _BYTES_COUNT):
            size = struct.unpack_from(">I", entry, at)[0]
            found.append(entry[at + 4 : at + 4 + size])
            at += 4 + size
        count = struct.unpack_from(">I", entry, at)[0]
        at += 4
        details = {}
        for _ in range(count):
            pair = []
            for _ in range(2):
                size = struct.unpack_from(">I", entry, at)[0]
                pair.append(entry[at + 4 : at + 4 + size])
                at += 4 + size
            details[pair[0]] = pair[1]
    except struct.error:
        return [], {}
    return found, details


def _root(edge: list[bytes]) -> bytes:
    if not edge:
        return hashlib.sha256().digest()
    root = edge[-1]
    for left in reversed(edge[:-1]):
        root = hashlib.sha256(b"\1" + left + root).digest()
    return root


def _misplaced(said: int, number: int) -> str:
    if said == number + 1:
        return f"is missing: number {said} stands in its place"
    if said > number:
        return f"to {said - 1} are missing: number {said} stands in their place"
    return f"has the number {said}: it is there twice, or was moved"


def _shown(nanos: int) -> str:
    from datetime import UTC, datetime

    try:
        return datetime.fromtimestamp(nanos // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{nanos} ns"
