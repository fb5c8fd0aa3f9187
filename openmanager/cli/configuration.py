"""The configuration of this process: the file, the environment, and the flags of a command."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openmanager import config, suite
from openmanager.errors import ConfigurationError
from openmanager.runtime.module import ServerConfig


def load(flags: Mapping[tuple[str, str], Any] | None = None) -> config.Configuration:
    """Return the whole configuration; ConfigurationError, in one sentence, for what is wrong with it."""
    file = os.environ.get("OPENMANAGER_CONFIG")
    given = {place: value for place, value in (flags or {}).items() if value is not None}
    loaded = config.load(suite.sections(), file=Path(file) if file else None, environ=os.environ, flags=given)
    if loaded.section(ServerConfig).auth:
        raise ConfigurationError("OPENMANAGER_AUTH cannot be set: this version has no identities yet")
    return loaded
