"""The offline verifier against every kind of tampering, each a test of its own, and ten thousand at random."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from openmanager_metadata.audit.entry import NO_HASH, Checkpoint, Entry, encode, file_head, framed
from openmanager_metadata.audit.signing import Signer
from test_merkle import mth

from openmanager import audit_file
from openmanager.audit import Kind
from openmanager.audit_file import Verdict, verify, verify_streams
from openmanager.merkle import CompactRange, leaf_hash

SECOND = 10**9
START = 1_790_000_000 * SECOND
LOG = bytes(range(16))
KEY = Signer.of(Ed25519PrivateKey.from_private_bytes(bytes(32)))
THIEF = Signer.of(Ed25519PrivateKey.from_private_bytes(bytes([1] * 32)))
COUNT, EVERY = 24, 12


def entry(number: int, **more) -> Entry:
    known = {
        "number": number,
        "time_unix_nanos": START + number * 10 * SECOND,
        "kind": Kind.EVENT,
        "actor": f"users/{number % 5}",
        "via": "gateway",
        "action": "retention.deletion",
        "object": f"servers/{number}",
        "details": {"count": str(number)},
    }
    return Entry(**{**known, **more})


ENTRIES = [entry(number) for number in range(1, COUNT + 1)]
# Most of what a random tampering leaves as it was.
KNOWN = {id(each): framed(encode(each)) for each in ENTRIES}


def vouched(entries: list[Entry], *sizes: int, signer: Signer | None = KEY, log: bytes = LOG) -> list[Checkpoint]:
    """Return checkpoints of some sizes, as the writer makes them."""
    found: list[Checkpoint] = []
    tree = CompactRange()
    for size, each in enumerate(entries, 1):
        tree.append(leaf_hash(encode(each)))
        if size in sizes:
            made = Checkpoint(
                log_id=log,
                size=size,
                root=tree.root(),
                time_unix_nanos=each.time_unix_nanos + SECOND,
                previous=found[-1].digest() if found else NO_HASH,
                key_id=signer.id if signer else b"",
            )
            found.append(replace(made, signature=signer.sign(made.body())) if signer else made)
    return found


CHECKPOINTS = vouched(ENTRIES, EVERY, COUNT)


def verdict(
    log: list[Entry] | bytes, checkpoints: list[Checkpoint] | str | None = None, key: Signer | None = KEY
) -> Verdict:
    """Return what the verifier says of a log and checkpoints."""
    data = log if isinstance(log, bytes) else written(log)
    held = CHECKPOINTS if checkpoints is None else checkpoints
    text = held if isinstance(held, str) else "".join(each.line() for each in held)
    return verify_streams(io.BytesIO(data), io.BytesIO(text.encode()), [key.key.public_key()] if key else [])


def written(entries: list[Entry], log: bytes = LOG) -> bytes:
    return file_head(log, 1, []) + b"".join(KNOWN.get(id(each)) or framed(encode(each)) for each in entries)


def renumbered(entries: list[Entry]) -> list[Entry]:
    return [replace(each, number=number) for number, each in enumerate(entries, 1)]


# ── what is sound ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_log_as_it_was_written_is_sound():
    found = verdict(ENTRIES)
    assert (found.problems, found.notices) == ([], [])
    assert (found.entry_count, found.covered_number, found.uncovered_count, found.signed_count) == (24, 24, 0, 2)
    assert found.root == mth([encode(each) for each in ENTRIES]).hex() == CHECKPOINTS[-1].root.hex()


def test_entries_after_the_last_checkpoint_are_said_not_to_be_covered():
    found = verdict([*ENTRIES, entry(25), entry(26)])
    assert (found.problems, found.uncovered_count) == ([], 2)


def test_without_a_key_the_roots_are_checked_and_it_is_said_that_no_signature_was():
    found = verdict(ENTRIES, key=None)
    assert (found.problems, found.signed_count) == ([], 0)
    assert "signatures were not checked" in found.notices[0]


def test_a_log_that_was_deleted_in_part_is_sound_when_it_says_so():
    said = [*ENTRIES, entry(25, action="audit.pruned", object="entries/1-12")]
    edge = CompactRange()
    for each in said[:12]:
        edge.append(leaf_hash(encode(each)))
    rest = file_head(LOG, 13, edge.hashes) + b"".join(framed(encode(each)) for each in said[12:])
    held = vouched(said, 5, 12, 25)
    found = verdict(rest, held)
    assert (found.problems, found.first_number, found.covered_number) == ([], 13, 25)
    silent = file_head(LOG, 13, edge.hashes) + b"".join(framed(encode(each)) for each in ENTRIES[12:])
    assert "does not say that they were deleted" in verdict(silent).problems[0].what
    forged = file_head(LOG, 13, [bytes(32), edge.hashes[1]]) + b"".join(framed(encode(each)) for each in said[12:])
    assert not verdict(forged, held).is_sound


def test_files_are_read_and_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(audit_file, "_SHOW_EVERY", 256)
    log, lines, told = tmp_path / "log", tmp_path / "checkpoints", []
    many = [entry(number) for number in range(1, 258)]
    log.write_bytes(written(many))
    lines.write_text(vouched(many, 256)[0].line())
    found = verify(log, lines, [KEY.key.public_key()], progress=lambda done, total: told.append((done, total)))
    assert (found.problems, found.uncovered_count, len(told)) == ([], 1, 1)
    assert 0 < told[0][0] <= told[0][1] == log.stat().st_size


def test_checkpoints_from_before_there_was_a_key_are_vouched_for_by_those_after():
    before = vouched(ENTRIES, 6, 12, signer=None)
    after = replace(CHECKPOINTS[1], previous=before[-1].digest(), signature=b"")
    after = replace(after, signature=KEY.sign(after.body()))
    found = verdict(ENTRIES, [*before, after])
    assert (found.problems, found.signed_count) == ([], 1)
    assert "not signed, but followed by one that is" in found.notices[0]
    assert verdict(ENTRIES, before).problems[0].where == "checkpoints, line 1"
    stripped = replace(after, signature=b"")
    assert "signature that does not hold" in verdict(ENTRIES, [*before, stripped]).problems[0].what
    forged = [replace(before[0], time_unix_nanos=1), before[1], after]
    assert not verdict(ENTRIES, forged).is_sound


# ── each kind of tampering ─────────────────────────────────────────────────────────────────────────────────────────


def only_problem(found: Verdict) -> tuple[str, str]:
    assert len(found.problems) == 1, found.problems
    return found.problems[0].where, found.problems[0].what


def test_a_flipped_bit_is_found():
    data = bytearray(written(ENTRIES))
    data[-3] ^= 4
    assert only_problem(verdict(bytes(data)))[0] == "entries 13–24"


def test_an_edited_entry_is_found_between_its_checkpoints():
    edited = [replace(each, actor="users/9") if each.number == 5 else each for each in ENTRIES]
    where, what = only_problem(verdict(edited))
    assert (where, "something was changed" in what) == ("entries 1–12", True)


def test_a_deleted_entry_is_named():
    where, what = only_problem(verdict(ENTRIES[:6] + ENTRIES[7:]))
    assert (where, what) == ("entry 7", "is missing: number 8 stands in its place")


def test_several_deleted_entries_are_named():
    where, what = only_problem(verdict(ENTRIES[:6] + ENTRIES[9:]))
    assert (where, what) == ("entry 7", "to 9 are missing: number 10 stands in their place")


def test_a_deleted_entry_whose_gap_was_closed_is_found():
    assert only_problem(verdict(renumbered(ENTRIES[:6] + ENTRIES[7:])))[0] == "entries 1–12"


def test_an_inserted_entry_is_found():
    assert not verdict(renumbered([*ENTRIES[:6], entry(99), *ENTRIES[6:]])).is_sound


def test_two_entries_in_another_order_are_found():
    moved = ENTRIES.copy()
    moved[3], moved[4] = moved[4], moved[3]
    assert only_problem(verdict(moved))[0] == "entry 4"
    assert not verdict(renumbered(moved)).is_sound


def test_an_entry_that_is_there_twice_is_found():
    where, what = only_problem(verdict([*ENTRIES[:6], *ENTRIES[5:]]))
    assert (where, what) == ("entry 7", "has the number 6: it is there twice, or was moved")


def test_a_missing_tail_is_found():
    where, what = only_problem(verdict(ENTRIES[:20]))
    assert where == "entries 21–24"
    assert "the log ends with 20" in what


def test_a_tail_that_was_cut_within_an_entry_is_found():
    found = verdict(written(ENTRIES)[:-5])
    assert [each.where for each in found.problems] == ["entry 24", "entries 24–24"]


def test_another_log_with_its_own_checkpoints_is_found():
    other = [replace(each, actor="users/9") for each in ENTRIES]
    assert "nobody vouches for" in verdict(other, vouched(other, 12, 24, signer=THIEF)).problems[0].what
    assert not verdict(other).is_sound
    assert "another log" in verdict(written(ENTRIES, bytes(16))).problems[0].what


def test_a_log_without_its_checkpoints_is_not_vouched_for():
    assert "nobody vouches" in verdict(ENTRIES, []).problems[0].what


def test_an_entry_that_was_dated_back_is_found_even_after_the_last_checkpoint():
    late = entry(25, time_unix_nanos=START)
    where, what = only_problem(verdict([*ENTRIES, late]))
    assert (where, "before what came before it" in what) == ("entry 25", True)


def test_an_entry_that_is_newer_than_the_checkpoint_that_covers_it_is_found():
    ahead = [*ENTRIES[:-1], entry(24, time_unix_nanos=START + 10**6 * SECOND)]
    held = vouched(ahead, 24)
    body = replace(held[0], time_unix_nanos=START)
    held = [replace(body, signature=KEY.sign(body.body()))]
    assert "before an entry that it covers" in verdict(ahead, held).problems[0].what


@pytest.mark.parametrize("change", ["root", "size", "time_unix_nanos", "previous", "signature", "key_id", "log"])
def test_a_changed_checkpoint_is_found(change: str):
    document = json.loads(CHECKPOINTS[1].line())
    value = document[change]
    document[change] = value + 1 if isinstance(value, int) else f"{int(value[0], 16) ^ 1:x}{value[1:]}"
    assert not verdict(ENTRIES, CHECKPOINTS[0].line() + json.dumps(document) + "\n").is_sound


def test_a_missing_checkpoint_is_found():
    held = vouched(ENTRIES, 6, 12, 24)
    assert "one is missing" in verdict(ENTRIES, [held[0], held[2]]).problems[0].what


def test_checkpoints_that_go_back_are_found():
    assert not verdict(ENTRIES, [*CHECKPOINTS, CHECKPOINTS[0]]).is_sound


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"OMAUDIT1",
        b"x" * 100,
        file_head(LOG, 1, [])[:20],
        file_head(LOG, 5, []),
        file_head(LOG, 0, []),
        file_head(LOG, 1, []) + b"\xff\xff\xff\xff",
        file_head(LOG, 1, []) + b"\0\0\0\1x",
        file_head(LOG, 1, []) + bytes(4),
    ],
)
def test_what_is_no_log_is_a_problem_and_not_a_crash(data: bytes):
    assert not verdict(data).is_sound


@pytest.mark.parametrize("text", ["x\n", "{}\n", "[1]\n", '{"size": 1}\n', "null\n", "1e999\n", "[" * 100_000, "\0"])
def test_what_are_no_checkpoints_is_a_problem_and_not_a_crash(text: str):
    assert not verdict(ENTRIES, text).is_sound


# ── at random ──────────────────────────────────────────────────────────────────────────────────────────────────────

Tampering = Callable[[random.Random, list[Entry]], bytes]


def flip(dice: random.Random, entries: list[Entry]) -> bytes:
    data = bytearray(written(entries))
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return bytes(data)


def edit(dice: random.Random, entries: list[Entry]) -> bytes:
    at = dice.randrange(len(entries))
    change = dice.choice(
        [
            {"actor": f"users/{dice.randrange(10**6)}x"},
            {"object": "", "reason": "X"},
            {"code": dice.randrange(1, 17)},
            {"details": {"count": "x"}},
            {"sealed": dice.randbytes(40), "subject": "users/x"},
            {"request_hash": hashlib.sha256(dice.randbytes(4)).digest()},
            {"kind": Kind.INTENT},
        ]
    )
    entries[at] = replace(entries[at], **change)
    return written(entries)


def delete(dice: random.Random, entries: list[Entry]) -> bytes:
    at = dice.randrange(len(entries))
    del entries[at : at + dice.randrange(1, 4)]
    return written(dice.choice([entries, renumbered(entries)]))


def insert(dice: random.Random, entries: list[Entry]) -> bytes:
    at = dice.randrange(len(entries))
    entries.insert(at, replace(entries[at], actor=f"users/{dice.randrange(10**6)}x"))
    return written(dice.choice([entries, renumbered(entries)]))


def reorder(dice: random.Random, entries: list[Entry]) -> bytes:
    one, other = dice.sample(range(len(entries)), 2)
    entries[one], entries[other] = entries[other], entries[one]
    return written(dice.choice([entries, renumbered(entries)]))


def duplicate(dice: random.Random, entries: list[Entry]) -> bytes:
    # The last one before itself, renumbered, would be a new entry after the last checkpoint.
    entries.insert(dice.randrange(len(entries) - 1), dice.choice(entries))
    return written(dice.choice([entries, renumbered(entries)]))


def truncate(dice: random.Random, entries: list[Entry]) -> bytes:
    if dice.random() < 0.5:
        return written(entries[: dice.randrange(len(entries))])
    data = written(entries)
    return data[: dice.randrange(len(data))]


def replace_all(dice: random.Random, entries: list[Entry]) -> bytes:
    return written([replace(each, actor=f"users/{dice.randrange(10**6)}x") for each in entries])


def date_back(dice: random.Random, entries: list[Entry]) -> bytes:
    at, by = dice.randrange(len(entries)), dice.randrange(1, 10 ** dice.randrange(1, 17))
    entries[at] = replace(entries[at], time_unix_nanos=entries[at].time_unix_nanos - by)
    return written(entries)


TAMPERINGS: list[Tampering] = [flip, edit, delete, insert, reorder, duplicate, truncate, replace_all, date_back]


@pytest.mark.timeout(60)
def test_ten_thousand_tamperings_are_all_found():
    """Each with a seed of its own, so that one that is not found can be made again."""
    unfound, original = [], written(ENTRIES)
    for seed in range(10_000):
        dice = random.Random(seed)
        data = TAMPERINGS[seed % len(TAMPERINGS)](dice, ENTRIES.copy())
        assert data != original, seed
        if verdict(data).is_sound:
            unfound.append(seed)
    assert unfound == []
