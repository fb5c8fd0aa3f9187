"""`openmanager exhaust-csv`: when series in CSV files reach a limit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from openmanager.cli import render
from openmanager.cli.csv_work import Columns, answer_each

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from openmanager_analysis.exhaustion import Exhaustion


@click.command(
    "exhaust-csv",
    epilog=render.examples(
        "exhaust-csv disk.csv --limit 90 --output-dir exhaustion",
        "exhaust-csv free/*.csv --limit 0 --horizon-days 30 --output-dir exhaustion",
    ),
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--limit", required=True, type=float, metavar="VALUE", help="The value that is not to be reached.")
@click.option(
    "--horizon-days",
    default=90.0,
    show_default=True,
    type=click.FloatRange(0, 3_660, min_open=True),
    help="How far ahead to look.",
)
@click.option("--output-dir", required=True, type=click.Path(path_type=Path), help="Where the answers are written.")
def exhaust_csv(files: tuple[Path, ...], limit: float, horizon_days: float, output_dir: Path) -> None:
    """Tell when the series of each FILE will reach a limit.

    A FILE has the columns timestamp and value: times are ISO 8601 or seconds since 1970, regular or not, and an empty
    value is missing. The answer has the file's name and one row: hours after the last time, and low and high, between
    which the limit is reached with a probability of 80 %. Empty hours mean: not within the horizon. The interval ends at
    the horizon at the latest, and is empty where less than 10 % of what may come reaches the limit. A series above the
    limit falls towards it, or has reached it: 0 hours. Exit code 1 when a file could not be judged.
    """
    from openmanager_analysis.exhaustion import time_to_limit

    def ask(times: NDArray[np.int64], values: NDArray[np.float64]) -> Columns:
        return _row(time_to_limit(times, values, limit, horizon_days * 24), horizon_days * 24)

    answer_each("looking ahead", files, output_dir, ask)


def _row(found: Exhaustion, horizon_hours: float) -> Columns:
    high = horizon_hours if found.high is None and found.low is not None else found.high
    row = {"hours": found.hours, "low": found.low, "high": high}
    return {name: np.array([np.nan if value is None else value]) for name, value in row.items()}
