"""A folder of sealed files: what is in it, what is damaged, what is too old, what has been replaced by a merge."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from openmanager.runtime.clock import Clock
from openmanager_timeseries import sealed, span
from openmanager_timeseries.catalog import Catalog, Selection
from openmanager_timeseries.group_cache import GroupCache
from openmanager_timeseries.sealed import Format, Found, Keep, Sealed
from openmanager_timeseries.span import Spans

log = logging.getLogger(__name__)

DAMAGED = ".damaged"
# A query that was planned before a file was replaced may still read it: longer than any query takes.
LINGER_SECONDS = 60.0


class SealedStore:
    """The sealed files of one kind of one shard, ascending in their numbers."""

    def __init__(
        self,
        folder: Path,
        kind: Format,
        catalog: Catalog,
        clock: Clock,
        *,
        width: int = 1,
        cache: GroupCache | None = None,
    ) -> None:
        self.folder = folder
        # Of a bucket in nanoseconds; 1 for samples.
        self.width = width
        self.kind = kind
        self.files: tuple[Sealed, ...] = ()
        # The names of files that were set aside.
        self.quarantined: list[str] = []
        # How many were set aside so far, also those that have been made anew since.
        self.damages = 0
        self._catalog = catalog
        self._clock = clock
        self._cache = cache or GroupCache(0)
        self._replaced: list[tuple[float, Path]] = []
        # Those of them that nobody has tried to mend yet, with the times of their rows where these are known.
        self._unmended: dict[str, Spans] = {}
        # Those whose rows are being computed again from what is all there.
        self.mending: dict[str, Spans] = {}
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)

    def open(self) -> None:
        """Look at the folder (blocking). A file that is none of ours is set aside under another name, never deleted."""
        found: list[Sealed] = []
        for path in sorted(self.folder.iterdir()):
            if path.name.endswith(sealed.NEW):
                path.unlink()  # a crash came before its rename: what it was made of is still there
            elif path.suffix == sealed.SUFFIX:
                try:
                    found.append(sealed.open_sealed(path))
                except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
                    self._set_aside(path)
            elif path.name.endswith(DAMAGED):
                self.quarantined.append(path.name.removesuffix(DAMAGED))
                self._unmended[path.name.removesuffix(DAMAGED)] = ()
        for old in [each for each in found if any(_replaces(other, each) for other in found)]:
            found.remove(old)
            old.path.unlink()  # a crash came between a merge and the end of what it replaced
        self.files = tuple(found)

    def _set_aside(self, path: Path, spans: Spans = ()) -> None:
        log.error("the file %s of history is damaged and was set aside", path.name)
        self.quarantined.append(path.name)
        self.damages += 1
        self._unmended[path.name] = spans
        with contextlib.suppress(FileNotFoundError):  # somebody has deleted it
            path.rename(path.with_name(path.name + DAMAGED))

    @property
    def last(self) -> int:
        """The last number that is in a file, also in one that was set aside; 0 when there is none."""
        numbers = [each.about.last for each in self.files]
        for name in self.quarantined:
            try:
                numbers.append(sealed.Name.parse(name).last)
            except ValueError:  # somebody else's file
                continue
        return max(numbers, default=0)

    @property
    def size_bytes(self) -> int:
        """The bytes of all files."""
        return sum(each.size_bytes for each in self.files)

    @property
    def row_count(self) -> int:
        """The rows of all files."""
        return sum(each.about.row_count for each in self.files)

    @property
    def spans(self) -> Spans:
        """The times of the rows of all files."""
        return span.union(part for file in self.files for part in file.spans)

    def add(self, made: Sealed) -> None:
        """Make a new file readable."""
        self.files = (*self.files, made)

    def merge(self, inputs: Sequence[Sealed], keep: Keep | None = None) -> Sealed | None:
        """Write one file of neighbours (blocking); `replace` makes it readable in their stead.

        None when one of them is damaged: it is set aside then.
        """
        try:
            return sealed.merge(self.folder, self.kind, inputs, keep, self.width)
        except (pa.ArrowException, OSError):
            damaged = [file for file in inputs if not self._is_sound(file)]
            if not damaged:
                raise  # the disk is full, say
            for file in damaged:
                self.drop_damaged(file)
            return None

    def _is_sound(self, file: Sealed) -> bool:
        try:
            with sealed.Reader(file, self.kind) as reader:
                for index in range(len(file.groups)):
                    reader.group(index, self.kind.names)
        except (pa.ArrowException, OSError):
            return False
        return True

    def drop_damaged(self, file: Sealed) -> None:
        """Set a file aside, and answer without it."""
        self.files = tuple(each for each in self.files if each is not file)
        self._set_aside(file.path, file.spans)

    def take_damaged(self) -> dict[str, Spans]:
        """Return the names of files that were set aside since the last time, with the times of their rows if known."""
        found, self._unmended = self._unmended, {}
        return found

    def return_damaged(self, name: str, spans: Spans) -> None:
        """Let a file that was set aside be mended another time."""
        self._unmended[name] = spans

    def forget_damaged(self, name: str) -> None:
        """Delete a file that was set aside and has been made anew (blocking)."""
        self.quarantined = [each for each in self.quarantined if each != name]
        self.mending.pop(name, None)
        (self.folder / f"{name}{DAMAGED}").unlink(missing_ok=True)

    def drop_unsound(self, start: int, end: int) -> bool:
        """Set the damaged files with rows in [start, end) aside (blocking); say whether there were some."""
        damaged = [file for file in self.files if file.meets(start, end) and not self._is_sound(file)]
        for file in damaged:
            self.drop_damaged(file)
        return bool(damaged)

    def discard(self, file: Sealed) -> bool:
        """Delete a file that was written and is not wanted (blocking); say that it is gone."""
        file.path.unlink(missing_ok=True)
        return False

    def replace(self, inputs: Sequence[Sealed], made: Sealed | None) -> None:
        """Let a file stand for others, or nothing for them; they are deleted when no query can be reading them."""
        gone = {id(each) for each in inputs}
        kept = [each for each in self.files if id(each) not in gone]
        if made is not None:
            kept.append(made)
        self.files = tuple(sorted(kept, key=lambda each: each.about.first))
        now = self._clock.monotonic()
        self._replaced += [(now, each.path) for each in inputs]

    def delete_replaced(self, linger: float = LINGER_SECONDS) -> None:
        """Delete the files that were replaced a while ago (blocking)."""
        until = self._clock.monotonic() - linger
        while self._replaced and self._replaced[0][0] <= until:
            self._replaced[0][1].unlink(missing_ok=True)
            del self._replaced[0]

    def read(  # noqa: PLR0917
        self,
        file: Sealed,
        selection: Selection,
        start: int,
        end: int,
        names: tuple[str, ...],
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[Found]:
        """Yield a file's rows in [start, end); a damaged file is set aside and yields what was read before (blocking)."""
        metrics = self._catalog.metrics
        wanted = {metrics[index] for index in np.flatnonzero(selection.metrics).tolist()}
        try:
            with contextlib.ExitStack() as stack:
                reader: sealed.Reader | None = None
                for index, keys in enumerate(file.groups):
                    if wanted.isdisjoint(keys):
                        continue
                    check()
                    key = (file.path, index, names)
                    group = self._cache.get(key)
                    if group is None:
                        reader = reader or stack.enter_context(sealed.Reader(file, self.kind))
                        keep = self._cache.wants(key, file.group_bytes(index, len(names)))
                        group = reader.asked(index, names, self._catalog, None if keep else selection)
                        if keep:
                            self._cache.put(key, group)
                    found = group.find(selection, start, end)
                    if found is not None:
                        yield found
        except FileNotFoundError:
            return  # retention deleted it in between
        except (pa.ArrowException, OSError):
            self.drop_damaged(file)


def _replaces(new: Sealed, old: Sealed) -> bool:
    """Say whether a file holds all that another does: a merge of it with its neighbours, or a later revision."""
    if new is old or not (new.about.first <= old.about.first and old.about.last <= new.about.last):
        return False
    same = (new.about.first, new.about.last) == (old.about.first, old.about.last)
    return not same or new.about.revision > old.about.revision
