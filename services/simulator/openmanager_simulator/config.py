"""Configuration of the simulator."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from openmanager.config import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorConfig:
    """The section `simulator`."""

    servers: int = setting(20, "Servers of the fleet, 1–100,000.")
    interval: timedelta = setting(timedelta(seconds=10), "Time between ticks, 100 ms–1 h in whole milliseconds.")
    seed: int = setting(1, "Seed of everything random: the same seed gives the same values.")
    autostart: bool = setting(True, "Begin to tick when the service starts.")
    faults: bool = setting(True, "Inject the scheduled faults, 2–9 a day for 20 servers.")
    noise: Literal["normal", "table"] = setting("normal", "`table` is cheaper and repeats itself: for load tests.")
    scenario: Path = setting(Path(), "A file with faults to replay; empty: none.")
    buffer_frames: int = setting(360, "Frames kept while the mesh is away; then the oldest are dropped and counted.")
