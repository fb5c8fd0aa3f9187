"""The states of many random streams at once: what numpy's SeedSequence and SFC64 make of each, on arrays.

Seeding streams one by one takes as long as drawing 1,500 normals for each. numpy keeps both algorithms as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
Entropy = int | NDArray[np.int64]
# The constants of SeedSequence.
_POOL = 4
_HASH, _HASH_STEP = 0x43B0D7E5, 0x931E8875
_OUT, _OUT_STEP = 0x8B51F9DD, 0x58F38DED
_LEFT, _RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
_SHIFT = np.uint32(16)
_MASK = 0xFFFFFFFF
# SFC64 throws away its first numbers.
_WARM_UP = 12


def sfc64_states(entropy: Sequence[Entropy], shape: tuple[int, ...]) -> NDArray[np.uint64]:
    """Return the states of the generators with the given entropy: uint64[*shape, 4].

    An item is a number for all of them, or an array that broadcasts to `shape`, of which 32 bits count.
    """
    pool = _mixed_pool([np.broadcast_to(word, shape) for item in entropy for word in _words(item)])
    steps = _steps(_OUT, _OUT_STEP)
    words = [_hashed(pool[at % _POOL], steps).astype(np.uint64) for at in range(6)]
    return _warmed_up(*(words[at] | words[at + 1] << np.uint64(32) for at in (0, 2, 4)))


def _words(item: Entropy) -> list[Words]:
    if not isinstance(item, int):
        return [(item & _MASK).astype(np.uint32)]
    count = max(1, -(-item.bit_length() // 32))
    return [np.asarray(item >> 32 * at & _MASK, np.uint32) for at in range(count)]


def _steps(start: int, factor: int) -> Iterator[tuple[np.uint32, np.uint32]]:
    """Yield the pairs of numbers that one hash after the other uses."""
    endless = itertools.accumulate(itertools.repeat(factor), lambda now, by: now * by & _MASK, initial=start)
    return itertools.pairwise(map(np.uint32, endless))


def _hashed(words: Words, steps: Iterator[tuple[np.uint32, np.uint32]]) -> Words:
    before, after = next(steps)
    words = (words ^ before) * after
    hashed: Words = words ^ (words >> _SHIFT)
    return hashed


def _mixed_pool(words: Sequence[Words]) -> list[Words]:
    steps = _steps(_HASH, _HASH_STEP)
    padded = [*words, *[np.zeros_like(words[0])] * (_POOL - len(words))]
    pool = [_hashed(word, steps) for word in padded[:_POOL]]
    for source, target in itertools.permutations(range(_POOL), 2):
        pool[target] = _mixed(pool[target], _hashed(pool[source], steps))
    for word in padded[_POOL:]:
        for target in range(_POOL):
            pool[target] = _mixed(pool[target], _hashed(word, steps))
    return pool


def _mixed(left: Words, right: Words) -> Words:
    words = left * _LEFT - right * _RIGHT
    mixed: Words = words ^ (words >> _SHIFT)
    return mixed


def _warmed_up(a: NDArray[np.uint64], b: NDArray[np.uint64], c: NDArray[np.uint64]) -> NDArray[np.uint64]:
    for counter in range(1, _WARM_UP + 1):
        found = a + b + np.uint64(counter)
        a = b ^ (b >> np.uint64(11))
        b = c + (c << np.uint64(3))
        c = (c << np.uint64(24) | c >> np.uint64(40)) + found
    return np.stack((a, b, c, np.full_like(a, _WARM_UP + 1)), axis=-1)
