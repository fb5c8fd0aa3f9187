"""A row about verifying an exported audit log, against the SHA-256 hashes of its tree alone."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from openmanager_metadata.audit.entry import NO_HASH, Checkpoint, Entry, encode, file_head, framed
from openmanager_metadata.audit.signing import Signer

from bench.pair import Row, at_most, pairs
from openmanager.audit import Kind
from openmanager.audit_file import verify
from openmanager.merkle import CompactRange, leaf_hash

COUNT, EVERY = 300_000, 1_000
BEGIN, SECOND = 1_790_000_000 * 10**9, 10**9
LOG = bytes(16)


def rows() -> Row:
    """Compare processor time, as the clock of a busy machine says little; the note has what the clock said."""
    with tempfile.TemporaryDirectory(prefix="openmanager-bench-") as folder:
        log, checkpoints = Path(folder) / "audit.log", Path(folder) / "checkpoints.jsonl"
        signer = Signer.of(Ed25519PrivateKey.from_private_bytes(bytes(32)))
        entries = write(log, checkpoints, signer)
        clock: list[float] = []

        def ours() -> float:
            begin = time.perf_counter()
            found = _spent(lambda: _sound(log, checkpoints, signer))
            clock.append(time.perf_counter() - begin)
            return found

        figures = pairs(ours, lambda: _spent(lambda: _hashed(entries)), 5)
        per_entry = (figures[0] / COUNT, figures[1] / COUNT, figures[2])
        note = f"{COUNT / figures[0]:,.0f} entries/s of one core's time; {COUNT / statistics.median(clock):,.0f} by the clock"
        return at_most(
            "verify an audit entry of 300 bytes, against its two hashes", per_entry, 6.0, "µs cpu", 1e6, note
        )


def write(log: Path, checkpoints: Path, signer: Signer) -> list[bytes]:
    """Write a log as it is exported, with a signed checkpoint of every thousand entries; return the entries."""
    tree, previous, entries = CompactRange(), NO_HASH, []
    with log.open("wb") as out, checkpoints.open("w", encoding="ascii") as lines:
        out.write(file_head(LOG, 1, []))
        for number in range(1, COUNT + 1):
            time_nanos = BEGIN + number * SECOND
            made = encode(
                Entry(
                    number=number,
                    time_unix_nanos=time_nanos,
                    kind=Kind.EVENT,
                    actor=f"users/{number % 500:08x}",
                    via="gateway",
                    action="openmanager.api.metadata.v1.InventoryService/UpdateServer",
                    object=f"servers/web-{number % 20_000:05}",
                    request_id=f"{number:032x}",
                    trace_id=f"{number:032x}",
                    policy_version="v12",
                    details={"fields": "location,role", "count": str(number)},
                )
            )
            entries.append(made)
            out.write(framed(made))
            tree.append(leaf_hash(made))
            if not number % EVERY:
                of = Checkpoint(
                    log_id=LOG,
                    size=number,
                    root=tree.root(),
                    time_unix_nanos=time_nanos,
                    previous=previous,
                    key_id=signer.id,
                )
                lines.write(replace(of, signature=signer.sign(of.body())).line())
                previous = of.digest()
    return entries


def _sound(log: Path, checkpoints: Path, signer: Signer) -> None:
    found = verify(log, checkpoints, [signer.key.public_key()])
    assert found.is_sound, found.problems
    assert found.signed_count == COUNT // EVERY


def _hashed(entries: list[bytes]) -> None:
    node = bytes(32)
    for entry in entries:
        node = sha256(b"\1" + node + sha256(b"\0" + entry).digest()).digest()


def _spent(work: Callable[[], None]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin
