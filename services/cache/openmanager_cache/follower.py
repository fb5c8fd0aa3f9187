"""Follows the log: the newest samples first, then every frame as it comes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.frame import decode_trusted
from openmanager.log_follower import SERVICE, LogFollower
from openmanager.runtime.clock import Clock
from openmanager.runtime.peer import Peer
from openmanager_cache.fleet import Fleet

CONSUMER = "cache"
SYNC_SECONDS = 5.0


def follower(
    *, peer: Peer, fleet: Fleet, clock: Clock, jitter: random.Random, on_change: Callable[[str], None]
) -> LogFollower:
    """Return the consumer `cache`, which keeps a fleet; `on_change` gets the trace parent of each frame."""

    async def copy_latest() -> int:
        position = 0
        async with asyncio.timeout(SYNC_SECONDS):
            async for data in peer.server_stream(
                f"{SERVICE}/QueryLatest", pb.QueryLatestRequest(), seconds=SYNC_SECONDS
            ):
                part = pb.QueryLatestResponse.FromString(data)
                position = part.position
                if part.WhichOneof("part") == "frame":
                    frame = decode_trusted(part.frame)
                    fleet.apply(frame, int(frame.times[-1]))
        on_change("")
        return position

    async def take(part: pb.WatchFramesResponse) -> None:
        fleet.apply(decode_trusted(part.frame), part.receive_time.ToNanoseconds())
        on_change(part.trace_parent)

    return LogFollower(consumer=CONSUMER, peer=peer, clock=clock, jitter=jitter, sync=copy_latest, take=take)
