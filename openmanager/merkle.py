"""The Merkle tree of RFC 6962, as arithmetic: roots, compact ranges, proofs that a leaf is in and that a tree only grew.

A leaf's hash is SHA-256(0x00 ‖ entry), a node's SHA-256(0x01 ‖ left ‖ right); of n leaves the left part takes the largest
power of two below n. Ranges of leaves are half-open, counted from 0. Nothing here reads or writes anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of a leaf."""
    return sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of a node."""
    return sha256(b"\1" + left + right).digest()


@dataclass(slots=True)
class CompactRange:
    """The right edge of a tree: the hashes of the perfect subtrees that its leaves make up, the largest first.

    It is all that is needed to go on, log2(size) hashes. Leaves that are gone still count by it.
    """

    size: int = 0
    hashes: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.size < 0 or len(self.hashes) != self.size.bit_count():
            raise ValueError("the hashes are not those of a tree of this size")

    def append(self, leaf: bytes) -> list[tuple[int, int, bytes]]:
        """Add a leaf's hash; return the nodes that are whole now, each with its level, 1 or more, and its index there."""
        made, node, rest, level = [], leaf, self.size, 0
        self.size += 1
        while rest & 1:
            node = node_hash(self.hashes.pop(), node)
            rest >>= 1
            level += 1
            made.append((level, (self.size >> level) - 1, node))
        self.hashes.append(node)
        return made

    def root(self) -> bytes:
        """Return the root of the tree."""
        return fold(self.hashes)

    def copy(self) -> CompactRange:
        """Return one that goes on by itself."""
        return CompactRange(self.size, list(self.hashes))


def fold(hashes: Sequence[bytes]) -> bytes:
    """Return the hash over perfect subtrees that stand beside each other, the largest first."""
    if not hashes:
        return EMPTY_ROOT
    root = hashes[-1]
    for left in reversed(hashes[:-1]):
        root = node_hash(left, root)
    return root


def subtrees(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the perfect subtrees that a range of a proof is made of, as level and index, the largest first."""
    while start < end:
        level = (end - start).bit_length() - 1
        yield level, start >> level
        start += 1 << level


def inclusion_ranges(index: int, size: int) -> list[tuple[int, int]]:
    """Return the ranges whose hashes prove that the leaf `index` is in the tree of `size`, from the leaf up."""
    if not 0 <= index < size:
        raise ValueError("there is no such leaf")
    start, end, found = 0, size, []
    while end - start > 1:
        middle = start + _left(end - start)
        if index < middle:
            found.append((middle, end))
            end = middle
        else:
            found.append((start, middle))
            start = middle
    return found[::-1]


def consistency_ranges(old: int, new: int) -> list[tuple[int, int]]:
    """Return the ranges whose hashes prove that the tree of size `old` is the beginning of that of size `new`."""
    if not 0 < old <= new:
        raise ValueError("a proof is from a size to the same or a greater one")
    start, end, rest, whole, found = 0, new, old, True, []
    while rest != end - start:
        left = _left(end - start)
        if rest <= left:
            found.append((start + left, end))
            end = start + left
        else:
            found.append((start, start + left))
            start, rest, whole = start + left, rest - left, False
    return ([] if whole else [(start, end)]) + found[::-1]


def includes(*, leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Say whether a proof shows that a leaf's hash is at `index` in the tree of this root."""
    if not 0 <= index < size:
        return False
    place, last, found = index, size - 1, leaf
    for each in proof:
        if last == 0:
            return False
        if place & 1 or place == last:
            found = node_hash(each, found)
            while place and not place & 1:
                place, last = place >> 1, last >> 1
        else:
            found = node_hash(found, each)
        place, last = place >> 1, last >> 1
    return last == 0 and found == root


def extends(*, old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Say whether a proof shows that the tree of size `old` is the beginning of that of size `new`."""
    if not 0 < old <= new:
        return False
    if old == new:
        return not proof and old_root == new_root
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not path:
        return False
    place, last = old - 1, new - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    first = second = path[0]
    for each in path[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            first, second = node_hash(each, first), node_hash(each, second)
            while place and not place & 1:
                place, last = place >> 1, last >> 1
        else:
            second = node_hash(second, each)
        place, last = place >> 1, last >> 1
    return last == 0 and first == old_root and second == new_root


def _left(count: int) -> int:
    """Return the largest power of two below a count of at least 2."""
    return 1 << (count - 1).bit_length() - 1
