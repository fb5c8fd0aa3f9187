"""What the edges of the time-series service share: frames in, times and selectors checked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from openmanager.access import narrowed
from openmanager.api.frame.v1 import frame_pb2
from openmanager.errors import invalid
from openmanager.frame import frame_of
from openmanager.runtime import validate
from openmanager_timeseries import reach
from openmanager_timeseries.history import Accepted, History, Writing
from openmanager_timeseries.query import EARLIEST_NANOS, LATEST_NANOS

MAX_SELECTOR_ENTRIES = 10_000
time_of = validate.Years(EARLIEST_NANOS, LATEST_NANOS, "1678–2262").time_of


async def accepted_frames(
    history: History, cls: type[Any], requests: AsyncIterator[bytes], *, any_future: bool
) -> AsyncIterator[frame_pb2.WriteAck]:
    """Write the frames of a stream, a bounded number at once, yielding the acknowledgement of each in order."""
    under_way: asyncio.Queue[Writing | Exception | None] = asyncio.Queue(maxsize=64)

    async def receive() -> None:
        try:
            async for data in requests:
                payload = frame_of(cls, data)
                reach.check_writable(history.catalog, payload)
                writing = history.begin_write(payload, any_future=any_future)
                try:
                    await under_way.put(writing)
                except asyncio.CancelledError:
                    history.give_up(writing)
                    raise
        except Exception as err:  # noqa: BLE001  (handed to the writer's own side of the stream, in order)
            await under_way.put(err)
        else:
            await under_way.put(None)

    receiver = asyncio.create_task(receive())
    try:
        while (item := await under_way.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield ack(await history.written(item))
    finally:
        receiver.cancel()
        await asyncio.gather(receiver, return_exceptions=True)
        while not under_way.empty():
            if isinstance(item := under_way.get_nowait(), Writing):
                history.give_up(item)


def ack(accepted: Accepted) -> frame_pb2.WriteAck:
    """Return the acknowledgement of a frame."""
    admitted = accepted.admitted
    return frame_pb2.WriteAck(
        position=accepted.position,
        accepted_sample_count=admitted.accepted,
        rejected_sample_count=admitted.rejected,
        rejections=[
            frame_pb2.Rejection(server=r.server, metric=r.metric, reason=r.reason, sample_count=r.sample_count)
            for r in admitted.rejections
        ],
    )


def selector_of(selector: frame_pb2.Selector, field: str = "selector") -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """Return the servers, the filter and the metrics of a selector, kept to what the caller may reach.

    InvalidArgumentError when there are too many.
    """
    for name in ("servers", "metrics"):
        if len(getattr(selector, name)) > MAX_SELECTOR_ENTRIES:
            raise invalid(f"{field}.{name}", f"has more than {MAX_SELECTOR_ENTRIES} entries")
    return tuple(selector.servers), narrowed(selector.server_filter, f"{field}.server_filter"), tuple(selector.metrics)
