"""Buckets of an engine's samples, computed by us where it does not compute them as we do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from openmanager_timeseries.aggregate import aggregate, bucket_starts
from openmanager_timeseries.engines.port import Coded, Wanted
from openmanager_timeseries.samples import Ragged


def reduced(samples: Coded, wanted: Wanted, step: int, aggregation: str) -> Coded:
    """Return aggregates over buckets of `step` ns; their range is that of `wanted`, their series are in order."""
    series = samples.server_codes * len(samples.metrics) + samples.metric_codes
    order = np.argsort(series, kind="stable")
    found, counts = np.unique(series, return_counts=True)
    ragged = Ragged(np.append(0, np.cumsum(counts)), samples.times[order], samples.values[order])
    starts, rows = bucket_starts(wanted.start, wanted.end, step), np.arange(len(found))
    with np.errstate(over="ignore"):  # a sum may be infinite, as that of an engine is
        dense = aggregate(
            ragged, aggregation, starts=starts, step=step, groups=rows, delta=np.zeros(len(rows), np.bool_)
        )
    row, bucket = np.nonzero(~np.isnan(dense))
    servers, metrics = np.divmod(found[row], len(samples.metrics))
    return replace(samples, server_codes=servers, metric_codes=metrics, times=starts[bucket], values=dense[row, bucket])
