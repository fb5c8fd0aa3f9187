"""What can happen to the files of history while nobody has them open. `folder` is the data folder of timeseries."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from chaos.part import emptied

_DICE = random.Random(7)


def lose_positions(folder: Path) -> None:
    """Lose what says how far each consumer has come."""
    for file in (folder / "log").glob("positions.json*"):
        file.unlink()


def damage_positions(folder: Path) -> None:
    """Turn bits of what says how far each consumer has come."""
    _turn_bits(folder / "log" / "positions.json", 20)


def zero_tail(folder: Path) -> None:
    """Leave zeros after the last record of the log, as some file systems do after a power cut."""
    _append(_segments(folder)[-1], bytes(4096))


def torn_tail(folder: Path) -> None:
    """Leave a record that was never finished after the last one of the log."""
    segment = _segments(folder)[-1]
    _append(segment, segment.read_bytes()[-300:-100])


def damage_old_segment(folder: Path) -> None:
    """Turn bits in the oldest segment of the log, of which the blocks have everything already."""
    segments = _segments(folder)
    if len(segments) > 1:
        _turn_bits(segments[0], 20)


def lose_blocks(folder: Path) -> None:
    """Lose every block; the log still has the last minutes."""
    emptied(folder / "blocks")


def damage_block(folder: Path) -> None:
    """Turn a bit of the newest block."""
    if files := sorted((folder / "blocks").glob("*.parquet"), key=lambda file: file.stat().st_mtime):
        _turn_bits(files[-1], 1)


def truncate_block(folder: Path) -> None:
    """Cut off the end of the newest block."""
    if files := sorted((folder / "blocks").glob("*.parquet"), key=lambda file: file.stat().st_mtime):
        with files[-1].open("r+b") as file:
            file.truncate(files[-1].stat().st_size // 2)


CHANGES: dict[str, Callable[[Path], None]] = {
    change.__name__.replace("_", " "): change
    for change in (
        lose_positions,
        damage_positions,
        zero_tail,
        torn_tail,
        damage_old_segment,
        lose_blocks,
        damage_block,
        truncate_block,
    )
}


def _segments(folder: Path) -> list[Path]:
    return sorted((folder / "log").glob("*.log"))


def _append(file: Path, data: bytes) -> None:
    with file.open("ab") as out:
        out.write(data)


def _turn_bits(file: Path, count: int) -> None:
    data = bytearray(file.read_bytes())
    for _ in range(count if data else 0):
        data[_DICE.randrange(len(data))] ^= 1 << _DICE.randrange(8)
    file.write_bytes(data)
