"""Load from a process of its own: open loop, measured from the intended start, or one call after the other."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from functools import partial

import grpc


async def open_loop(call, request: bytes, rate: float, seconds: float) -> list[float]:  # type: ignore[no-untyped-def]
    """Return the latencies of calls begun at a fixed rate whatever becomes of them; a late start counts."""
    begin = time.perf_counter() + 0.05
    latencies: list[float] = []

    async def one(intended: float) -> None:
        await call(request, timeout=10)
        latencies.append(time.perf_counter() - intended)

    tasks = []
    for index in range(int(rate * seconds)):
        intended = begin + index / rate
        delay = intended - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        tasks.append(asyncio.create_task(one(intended)))
    await asyncio.gather(*tasks)
    return latencies


async def closed_loop(call, request: bytes, count: int) -> list[float]:  # type: ignore[no-untyped-def]
    """Return the latencies of `count` calls, one after the other."""
    latencies = []
    for _ in range(count):
        start = time.perf_counter()
        await call(request, timeout=10)
        latencies.append(time.perf_counter() - start)
    return latencies


async def main(target: str, path: str, request: bytes, rate: float, amount: float) -> None:
    """Print the latencies in seconds as JSON; rate 0 means closed loop, `amount` then counts calls."""
    async with grpc.aio.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        key = os.environ.get("OPENMANAGER_TOKEN")
        shown = (("authorization", f"Bearer {key}"),) if key else ()
        call = partial(channel.unary_unary(path), metadata=shown)
        await closed_loop(call, request, 100)
        found = await (open_loop(call, request, rate, amount) if rate else closed_loop(call, request, int(amount)))
    print(json.dumps(found))


if __name__ == "__main__":
    target, path, request, rate, amount = sys.argv[1:]
    asyncio.run(main(target, path, bytes.fromhex(request), float(rate), float(amount)))
