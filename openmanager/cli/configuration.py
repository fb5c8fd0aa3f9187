"""The configuration of this process: the file, the environment, and the flags of a command."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openmanager import config, suite


def load(flags: Mapping[tuple[str, str], Any] | None = None) -> config.Configuration:
    """Return the whole configuration; ConfigurationError, in one sentence, for what is wrong with it."""
    file = os.environ.get("OPENMANAGER_CONFIG")
    given = {place: value for place, value in (flags or {}).items() if value is not None}
    return config.load(suite.sections(), file=Path(file) if file else None, environ=os.environ, flags=given)
