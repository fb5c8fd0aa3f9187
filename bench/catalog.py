"""Rows of the catalogue at half a million series: pages, selections, growth, bytes."""

from __future__ import annotations

import itertools
import time
import tracemalloc

import numpy as np
from openmanager_timeseries.catalog import Catalog
from openmanager_timeseries.series_page import series_page

from bench.data import names
from bench.pair import Row, at_most, pairs, timed
from openmanager import page
from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.frame import Frame, metric_message

SERVERS, METRICS = 1000, 500
_SHAPE = f"{SERVERS:,} × {METRICS}"
_ALL = ((), "", ())
_HEAD = provenance_pb2.Provenance(source="head")


def catalog() -> list[Row]:
    """The catalogue of 1,000 servers that each send their own frames of 500 metrics."""
    tracemalloc.start()
    series = Catalog(10_000_000)
    ids, keys = names(SERVERS, METRICS)
    order = np.random.default_rng(1).permutation(SERVERS).tolist()
    for at in order:
        _write(series, (ids[at],), tuple(str(bytearray(key, "utf-8"), "utf-8") for key in keys))
    series.ordered(*_ALL)
    size = tracemalloc.get_traced_memory()[0] / series.count
    tracemalloc.stop()
    return [
        at_most(f"catalogue, {_SHAPE}, bytes/series with all names and layouts", (size, 100, size / 100), 1, "B", 1),
        _last_page(series),
        *_selections(series, keys),
        _growth(series),
    ]


def _write(series: Catalog, servers: tuple[str, ...], keys: tuple[str, ...]) -> None:
    values = np.ones((1, len(servers), len(keys)))
    layout = series.layout(servers, keys)
    series.admit(layout, np.ones(values.shape[1:], np.bool_))
    series.observe(layout, Frame(times=np.array([10**18]), servers=servers, metrics=keys, values=values))


def _last_page(series: Catalog) -> Row:
    """The page of 100 at the end against building its message and nothing else."""
    servers, keys = series.names(series.ordered(*_ALL)[-101:])
    token = page.encode_token(_ALL, [servers[0], keys[0]])

    def bare() -> None:
        response = pb.ListSeriesResponse()
        for server, key in zip(servers[1:], keys[1:], strict=True):
            row = response.series.add(server=server, metric=key, metric_info=metric_message(series.metric_info(key)))
            row.last_time.FromNanoseconds(10**18)

    figures = pairs(lambda: timed(lambda: series_page(series, _ALL, 100, token, _HEAD)), lambda: timed(bare))
    return at_most(f"ListSeries, the last 100 of {_SHAPE}, against building the message", figures, 2, "ms", 1e3)


def _selections(series: Catalog, keys: tuple[str, ...]) -> list[Row]:
    """Selections that were not made before against looking up one mask for every series."""
    column, mask = series.metric_of(np.arange(series.count)), np.zeros(METRICS, np.bool_)
    some, globs, servers = (itertools.cycle(range(METRICS)) for _ in range(3))

    def one_metric() -> None:
        series.select((), "", (keys[next(some)],))

    def glob() -> None:
        series.select((), "", (f"system.*{{cpu=*{next(globs)}}}",))

    def one_server() -> None:
        series.select((series.servers[next(servers)],), "", ())

    found = []
    for name, work, goal in (("one metric", one_metric, 5), ("a glob", glob, 10), ("one server", one_server, 1)):
        figures = pairs(lambda work=work: timed(work), lambda: timed(lambda: np.flatnonzero(mask[column])))
        found.append(at_most(f"select {name} of {_SHAPE}, against one look-up for each", figures, goal, "ms", 1e3))
    return found


def _growth(series: Catalog) -> Row:
    """10,000 series more, in frames of 500, and a selection after them, against sorting half a million numbers."""
    keys = np.random.default_rng(2).permutation(series.count)
    _, metrics = names(1, METRICS)
    fresh = itertools.count()

    def grow() -> float:
        start = time.perf_counter()
        for _ in range(10_000 // METRICS):
            _write(series, (f"new-{next(fresh):05d}",), metrics)
        series.select((), "", metrics[:1])
        return time.perf_counter() - start

    figures = pairs(grow, lambda: timed(lambda: np.argsort(keys, kind="stable")))
    return at_most(f"10,000 series more than {_SHAPE}, against sorting as many numbers", figures, 1, "ms", 1e3)
