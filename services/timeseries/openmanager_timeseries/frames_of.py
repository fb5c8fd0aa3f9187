"""Frames made of the rows of a block, for whoever takes frames: an engine that is filled, a migration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from openmanager.frame import Frame
from openmanager_timeseries.block import FORMAT
from openmanager_timeseries.samples import Ints
from openmanager_timeseries.sealed import Reader, Rows, Sealed

# Cells of one frame, about.
FRAME_CELLS = 250_000


def frames_of(file: Sealed) -> Iterator[Frame]:
    """Yield the samples of a block as frames, a row group at a time (blocking)."""
    with Reader(file, FORMAT) as reader:
        for index in range(len(file.groups)):
            yield from frames_of_rows(*reader.group(index, FORMAT.names))


def frames_of_rows(metrics: Sequence[str], servers: Sequence[str], rows: Rows) -> Iterator[Frame]:
    """Yield rows as frames: of all servers together where they have the same times, else of each alone."""
    if not len(rows.times):
        return
    times = np.unique(rows.times)
    if len(times) * len(servers) * len(metrics) <= 2 * len(rows.times):
        yield from _dense(metrics, servers, rows, times)
        return
    order = np.argsort(rows.servers, kind="stable")
    rows = rows.take(order)
    begins = np.searchsorted(rows.servers, np.arange(len(servers) + 1)).tolist()
    for code, server in enumerate(servers):
        some = rows.take(slice(begins[code], begins[code + 1]))
        if len(some.times):
            alone = some._replace(servers=np.zeros(len(some.times), np.int64))
            yield from _dense(metrics, [server], alone, np.unique(some.times))


def _dense(metrics: Sequence[str], servers: Sequence[str], rows: Rows, times: Ints) -> Iterator[Frame]:
    """Yield frames of a few times each, with the names that have samples."""
    ticks = max(1, FRAME_CELLS // (len(servers) * len(metrics)))
    places = np.searchsorted(times, rows.times)
    for first in range(0, len(times), ticks):
        some = times[first : first + ticks]
        at = np.flatnonzero((places >= first) & (places < first + len(some)))
        values = np.full((len(some), len(servers), len(metrics)), np.nan)
        values[places[at] - first, rows.servers[at], rows.metrics[at]] = rows.values["value"][at]
        yield Frame(times=some, servers=tuple(servers), metrics=tuple(metrics), values=values)
