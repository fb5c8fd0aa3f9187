"""One run: inputs from a seed on every method, an eye on every answer, and a look at the process after every thousand."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import json
import os
import random
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError

from fuzz import judge, values
from fuzz.footprint import trim
from fuzz.mesh import Method
from fuzz.message import Builder, Heard
from fuzz.mutate import mutated
from openmanager.frame import length_delimited

# Inputs between two looks at the process, and calls under way at once.
BLOCK, WORKERS = 1000, 32
# How long a call may take, and how much later it may end: of the process's own time, and of anybody's.
DEADLINE_SECONDS, GRACE_SECONDS, PATIENCE_SECONDS = 2.0, 2.0, 60.0
# A stream that is read on may have nothing to say for long.
READ_ON_SECONDS = 0.2
SETTLE_SECONDS = 15.0
# What a process may have more of than after the warm-up: pools of threads and connections fill up slowly.
WARM_UP, MOST_WARM_UP = 0.1, 10_000
MORE_BYTES, MORE_FILES, MORE_TASKS, MORE_THREADS = 96 << 20, 64, 20, 40
# Of so many looks in a row the smallest memory counts.
LOOKS = 10
# Answers whose texts are remembered, of each field, and good messages, of each method.
REMEMBERED = 64
_HEARD_AS = {"next_page_token": "page_token", "resume_token": "resume_token", "etag": "etag", "id": "id"}
# Each of these is worth many others.
_SELDOM = {"AdvanceSimulation": 0.05, "BackfillHistory": 0.05, "StreamFrames": 0.2, "RebuildTier": 0.2}


@dataclass(frozen=True, slots=True)
class Input:
    """The bytes of a call; several messages where requests are a stream."""

    method: Method
    messages: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that may not be."""

    method: str
    path: str
    what: str
    details: str
    seed: int
    number: int
    messages: Sequence[bytes]

    def document(self) -> dict[str, Any]:
        """Return it as it is stored, to be tried again."""
        return {
            "method": self.method,
            "path": self.path,
            "found": self.what,
            "details": self.details[:500],
            "seed": self.seed,
            "number": self.number,
            "messages": [base64.b64encode(each).decode() for each in self.messages],
        }


@dataclass(frozen=True, slots=True)
class Resources:
    """What a process has."""

    resident: int
    files: int
    tasks: int
    threads: int

    @classmethod
    def now(cls) -> Resources:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return cls(
            resident=pages * os.sysconf("SC_PAGE_SIZE"),
            files=sum(1 for _ in Path("/proc/self/fd").iterdir()),
            tasks=len(asyncio.all_tasks()),
            threads=threading.active_count(),
        )

    def leaks(self, before: Resources) -> list[str]:
        """Return what grew by more than it may."""
        limits = {"resident": MORE_BYTES, "files": MORE_FILES, "tasks": MORE_TASKS, "threads": MORE_THREADS}
        grown = {name: getattr(self, name) - getattr(before, name) for name in limits}
        return [f"{grown[name]:,} more {name}" for name, limit in limits.items() if grown[name] > limit]


@dataclass(slots=True)
class Outcome:
    """What a run found."""

    seed: int
    done: int = 0
    seconds: float = 0.0
    codes: dict[str, Counter[str]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    taken: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # seconds, by method
    slowest: tuple[float, str] = (0.0, "")
    warm: Resources | None = None
    last: Resources | None = None
    peak: int = 0

    def count(self, method: str, code: str, seconds: float, number: int) -> None:
        self.codes.setdefault(method, Counter())[code] += 1
        self.taken[method] += seconds
        self.slowest = max(self.slowest, (seconds, f"{method} #{number}"))


class Fuzzer:
    """Drives some methods. `good` are calls, by the name of the method, that must be answered all the while."""

    def __init__(self, methods: Sequence[Method], seed: int, good: Sequence[tuple[str, bytes]]) -> None:
        self._methods = methods
        self._weights = [_SELDOM.get(each.descriptor.name, 1.0) for each in methods]
        self._by_name = {str(each): each for each in methods}
        self._always = good
        self._resident: deque[int] = deque(maxlen=LOOKS)
        self._dice = random.Random(seed)
        self._heard: Heard = {}
        self._good: dict[str, list[bytes]] = {}
        self._seen: set[tuple[str, str]] = set()
        self.outcome = Outcome(seed)
        # Set by whoever has seen enough.
        self.stopped = False

    async def run(self, requests: int, show: Callable[[Outcome], None] = lambda _: None) -> Outcome:
        """Try `requests` inputs."""
        start, outcome = time.monotonic(), self.outcome
        while outcome.done < requests and not self.stopped:
            inputs = [self._input() for _ in range(min(BLOCK, requests - outcome.done))]
            numbered = iter(list(enumerate(inputs, outcome.done)))
            await asyncio.gather(*(self._work(numbered) for _ in range(WORKERS)))
            outcome.done += len(inputs)
            await self._look(warm=outcome.done >= min(WARM_UP * requests, MOST_WARM_UP))
            outcome.seconds = time.monotonic() - start
            show(outcome)
        return outcome

    async def _work(self, numbered: Any) -> None:
        for number, each in numbered:
            await self.attempt(each, number)

    # ── inputs ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _input(self) -> Input:
        method = self._dice.choices(self._methods, self._weights)[0]
        count = self._dice.choice((1, 1, 2, 3)) if method.descriptor.client_streaming else 1
        return Input(method, [self._bytes(method) for _ in range(count)])

    def _bytes(self, method: Method) -> bytes:
        dice = self._dice
        kind = dice.random()
        if kind < 0.02:
            return dice.randbytes(dice.choice((0, 1, 7, 64, 1000)))
        good = self._good.get(str(method))
        if good and kind < 0.1:
            return dice.choice(good)
        if good and kind < 0.3:
            made = dice.choice(good)
        else:
            builder = Builder(dice, self._heard)
            made = builder.build(method.descriptor.input_type).SerializeToString()
        if kind < 0.5:
            other = self._good.get(str(dice.choice(self._methods))) or [b"\x0a\x02s1"]
            made = mutated(dice, made, dice.choice(other))
        if kind > 0.999:
            made += length_delimited(5000, bytes(dice.choice((100, 65 * 1024))))
        return light(method.descriptor.input_type, made)

    # ── calls ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def attempt(self, tried: Input, number: int) -> None:
        """Make one call and judge how it ends."""
        method, outcome = tried.method, self.outcome
        reads = 3 if number % 50 == 0 and method.descriptor.server_streaming else 1
        seconds = 0.001 if number % 97 == 96 else DEADLINE_SECONDS if reads == 1 else READ_ON_SECONDS
        start, worked = time.monotonic(), time.process_time()
        code, details, trailers = grpc.StatusCode.OK, "", ()
        call = method.call(None if method.descriptor.client_streaming else tried.messages[0], seconds)
        try:
            async with asyncio.timeout(seconds + PATIENCE_SECONDS):
                reply = await exchange(call, method, tried.messages, reads)
            self._remember(method, tried, reply, number)
        except grpc.aio.AioRpcError as failure:
            code, details, trailers = failure.code(), failure.details() or "", tuple(failure.trailing_metadata())
        except TimeoutError:
            self._found(tried, number, "outlives its deadline")
        finally:
            call.cancel()
            if not call.task.done() and not (await asyncio.wait([call.task], timeout=PATIENCE_SECONDS))[0]:
                self._found(tried, number, "does not end when it is cancelled")
        took, worked = time.monotonic() - start, time.process_time() - worked
        if min(took, worked) > seconds + GRACE_SECONDS:  # a machine that is busy otherwise makes everybody late
            self._found(tried, number, "outlives its deadline")
        if what := judge.fault(code, details, trailers):
            self._found(tried, number, what, details)
        outcome.count(str(method), code.name, took, number)

    def _found(self, tried: Input, number: int, what: str, details: str = "") -> None:
        key = (tried.method.path, what)
        if key in self._seen:
            return
        self._seen.add(key)
        seed = self.outcome.seed
        self.outcome.findings.append(
            Finding(str(tried.method), tried.method.path, what, details, seed, number, tried.messages)
        )

    def _remember(self, method: Method, tried: Input, reply: bytes, number: int) -> None:
        """Keep what was answered well, and now and then what the answer says that can be asked with."""
        good = self._good.setdefault(str(method), [])
        for message in tried.messages:
            if len(message) < 2000:  # all of them together must not look like a leak
                _keep(good, message, number)
        if number % 16 == 0 and method.path.startswith("/openmanager."):
            from openmanager.runtime import validate

            self._listen(validate.message_class(method.descriptor.output_type).FromString(reply), number)

    def _listen(self, message: Any, number: int) -> None:
        for about, value in message.ListFields():
            if about.name in _HEARD_AS and isinstance(value, str):
                _keep(self._heard.setdefault(_HEARD_AS[about.name], []), value, number)
            elif about.message_type is not None and not about.message_type.GetOptions().map_entry:
                for part in value[:2] if about.is_repeated else (value,):
                    self._listen(part, number)

    # ── the process ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _look(self, *, warm: bool) -> None:
        """See that good calls are answered, and that nothing has grown."""
        outcome = self.outcome
        for name, message in self._always:
            await self._good_call(self._by_name[name], message)
        if outcome.done % (10 * BLOCK) == 0:
            gc.collect()
        end = time.monotonic() + SETTLE_SECONDS
        while outcome.warm and replace(Resources.now(), resident=0).leaks(outcome.warm) and time.monotonic() < end:
            await asyncio.sleep(0.1)
        trim()
        outcome.last = Resources.now()
        outcome.peak = max(outcome.peak, outcome.last.resident)
        self._resident.append(outcome.last.resident)
        if outcome.warm is None:
            outcome.warm = outcome.last if warm else None
            return
        # The allocator gives memory back late; what leaks never comes back.
        for leak in replace(outcome.last, resident=min(self._resident)).leaks(outcome.warm):
            nothing = Input(self._methods[0], [])
            self._found(nothing, outcome.done, f"the process has {leak.partition(' ')[2]} than before", leak)

    async def _good_call(self, method: Method, message: bytes) -> None:
        try:
            await answered(method, message, PATIENCE_SECONDS)
        except (grpc.aio.AioRpcError, TimeoutError) as failure:
            self._found(Input(method, [message]), self.outcome.done, "no longer answers a good call", str(failure))


def light(descriptor: Descriptor, data: bytes) -> bytes:
    """Return the bytes of a message; a number that a mutation has made a test of load of is small again."""
    from openmanager.runtime import validate

    names = [field.name for field in descriptor.fields if field.name in values.SMALL]
    try:
        message = validate.message_class(descriptor).FromString(data) if names else None
    except DecodeError:
        return data
    heavy = [name for name in names if getattr(message, name) not in values.SMALL[name]]
    for name in heavy:
        few = values.SMALL[name]
        setattr(message, name, few[getattr(message, name) % len(few)])
    return message.SerializeToString() if message is not None and heavy else data


def _keep(some: list[Any], item: Any, number: int) -> None:
    if len(some) < REMEMBERED:
        some.append(item)
    else:
        some[number % REMEMBERED] = item


async def exchange(call: Any, method: Method, messages: Sequence[bytes], reads: int) -> bytes:
    """Send the messages of a call; return its reply, of a stream the first, after reading some."""
    if not method.descriptor.server_streaming:
        return bytes(await call)
    if method.descriptor.client_streaming:
        with contextlib.suppress(asyncio.InvalidStateError):  # it has ended: reading says how
            for message in messages:
                await call.write(message)
            await call.done_writing()
    first = await call.read()
    for _ in range(reads - 1):
        if await call.read() is grpc.aio.EOF:
            break
    return b"" if first is grpc.aio.EOF else bytes(first)


def good_calls() -> list[tuple[str, bytes]]:
    """Return calls that are always answered, one for each service at least."""
    from openmanager.api.cache.v1 import cache_pb2
    from openmanager.api.gateway.v1 import gateway_pb2
    from openmanager.api.metadata.v1 import metadata_pb2
    from openmanager.api.timeseries.v1 import timeseries_pb2

    write, ask = gateway_pb2.WriteFrameRequest(), timeseries_pb2.QueryRangeRequest()
    write.frame.time_unix_nanos.append(time.time_ns())
    write.frame.servers.append("good")
    write.frame.metrics.append(values.METRICS[0])
    write.frame.values.append(1.0)
    ask.selector.servers.append("good")
    ask.start_time.GetCurrentTime()
    ask.start_time.seconds -= 60
    entry = cache_pb2.SetEntryRequest(namespace="fuzz", key="good", value=b"x")
    page = metadata_pb2.ListServersRequest(page_size=1)
    return [
        ("simulator:SimulatorService.StopSimulation", b""),
        ("gateway:GatewayService.WriteFrame", write.SerializeToString()),
        ("gateway:TimeseriesService.QueryRange", ask.SerializeToString()),
        ("gateway:GatewayService.GetStorageStatus", b""),
        ("cache:EntryService.SetEntry", entry.SerializeToString()),
        ("metadata:ServerService.ListServers", page.SerializeToString()),
    ]


async def answering(methods: Sequence[Method], seconds: float = 60.0) -> None:
    """Return when good calls are answered; TimeoutError when they are not within `seconds`."""
    by_name = {str(each): each for each in methods}
    for name, message in good_calls():
        await answered(by_name[name], message, seconds)


async def answered(method: Method, message: bytes, seconds: float) -> None:
    """Return when a call is answered well. A store that is not there yet, or was too slow, is waited for."""
    async with asyncio.timeout(seconds):
        while True:
            call = method.call(message, seconds)
            try:
                await exchange(call, method, [message], 1)
            except grpc.aio.AioRpcError as failure:
                if failure.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            else:
                return
            finally:
                call.cancel()
            await asyncio.sleep(0.05)


def store(findings: Sequence[Finding], folder: Path) -> None:
    """Write each finding into a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for at, each in enumerate(findings):
        name = f"{each.path.rpartition('.')[2].replace('/', '-')}-{each.seed}-{each.number}-{at}.json"
        (folder / name).write_text(json.dumps(each.document(), indent=1) + "\n", encoding="utf-8")
