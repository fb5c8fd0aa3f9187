"""Row groups of sealed files in memory, as they were read of late: dashboards ask for the same ones again and again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

import numpy as np

from openmanager_timeseries.sealed import Group

# One of this share of the cache would drive out too many others.
_LARGEST_SHARE = 8
_REMEMBERED = 4096  # that were asked for and are not held


class GroupCache:
    """At most `limit` bytes of row groups, those asked for last; may be used in any thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._groups: OrderedDict[Hashable, Group] = OrderedDict()
        # Those that are not held, and whether they would be when they are asked for again.
        self._asked: OrderedDict[Hashable, bool] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Group | None:
        """Return a row group that is held."""
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
            return self._groups.get(key)

    def wants(self, key: Hashable, size: int) -> bool:
        """Say whether a row group that is not held, of about `size` bytes, should be: it is asked for a second time.

        What is asked for once, as by an export, would drive out what is asked for often.
        """
        if size * _LARGEST_SHARE > self._limit:
            return False
        with self._lock:
            wanted = self._asked.get(key, False)
            self._asked.setdefault(key, True)
            self._asked.move_to_end(key)
            if len(self._asked) > _REMEMBERED:
                self._asked.popitem(last=False)
            return wanted

    def put(self, key: Hashable, group: Group) -> None:
        """Hold a row group, unless it will not stay true: an unknown series may be known one day."""
        objects = any(column.dtype == np.object_ for column in group.values.values())  # of a size that is not known
        with self._lock:
            if objects or (group.ids < 0).any():
                self._asked[key] = False
                return
            if key in self._groups:
                return
            self._groups[key] = group
            self._nbytes += group.nbytes
            while self._nbytes > self._limit:
                self._nbytes -= self._groups.popitem(last=False)[1].nbytes
