"""Buckets that come ready-made: history that was never raw here, straight into the files of a tier."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from openmanager.errors import OutOfRangeError, Reason, ResourceExhaustedError, UnavailableError, invalid, missing
from openmanager.frame import EARLIEST_PLAUSIBLE_NANOS, LATEST_PLAUSIBLE_NANOS, Frame
from openmanager.rollup import COLUMNS, Grid, decode_grid
from openmanager.shield import shielded
from openmanager_timeseries import sealed, span
from openmanager_timeseries.catalog import Catalog
from openmanager_timeseries.history import History
from openmanager_timeseries.roller import TierFiles, better
from openmanager_timeseries.rollup_file import ROLLUPS
from openmanager_timeseries.samples import Bools, Floats, Ints
from openmanager_timeseries.sealed import About, Batch, ByMetric, Rows, Sealed
from openmanager_timeseries.series_index import Layout
from openmanager_timeseries.span import Spans
from openmanager_timeseries.upkeep import tier_windows

# Buckets that are gathered for one file, at most: some 130 MB.
FILE_BUCKETS = 2_000_000
# So long after the last file of an import its small files are left as they are.
QUIET_SECONDS = 15.0
# Sets of metrics that are compared with each other, at most.
_MAX_METRIC_SETS = 256

log = logging.getLogger(__name__)
Names = tuple[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What became of a request."""

    accepted: int
    rejected: int


@dataclass(slots=True)
class _Group:
    """Requests of the same names, ascending in time; all of them dense. `numbers` are those in the stream."""

    layout: Layout
    numbers: list[int] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    masks: list[Bools] = field(default_factory=list)
    last: int = np.iinfo(np.int64).min

    @property
    def names(self) -> Names:
        return self.grids[0].servers, self.grids[0].metrics

    @property
    def times(self) -> Ints:
        return np.concatenate([grid.times for grid in self.grids])

    def add(self, number: int, grid: Grid, there: Bools) -> None:
        self.numbers.append(number)
        self.grids.append(grid)
        self.masks.append(there)
        if len(grid.times):
            self.last = int(grid.times[-1])


@dataclass(slots=True)
class _Waiting:
    """Requests of one tier that wait for their file: no bucket stands in two of them."""

    files: TierFiles
    groups: dict[Names, _Group] = field(default_factory=dict)
    # The servers by the metrics that they have buckets of.
    servers: dict[tuple[str, ...], set[str]] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    size: int = 0
    window: int | None = None

    def takes(self, grid: Grid) -> bool:
        """Say whether a request can wait with the others: files end where those that they are merged to do."""
        window = tier_windows(self.files.tier.width)[-1]
        if len(grid.times) and self.window not in {None, int(grid.times[-1]) // window}:
            return False
        group = self.groups.get((grid.servers, grid.metrics))
        if group is not None:
            return not len(grid.times) or int(grid.times[0]) > group.last
        if len(self.servers) >= _MAX_METRIC_SETS and grid.metrics not in self.servers:
            return False
        metrics = set(grid.metrics)
        return all(
            servers.isdisjoint(grid.servers) or (keys != grid.metrics and metrics.isdisjoint(keys))
            for keys, servers in self.servers.items()
        )

    def add(self, layout: Layout, grid: Grid, there: Bools, asked: int) -> None:
        """Let a request wait that `takes` was true for; `asked` are the buckets that came in it."""
        group = self.groups.setdefault((grid.servers, grid.metrics), _Group(layout))
        group.add(len(self.asked), grid, there)
        if len(grid.times):
            self.window = int(grid.times[-1]) // tier_windows(self.files.tier.width)[-1]
        self.servers.setdefault(grid.metrics, set()).update(grid.servers)
        self.asked.append(asked)
        self.size += grid.columns["count"].size


class RollupImport:
    """The buckets of one stream."""

    def __init__(self, history: History) -> None:
        self._history = history
        # By tier, and the tier of each request in the order in which they came.
        self._waiting: dict[str, _Waiting] = {}
        self._order: list[str] = []
        # Where buckets came, by their names and by tier.
        self._brought: dict[Names, dict[int, Spans]] = {}
        self._flushing = False
        self._ended = False

    def add(self, data: bytes) -> bool:
        """Take a RollupFrame; False when what waits has to be written first.

        InvalidArgumentError or OutOfRangeError naming what is wrong with it, ResourceExhaustedError beyond the limits.
        """
        name, grid = decode_grid(data)
        files = self._tier(name, grid)
        waiting = self._waiting.get(name) or _Waiting(files)
        if not waiting.takes(grid):
            return False
        history = self._history
        history.shard.check(grid.servers)
        kept_from = history.retention.kept_from(name, history.clock.now_nanos())
        there: Bools = (grid.columns["count"] > 0) & (grid.times >= kept_from)[:, None, None]
        asked = int(np.count_nonzero(grid.columns["count"]))
        grid, there = _without_strangers(history.catalog, grid, there)
        layout = history.catalog.layout(grid.servers, grid.metrics)
        if history.catalog.admit(layout, np.any(there, axis=0)) is not None:
            raise _no_room()
        history.catalog.learn([each for each in grid.server_infos if each.id in grid.servers], grid.metric_infos)
        waiting.add(layout, grid, there, asked)
        self._waiting[name] = waiting
        self._order.append(name)
        return True

    @property
    def full(self) -> bool:
        """Whether enough waits for a file."""
        return sum(waiting.size for waiting in self._waiting.values()) >= FILE_BUCKETS

    def _tier(self, name: str, grid: Grid) -> TierFiles:
        if not name:
            raise missing("frame.tier")
        tiers = {files.tier.name: files for files in self._history.roller.tiers}
        if name not in tiers:
            raise invalid("frame.tier", f"must be one of {', '.join(tiers)}")
        if (grid.times % tiers[name].tier.width).any():
            raise invalid("frame.time_unix_nanos", f"must be multiples of {name}")
        if ((grid.times < EARLIEST_PLAUSIBLE_NANOS) | (grid.times > LATEST_PLAUSIBLE_NANOS)).any():
            raise OutOfRangeError(
                "frame.time_unix_nanos must be between 2000 and 2200",
                reason=Reason.TIME_OUT_OF_RANGE,
                field="frame.time_unix_nanos",
            )
        return tiers[name]

    async def flush(self) -> list[Taken]:
        """Write what waits; return what became of each request, in order.

        UnavailableError when the disk does not take it. What was begun goes on to its end, whoever waits for it.
        """
        waiting, self._waiting = self._waiting, {}
        order, self._order = self._order, []
        if not order:
            return []
        taken = {name: iter(found) for name, found in (await shielded(self._flush(waiting))).items()}
        return [next(taken[name]) for name in order]

    async def _flush(self, waiting: Mapping[str, _Waiting]) -> dict[str, list[Taken]]:
        self._flushing = True
        try:
            async with self._history.changing:
                return {name: await self._write(each) for name, each in waiting.items()}
        except OSError as err:
            raise UnavailableError("the buckets could not be written to disk", reason=Reason.STORE_UNAVAILABLE) from err
        finally:
            self._flushing = False
            if self._ended:
                self.finish()

    async def _write(self, waiting: _Waiting) -> list[Taken]:
        history = self._history
        history.importing_until = history.clock.monotonic() + QUIET_SECONDS
        self._note(waiting)
        # Before the file: should a crash come between, the coarser buckets are computed from what was written of it.
        await asyncio.to_thread(history.roller.save, history.roller.snapshot())
        made, taken = await asyncio.to_thread(_write, waiting)
        if made is not None:
            waiting.files.buckets.add(made)
            alive = history.catalog.alive
            for group in waiting.groups.values():
                _observe(history, group)
            if history.catalog.alive != alive or not history.catalog_saved:
                await history.save_catalog(history.blocks.last)
        return taken

    def _note(self, waiting: _Waiting) -> None:
        """Note where buckets come; coarser ones are not to be relied on there until the stream has ended."""
        roller, tier = self._history.roller, waiting.files.tier
        at = [files.tier.name for files in roller.tiers].index(tier.name)
        for names, group in waiting.groups.items():
            brought = self._brought.setdefault(names, {})
            spans = _spans(group.times, tier.width)
            brought[at] = span.union((*brought.get(at, ()), *spans))
            for coarser in range(at + 1, len(roller.tiers)):
                roller.expect(id(self), coarser, spans)

    def finish(self) -> None:
        """Have coarser buckets computed where nobody has sent them."""
        self._ended = True
        if self._flushing:
            return
        roller = self._history.roller
        roller.expect_no_more(id(self))
        for brought in self._brought.values():
            for at, spans in brought.items():
                for coarser in range(at + 1, len(roller.tiers)):
                    roller.mark_one(coarser, span.difference(spans, brought.get(coarser, ())))
        self._brought.clear()


def _spans(times: Ints, width: int) -> Spans:
    """Return the time of buckets."""
    times = np.unique(times)
    begins = np.flatnonzero(np.diff(times, prepend=times[:1] - 2 * width) > width)
    ends = np.append(begins[1:], len(times)) - 1
    return tuple(zip(times[begins].tolist(), (times[ends] + width).tolist(), strict=True)) if len(times) else ()


def _without_strangers(catalog: Catalog, grid: Grid, there: Bools) -> tuple[Grid, Bools]:
    """Return a grid, and where in it buckets are, bool[T, S, M], without the names that no bucket is of."""
    present: Bools = np.any(there, axis=0)
    servers, metrics = catalog.names_for(grid.servers, grid.metrics, present, catalog.room)
    if (present & ~(servers[:, None] & metrics[None, :])).any():
        raise _no_room()
    if servers.all() and metrics.all():
        return grid, there
    kept = replace(
        grid,
        servers=tuple(compress(grid.servers, servers)),
        metrics=tuple(compress(grid.metrics, metrics)),
        columns={name: column[:, servers][:, :, metrics] for name, column in grid.columns.items()},
    )
    return kept, there[:, servers][:, :, metrics]


def _no_room() -> ResourceExhaustedError:
    return ResourceExhaustedError("there is no room for more series", reason=Reason.SERIES_LIMIT)


def _observe(history: History, group: _Group) -> None:
    """Let series that have buckets alone be found; their newest sample is dated to the start of its bucket."""
    times, there = group.times, np.concatenate(group.masks)
    if not there.any():
        return
    newest = len(times) - 1 - there[::-1].argmax(axis=0)
    lasts = np.concatenate([grid.columns["last"] for grid in group.grids])
    servers, metrics = group.names
    for at in np.unique(newest[there.any(axis=0)]).tolist():
        values = np.where((newest == at) & there[at], lasts[at], np.nan)
        frame = Frame(times=times[at : at + 1], servers=servers, metrics=metrics, values=values[None])
        history.catalog.observe(group.layout, frame)


def _write(waiting: _Waiting) -> tuple[Sealed | None, list[Taken]]:
    """Write a file (blocking); the file, if there was something for it, and what became of each request."""
    store, width = waiting.files.buckets, waiting.files.tier.width
    spans = span.union(part for group in waiting.groups.values() for part in _spans(group.times, width))
    while True:
        existing = [file for file in store.files if any(file.meets(*each) for each in spans)]
        try:
            made, written = _written(waiting, existing, spans)
            break
        except (pa.ArrowException, OSError):
            if not any(store.drop_unsound(*each) for each in spans):
                raise  # the disk is full, say
    taken = [
        Taken(accepted=accepted, rejected=asked - accepted)
        for accepted, asked in zip(written.tolist(), waiting.asked, strict=True)
    ]
    if not made.about.row_count:
        store.discard(made)
        return None, taken
    return made, taken


def _written(waiting: _Waiting, existing: Sequence[Sealed], spans: Spans) -> tuple[Sealed, Ints]:
    """Write a file; it and how many buckets of each request went into it."""
    store, number = waiting.files.buckets, waiting.files.number()
    servers = sorted(set().union(*waiting.servers.values(), sealed.server_names(ROLLUPS, existing)))
    rank = {name: code for code, name in enumerate(servers)}
    written = np.zeros(len(waiting.asked), np.int64)
    with ByMetric(ROLLUPS, existing, rank) as old:

        def batches() -> Iterator[Batch]:
            for key, rows in _by_metric(waiting, rank):
                kept = better(rows, old.rows(key), new_only=True) if existing else rows
                columns = dict(kept.values)
                np.add.at(written, columns.pop("request"), 1)
                yield Batch([key], kept._replace(values=columns))

        about = About(first=number, last=number, spans=spans)
        return sealed.write(store.folder, ROLLUPS, about, servers, batches(), store.width), written


def _by_metric(waiting: _Waiting, rank: dict[str, int]) -> Iterator[tuple[str, Rows]]:
    """Yield the rows of each metric, by server and time, metrics in the order of their keys.

    Besides the columns of a bucket they have `request`, the number of the request that each is of.
    """
    places: dict[str, list[tuple[_Laid, int]]] = {}
    for group in waiting.groups.values():
        laid = _Laid.of(group, rank)
        for at, key in enumerate(group.names[1]):
            places.setdefault(key, []).append((laid, at))
    for key in sorted(places):
        parts = [laid.rows(at) for laid, at in places[key]]
        yield key, _joined(parts) if len(parts) > 1 else parts[0]


def _joined(parts: Sequence[Rows]) -> Rows:
    rows = Rows(
        np.concatenate([part.metrics for part in parts]),
        np.concatenate([part.servers for part in parts]),
        np.concatenate([part.times for part in parts]),
        {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values},
    )
    return rows.take(np.lexsort((rows.times, rows.servers)))


@dataclass(frozen=True, slots=True, eq=False)
class _Laid:
    """A group as it is laid out in a file: servers in the order of their codes."""

    codes: Ints
    times: Ints
    requests: Ints
    there: Bools  # bool[M, S, T]
    columns: Mapping[str, Floats]  # float64[M, S, T]

    @classmethod
    def of(cls, group: _Group, rank: dict[str, int]) -> _Laid:
        codes = np.asarray([rank[name] for name in group.names[0]], np.int64)
        order = np.argsort(codes)
        requests = np.repeat(group.numbers, [len(grid.times) for grid in group.grids])
        there = _turned(group.masks, order)
        columns = {name: _turned([grid.columns[name] for grid in group.grids], order) for name in COLUMNS}
        return cls(codes[order], group.times, requests, there, columns)

    def rows(self, at: int) -> Rows:
        """Return the buckets of one metric."""
        present = self.there[at]
        shape = present.shape
        columns = {name: column[at][present] for name, column in self.columns.items()}
        return Rows(
            np.zeros(int(present.sum()), np.int64),
            np.broadcast_to(self.codes[:, None], shape)[present],
            np.broadcast_to(self.times, shape)[present],
            {**columns, "request": np.broadcast_to(self.requests, shape)[present]},
        )


def _turned(parts: Sequence[NDArray[Any]], order: Ints) -> NDArray[Any]:
    """Return arrays [T, S, M] one after the other as [M, S, T], the servers in some order."""
    servers, metrics = parts[0].shape[1:]
    out = np.empty((metrics, servers, sum(len(part) for part in parts)), parts[0].dtype)
    at = 0
    for part in parts:  # each is small enough to be turned in the cache
        out[:, :, at : at + len(part)] = part.transpose(2, 1, 0)[:, order]
        at += len(part)
    return out
