"""Selections of series that are known by their ids."""

from __future__ import annotations

import numpy as np

from openmanager_timeseries.catalog import Catalog, Selection
from openmanager_timeseries.samples import Ints


def of_series(catalog: Catalog, ids: Ints) -> Selection:
    """Return the selection of some series and no others; its rows are in the order of `ids`."""
    servers, metrics = np.zeros(len(catalog.servers), np.bool_), np.zeros(len(catalog.metrics), np.bool_)
    servers[catalog.server_of(ids)] = True
    metrics[catalog.metric_of(ids)] = True
    rows = np.full(catalog.count, -1, np.int64)
    rows[ids] = np.arange(len(ids))
    return Selection(servers, metrics, ids, rows)
