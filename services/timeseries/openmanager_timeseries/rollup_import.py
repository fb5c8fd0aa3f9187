"""Buckets that come ready-made: history that was never raw here, straight into the files of a tier."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from openmanager.errors import OutOfRangeError, Reason, ResourceExhaustedError, invalid, missing
from openmanager.frame import EARLIEST_PLAUSIBLE_NANOS, LATEST_PLAUSIBLE_NANOS, Frame
from openmanager.rollup import COLUMNS, Grid, decode_grid
from openmanager_timeseries import sealed, span
from openmanager_timeseries.catalog import Layout
from openmanager_timeseries.history import History
from openmanager_timeseries.roller import TierFiles, better
from openmanager_timeseries.rollup_file import ROLLUPS
from openmanager_timeseries.samples import Bools, Floats, Ints
from openmanager_timeseries.sealed import About, Batch, ByMetric, Rows, Sealed
from openmanager_timeseries.span import Spans

# Buckets that are gathered for one file, at most: some 200 MB.
FILE_BUCKETS = 3_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What became of a request."""

    accepted: int
    rejected: int


@dataclass(slots=True)
class _Waiting:
    """Requests of one tier and one set of names that wait for their file; all of them dense."""

    files: TierFiles
    layout: Layout
    grids: list[Grid] = field(default_factory=list)
    masks: list[Bools] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(grid.columns["count"].size for grid in self.grids)


class RollupImport:
    """The buckets of one stream."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._waiting: _Waiting | None = None
        self._imported: dict[str, Spans] = {}

    def add(self, data: bytes) -> bool:
        """Take a RollupFrame; False when what waits has to be written first.

        InvalidArgumentError or OutOfRangeError naming what is wrong with it, ResourceExhaustedError beyond the limits.
        """
        name, grid = decode_grid(data)
        files = self._tier(name, grid)
        history = self._history
        layout = history.catalog.layout(grid.servers, grid.metrics)
        waiting = self._waiting
        if waiting is not None and not (
            waiting.files is files and waiting.layout is layout and _follows(waiting, grid)
        ):
            return False
        if waiting is None:
            waiting = self._waiting = _Waiting(files, layout)
        there: Bools = grid.columns["count"] > 0
        refused = history.catalog.admit(layout, np.any(there, axis=0))
        if refused is not None:
            raise ResourceExhaustedError("there is no room for more series", reason=Reason.SERIES_LIMIT)
        history.catalog.learn(grid.server_infos, grid.metric_infos)
        kept_from = history.retention.kept_from(name, history.clock.now_nanos())
        there &= (grid.times + files.tier.width > kept_from)[:, None, None]
        waiting.grids.append(grid)
        waiting.masks.append(there)
        return True

    @property
    def full(self) -> bool:
        """Whether enough waits for a file."""
        return self._waiting is not None and self._waiting.size >= FILE_BUCKETS

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
        """Write what waits; return what became of each request, in order."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return []
        history = self._history
        known = history.catalog.count
        async with history.changing:
            made, taken = await asyncio.to_thread(_write, waiting)
            if made is not None:
                waiting.files.buckets.add(made)
                spans = self._imported.get(waiting.files.tier.name, ())
                self._imported[waiting.files.tier.name] = span.union((*spans, *made.spans))
        _observe(history, waiting)
        if made is not None and history.catalog.count > known:
            await history.save_catalog(history.blocks.last)
        return taken

    def finish(self) -> None:
        """Have coarser tiers computed where nobody has sent their buckets."""
        tiers = self._history.roller.tiers
        for at, files in enumerate(tiers[:-1]):
            imported = self._imported.get(files.tier.name, ())
            for coarser in range(at + 1, len(tiers)):
                there = span.union(part for file in tiers[coarser].buckets.files for part in file.spans)
                self._history.roller.mark_one(coarser, span.difference(imported, there))


def _follows(waiting: _Waiting, grid: Grid) -> bool:
    return not len(grid.times) or all(
        not len(each.times) or each.times[-1] < grid.times[0] for each in waiting.grids[-1:]
    )


def _observe(history: History, waiting: _Waiting) -> None:
    """Let series that have buckets alone be found; their newest sample is dated to the start of its bucket."""
    times = np.concatenate([grid.times for grid in waiting.grids])
    there = np.concatenate(waiting.masks)
    if not there.any():
        return
    newest = len(times) - 1 - there[::-1].argmax(axis=0)
    lasts = np.concatenate([grid.columns["last"] for grid in waiting.grids])
    first = waiting.grids[0]
    for at in np.unique(newest[there.any(axis=0)]).tolist():
        values = np.where((newest == at) & there[at], lasts[at], np.nan)
        frame = Frame(times=times[at : at + 1], servers=first.servers, metrics=first.metrics, values=values[None])
        history.catalog.observe(waiting.layout, frame)


def _write(waiting: _Waiting) -> tuple[Sealed | None, list[Taken]]:
    """Write a file (blocking); the file, if there was something for it, and what became of each request."""
    times = np.concatenate([grid.times for grid in waiting.grids])
    there = np.concatenate(waiting.masks)
    store = waiting.files.buckets
    first = waiting.grids[0]
    spans = span.union((time, time + waiting.files.tier.width) for time in times.tolist())
    existing = [file for file in store.files if any(file.meets(*each) for each in spans)]
    servers = sorted({*first.servers, *sealed.server_names(ROLLUPS, existing)})
    rank = {name: code for code, name in enumerate(servers)}
    written = np.zeros(len(times), np.int64)  # by time
    number = waiting.files.number()
    with ByMetric(ROLLUPS, existing, rank) as old:

        def batches() -> Iterator[Batch]:
            for key, rows in _by_metric(waiting, times, there, rank):
                kept = better(rows, old.rows(key), new_only=True) if existing else rows
                np.add.at(written, np.searchsorted(times, kept.times), 1)
                yield Batch([key], kept)

        made = sealed.write(store.folder, ROLLUPS, About(first=number, last=number, spans=spans), servers, batches())
    taken, at = [], 0
    for grid in waiting.grids:
        accepted = int(written[at : at + len(grid.times)].sum())
        asked = int(np.count_nonzero(grid.columns["count"]))
        taken.append(Taken(accepted=accepted, rejected=asked - accepted))
        at += len(grid.times)
    if not made.about.row_count:
        store.discard(made)
        return None, taken
    return made, taken


def _by_metric(waiting: _Waiting, times: Ints, there: Bools, rank: dict[str, int]) -> Iterator[tuple[str, Rows]]:
    """Yield the rows of each metric, by server and time, metrics in the order of their keys."""
    first = waiting.grids[0]
    codes = np.asarray([rank[name] for name in first.servers], np.int64)
    order = np.argsort(codes)
    for at in sorted(range(len(first.metrics)), key=first.metrics.__getitem__):
        present = there[:, order, at].T
        columns = {
            name: _column([grid.columns[name] for grid in waiting.grids], order, at)[present] for name in COLUMNS
        }
        shape = present.shape
        yield (
            first.metrics[at],
            Rows(
                np.zeros(int(present.sum()), np.int64),
                np.broadcast_to(codes[order][:, None], shape)[present],
                np.broadcast_to(times, shape)[present],
                columns,
            ),
        )


def _column(columns: Sequence[Floats], order: Ints, at: int) -> Floats:
    """Return one column of one metric: float64[S, T]."""
    return np.concatenate([column[:, order, at] for column in columns]).T
