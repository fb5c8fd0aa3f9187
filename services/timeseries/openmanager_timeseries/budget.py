"""The disk that history takes: how full it is, when it will be full, and what is done about it.

From 80 % on it is said, with the day when it will be full; from 90 % on the oldest blocks go before their retention, if
a budget was set: a volume that others fill too is theirs to look after.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from openmanager_timeseries.disk import Disk
from openmanager_timeseries.history import History
from openmanager_timeseries.sealed import Sealed
from openmanager_timeseries.sealed_store import SealedStore
from openmanager_timeseries.tier import RAW
from openmanager_timeseries.usage import Usage

WARN_RATIO, ACT_RATIO, ENOUGH_RATIO = 0.8, 0.9, 0.85
_SAMPLE_SECONDS = 300.0
_SAMPLES = 288  # a day of them
_HOUR_SECONDS = 3600.0

log = logging.getLogger(__name__)


class Budget:
    """Watches over the disk of one shard."""

    def __init__(self, history: History, disk: Disk) -> None:
        self._history = history
        self._disk = disk
        self._seen: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)

    @property
    def warnings(self) -> list[str]:
        """What is to be said of it."""
        return [self._history.usage.plan] if self._history.usage.plan else []

    async def keep(self) -> None:
        """Look, and delete early where that was asked for."""
        history = self._history
        usage = await self._look()
        if history.config.disk_budget and usage.used >= ACT_RATIO * usage.limit:
            await self._delete_early(usage)
            usage = await self._look()
        history.usage = usage

    async def _look(self) -> Usage:
        history = self._history
        free, total = await asyncio.to_thread(self._disk.free_bytes)
        stores = [store.size_bytes for store in self._stores()]
        limit, used = (history.config.disk_budget, sum(stores)) if history.config.disk_budget else (total, total - free)
        now = history.clock.monotonic()
        if not self._seen or now - self._seen[-1][0] >= _SAMPLE_SECONDS:
            self._seen.append((now, used))
        full = self._full(now, used, limit)
        return Usage(limit=limit, used=used, full_nanos=full, plan=self._plan(used, limit))

    def _stores(self) -> list[SealedStore]:
        tiers = self._history.roller.tiers
        return [self._history.blocks, *(store for files in tiers for store in (files.buckets, files.sketches))]

    def _full(self, now: float, used: int, limit: int) -> int:
        since, then = self._seen[0]
        if now - since < _HOUR_SECONDS or used <= then:
            return 0
        seconds = (limit - used) / ((used - then) / (now - since))
        horizon = self._history.config.raw_retention.total_seconds()
        # By then what is kept has reached its age, and as much goes as comes.
        return self._history.clock.now_nanos() + int(max(0.0, seconds) * 1e9) if seconds < horizon else 0

    def _plan(self, used: int, limit: int) -> str:
        share = used / limit if limit else 0.0
        if share < WARN_RATIO:
            return ""
        what = "of the disk budget" if self._history.config.disk_budget else "of the volume"
        text = f"{share:.0%} {what} is used"
        if not self._history.config.disk_budget:
            return f"{text}: shorten a retention, or set timeseries.disk_budget to have the oldest blocks go first"
        if share >= ACT_RATIO:
            return f"{text}: the oldest blocks are deleted before their retention"
        return f"{text}: at {ACT_RATIO:.0%} the oldest blocks go before their retention"

    async def _delete_early(self, usage: Usage) -> None:
        """Delete the oldest blocks that the tiers have taken and nobody holds, until enough is free."""
        history = self._history
        over = usage.used - int(ENOUGH_RATIO * usage.limit)
        holds = [(start, end) for _, start, end, _ in history.retention.holds()]
        for file in sorted(history.blocks.files, key=lambda each: each.about.max_time)[:-1]:
            if over <= 0:
                return
            if self._needed(file) or any(file.meets(start, end) for start, end in holds):
                continue
            over -= file.size_bytes
            history.blocks.replace([file], None)
            history.retention.count(RAW, file, None)
            log.warning("the disk budget is used up: the block %s goes before its retention", file.path.name)
        await asyncio.to_thread(history.retention.save, history.retention.snapshot())

    def _needed(self, file: Sealed) -> bool:
        return file.about.last > self._history.roller.position or self._history.roller.needs(file)
