"""Opening the history of a folder: the one place where its parts are put together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from openmanager.runtime.background import working
from openmanager.runtime.clock import Clock
from openmanager.shard import ALONE, Shard
from openmanager_timeseries import block, snapshot
from openmanager_timeseries.catalog import Catalog
from openmanager_timeseries.config import TimeseriesConfig
from openmanager_timeseries.disk import Disk
from openmanager_timeseries.erasure import Erasures
from openmanager_timeseries.group_cache import GroupCache
from openmanager_timeseries.history import CATALOG, History
from openmanager_timeseries.keeper import Keeper
from openmanager_timeseries.ledger import Ledger
from openmanager_timeseries.log import Log, LogOptions
from openmanager_timeseries.retention import Retention
from openmanager_timeseries.roller import Roller, TierFiles
from openmanager_timeseries.rollup_file import ROLLUPS, SKETCHES
from openmanager_timeseries.sealed_store import SealedStore
from openmanager_timeseries.tier import Tier, nanos, parse_tiers


@contextlib.asynccontextmanager
async def open_history(
    config: TimeseriesConfig, disk: Disk, clock: Clock, shard: Shard = ALONE
) -> AsyncIterator[History]:
    """Open the history of a folder: the blocks, the tiers, the catalogue, the log, and the head rebuilt from it."""
    folder: Path = config.data_dir
    catalog = Catalog(config.max_series)
    cache = GroupCache(config.read_cache_size)
    blocks = SealedStore(folder / "blocks", block.FORMAT, catalog, clock, cache=cache)
    widths = parse_tiers(config.tiers)
    tiers = [_tier_files(folder, tier, catalog, clock, cache) for tier in widths]
    await asyncio.to_thread(_open_files, folder, blocks, tiers, catalog)
    retention = Retention(
        tiers=widths, raw_retention=nanos(config.raw_retention), catalog=catalog, state=folder / "retention.json"
    )
    roller = Roller(
        tiers=tiers,
        blocks=blocks,
        catalog=catalog,
        clock=clock,
        state=folder / "rollups.json",
        sketch_metrics=[each.strip() for each in config.sketch_metrics.split(",") if each.strip()],
    )
    ledger = Ledger(disk, clock)
    books = ledger.open_books("blocks")
    if blocks.files and blocks.last > books.position:
        # A crash came between a block and the books.
        ledger.brought("blocks", blocks.last, blocks.files[-1].about.accepted)
        books.stand_at(blocks.last, blocks.files[-1].about.accepted)
    options = LogOptions(
        segment_size=config.segment_size, ballast_size=config.ballast_size, reserve=config.disk_reserve
    )
    floor = max(ledger.floor.position, blocks.last)
    accepted = max(ledger.floor.accepted, books.accepted)
    source = await Log.open(disk, options, clock, floor=floor, accepted=accepted)
    history = History(
        config=config,
        clock=clock,
        source=source,
        ledger=ledger,
        catalog=catalog,
        blocks=blocks,
        roller=roller,
        retention=retention,
        erasures=Erasures(folder / "erasures.json", source.state.head_position),
        shard=shard,
    )
    await history.replay()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(history.close)
        await stack.enter_async_context(working(Keeper(history, disk).keep()))
        yield history


def _tier_files(folder: Path, tier: Tier, catalog: Catalog, clock: Clock, cache: GroupCache) -> TierFiles:
    return TierFiles(
        tier=tier,
        buckets=SealedStore(folder / "tiers" / tier.name, ROLLUPS, catalog, clock, width=tier.width, cache=cache),
        sketches=SealedStore(folder / "sketches" / tier.name, SKETCHES, catalog, clock, width=tier.width),
    )


def _open_files(folder: Path, blocks: SealedStore, tiers: Sequence[TierFiles], catalog: Catalog) -> None:
    blocks.open()
    for files in tiers:
        files.buckets.open()
        files.sketches.open()
    position = snapshot.load(folder / CATALOG, catalog)
    for file in blocks.files:
        if file.about.last > position:
            snapshot.restore_from(catalog, file, block.FORMAT, "value")
    if position < 0:  # there is no stored catalogue: what has no raw samples stands in the tiers alone
        for files in tiers:
            for file in files.buckets.files:
                snapshot.restore_from(catalog, file, ROLLUPS, "last")
