"""Looks after one shard of history, for ever: seals, rolls up, merges, deletes what is too old, mends what is damaged.

Deletion comes first and no step waits for another: on a full disk it is what makes room for the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence

from openmanager.api.status.v1 import status_pb2
from openmanager.errors import OpenManagerError
from openmanager.runtime.clock import until_next
from openmanager_timeseries.budget import Budget
from openmanager_timeseries.deletion import carry_out
from openmanager_timeseries.disk import Disk
from openmanager_timeseries.history import History
from openmanager_timeseries.mend import mend_files
from openmanager_timeseries.sealed_store import SealedStore
from openmanager_timeseries.tier import RAW, nanos
from openmanager_timeseries.upkeep import BLOCK_WINDOWS, next_merge, tier_windows
from openmanager_timeseries.wall import RETENTION_SECONDS

KEEP_SECONDS = 1.0
# And between rounds as long as nothing comes, fails, or lacks room.
REST_SECONDS = 5.0
EXPIRE_SECONDS = 60.0
SEAL_RETRY_SECONDS = 10.0
# How long one round may roll up before it is time for the other steps again.
ROLL_SECONDS = 2.0
MERGE_SECONDS = 2.0

log = logging.getLogger(__name__)


class Keeper:
    """The upkeep of one shard."""

    def __init__(self, history: History, disk: Disk) -> None:
        self._history = history
        self._disk = disk
        self._seal_after = 0.0  # after a failure not at once again
        self._expire_after = 0.0
        self._rolled = b""
        self._seen = -1
        self._budget = Budget(history, disk)

    async def keep(self) -> None:
        """Do what is due, once a second while frames come."""
        steps = (
            self.delete_log,
            self.delete_replaced,
            self.finish_deletions,
            self.expire,
            self.keep_within_budget,
            self.keep_within_cap,
            self.seal_when_due,
            self.save,
            self.mend,
            self.roll_up,
            self.merge_files,
        )
        failed: list[str] = []
        while True:
            if not failed:
                await self._rest()
            await asyncio.sleep(KEEP_SECONDS)
            self._seen = self._history.log.state.head_position
            failed = [step.__name__ for step in steps if not await self._done(step)]
            self._tell(failed)
            warnings = [f"{name.replace('_', ' ')} failed and is tried again" for name in failed]
            self._history.warnings = [*warnings, *self._budget.warnings, *self._history.wall.warnings]

    async def _rest(self) -> None:
        """Wait for a frame that came since the last round began, for a while; not when the disk lacks room."""
        log_state = self._history.log.state
        if log_state.full or log_state.failure:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(until_next(REST_SECONDS)):
                await self._history.log.wait_beyond(self._seen)

    def _tell(self, failed: Sequence[str]) -> None:
        """Say in the ledger how the readers are that are looked after here."""
        found = self._history.ledger.found
        found("head", status_pb2.STORAGE_STATE_OK)
        for consumer, step in (("blocks", "seal_when_due"), ("rollups", "roll_up")):
            if step in failed:
                found(consumer, status_pb2.STORAGE_STATE_DOWN, f"to {step.replace('_', ' ')} failed and is tried again")
            else:
                found(consumer, status_pb2.STORAGE_STATE_OK)

    async def _done(self, step: Callable[[], Awaitable[None]]) -> bool:
        try:
            async with self._history.changing:
                await step()
        except (OSError, OpenManagerError) as err:
            log.warning("%s failed and is tried again: %s", step.__name__, type(err).__name__)
            return False
        except Exception:  # a defect in one step must not end the others: they keep the disk from filling
            log.exception("%s failed and is tried again", step.__name__)
            return False
        return True

    # ── deleting ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def delete_log(self) -> None:
        """Delete the segments that everybody has passed and that are old enough."""
        history = self._history
        before = history.clock.now_nanos() - nanos(history.config.log_retention)
        await asyncio.to_thread(history.log.delete_through, history.ledger.slowest(), before)
        await asyncio.to_thread(history.erasures.forget, history.log.first_position)

    async def delete_replaced(self) -> None:
        """Delete the files that others stand for since a while: no query reads them any more."""
        stores = self._history.stores()

        def delete() -> None:
            for _, store in stores:
                store.delete_replaced()

        await asyncio.to_thread(delete)

    async def finish_deletions(self) -> None:
        """Carry out the deletions that a crash came into."""
        for erasure in self._history.erasures.entries:
            if not erasure.done:
                await carry_out(self._history, erasure)

    async def expire(self) -> None:
        """Delete what is older than the policy keeps it."""
        history = self._history
        if history.clock.monotonic() < self._expire_after:
            return
        if not history.retention.certain:
            return
        self._expire_after = history.clock.monotonic() + EXPIRE_SECONDS
        before = history.retention.snapshot()
        for tier, store in history.stores():
            await self._expire(tier, store)
        if history.retention.snapshot() != before:
            await history.retention.save()

    async def _expire(self, tier: str, store: SealedStore) -> None:
        history, retention = self._history, self._history.retention
        now, _ = history.wall.range(RETENTION_SECONDS)
        verdicts = retention.verdicts(tier)
        rolled, policy = history.roller.position, retention.changes
        for file in retention.due(store.files, verdicts, now):
            if tier == RAW and (file.about.last > rolled or history.roller.needs(file)):
                continue  # what the tiers are still to be made of
            replaced, made = await asyncio.to_thread(retention.expire, store, file, verdicts, now)
            if policy != retention.changes:  # it may be held since
                retention.look_again()
                if made is not None:
                    store.discard(made)
                self._expire_after = 0.0
                return
            if replaced:
                store.replace([file], made)
                retention.count(tier, file, made, now)
                log.info("retention deleted rows of %s from %s", tier, file.path.name)

    async def keep_within_budget(self) -> None:
        """Look at how much disk is used, and delete early where the budget says so."""
        await self._budget.keep()

    async def keep_within_cap(self) -> None:
        """Cut loose the consumers that would hold back more than the log may take; they copy the state instead."""
        history, config = self._history, self._history.config
        _, total = await asyncio.to_thread(self._disk.free_bytes)
        cap = min(config.log_max_size, int(total * config.log_max_share))
        if history.log.size_bytes() <= cap:
            return
        await history.seal()
        over = history.log.size_bytes() - cap
        through = 0
        for segment in history.log.oldest_segments()[:-1]:
            if over <= 0:
                break
            over -= segment.end
            through = segment.last
        sealed = history.ledger.open_books("blocks").position
        await asyncio.to_thread(history.log.delete_through, min(through, sealed), history.clock.now_nanos())

    # ── making ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def seal_when_due(self) -> None:
        """Seal the head when it is old or large enough."""
        history, config = self._history, self._history.config
        now = history.clock.monotonic()
        if now < self._seal_after:
            return
        age = now - history.head.generations[-1].opened
        unsealed = sum(each.nbytes for each in history.head.generations if not each.sealed)
        if age >= config.seal_interval.total_seconds() or unsealed > config.head_size // 2:
            self._seal_after = now + SEAL_RETRY_SECONDS
            await history.seal()
            self._seal_after = 0.0

    async def save(self) -> None:
        """Make positions durable."""
        await self._history.ledger.save(self._history.log)

    async def roll_up(self) -> None:
        """Compute the buckets that are due, for a while."""
        history, roller = self._history, self._history.roller
        until = history.clock.monotonic() + ROLL_SECONDS
        while (work := roller.next()) is not None:
            roller.begin(work)
            made = None
            try:
                made = await asyncio.to_thread(roller.build, work)
            finally:
                roller.end(work, made)
            if history.clock.monotonic() >= until:
                break
        stored = roller.snapshot()
        if stored != self._rolled:
            await asyncio.to_thread(roller.save, stored)
            self._rolled = stored

    async def merge_files(self) -> None:
        """Merge small files, of each kind for a while."""
        if self._history.clock.monotonic() < self._history.importing_until:
            return
        widths = {files.tier.name: tier_windows(files.tier.width) for files in self._history.roller.tiers}
        for tier, store in self._history.stores():
            await self._merge(store, BLOCK_WINDOWS if tier == RAW else widths[tier])

    async def _merge(self, store: SealedStore, windows: Sequence[int]) -> None:
        clock = self._history.clock
        until = clock.monotonic() + MERGE_SECONDS
        while inputs := next_merge(store.files, windows, clock.now_nanos()):
            made = await asyncio.to_thread(store.merge, inputs)
            if made is not None:
                store.replace(inputs, made)
            if clock.monotonic() >= until:
                return

    async def mend(self) -> None:
        """Make damaged blocks anew from what the log still holds, and the tiers where they are damaged."""
        await mend_files(self._history)
