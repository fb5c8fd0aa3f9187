"""Good messages of every method, damaged and sent over the wire, and how each call ended.

Zero INTERNAL and zero UNKNOWN is the rule, and no call outlives its deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError

from openmanager import suite
from openmanager.frame import Frame, encode
from openmanager.runtime.module import service_descriptor
from openmanager.runtime.peer import CHANNEL_OPTIONS
from openmanager.runtime.validate import message_class

OWN = ("openmanager.api.gateway.v1.GatewayService", "opentelemetry.proto.collector.metrics.v1.MetricsService")
EVERYWHERE = ("openmanager.api.status.v1.StatusService",)
WORKERS = 64
DEADLINE_SECONDS = 2.0
# How much later than its deadline a call may end: the machine is busy.
LATE_SECONDS = 1.0
DEFECTS = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS"})
LEAKS = ("Traceback", "site-packages", "SELECT", "asyncpg", "redis.", "0x", "Exception", "127.0.0.1", "ipv4:")
MAX_DEPTH = 4
MOST_SERVERS = 100
SECOND = 10**9


@dataclass(frozen=True)
class Target:
    """A method as one server serves it."""

    server: str
    descriptor: MethodDescriptor

    @property
    def path(self) -> str:
        return f"/{self.descriptor.containing_service.full_name}/{self.descriptor.name}"


@dataclass
class Tally:
    """How calls ended: counts by method and code, and what must not be."""

    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def lines(self) -> Iterator[str]:
        """Yield a table of the methods, and the sum."""
        methods = sorted({path for path, _ in self.codes})
        for path in [*methods, ""]:
            found = Counter[str]()
            for (each, code), count in self.codes.items():
                if path in {each, ""}:
                    found[code] += count
            name = ".".join(path.split(".")[-1].split("/")) or f"all, in {self.seconds:.0f} s"
            yield f"{name:36} {found.total():8,}  " + "  ".join(f"{code} {n:,}" for code, n in found.most_common())
        yield f"{len(self.defects)} that must not be"
        yield from self.defects[:20]


def targets() -> list[Target]:
    """Return every method of every server; at the gateway also those that it routes."""
    suite.load_protos()
    served = {**suite.SERVICES, suite.GATEWAY: (*OWN, *(each for some in suite.SERVICES.values() for each in some))}
    return [
        Target(server, method)
        for server, services in served.items()
        for service in (*services, *EVERYWHERE)
        for method in service_descriptor(service).methods
    ]


# ── good messages ────────────────────────────────────────────────────────────────────────────────────────────────────


def good(descriptor: Descriptor, servers: Sequence[str], now: int) -> bytes:
    """Return a message that makes sense: every field set, by its name where that tells what belongs there."""
    return bytes(_filled(descriptor, "", servers, now, 0).SerializeToString())


def _filled(descriptor: Descriptor, name: str, servers: Sequence[str], now: int, depth: int) -> Any:
    message = message_class(descriptor)()
    if descriptor.full_name == "openmanager.api.frame.v1.Frame":
        times = now // SECOND * SECOND + np.arange(-1, 1) * SECOND
        values = np.arange(8.0).reshape(2, 2, 2)
        message.ParseFromString(
            encode(Frame(times=times, servers=("fuzz-1", "fuzz-2"), metrics=("a", "b"), values=values))
        )
        return message
    if descriptor.full_name == "google.protobuf.Timestamp":
        message.FromNanoseconds(now - (600 if name.startswith("start") else 60) * SECOND)
        return message
    if descriptor.full_name == "google.protobuf.Duration":
        message.FromSeconds(60)
        return message
    for each in descriptor.fields:
        if each.message_type is not None and (depth >= MAX_DEPTH or each.message_type.GetOptions().map_entry):
            continue
        value = (
            _filled(each.message_type, each.name, servers, now, depth + 1)
            if each.message_type is not None
            else _scalar(each, servers)
        )
        if each.is_repeated:
            getattr(message, each.name).append(value)
        elif each.message_type is not None:
            getattr(message, each.name).CopyFrom(value)
        else:
            setattr(message, each.name, value)
    return message


def _scalar(each: FieldDescriptor, servers: Sequence[str]) -> Any:
    known = {"id": servers[0], "servers": servers[0], "metrics": "cpu_usage", "server_filter": "", "filter": ""}
    known |= {"page_token": "", "resume_token": "", "order_by": "", "etag": "", "kind": "fault", "consumer": "fuzz"}
    known |= {"tier": "", "paths": "role", "ids": servers[0]}
    match each.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            text = known.get(each.name, "fuzz")
            return text.encode() if each.type == FieldDescriptor.TYPE_BYTES else text
        case FieldDescriptor.CPPTYPE_BOOL:
            return True
        case FieldDescriptor.CPPTYPE_ENUM:
            return each.enum_type.values[-1].number
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return 0.5
        case _:
            return 3


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────────────────────

# What parsers and those who add up sizes have stumbled over.
DICTIONARY = (
    b"\x00",
    b"\xff" * 10,
    b"\xff\xff\xff\xff\x0f",
    b"\x80" * 9 + b"\x01",
    b"\x0a\xff\xff\xff\xff\x07",
    b"\x0b\x0c",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"..\x2f..\x2f",
    b"'; DROP TABLE servers;--",
    b"*" * 40,
    b"{" * 200,
    b"(a+)+$",
    "аdmin\u202e\u0000".encode(),
    struct.pack("<d", float("nan")),
    struct.pack("<d", float("inf")),
    struct.pack("<d", 5e-324),
    struct.pack("<q", -1),
    struct.pack("<q", (1 << 63) - 1),
    struct.pack("<q", -(1 << 63)),
)


def mutated(message: bytes, others: Sequence[bytes], dice: random.Random) -> bytes:
    """Return a message damaged in up to four ways; a few stay as they are, and most are nearly good."""
    data = bytearray(message)
    for _ in range(dice.choices(range(5), (1, 6, 2, 1, 1))[0]):
        dice.choice(_DAMAGES)(data, others, dice)
    return bytes(data)


def _flip(data: bytearray, _: Sequence[bytes], dice: random.Random) -> None:
    if data:
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def _set(data: bytearray, _: Sequence[bytes], dice: random.Random) -> None:
    if data:
        data[dice.randrange(len(data))] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))


def _truncate(data: bytearray, _: Sequence[bytes], dice: random.Random) -> None:
    del data[dice.randint(0, len(data)) :]


def _cut(data: bytearray, _: Sequence[bytes], dice: random.Random) -> None:
    start = dice.randint(0, len(data))
    del data[start : start + dice.randint(1, 16)]


def _repeat(data: bytearray, _: Sequence[bytes], dice: random.Random) -> None:
    start = dice.randint(0, len(data))
    some = bytes(data[start : start + dice.randint(1, 64)])
    data[start:start] = some * dice.randint(1, 20)


def _splice(data: bytearray, others: Sequence[bytes], dice: random.Random) -> None:
    other = dice.choice(others)
    data[dice.randint(0, len(data)) :] = other[dice.randint(0, len(other)) :]


def _insert(data: bytearray, _: Sequence[bytes], dice: random.Random) -> None:
    at = dice.randint(0, len(data))
    data[at:at] = dice.choice(DICTIONARY)


def _noise(data: bytearray, _: Sequence[bytes], dice: random.Random) -> None:
    at = dice.randint(0, len(data))
    data[at:at] = dice.randbytes(dice.randint(1, 32))


_DAMAGES: tuple[Callable[[bytearray, Sequence[bytes], random.Random], None], ...] = (
    _flip,
    _flip,
    _set,
    _truncate,
    _cut,
    _repeat,
    _splice,
    _insert,
    _noise,
)


# ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def run(
    addresses: Mapping[str, str],
    servers: Sequence[str],
    count: int,
    seed: int,
    tell: Callable[[int], None] = lambda _: None,
    seconds: float = math.inf,
) -> Tally:
    """Send `count` damaged messages to all methods in turn, in at most `seconds`; `servers` are ids that exist."""
    dice = random.Random(seed)
    everything = targets()
    messages = [good(each.descriptor.input_type, servers, time.time_ns()) for each in everything]
    tally, start, number = Tally(), time.monotonic(), iter(range(count))
    async with AsyncExitStack() as stack:
        channels = {
            name: await stack.enter_async_context(grpc.aio.insecure_channel(address, CHANNEL_OPTIONS))
            for name, address in addresses.items()
        }

        async def work() -> None:
            for at in number:
                if time.monotonic() > start + seconds:
                    return
                target, message = everything[at % len(everything)], messages[at % len(everything)]
                data = mutated(message, messages, dice)
                while _is_load(target, data):
                    data = mutated(message, messages, dice)
                await _send(channels[target.server], target, data, tally)
                tell(at)

        await asyncio.gather(*(work() for _ in range(WORKERS)))
    tally.seconds = time.monotonic() - start
    return tally


def _is_load(target: Target, data: bytes) -> bool:
    """Say whether a message, damaged or not, asks for a fleet that would occupy the machine for minutes."""
    if target.descriptor.name != "StartSimulation":
        return False
    with contextlib.suppress(DecodeError):
        message: Any = message_class(target.descriptor.input_type).FromString(data)
        return bool(message.server_count > MOST_SERVERS)
    return False


async def _send(channel: grpc.aio.Channel, target: Target, data: bytes, tally: Tally) -> None:
    start = time.monotonic()
    try:
        async with asyncio.timeout(DEADLINE_SECONDS + LATE_SECONDS):
            code, details = await ended(channel, target, data)
    except TimeoutError:
        code, details = "HUNG", ""
    tally.codes[target.path, code] += 1
    if code in DEFECTS | {"HUNG"} or any(leak in details for leak in LEAKS):
        took = time.monotonic() - start
        tally.defects.append(f"{target.server} {target.path} {code} {details!r} after {took:.1f} s: {data.hex()}")


async def ended(channel: grpc.aio.Channel, target: Target, data: bytes) -> tuple[str, str]:
    """Send a message and return how the call ended; OK as soon as a stream has answered once."""
    call: Any
    try:
        match target.descriptor.client_streaming, target.descriptor.server_streaming:
            case False, False:
                await channel.unary_unary(target.path)(data, timeout=DEADLINE_SECONDS)
                return "OK", ""
            case False, True:
                call = channel.unary_stream(target.path)(data, timeout=DEADLINE_SECONDS)
            case _:
                call = channel.stream_stream(target.path)(timeout=DEADLINE_SECONDS)
                await call.write(data)
        try:
            if await call.read() is not grpc.aio.EOF:
                return "OK", ""
            code = await call.code()
            return code.name, await call.details() or ""
        finally:
            call.cancel()
    except grpc.aio.AioRpcError as failure:
        return failure.code().name, failure.details() or ""
    except asyncio.InvalidStateError:  # the stream had ended before it was written to
        return (await call.code()).name, await call.details() or ""
