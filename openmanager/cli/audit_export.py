"""Writing the audit log and its checkpoints to files, and going on with one."""

from __future__ import annotations

import asyncio
import os
import struct
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from openmanager.cli import part as whole
from openmanager.client.rpc import closable
from openmanager.errors import FailedPreconditionError

if TYPE_CHECKING:
    from openmanager.cli.progress import Bar
    from openmanager.client import Client

_HEAD = struct.Struct(">8s16sQI")
_MAGIC = b"OMAUDIT1"
_NUMBER_AT = 2


async def export(client: Client, path: Path, *, append: bool, bar: Bar | None = None) -> tuple[int, int]:
    """Write the log, or with `append` what a file lacks of it; return the first and the last number that were written.

    FailedPreconditionError when the file is of another log.
    """
    with path.open("r+b" if append else "wb") as file:
        log_id, start = _resume(file, path) if append else (b"", 0)
        first, last = 0, 0
        async with aclosing(closable(client.audit.export(start))) as parts:
            async for part in parts:
                if log_id and part.log_id != log_id:
                    raise FailedPreconditionError(f"{path} is of another log: --force overwrites it")
                log_id, first = part.log_id, first or part.next_number
                file.write(part.data)
                last = part.next_number - 1
                if bar is not None:
                    bar.show(last, part.last_number, f"{last:,}/{part.last_number:,} entries")
        file.flush()
        os.fsync(file.fileno())
    return first, last


async def write_checkpoints(client: Client, path: Path) -> int:
    """Write all checkpoints to a file; return how many."""
    lines = [each.line() async for each in client.audit.checkpoints()]
    await asyncio.to_thread(whole.write, path, "".join(lines).encode("ascii"))
    return len(lines)


def _resume(file: BinaryIO, path: Path) -> tuple[bytes, int]:
    """Return the log of a file and the number that comes next; cut off what is not a whole entry."""
    head = file.read(_HEAD.size)
    if len(head) != _HEAD.size or head[:8] != _MAGIC:
        raise FailedPreconditionError(f"{path} is no exported audit log: --force overwrites it")
    _, log_id, following, hashes = _HEAD.unpack(head)
    end = file.seek(_HEAD.size + 32 * hashes)
    length = os.fstat(file.fileno()).st_size
    while len(size := file.read(4)) == 4 and end + 4 + int.from_bytes(size) <= length:
        body = file.read(int.from_bytes(size))
        if len(body) < 10:
            break
        following = int.from_bytes(body[_NUMBER_AT : _NUMBER_AT + 8]) + 1
        end += 4 + len(body)
    file.truncate(end)
    file.seek(end)
    return log_id, following
