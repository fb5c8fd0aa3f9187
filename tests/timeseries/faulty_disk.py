"""A disk that remembers what was synced and what was not, and fails when it is told to.

It keeps two views, as an operating system does: the cache, which every call sees, and the platter, which is all that
is left after `power_loss`. A file's bytes come to the platter by `File.sync` or `Disk.sync(name)`, the names by
`Disk.sync()`; what was not synced comes there in part or not at all: pages in any order, names in the order in
which they changed (file systems keep a journal of them).
"""

import contextlib
import errno
import os
import random
import threading
from dataclasses import dataclass, field

PAGE = 100


class Crash(BaseException):
    """The process is dead: no call of this disk returns any more."""


@dataclass
class Inode:
    """A file. `dirty` are the ranges of `cache` that are not on the platter."""

    cache: bytearray = field(default_factory=bytearray)
    platter: bytearray = field(default_factory=bytearray)
    dirty: list[tuple[int, int]] = field(default_factory=list)

    def flush(self):
        for start, end in self.dirty:
            self._to_platter(start, min(end, len(self.cache)))
        self.dirty.clear()
        del self.platter[len(self.cache) :]

    def lose(self, rng):
        """Bring some of the dirty pages to the platter; after that the cache takes all of them for clean."""
        size = len(self.platter)
        for start, end in self.dirty:
            whole = rng.choice((end, rng.randint(start, end), rng.randint(start, end), start))
            for page in range(start, whole, PAGE):
                if rng.random() < 0.8:
                    self._to_platter(page, min(page + PAGE, whole, len(self.cache)))
            if rng.random() < 0.3:  # the new size is there, the bytes are not
                self.platter.extend(bytes(max(0, end - len(self.platter))))
        self.dirty.clear()
        if len(self.cache) < size and rng.random() < 0.5:  # the truncation came through
            del self.platter[len(self.cache) :]

    def _to_platter(self, start, end):
        self.platter.extend(bytes(max(0, end - len(self.platter))))
        self.platter[start:end] = self.cache[start:end]


@dataclass
class Fault:
    """Raises `error` (an errno, or Crash) at the `nth` call, from now on, of a kind; `times` calls in a row.

    Kinds are the methods of Disk and File, `sync_name`, `sync_names` and `rename` for the parts of Disk's, and `any`.
    """

    kind: str
    nth: int
    error: int | type[Crash]
    times: int = 1


class FaultyFile:
    """A descriptor."""

    def __init__(self, disk, inode):
        self._disk = disk
        self._inode = inode
        self._unfit = False
        self.closed = False

    def append(self, parts):
        content = b"".join(parts)
        with self._disk.call("append") as fault:
            room = self._disk.capacity - self._disk.used()
            whole = self._disk.rng.randint(0, len(content)) if fault.error else min(len(content), max(0, room))
            start = len(self._inode.cache)
            self._inode.cache += content[:whole]
            self._inode.dirty.append((start, start + whole))
            fault.strike()
            if whole < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self):
        if self._unfit:
            self._disk.violations.append("a descriptor was synced again after an error")
        if self._disk.gate is not None:
            self._disk.gate.wait(10)
        with self._disk.call("sync") as fault:
            self._disk.syncs += 1
            if fault.error:
                self._unfit = True
                if fault.error is not Crash:
                    self._inode.lose(self._disk.rng)
            fault.strike()
            self._inode.flush()

    def truncate(self, size):
        with self._disk.call("truncate") as fault:
            fault.strike()
            del self._inode.cache[size:]
            self._inode.dirty = [(start, min(end, size)) for start, end in self._inode.dirty if start < size]

    def close(self):
        with self._disk.call("close") as fault:
            self.closed = True
            fault.strike()


class _Call:
    """One call under the disk's lock; `strike` raises what is due."""

    def __init__(self, disk, kind):
        self._disk = disk
        self._kind = kind
        self.error = None

    def __enter__(self):
        self._disk.lock.acquire()
        if self._disk.dead:
            self._disk.lock.release()
            raise Crash
        self.error = self._disk.due(self._kind)
        return self

    def strike(self):
        if self.error is Crash:
            self._disk.dead = True
            raise Crash
        if self.error:
            raise OSError(self.error, os.strerror(self.error))

    def __exit__(self, *_):
        self._disk.lock.release()


class FaultyDisk:
    """A folder in memory."""

    def __init__(self, files=None, *, seed=0, capacity=1 << 40):
        self.lock = threading.RLock()
        self.rng = random.Random(seed)
        self.capacity = capacity
        self.names = {name: Inode(bytearray(raw), bytearray(raw)) for name, raw in (files or {}).items()}
        self.platter_names = dict(self.names)
        self._changes = []
        self.faults = []
        self.violations = []
        self.opened = []
        self.calls = 0
        self.syncs = 0
        self.dead = False
        self.gate = None  # a threading.Event: every File.sync waits for it

    # ── what the test does ─────────────────────────────────────────────────────────────────────────────────────────

    def call(self, kind):
        return _Call(self, kind)

    def due(self, kind):
        self.calls += 1
        for fault in list(self.faults):
            if fault.kind in {kind, "any"}:
                fault.nth -= 1
                if fault.nth <= 0:
                    fault.times -= 1
                    if fault.times <= 0:
                        self.faults.remove(fault)
                    return fault.error
        return None

    def fail(self, kind, error, *, nth=1, times=1):
        with self.lock:
            self.faults.append(Fault(kind, nth, error, times))

    def used(self):
        return sum(len(inode.cache) for inode in self.names.values())

    def kill(self):
        """The process dies; return the disk that the next one finds: all of the cache."""
        with self.lock:
            self.dead = True
            return self._next(self.names, self.platter_names, list(self._changes))

    def power_loss(self):
        """The machine dies; return the disk that is found: what was synced, and some of the rest."""
        with self.lock:
            self.dead = True
            names = dict(self.platter_names)
            for name, inode in self._changes[: self.rng.randint(0, len(self._changes))]:
                _change(names, name, inode)
            for inode in names.values():
                inode.lose(self.rng)
                inode.cache = bytearray(inode.platter)
            return self._next(names, dict(names), [])

    def _next(self, names, platter_names, changes):
        disk = FaultyDisk(seed=self.rng.getrandbits(32), capacity=self.capacity)
        disk.names, disk.platter_names, disk._changes = names, platter_names, changes
        disk.violations = self.violations
        return disk

    def content(self):
        return {name: bytes(inode.cache) for name, inode in self.names.items()}

    # ── the port ───────────────────────────────────────────────────────────────────────────────────────────────────

    def create(self, name):
        with self.call("create") as fault:
            if fault.error is not Crash or self.rng.random() < 0.5:
                fault.strike()
            inode = self.names.get(name)
            if inode is None:
                inode = Inode()
                self._set(name, inode)
            else:
                inode.cache.clear()
                inode.dirty.clear()
            fault.strike()
            file = FaultyFile(self, inode)
            self.opened.append(file)
            return file

    def read(self, name, offset, size):
        with self.call("read") as fault:
            fault.strike()
            if name not in self.names:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            return bytes(self.names[name].cache[offset : offset + size])

    def sizes(self):
        with self.call("sizes") as fault:
            fault.strike()
            return {name: len(inode.cache) for name, inode in self.names.items()}

    def remove(self, name):
        with self.call("remove") as fault:
            fault.strike()
            if name in self.names:
                self._set(name, None)

    def replace(self, name, content):
        """Take the same steps as on a real disk, so that each of them can fail."""
        aside = f"{name}.new"
        try:
            with contextlib.closing(self.create(aside)) as file:
                file.append([content])
                file.sync()
        except OSError:
            self.remove(aside)
            raise
        with self.call("rename") as fault:
            fault.strike()
            inode = self.names[aside]
            self._set(aside, None)
            self._set(name, inode)
        self.sync()

    def sync(self, name=""):
        with self.call("sync_name" if name else "sync_names") as fault:
            fault.strike()
            if name:
                self.names[name].flush()
            else:
                self.platter_names = dict(self.names)
                self._changes.clear()

    def free_bytes(self):
        with self.call("free_bytes") as fault:
            fault.strike()
            return max(0, self.capacity - self.used()), self.capacity

    def _set(self, name, inode):
        _change(self.names, name, inode)
        self._changes.append((name, inode))


def _change(names, name, inode):
    if inode is None:
        names.pop(name, None)
    else:
        names[name] = inode


class TickingClock:
    """Advances by a millisecond with every look."""

    def __init__(self, nanos=10**18):
        self.nanos = nanos

    def now_nanos(self):
        self.nanos += 1_000_000
        return self.nanos

    def monotonic(self):
        return self.nanos / 1e9
