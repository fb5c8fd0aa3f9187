"""Row groups of sealed files in memory, as they were read of late: dashboards ask for the same ones again and again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

import numpy as np

from openmanager_timeseries.sealed import Group

# One of this share of the cache would drive out too many others.
_LARGEST_SHARE = 8


class GroupCache:
    """At most `limit` bytes of row groups, those asked for last; may be used in any thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._groups: OrderedDict[Hashable, Group] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Group | None:
        """Return a row group that is held."""
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
            return self._groups.get(key)

    def put(self, key: Hashable, group: Group) -> None:
        """Hold a row group, unless it is too large or will not stay true: an unknown series may be known one day."""
        size = group.nbytes
        objects = any(column.dtype == np.object_ for column in group.values.values())  # of a size that is not known
        if size * _LARGEST_SHARE > self._limit or objects or (group.ids < 0).any():
            return
        with self._lock:
            if key in self._groups:
                return
            self._groups[key] = group
            self._nbytes += size
            while self._nbytes > self._limit:
                self._nbytes -= self._groups.popitem(last=False)[1].nbytes
