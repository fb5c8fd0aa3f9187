"""The tree against RFC 6962 as it defines it, recursively."""

from __future__ import annotations

import hashlib
import random

import pytest

from openmanager.merkle import (
    EMPTY_ROOT,
    CompactRange,
    consistency_ranges,
    extends,
    fold,
    includes,
    inclusion_ranges,
    leaf_hash,
    node_hash,
    subtrees,
)

MOST = 41


def mth(entries: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, word for word."""
    if not entries:
        return hashlib.sha256(b"").digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    k = 1
    while 2 * k < len(entries):
        k *= 2
    return hashlib.sha256(b"\x01" + mth(entries[:k]) + mth(entries[k:])).digest()


ENTRIES = [f"entry {number}".encode() for number in range(MOST)]
ROOTS = [mth(ENTRIES[:size]) for size in range(MOST + 1)]


def hashes(ranges: list[tuple[int, int]]) -> list[bytes]:
    return [mth(ENTRIES[start:end]) for start, end in ranges]


def grown(size: int) -> CompactRange:
    tree = CompactRange()
    for entry in ENTRIES[:size]:
        tree.append(leaf_hash(entry))
    return tree


def test_roots_of_the_rfc_test_vectors():
    """Those of certificate-transparency's own tests."""
    vectors = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    tree = CompactRange()
    for each in vectors:
        tree.append(leaf_hash(bytes.fromhex(each)))
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert tree.root().hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


def test_a_tree_that_grows_has_the_root_of_its_entries_at_every_size():
    tree = CompactRange()
    for size, entry in enumerate(ENTRIES):
        assert tree.root() == ROOTS[size]
        assert CompactRange(tree.size, tree.hashes).root() == ROOTS[size]
        tree.append(leaf_hash(entry))
    assert tree.root() == ROOTS[MOST]


def test_nodes_are_told_when_they_are_whole():
    tree, found = CompactRange(), {}
    for entry in ENTRIES:
        for level, index, node in tree.append(leaf_hash(entry)):
            found[level, index] = node
    assert found == {
        (level, index): mth(ENTRIES[index << level : (index + 1) << level])
        for level in range(1, 6)
        for index in range(MOST >> level)
    }


def test_a_tree_goes_on_from_its_right_edge_alone():
    for size in range(MOST):
        tree = CompactRange(size, list(grown(size).hashes))
        for entry in ENTRIES[size:]:
            tree.append(leaf_hash(entry))
        assert tree.root() == ROOTS[MOST]
    with pytest.raises(ValueError, match="of this size"):
        CompactRange(3, [b""])


def test_every_inclusion_is_proven_and_no_other():
    for size in range(1, MOST + 1):
        for index in range(size):
            proof = hashes(inclusion_ranges(index, size))
            known = {"size": size, "proof": proof, "root": ROOTS[size]}
            assert includes(leaf=leaf_hash(ENTRIES[index]), index=index, **known)
            assert not includes(leaf=leaf_hash(b"other"), index=index, **known)
            assert not any(
                includes(leaf=leaf_hash(ENTRIES[index]), index=other, **known)
                for other in range(size)
                if other != index
            )


def test_every_growth_is_proven_and_no_other():
    for new in range(1, MOST + 1):
        for old in range(1, new + 1):
            proof = hashes(consistency_ranges(old, new))
            known = {"old": old, "new": new, "proof": proof}
            assert extends(old_root=ROOTS[old], new_root=ROOTS[new], **known)
            assert not extends(old_root=ROOTS[old - 1], new_root=ROOTS[new], **known)
            assert not extends(old_root=ROOTS[old], new_root=ROOTS[new - 1], **known)


def test_a_forged_proof_proves_nothing():
    dice = random.Random(5)
    for _ in range(1000):
        new = dice.randrange(2, MOST + 1)
        old, index = dice.randrange(1, new), dice.randrange(new)
        inclusion, growth = hashes(inclusion_ranges(index, new)), hashes(consistency_ranges(old, new))
        for proof in (inclusion, growth):
            forge(proof, dice)
        assert not includes(leaf=leaf_hash(ENTRIES[index]), index=index, size=new, proof=inclusion, root=ROOTS[new])
        assert not extends(old=old, old_root=ROOTS[old], new=new, new_root=ROOTS[new], proof=growth)


def forge(proof: list[bytes], dice: random.Random) -> None:
    """Change a proof: another bit, one hash more, less, or two in another order."""
    at = dice.randrange(len(proof))
    match dice.randrange(4):
        case 0:
            damaged = bytearray(proof[at])
            damaged[dice.randrange(32)] ^= 1 << dice.randrange(8)
            proof[at] = bytes(damaged)
        case 1:
            proof.insert(at, dice.randbytes(32))
        case 2:
            del proof[at]
        case _:
            proof[at] = node_hash(proof[at], proof[-1])


def test_sizes_and_places_that_cannot_be_prove_nothing():
    assert not includes(leaf=b"", index=0, size=0, proof=[], root=EMPTY_ROOT)
    assert not includes(leaf=leaf_hash(ENTRIES[0]), index=-1, size=1, proof=[], root=ROOTS[1])
    assert not extends(old=0, old_root=EMPTY_ROOT, new=1, new_root=ROOTS[1], proof=[])
    assert not extends(old=2, old_root=ROOTS[2], new=1, new_root=ROOTS[1], proof=[])
    assert not extends(old=3, old_root=ROOTS[3], new=4, new_root=ROOTS[4], proof=[])
    for bad in ((-1, 3), (3, 3)):
        with pytest.raises(ValueError, match="no such leaf"):
            inclusion_ranges(*bad)


def test_a_range_of_a_proof_is_made_of_perfect_subtrees():
    for size in range(1, MOST + 1):
        for start, end in inclusion_ranges(0, size):
            parts = [mth(ENTRIES[at << level : (at + 1) << level]) for level, at in subtrees(start, end)]
            assert fold(parts) == mth(ENTRIES[start:end])
