"""`openmanager forecast-csv`: forecasts of series in CSV files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from openmanager.cli import render
from openmanager.cli.csv_work import Columns, answer_each

if TYPE_CHECKING:
    from numpy.typing import NDArray


@click.command(
    "forecast-csv",
    epilog=render.examples(
        "forecast-csv cpu.csv --horizon 168 --output-dir forecasts",
        "forecast-csv traces/*.csv --horizon 2016 --output-dir forecasts",
    ),
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--horizon", required=True, type=click.IntRange(1, 100_000), help="How many steps to forecast.")
@click.option("--output-dir", required=True, type=click.Path(path_type=Path), help="Where the forecasts are written.")
def forecast_csv(files: tuple[Path, ...], horizon: int, output_dir: Path) -> None:
    """Forecast the steps after the end of each FILE, with intervals.

    A FILE has the columns timestamp and value: times are ISO 8601 or seconds since 1970, regular or not, and an empty
    value is missing. The forecast has the file's name: step 1 to N at the median interval of the times, and the values
    that 2.5, 10, 25, 50, 75, 90 and 97.5 % of what may come lie below. Exit code 1 when a file could not be forecast.
    """
    from openmanager_analysis.forecast import QUANTILES, forecast

    def ask(times: NDArray[np.int64], values: NDArray[np.float64]) -> Columns:
        expected = forecast(times, values, horizon, QUANTILES)
        by_level = {f"q{level:g}": expected.quantiles[:, place] for place, level in enumerate(QUANTILES)}
        return {"step": np.arange(1, horizon + 1), **by_level}

    answer_each("forecasting", files, output_dir, ask)
