"""Independent random streams, addressed by purpose, seed, server and block, so that any window can be drawn alone."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmanager_simulator.seeding import sfc64_states

BLOCK = 32
LATENT_BLOCK = 1024
LATENTS = 6
# What is left of a latent's past after so many ticks is below the last bit of a double.
_MEMORY_TICKS = 40.0
_TABLE = 1 << 20

_PURPOSES = {"noise": 1, "latent": 2, "burst": 3, "server": 4, "fault": 5, "schedule": 6}


def generator(purpose: str, seed: int, *address: int) -> np.random.Generator:
    """Return the generator of an address."""
    entropy = (_PURPOSES[purpose], seed, *(part & 0xFFFFFFFF for part in address))
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(entropy)))


class Blocks:
    """Keeps the blocks that were made last, a few of each kind."""

    def __init__(self, make: Callable[[int], NDArray[Any]], keep: int) -> None:
        self._make = make
        self._keep = keep
        self._made: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, block: int) -> NDArray[Any]:
        """Return a block, made if need be; what several threads ask for is made once."""
        with self._lock:
            found = self._made.get(block)
            if found is None:
                # What is let go first leaves its room, still in the cache, to what is made.
                while len(self._made) >= self._keep:
                    self._made.popitem(last=False)
                found = self._made[block] = self._make(block)
            return found


class Normals:
    """Standard normals from a stream of its own for each server and block."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def places(self, first: int, servers: int, block: int, count: int) -> NDArray[np.uint64]:
        """Return where the numbers of servers from `first` and blocks from `block` on come from: uint64[S, B, …]."""
        addresses = np.arange(first, first + servers)[:, None], np.arange(block, block + count)
        return sfc64_states((_PURPOSES["noise"], self._seed, *addresses), (servers, count))

    def fill(self, places: NDArray[np.uint64], out: NDArray[np.float32]) -> None:
        """Fill in the numbers of some places: float32[S, B · BLOCK, C]."""
        source = np.random.SFC64(0)
        random, state = np.random.Generator(source), source.state
        for own, servers_places in zip(out, places, strict=True):
            for at, place in enumerate(servers_places):
                state["state"]["state"] = place
                source.state = state
                random.standard_normal(out=own[at * BLOCK : (at + 1) * BLOCK], dtype=np.float32)


class TableNormals:
    """The same cut from one table at a random place for each server and block: cheap, and it repeats itself."""

    def __init__(self, seed: int, columns: int) -> None:
        self._seed = seed
        self._size = BLOCK * columns

    def places(self, first: int, servers: int, block: int, count: int) -> NDArray[np.uint64]:
        """Return where the numbers of servers from `first` and blocks from `block` on come from: uint64[S, B]."""
        blocks = np.arange(block, block + count).astype(np.uint64) & np.uint64(0xFFFFFFFF)
        address = (np.arange(first, first + servers, dtype=np.uint64) << np.uint64(32))[:, None] + blocks
        return _mixed(address ^ _mixed(np.asarray([self._seed], np.uint64))) % np.uint64(_TABLE - self._size)

    def fill(self, places: NDArray[np.uint64], out: NDArray[np.float32]) -> None:
        """Fill in the numbers of some places: float32[S, B · BLOCK, C]."""
        table = _table()
        blocks = out.reshape(*places.shape, self._size)
        for at, place in np.ndenumerate(places.astype(np.int64)):
            blocks[at] = table[place : place + self._size]


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return numbers that look random, one for each number: the finalizer of SplitMix64 (Steele et al., 2014)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return found


@cache
def _table() -> NDArray[np.float32]:
    return generator("noise", 0).standard_normal(_TABLE, dtype=np.float32)


def latents(seed: int, first: int, servers: int, block: int, count: int = 1) -> NDArray[np.float64]:
    """Return slow unit-variance noise of some blocks: float64[T, S, LATENTS].

    An AR(1) process with a memory of _MEMORY_TICKS, run through the block before so that blocks meet without a seam.
    """
    keep = 1.0 - 1.0 / _MEMORY_TICKS
    gain = np.sqrt(1.0 - keep * keep)
    white = np.empty((LATENT_BLOCK, 1 + count, servers, LATENTS))
    for server in range(servers):
        for at in range(1 + count):
            part = generator("latent", seed, first + server, block - 1 + at).standard_normal((LATENT_BLOCK, LATENTS))
            np.multiply(part, gain, out=white[:, at, server])
    state = np.zeros((count, servers, LATENTS))
    for step in white[:, :-1]:
        state *= keep
        state += step
    out = np.empty((count, LATENT_BLOCK, servers, LATENTS))
    for tick, step in enumerate(white[:, 1:]):
        state *= keep
        state += step
        out[:, tick] = state
    return out.reshape(count * LATENT_BLOCK, servers, LATENTS)
