"""Bytes that were a message before: flipped, cut, spliced, and with words from a dictionary put in."""

from __future__ import annotations

import random

# Tags, lengths and varints that parsers trip over.
DICTIONARY = (
    b"\0",
    b"\xff" * 11,
    b"\x08" + b"\x80" * 10 + b"\x01",
    b"\x0a\xff\xff\xff\xff\x0f",
    b"\x0a\x80\x80\x80\x80\x80\x01",
    b"\x0b",
    b"\x0c",
    b"\x0f",
    b"\xa3\x06" * 200,
    b"\x0a\x02\xff\xfe",
    b"\xf8\xff\xff\xff\x0f\x01",
    b"\x00\x01",
    b"\xc2\xb8\x02\x64" + b"u" * 100,
)


def mutated(dice: random.Random, data: bytes, other: bytes) -> bytes:
    """Return bytes near those of a message; `other` is what is spliced in."""
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        data = dice.choice(_WAYS)(dice, data, other)
    return data


def _flip(dice: random.Random, data: bytes, other: bytes) -> bytes:  # noqa: ARG001
    if not data:
        return data
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 8))):
        out[dice.randrange(len(out))] ^= 1 << dice.randrange(8)
    return bytes(out)


def _cut(dice: random.Random, data: bytes, _: bytes) -> bytes:
    return data[: dice.randint(0, len(data))]


def _splice(dice: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: dice.randint(0, len(data))] + other[dice.randint(0, len(other)) :]


def _repeat(dice: random.Random, data: bytes, _: bytes) -> bytes:
    at = dice.randint(0, len(data))
    part = data[at : at + dice.randint(1, 64)]
    return data[:at] + part * dice.choice((2, 3, 50)) + data[at:]


def _insert(dice: random.Random, data: bytes, _: bytes) -> bytes:
    at = dice.randint(0, len(data))
    return data[:at] + dice.choice(DICTIONARY) + data[at:]


def _join(_: random.Random, data: bytes, other: bytes) -> bytes:
    return data + other


_WAYS = (_flip, _cut, _splice, _repeat, _insert, _join)
