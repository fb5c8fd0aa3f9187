"""Where history lies on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

TIMESERIES = "timeseries"


def data_dir_option(command: Any) -> Any:
    """Give a command --data-dir."""
    return click.option(
        "--data-dir",
        metavar="DIR",
        type=click.Path(path_type=Path, file_okay=False),
        help="The data directory of `openmanager up`.  [default: the usual one]",
    )(command)


def timeseries_folder(data_dir: Path | None) -> Path:
    """Return the folder of history: in a data directory, where the configuration says, or in the usual place."""
    if data_dir is not None:
        return data_dir / TIMESERIES
    from openmanager.cli import configuration
    from openmanager.cli.up import default_data_dir

    setting = configuration.load().values["timeseries", "data_dir"]
    return default_data_dir() / TIMESERIES if setting.origin == "default" else Path(setting.value)
