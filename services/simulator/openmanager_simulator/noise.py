"""Independent random streams, addressed by purpose, seed, server and block, so that any window can be drawn alone."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
                found = self._made[block] = self._make(block)
                while len(self._made) > self._keep:
                    self._made.popitem(last=False)
            return found


def normals(seed: int, first: int, servers: int, columns: int, block: int) -> NDArray[np.float32]:
    """Return standard normals of one block: float32[S, BLOCK, C]."""
    out = np.empty((servers, BLOCK, columns), np.float32)
    for server in range(servers):
        generator("noise", seed, first + server, block).standard_normal(out=out[server], dtype=np.float32)
    return out


def table_normals(seed: int, first: int, servers: int, columns: int, block: int) -> NDArray[np.float32]:
    """Return the same shape cut from one table of normals at a random place for each server: cheap, and it repeats."""
    table = _table()
    size = BLOCK * columns
    out = np.empty((servers, BLOCK, columns), np.float32)
    address = (np.arange(first, first + servers, dtype=np.uint64) << np.uint64(32)) + np.uint64(block & 0xFFFFFFFF)
    places = _mixed(address ^ _mixed(np.asarray([seed], np.uint64))) % np.uint64(_TABLE - size)
    for server, place in enumerate(places.tolist()):
        out[server] = table[place : place + size].reshape(BLOCK, columns)
    return out


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


def latents(seed: int, first: int, servers: int, block: int) -> NDArray[np.float64]:
    """Return slow unit-variance noise of one block: float64[LATENT_BLOCK, S, LATENTS].

    An AR(1) process with a memory of _MEMORY_TICKS, run through the block before so that blocks meet without a seam.
    """
    white = np.empty((2 * LATENT_BLOCK, servers, LATENTS))
    for server in range(servers):
        for half in range(2):
            part = white[half * LATENT_BLOCK : (half + 1) * LATENT_BLOCK, server]
            part[:] = generator("latent", seed, first + server, block - 1 + half).standard_normal(part.shape)
    keep = 1.0 - 1.0 / _MEMORY_TICKS
    gain = np.sqrt(1.0 - keep * keep)
    state = np.zeros((servers, LATENTS))
    for tick in range(2 * LATENT_BLOCK):
        state = keep * state + gain * white[tick]
        white[tick] = state
    return white[LATENT_BLOCK:]
