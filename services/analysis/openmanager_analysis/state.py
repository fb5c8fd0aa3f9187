"""What was learnt, as one file: arrays and a JSON document, checked as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openmanager import durable
from openmanager_analysis.detection.state import pack, unpack


def save(path: Path, document: Mapping[str, Any], lookout: bytes) -> int:
    """Store a state, whole or not at all, and return its size in bytes (blocking)."""
    parts = {"document": json.dumps(document).encode(), "lookout": lookout}
    content = durable.seal(pack({name: np.frombuffer(part, np.uint8) for name, part in parts.items()}))
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.replace(path, content)
    return len(content)


def load(path: Path) -> tuple[dict[str, Any], bytes] | None:
    """Return the stored state, None without one (blocking).

    OSError, or ValueError for damage or another version, when it cannot be read.
    """
    try:
        arrays = unpack(durable.unseal(path.read_bytes()))
    except FileNotFoundError:
        return None
    if set(arrays) != {"document", "lookout"}:
        raise ValueError("no state of an analysis")
    return json.loads(arrays["document"].tobytes()), arrays["lookout"].tobytes()
