"""Which shard a server belongs to: rendezvous hashing, the same in every program and language (docs/scale.md).

The weight of a shard for a server is the first eight bytes, big-endian, of SHA-256 of `{shard}:{server id}` in UTF-8, the
shard as a decimal number from 0 and the id in lower case. The shard of the greatest weight owns the server, of equals
the first. From N shards to N + 1 one server in N + 1 moves, and only to the new one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openmanager import durable
from openmanager.errors import ConfigurationError, FailedPreconditionError, Reason

# The services that hold state by server: one owner each for every shard. All others are as many as one likes.
SHARDED = ("timeseries", "cache", "analysis")
MAX_SHARDS = 64
FILE, VERSION = "SHARD", "VERSION"
_REMEMBERED = 1 << 17


@lru_cache(maxsize=_REMEMBERED)
def shard_of(server: str, count: int) -> int:
    """Return the shard, from 0, that owns a server of `count` shards."""
    return max(range(count), key=lambda shard: (_weight(shard, server), -shard))


def _weight(shard: int, server: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{shard}:{server}".encode()).digest()[:8])


def shards_of(servers: Sequence[str], count: int) -> NDArray[np.int64]:
    """Return the shard of each server: int64[S]."""
    return np.fromiter((shard_of(server, count) for server in servers), np.int64, len(servers))


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` shards: the `index`-th, from 0."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index} of {self.count}"

    def owns(self, server: str) -> bool:
        """Say whether a server is of this shard."""
        return self.count == 1 or shard_of(server, self.count) == self.index

    def check(self, servers: Sequence[str]) -> None:
        """Raise FailedPreconditionError, reason WRONG_SHARD, for servers that are not all of this shard."""
        if self.count == 1:
            return
        stray = next((each for each in servers if not self.owns(each)), None)
        if stray is not None:
            raise FailedPreconditionError(
                f"frame.servers holds {stray!r}, which shard {shard_of(stray, self.count)} of {self.count} owns, and this is"
                f" shard {self.index}: the caller has another list of shards",
                reason=Reason.WRONG_SHARD,
                field="frame.servers",
            )

    def claim(self, folder: Path) -> None:
        """Make a folder that of this shard (blocking); ConfigurationError for one that holds the data of another.

        What has no file of a shard, and holds more than the mark of its layout, is whole: the one shard of one.
        """
        file = folder / FILE
        held = "0 of 1"
        if file.exists():
            held = file.read_text(encoding="ascii", errors="replace").strip()
        elif not folder.is_dir() or {each.name for each in folder.iterdir()} <= {VERSION}:
            held = str(self)
            if self.count > 1:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                durable.replace(file, f"{self}\n".encode())
        if held != str(self):
            raise ConfigurationError(
                f"the folder {folder} holds shard {held} and cannot be used as shard {self}: `openmanager reshard` makes new"
                " folders of it"
            )


ALONE = Shard()
