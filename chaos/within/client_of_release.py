"""Write and read by a release's own client until standard input ends; print what became of it as one line of JSON.

Run by that release's Python: it may use only what every version of `openmanager.client` has.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import UTC, datetime, timedelta

import numpy as np

from openmanager.client import Client
from openmanager.errors import OpenManagerError
from openmanager.frame import Frame

SERVER, METRIC = "release-client", "release.value"
PAUSE_SECONDS = 0.1
SECONDS = 30.0


async def run(target: str, known: str) -> dict[str, object]:
    """Return how many calls were made, when and why some failed, and the samples acknowledged, lost and strange.

    `known` is a server that the mesh knows already. A moment is one of the monotonic clock, which all processes of a machine share.
    """
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.run_in_executor(None, lambda: (sys.stdin.read(), loop.call_soon_threadsafe(ended.set)))
    began, calls, failed, kept, sent = datetime.now(UTC), 0, [], {}, {}
    async with Client(target) as client:
        questions = {
            "get_server": lambda: client.get_server(known, seconds=SECONDS),
            "fleet_summary": lambda: client.fleet_summary(seconds=SECONDS),
            "query_latest": lambda: client.query_latest(METRIC, seconds=SECONDS),
            "storage_status": lambda: client.storage_status(seconds=SECONDS),
            "inventory.get": lambda: client.inventory.get(known, seconds=SECONDS),
            "query_range": lambda: client.query_range(
                "cpu_usage", start=began, step=timedelta(seconds=5), seconds=SECONDS
            ),
        }
        names = tuple(questions)
        while not ended.is_set():
            calls += 1
            moment = time.time_ns() // 1_000_000 * 1_000_000
            frame = Frame(
                times=np.array([moment]), servers=(SERVER,), metrics=(METRIC,), values=np.full((1, 1, 1), float(calls))
            )
            sent[moment] = float(calls)
            asked, asked_at = "write_frame", time.monotonic()
            try:
                ack = await client.write_frame(frame, seconds=SECONDS)
                if ack.accepted_sample_count == 1:
                    kept[moment] = float(calls)
                calls, asked_at = calls + 1, time.monotonic()
                asked = names[calls // 2 % len(names)]
                await questions[asked]()
            except OpenManagerError as err:
                failed.append((asked_at, f"{asked}: {err.message}"))
            await asyncio.sleep(PAUSE_SECONDS)
        there = {}
        result = await client.query_range(METRIC, start=began, servers=SERVER, seconds=SECONDS)
        for each in result.raw:
            there |= dict(zip(np.asarray(each.times).tolist(), np.asarray(each.values).tolist(), strict=True))
    lost = sum(there.get(moment) != value for moment, value in kept.items())
    strange = sum(sent.get(moment) != value for moment, value in there.items())
    return {"calls": calls, "failed": failed, "acknowledged": len(kept), "lost": lost, "strange": strange}


if __name__ == "__main__":
    try:
        print(json.dumps(asyncio.run(run(*sys.argv[1:]))))
    except OpenManagerError as err:
        print(json.dumps({"error": err.message}))
