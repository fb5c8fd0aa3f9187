"""The folder of blocks: what is in it, what is damaged, what is too old."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from openmanager_timeseries import block as parquet
from openmanager_timeseries.block import Block
from openmanager_timeseries.catalog import Catalog, Selection
from openmanager_timeseries.head import Generation
from openmanager_timeseries.samples import Long

log = logging.getLogger(__name__)

DAMAGED = ".damaged"


class BlockStore:
    """The blocks of one shard, by position; the `RawSource` that is always there."""

    name = "blocks"

    def __init__(self, folder: Path, catalog: Catalog) -> None:
        self._folder = folder
        self._catalog = catalog
        self.blocks: tuple[Block, ...] = ()
        self.quarantined: list[str] = []
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)

    def open(self) -> None:
        """Look at the folder (blocking). A file that is no block is set aside under another name, never deleted."""
        found = []
        for path in sorted(self._folder.iterdir()):
            if path.name.endswith(".new"):
                path.unlink()  # a crash came before its rename: the log still has it
            elif path.suffix == parquet.SUFFIX:
                try:
                    found.append(parquet.open_block(path))
                except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
                    self._set_aside(path)
            elif path.name.endswith(DAMAGED):
                self.quarantined.append(path.name.removesuffix(DAMAGED))
        self.blocks = tuple(found)

    def _set_aside(self, path: Path) -> None:
        log.error("block %s is damaged and was set aside", path.name)
        self.quarantined.append(path.name)
        path.rename(path.with_name(path.name + DAMAGED))

    @property
    def sealed_position(self) -> int:
        """The last log position that is in a block, also in one that was set aside; 0 when there is none."""
        names = [block.path.name for block in self.blocks] + self.quarantined
        return max((int(name.removesuffix(parquet.SUFFIX).rpartition("-")[2]) for name in names), default=0)

    @property
    def size_bytes(self) -> int:
        """The bytes of all blocks."""
        return sum(block.size_bytes for block in self.blocks)

    def seal(self, generation: Generation) -> Block:
        """Write a closed generation into a block (blocking)."""
        return parquet.write(self._folder, generation, self._catalog)

    def add(self, block: Block) -> None:
        """Make a sealed block readable."""
        self.blocks = (*self.blocks, block)

    def delete_before(self, time: int) -> int:
        """Delete the blocks whose samples are all older than `time` (blocking); return how many."""
        old = [block for block in self.blocks if block.max_time < time]
        self.blocks = tuple(block for block in self.blocks if block.max_time >= time)
        for block in old:
            block.path.unlink(missing_ok=True)
        return len(old)

    def covering(self, start: int, end: int, before_position: int) -> tuple[Block, ...]:
        """Return the blocks with samples in [start, end) and log positions before the given one."""
        return tuple(
            block
            for block in self.blocks
            if block.first_position < before_position and block.max_time >= start and block.min_time < end
        )

    def read_block(
        self, block: Block, selection: Selection, start: int, end: int, check: Callable[[], None]
    ) -> Iterator[Long]:
        """Yield a block's samples; a damaged one is set aside and yields what was read before (blocking)."""
        try:
            yield from parquet.read(block, self._catalog, selection, start, end, check=check)
        except FileNotFoundError:
            return  # retention deleted it in between
        except (pa.ArrowException, OSError):
            self.blocks = tuple(each for each in self.blocks if each is not block)
            self._set_aside(block.path)

    def read(self, selection: Selection, start: int, end: int, *, check: Callable[[], None]) -> Iterator[Long]:
        """Yield the samples of a selection in [start, end) nanoseconds from every block."""
        for block in self.covering(start, end, 1 << 62):
            yield from self.read_block(block, selection, start, end, check)
