"""The state of a detector in a file: numpy's own format, without pickle, with a version."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

VERSION = 2
_VERSION_KEY = "version"


def write(file: IO[bytes], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays, one after the other: there is no copy of them all."""
    named: dict[str, Any] = {_VERSION_KEY: np.array(VERSION), **arrays}
    np.savez(file, **named)


def read(file: IO[bytes]) -> dict[str, NDArray[Any]]:
    """Return the arrays again. Raises ValueError for damage or another version."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError("the state of the detector is damaged") from error
    version = arrays.pop(_VERSION_KEY, None)
    if version is None or version.shape or int(version) != VERSION:
        raise ValueError(f"the state of the detector is not of version {VERSION}")
    return arrays


def carry(known: object, fresh: object, fields: Sequence[str]) -> None:
    """Give arrays of a part to one of more series: the last axis is the series', where there is a difference."""
    for field in fields:
        old, new = getattr(known, field), getattr(fresh, field)
        if old.shape == new.shape or not new.size:  # what is empty at first is no series'
            setattr(fresh, field, old.copy())
        else:
            new[..., : old.shape[-1]] = old


def gather(parts: Iterable[tuple[str, Any]]) -> dict[str, NDArray[Any]]:
    """Return the arrays of parts, each as `name.field` of its STATE."""
    return {f"{name}.{field}": getattr(part, field) for name, part in parts for field in part.STATE}


def restore(
    part: object, name: str, fields: Sequence[str], arrays: Mapping[str, NDArray[Any]], *, prefix: str = ""
) -> None:
    """Set attributes of a new part, of `prefix` and field, to the arrays `name.field`, of their kind and shape."""
    for field in fields:
        attribute = f"{prefix}{field}"
        stored, fresh = arrays.get(f"{name}.{field}"), getattr(part, attribute)
        if stored is None or stored.dtype != fresh.dtype or (fresh.size and stored.shape != fresh.shape):
            raise ValueError("the state of the detector is damaged")
        setattr(part, attribute, stored)
