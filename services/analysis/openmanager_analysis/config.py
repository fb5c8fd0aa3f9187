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
    receivers: Path = setting(Path(), "TOML file of the webhooks that are told of alerts; empty: none.")
    alert_wait: timedelta = setting(timedelta(seconds=5), "So long a new group of alerts waits for more of it.")
    alert_interval: timedelta = setting(timedelta(minutes=1), "So long passes between two messages about a group.")
    alert_repeat: timedelta = setting(
        timedelta(hours=4), "A group that still fires is told again after so long, 1m or more."
    )
    external_url: str = setting("", "Where people reach this installation; goes with every message about alerts.")
    outlook_interval: timedelta = setting(
        timedelta(minutes=15), "How often rules about exhaustion are judged, 1s or more."
    )
