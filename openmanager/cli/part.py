"""Files that are not there before they are whole: `NAME.part` grows, a small file beside it says how far it is."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from openmanager.errors import FailedPreconditionError


class PartFile:
    """A file in the making. `state` is what its maker has to know to go on; what was written after it is cut off."""

    def __init__(self, path: Path, file: BinaryIO, state: dict[str, Any]) -> None:
        self.path = path
        self.state = state
        self.file = file

    @classmethod
    def begin(cls, path: Path, state: Mapping[str, Any]) -> Self:
        """Begin a file anew."""
        _side(path).unlink(missing_ok=True)
        return cls(path, _part(path).open("w+b"), dict(state))

    @classmethod
    def resume(cls, path: Path) -> Self:
        """Take up a file where it was left; FailedPreconditionError when there is nothing to take up."""
        try:
            state = json.loads(_side(path).read_bytes())
            file = _part(path).open("r+b")
        except (FileNotFoundError, ValueError) as err:
            raise FailedPreconditionError(f"there is no interrupted export to {path}") from err
        if file.seek(0, os.SEEK_END) < state["size_bytes"]:
            file.close()
            raise FailedPreconditionError(f"{_part(path)} is shorter than it was: begin anew with --force")
        file.truncate(state["size_bytes"])
        file.seek(state["size_bytes"])
        return cls(path, file, state)

    @classmethod
    def open(cls, path: Path, state: Mapping[str, Any], *, resume: bool, force: bool) -> Self:
        """Begin a file anew, or take one up; FailedPreconditionError for one that would be lost by that, unless forced."""
        if path.exists() and not force:
            raise FailedPreconditionError(f"{path} exists: --force overwrites it")
        if resume:
            return cls.resume(path)
        if cls.is_there(path) and not force:
            raise FailedPreconditionError(
                f"an interrupted export to {path} is there: --resume goes on with it, --force begins anew"
            )
        return cls.begin(path, state)

    def refuse(self) -> FailedPreconditionError:
        """Leave a file that was taken up and is of something else, and return the error that says so."""
        self.close()
        return FailedPreconditionError(
            f"the interrupted export to {self.path} is of something else: --force begins anew"
        )

    @staticmethod
    def is_there(path: Path) -> bool:
        """Say whether a file was left in the making."""
        return _side(path).exists()

    def write(self, data: bytes, **state: Any) -> None:
        """Append some bytes, and note the state that they bring."""
        self.file.write(data)
        self.file.flush()
        self.state.update(state, size_bytes=self.file.tell())
        aside = _side(self.path).with_suffix(".new")
        aside.write_text(json.dumps(self.state), encoding="utf-8")
        aside.replace(_side(self.path))

    def close(self) -> None:
        """Leave the file as it is; one that never held anything goes."""
        self.file.close()
        if not self.is_there(self.path):
            _part(self.path).unlink(missing_ok=True)

    def finish(self, whole: Path | None = None) -> None:
        """Give the file its name; `whole` is a file that was made of it and takes its place."""
        os.fsync(self.file.fileno())
        self.file.close()
        (whole or _part(self.path)).replace(self.path)
        _side(self.path).unlink(missing_ok=True)
        _part(self.path).unlink(missing_ok=True)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write, which gets its name when all of it is written; else nothing is left of it.

    It is begun at once, so that a place that cannot be written to is known before the work.
    """
    with told(path):
        if path.exists() and not path.is_file():
            raise FailedPreconditionError(f"{path} is no file")
        part = PartFile.begin(path.resolve(), {})
    try:
        yield part.file
        with told(path):
            part.file.flush()
            part.finish()
    finally:
        with contextlib.suppress(OSError):  # a full disk was told of already
            part.close()


def write(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all (blocking)."""
    with whole(path) as file, told(path):
        file.write(content)


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _side(path: Path) -> Path:
    return path.with_name(path.name + ".part.json")


@contextlib.contextmanager
def told(path: Path | None) -> Iterator[None]:
    """Turn what the system says of a file, or of standard output, into one sentence."""
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read has seen enough
    except OSError as err:
        why = (err.strerror or type(err).__name__).lower()
        raise FailedPreconditionError(f"{path or 'standard output'}: {why}") from err
