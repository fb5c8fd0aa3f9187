"""`openmanager score-csv`: how odd each row of CSV files is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from openmanager.cli import render
from openmanager.cli.csv_table import Table, read_table
from openmanager.cli.csv_work import NANOS_A_MILLI, Columns, Show, answer_tables
from openmanager.errors import InvalidArgumentError

if TYPE_CHECKING:
    from openmanager_analysis.detection.batch import History


def _print_threshold(ctx: click.Context, _: click.Parameter, is_asked: bool) -> None:  # noqa: FBT001  (click's way)
    if is_asked:
        from openmanager_analysis.detection import THRESHOLD

        click.echo(THRESHOLD)
        ctx.exit()


@click.command(
    "score-csv",
    epilog=render.examples(
        "score-csv cpu.csv --output-dir scores",
        "score-csv servers/*.csv --history servers-before --output-dir scores",
        "score-csv --threshold",
    ),
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--output-dir", required=True, type=click.Path(path_type=Path), help="Where the scores are written.")
@click.option(
    "--history",
    type=click.Path(path_type=Path, exists=True),
    help="What came before: a file, or a folder with a file of the name of each FILE.",
)
@click.option(
    "--threshold",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_threshold,
    help="Print the score from which a row is an alarm.",
)
def score_csv(files: tuple[Path, ...], output_dir: Path, history: Path | None) -> None:
    """Say how odd each row of each FILE is, from what came before it.

    A FILE has the columns timestamp and value, or timestamp and several metrics of one server: times are ISO 8601 or
    seconds since 1970, regular or not, and an empty value is missing. The scores have the file's name, and a row for each
    of its rows: timestamp, score from 0 to 1, alarm 0 or 1, and of several metrics which are to blame, the most first, with
    ; between them. Of an alarm that goes on the repeats stay below the threshold. A history is learnt from first; where its
    times are not before those of the file, it counts as the weeks before. Exit code 1 when a file could not be scored.
    """

    def answer(table: Table, show: Show) -> Columns:
        return _score(table, None if history is None else _history(table, history), show)

    answer_tables("scoring", files, output_dir, answer)


def _history(table: Table, path: Path) -> History:
    """Return the training period of a table, its metrics in the order of the table's."""
    from openmanager_analysis.detection.batch import History

    before = read_table(path / table.path.name if path.is_dir() else path)
    missing = [name for name in table.names if name not in before.names]
    if missing:
        raise InvalidArgumentError(f"{before.path} has no column {missing[0]!r}, which {table.path} has")
    columns = [before.names.index(name) for name in table.names]
    return History(time_unix_millis=before.time_unix_nanos // NANOS_A_MILLI, values=before.values[:, columns])


def _score(table: Table, history: History | None, show: Show) -> Columns:
    from openmanager_analysis.detection.batch import judge

    judged = judge(table.time_unix_nanos // NANOS_A_MILLI, table.values, history, show)
    columns: dict[str, Any] = {
        "timestamp": table.stamps,
        "score": judged.score,
        "alarm": judged.alarm.astype(np.int8),
    }
    if len(table.names) > 1:
        columns["blame"] = [";".join(table.names[i] for i in row if i >= 0) for row in judged.blame]
    return columns
