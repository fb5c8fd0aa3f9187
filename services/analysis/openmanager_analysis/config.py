"""Configuration of the analysis service."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from openmanager.config import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisConfig:
    """The section `analysis`."""

    data_dir: Path = setting(Path("data/analysis"), "Folder of what the detector has learnt.")
    interval: timedelta = setting(
        timedelta(seconds=10), "The detector looks at once at what was measured in each such span, 1s–1h."
    )
    save_interval: timedelta = setting(
        timedelta(seconds=60), "How often what it has learnt is stored; after a restart it reads the log from there."
    )
    max_series: int = setting(600_000, "Series that are watched, at most; those that come later are not.")
    query_timeout: timedelta = setting(timedelta(seconds=20), "How long reading the history for one answer may take.")
