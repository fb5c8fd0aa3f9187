"""The disk that history takes: how full it is, when it will be full, and what is done about it.

From 80 % on it is said, with the day when it will be full; from 90 % on the oldest blocks go before their retention, if
a budget was set: a volume that others fill too is theirs to look after.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import replace

from openmanager_timeseries.disk import Disk
from openmanager_timeseries.evidence import BUDGET
from openmanager_timeseries.history import History
from openmanager_timeseries.retention import Verdicts
from openmanager_timeseries.sealed import Sealed
from openmanager_timeseries.tier import RAW
from openmanager_timeseries.usage import Usage

WARN_RATIO, ACT_RATIO, ENOUGH_RATIO = 0.8, 0.9, 0.85
_SAMPLE_SECONDS = 300.0
_HOUR_SECONDS, _DAY_SECONDS = 3600.0, 86_400.0
_NOT_AT_ALL = -(2**62)  # nanoseconds that something is kept which goes now, whatever its time

log = logging.getLogger(__name__)


class Budget:
    """Watches over the disk of one shard."""

    def __init__(self, history: History, disk: Disk) -> None:
        self._history = history
        self._disk = disk
        self._seen: deque[tuple[float, int]] = deque()  # of the last day
        # The blocks that hold nothing but what is held, under the policy of this number.
        self._held: set[str] = set()
        self._policy = -1

    @property
    def warnings(self) -> list[str]:
        """What is to be said of it."""
        return [self._history.usage.plan] if self._history.usage.plan else []

    async def keep(self) -> None:
        """Look, and delete early where that was asked for."""
        history = self._history
        history.usage = usage = await self._look()
        if not history.config.disk_budget or usage.used < ACT_RATIO * usage.limit:
            return
        before = history.retention.snapshot()
        await self._delete_early(usage)
        usage = await self._look()
        if usage.used >= ACT_RATIO * usage.limit:
            usage = replace(usage, plan=f"{_share(usage)} of the disk budget is used: {self._nothing_left()}")
        history.usage = usage
        if history.retention.snapshot() != before:
            await history.retention.save()

    async def _look(self) -> Usage:
        history = self._history
        free, total = await asyncio.to_thread(self._disk.free_bytes)
        stores = [store.size_bytes for _, store in history.stores()]
        limit, used = (history.config.disk_budget, sum(stores)) if history.config.disk_budget else (total, total - free)
        now = history.clock.monotonic()
        if not self._seen or now - self._seen[-1][0] >= _SAMPLE_SECONDS:
            self._seen.append((now, used))
        while len(self._seen) > 1 and now - self._seen[0][0] > _DAY_SECONDS:
            self._seen.popleft()
        usage = Usage(limit=limit, used=used, full_nanos=self._full(now, used, limit))
        return replace(usage, plan=self._plan(usage))

    def _full(self, now: float, used: int, limit: int) -> int:
        since, then = self._seen[0]
        if now - since < _HOUR_SECONDS or used <= then:
            return 0
        seconds = (limit - used) / ((used - then) / (now - since))
        horizon = self._history.config.raw_retention.total_seconds()
        # By then what is kept has reached its age, and as much goes as comes.
        return self._history.clock.now_nanos() + int(max(0.0, seconds) * 1e9) if seconds < horizon else 0

    def _plan(self, usage: Usage) -> str:
        share = usage.used / usage.limit if usage.limit else 0.0
        if share < WARN_RATIO:
            return ""
        if not self._history.config.disk_budget:
            return (
                f"{_share(usage)} of the volume is used: shorten a retention, or set timeseries.disk_budget to have the"
                " oldest blocks go first"
            )
        if share >= ACT_RATIO:
            return f"{_share(usage)} of the disk budget is used: the oldest blocks are deleted before their retention"
        return f"{_share(usage)} of the disk budget is used: at {ACT_RATIO:.0%} the oldest blocks go before their retention"

    def _nothing_left(self) -> str:
        if not self._history.retention.certain:
            return "nothing is deleted while the legal holds are not known"
        return "no block may go before its retention any more; shorten a retention, or raise timeseries.disk_budget"

    async def _delete_early(self, usage: Usage) -> None:
        """Delete from the oldest blocks, as far as the tiers have taken them, what nobody holds, until enough is free."""
        history, retention = self._history, self._history.retention
        if not retention.certain:
            return
        if self._policy != retention.changes:
            self._policy, self._held = retention.changes, set()
        over = usage.used - int(ENOUGH_RATIO * usage.limit)
        verdicts = Verdicts(default=_NOT_AT_ALL, rules=(), holds=[held[:3] for held in retention.holds()])
        # The newest block by number says what of the log need not be read again.
        for file in sorted(history.blocks.files[:-1], key=lambda each: each.about.max_time):
            if over <= 0:
                break
            if file.path.name in self._held or self._needed(file):
                continue
            gone, made = await asyncio.to_thread(
                retention.expire, history.blocks, file, verdicts, history.clock.now_nanos()
            )
            if self._policy != retention.changes:  # it may be held since
                retention.look_again()
                if made is not None:
                    history.blocks.discard(made)
                break
            if not gone:
                self._held.add(file.path.name)
                continue
            over -= file.size_bytes - (made.size_bytes if made else 0)
            history.blocks.replace([file], made)
            retention.count(RAW, file, made, history.clock.now_nanos(), BUDGET)
            if made is not None:
                self._held.add(made.path.name)
            log.warning("the disk budget is used up: the block %s goes before its retention", file.path.name)

    def _needed(self, file: Sealed) -> bool:
        return file.about.last > self._history.roller.position or self._history.roller.needs(file)


def _share(usage: Usage) -> str:
    return f"{usage.used / usage.limit:.0%}" if usage.limit else "all"
