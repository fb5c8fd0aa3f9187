"""One answer for each of many CSV files of one series, and what is said of the files that get none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from openmanager.cli import render
from openmanager.cli.csv_table import Table, place_outputs, read_table, write_table
from openmanager.cli.part import told
from openmanager.cli.progress import Bar
from openmanager.errors import OpenManagerError

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXIT_FAILED = 1
NANOS_A_MILLI = 1_000_000
Columns = Mapping[str, Any]
Ask = Callable[["NDArray[np.int64]", "NDArray[np.float64]"], Columns]
Show = Callable[[float], None]  # which share of a file is done
Answer = Callable[[Table, Show], Columns]


def answer_each(title: str, paths: Sequence[Path], output_dir: Path, ask: Ask) -> None:
    """Write what `ask` says of each file's times (int64[T], milliseconds) and values (float64[T]) to a file of its name."""
    answer_tables(title, paths, output_dir, lambda table, _: _answer(table, ask))


def answer_tables(title: str, paths: Sequence[Path], output_dir: Path, answer: Answer) -> None:
    """Write the answer to each file's table to a file of its name.

    A file that is wrong is told of on standard error, the others are done; then the process ends with exit code 1.
    """
    failed = 0
    with Bar(title) as bar:
        for done, (path, place) in enumerate(zip(paths, place_outputs(paths, output_dir), strict=True)):
            words = f"{done} of {render.show_count(len(paths), 'file')}"
            bar.show(done, len(paths), words)
            show = partial(_show, bar, done, len(paths), words)
            try:
                columns = answer(read_table(path), show)
                with told(place):
                    write_table(place, columns)
            except OpenManagerError as error:
                failed += 1
                click.echo(f"openmanager: {_naming(path, error.message)}", err=True)
    if failed:
        sys.exit(EXIT_FAILED)


def _show(bar: Bar, done: int, total: int, words: str, share: float) -> None:
    bar.show(done + share, total, words)


def _answer(table: Table, ask: Ask) -> Columns:
    if len(table.names) != 1:
        raise OpenManagerError(f"{table.path} has {len(table.names)} columns of values, and one is asked for")
    return ask(table.time_unix_nanos // NANOS_A_MILLI, table.values[:, 0])


def _naming(path: Path, message: str) -> str:
    return message if message.startswith(str(path)) else f"{path}: {message}"
