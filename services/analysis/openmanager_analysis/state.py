"""What was learnt, as one file: arrays and a JSON document, checked as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from openmanager import durable
from openmanager_analysis.detection import state

_DOCUMENT = "document"


def save(path: Path, document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> int:
    """Store a state, whole or not at all, and return its size in bytes (blocking)."""
    described = np.frombuffer(json.dumps(document).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with durable.sealing(path) as file:
        state.write(cast("IO[bytes]", file), {_DOCUMENT: described, **arrays})
    return path.stat().st_size


def load(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
    """Return the stored state, None without one (blocking).

    OSError, or ValueError for damage or another version, when it cannot be read.
    """
    try:
        with durable.unsealing(path) as file:
            arrays = state.read(file)
    except FileNotFoundError:
        return None
    if _DOCUMENT not in arrays:
        raise ValueError("no state of an analysis")
    return json.loads(arrays.pop(_DOCUMENT).tobytes()), arrays
