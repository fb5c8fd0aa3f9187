"""The history of some shards split anew, offline: into folders of another number of shards, file by file.

What the logs hold beyond the blocks is sealed first, so that all there is stands in files. Each file is then written once for
every new shard, with the rows of its servers, and what the catalogues know goes with them. Logs begin anew after the blocks;
who follows them copies the state. New folders get their names last, when the checksums of all series have been compared: who
is killed before leaves the old ones as they are, and begins again.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from openmanager import datadir, durable, failpoint
from openmanager.errors import DataLossError, FailedPreconditionError
from openmanager.runtime.clock import Clock
from openmanager.shard import Shard, shards_of
from openmanager_timeseries import block, sealed, snapshot, span
from openmanager_timeseries.catalog import Catalog
from openmanager_timeseries.checksum import KEYS, checksums, differences
from openmanager_timeseries.config import TimeseriesConfig
from openmanager_timeseries.disk import PosixDisk
from openmanager_timeseries.history import CATALOG, History
from openmanager_timeseries.opening import open_history
from openmanager_timeseries.rollup_file import ROLLUPS, SKETCHES
from openmanager_timeseries.samples import Bools
from openmanager_timeseries.sealed import About, ByMetric, Format, Rows, Sealed, open_sealed
from openmanager_timeseries.tier import parse_tiers

# The end of the name of a folder that is being filled.
UNFINISHED = ".new"
RETENTION, ROLLED = "retention.json", "rollups.json"
Say = Callable[[str], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resharded:
    """What was split: series of all tiers and their rows, and the servers of each new shard."""

    series_count: int
    row_count: int
    server_counts: Sequence[int]


def check_places(sources: Sequence[Path], targets: Sequence[Path]) -> None:
    """Raise FailedPreconditionError unless the sources are all shards in order, and nothing is where the targets go."""
    for index, folder in enumerate(sources):
        if not (folder / "log").is_dir():
            raise FailedPreconditionError(f"{folder} holds no history")
        datadir.claim(folder)
        Shard(index, len(sources)).claim(folder)
    for folder in targets:
        if folder.exists() and any(folder.iterdir()):
            raise FailedPreconditionError(f"{folder} is not empty: history is split into new folders alone")


async def reshard(
    sources: Sequence[Path], targets: Sequence[Path], config: TimeseriesConfig, clock: Clock, say: Say
) -> Resharded:
    """Split the history of folders that no service uses; an error when what was written is not what was read."""
    check_places(sources, targets)
    for index, folder in enumerate(sources):
        say(f"sealing what the log of shard {index} holds")
        await _seal(folder, config, clock, Shard(index, len(sources)))
    return await asyncio.to_thread(_split, sources, targets, config, say)


async def _seal(folder: Path, config: TimeseriesConfig, clock: Clock, shard: Shard) -> None:
    """Bring all that a folder holds into files."""
    disk = await asyncio.to_thread(PosixDisk, folder / "log")
    async with open_history(replace(config, data_dir=folder), disk, clock, shard) as history:
        async with history.changing:
            await history.seal()
        damaged = [name for _, store in history.stores() for name in store.quarantined]
        if damaged:
            raise DataLossError(f"{len(damaged)} files of {folder} are damaged: mend them first, or delete them")
        await _rolled(history)
        await history.save_catalog(history.blocks.last)


async def _rolled(history: History) -> None:
    """Return when the buckets that are due are computed."""
    while not history.roller.is_done:  # noqa: ASYNC110  (nobody tells)
        await asyncio.sleep(0.05)
    async with history.changing:
        await asyncio.to_thread(history.roller.save, history.roller.snapshot())


def _split(sources: Sequence[Path], targets: Sequence[Path], config: TimeseriesConfig, say: Say) -> Resharded:
    unfinished = [folder.with_name(folder.name + UNFINISHED) for folder in targets]
    counts = []
    for index, folder in enumerate(unfinished):
        say(f"writing shard {index} of {len(targets)}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        counts.append(_write(sources, folder, Shard(index, len(targets)), config))
    say("comparing what was written with what was read")
    series, rows = _compare(sources, unfinished)
    for folder, target in zip(unfinished, targets, strict=True):
        if target.exists():
            target.rmdir()  # it is empty
        folder.rename(target)
        durable.sync(target.parent)
        failpoint.passed("reshard.amid-names")
    return Resharded(series_count=series, row_count=rows, server_counts=counts)


def _compare(sources: Sequence[Path], targets: Sequence[Path]) -> tuple[int, int]:
    """Return how many series there are and how many rows; DataLossError unless both hold the same."""
    before, after = (
        pa.concat_tables([_sums(folder) for folder in folders]).sort_by([(name, "ascending") for name in KEYS])
        for folders in (sources, targets)
    )
    wrong = differences(before, after)
    if wrong:
        raise DataLossError(
            f"{len(wrong)} series are not what they were, such as {wrong[0]}: the old folders are whole"
        )
    return len(after), pc.sum(after["row_count"]).as_py() or 0


def _sums(folder: Path) -> pa.Table:
    """Return the checksums of the files of a folder; those of a log are of what the files hold too."""
    table = checksums(folder).table
    return table.filter(pc.not_equal(table["tier"], "log"))


# ── one new shard ──────────────────────────────────────────────────────────────────────────────────────────────────


def _write(sources: Sequence[Path], folder: Path, shard: Shard, config: TimeseriesConfig) -> int:
    """Write what a shard owns of the sources; return how many servers it has."""
    shard.claim(folder)
    datadir.claim(folder)
    (folder / "log").mkdir(mode=0o750)
    last = _write_blocks(sources, folder / "blocks", shard)
    for tier in parse_tiers(config.tiers):
        _write_tier(sources, folder, tier.name, tier.width, shard)
    _write_rolled(sources, folder / ROLLED, last)
    retention = sources[0] / RETENTION
    if retention.exists():
        shutil.copyfile(retention, folder / RETENTION)
        durable.sync(folder / RETENTION)
    return _write_catalog(sources, folder / CATALOG, shard, config, last)


def _write_blocks(sources: Sequence[Path], folder: Path, shard: Shard) -> int:
    """Write the blocks, numbered anew as if each were a position of the log; return the last number."""
    folder.mkdir(mode=0o750)
    number = accepted = 0
    for file in _by_time([_files(source / "blocks") for source in sources]):
        through = accepted + _row_count(file, shard)
        about = About(first=number + 1, last=number + 1, accepted=through, spans=file.spans)
        if _part(file, _Into(folder, block.FORMAT, 1), about, shard) is not None:
            number, accepted = number + 1, through
    return number


def _row_count(file: Sealed, shard: Shard) -> int:
    """Return how many rows of a file are of servers of a shard."""
    found = 0
    with pq.ParquetFile(file.path) as source:
        for batch in source.iter_batches(columns=["server"]):
            servers, counts = batch["server"].cast(pa.string()).value_counts().flatten()
            found += int(counts.to_numpy()[shards_of(servers.to_pylist(), shard.count) == shard.index].sum())
    return found


def _write_tier(sources: Sequence[Path], folder: Path, name: str, width: int, shard: Shard) -> None:
    """Write the buckets and the sketches of a tier. What was computed together has one number, and keeps it."""
    kinds: Sequence[tuple[str, Format]] = (("tiers", ROLLUPS), ("sketches", SKETCHES))
    found = [[(kind, form, _files(source / kind / name)) for kind, form in kinds] for source in sources]
    for kind, _ in kinds:
        (folder / kind / name).mkdir(mode=0o750, parents=True)
    numbered = sorted(
        (
            (file.about.last, at, kind, form, file)
            for at, of in enumerate(found)
            for kind, form, files in of
            for file in files
        ),
        key=lambda each: each[:3],
    )
    number, before = 0, (0, -1)
    for last, at, kind, form, file in numbered:
        if (last, at) != before:
            number, before = number + 1, (last, at)
        about = About(first=number, last=number, spans=file.spans)
        _part(file, _Into(folder / kind / name, form, width), about, shard)


def _files(folder: Path) -> list[Sealed]:
    return [open_sealed(path) for path in sorted(folder.glob(f"*{sealed.SUFFIX}"))]


def _by_time(parts: Sequence[Sequence[Sealed]]) -> Iterator[Sealed]:
    """Yield files by the time of their rows, those of one source in their order: the later one counts."""
    return heapq.merge(*parts, key=lambda file: file.about.min_time)


class _Into(NamedTuple):
    """Where files of a kind go; `width` is that of buckets in nanoseconds, 1 for samples."""

    folder: Path
    kind: Format
    width: int


def _part(file: Sealed, into: _Into, about: About, shard: Shard) -> Sealed | None:
    """Write the rows of a file that are of servers of a shard; None where there are none."""
    names = sealed.server_names(into.kind, [file])
    owners = shards_of(names, shard.count)
    own = [name for name, owner in zip(names, owners.tolist(), strict=True) if owner == shard.index]
    if not own:
        return None
    owned = set(own)
    rank: Mapping[str, int] = {
        name: at for at, name in enumerate([*own, *(each for each in names if each not in owned)])
    }

    def keep(_: Sequence[str], servers: Sequence[str], rows: Rows) -> Bools:
        mask = np.fromiter((name in owned for name in servers), np.bool_, len(servers))
        kept: Bools = mask[rows.servers] if len(servers) else np.zeros(len(rows.times), np.bool_)
        return kept

    with ByMetric(into.kind, [file], rank, keep) as batches:
        some = (each for each in batches if len(each.rows.times))
        made = sealed.write(into.folder, into.kind, about, own, some, into.width)
    if not made.about.row_count:
        made.path.unlink()
        return None
    return made


def _write_rolled(sources: Sequence[Path], path: Path, position: int) -> None:
    """Write how far the tiers have come: what was still to be computed anywhere is."""
    dirty: dict[str, span.Spans] = {}
    for source in sources:
        stored = durable.load(source / ROLLED)
        for name, spans in stored["dirty"].items():
            dirty[name] = span.union((*dirty.get(name, ()), *((int(low), int(high)) for low, high in spans)))
    durable.replace(path, durable.encode({"position": position, "dirty": dirty}))


def _write_catalog(sources: Sequence[Path], path: Path, shard: Shard, config: TimeseriesConfig, position: int) -> int:
    catalog = Catalog(config.max_series)
    for source in sources:
        known = Catalog(config.max_series)
        snapshot.load(source / CATALOG, known)
        table = pq.read_table(source / CATALOG)
        servers = table["server"].to_pylist()
        snapshot.restore(catalog, table.filter(pa.array(shards_of(servers, shard.count) == shard.index)))
        catalog.learn(
            [info for server, info in known.infos.items() if shard.owns(server)], list(known.metric_infos.values())
        )
    snapshot.save(path, catalog, position)
    return len(catalog.servers)
