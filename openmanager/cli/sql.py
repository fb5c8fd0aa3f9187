"""`openmanager sql`: SQL over the files of history."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import click

from openmanager.cli import database, folder, render
from openmanager.errors import FailedPreconditionError, InvalidArgumentError, OpenManagerError

# A table for people ends here; the other formats have every row.
TABLE_ROWS = 1000
BATCH_ROWS = 10_000
# The files may be merged while a query is about to read them; the next attempt sees the merged ones.
ATTEMPTS = 3
INTERRUPT_SECONDS = 0.1


@click.command(
    epilog=render.examples(
        'sql "SELECT metric, count(*), avg(value) FROM samples GROUP BY metric ORDER BY 2 DESC"',
        "sql --csv \"SELECT * FROM samples WHERE metric = 'cpu_usage' AND time > now() - INTERVAL 1 DAY\"",
        "sql --tier 1h \"SELECT time, server, max FROM tier_1h WHERE metric = 'cpu_usage'\"",
        'sql --data-dir ./data "SHOW TABLES"',
    ),
)
@click.argument("query")
@folder.data_dir_option
@click.option("--tier", metavar="NAME", help="Open only this tier: raw, 5m, 1h.  [default: all of them]")
@click.option("--table", "shape", flag_value="table", default=True, help="A table.  [default]")
@click.option("--csv", "shape", flag_value="csv", help="CSV; streams.")
@click.option("--json", "shape", flag_value="json", help="A JSON document for each row; streams.")
def sql(*, query: str, data_dir: Path | None, tier: str | None, shape: str) -> None:
    """Ask the files of history by SQL: DuckDB's, read only.

    `samples` has metric, server, time and value; `tier_5m` and `tier_1h` have the columns of their buckets: min, max, sum,
    count, last, and of counters first and growth. What is still in memory and in the log, at most the last hour, is not
    in files yet: `openmanager query` has it. No gateway is needed, and one that runs does not mind.
    """
    found = database.views(folder.timeseries_folder(data_dir))
    wanted = [database.view_of_tier(found, tier)] if tier else found
    show = {"table": _print_table, "csv": _print_csv, "json": _print_json}[shape]
    for attempt in range(ATTEMPTS):
        damaged: list[str] = []
        connection = database.connect(wanted, damaged)
        try:
            for name in damaged:
                click.echo(f"{name} is damaged and left out", err=True)
            with contextlib.closing(_batches(connection, query)) as batches:
                show(batches)
        except FileNotFoundError:
            if attempt + 1 == ATTEMPTS:
                raise FailedPreconditionError("the files were replaced again and again while they were read") from None
        else:
            return
        finally:
            connection.close()


def _batches(connection: Any, query: str) -> Generator[Any]:
    """Yield the schema of the answer and then its rows, as Arrow batches.

    DuckDB works in a thread, where it does not keep Ctrl-C from being heard.
    """
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(_reader, connection, query)
        try:
            reader = future.result()
            yield reader.schema
            while True:
                future = thread.submit(_next, reader)
                if (batch := future.result()) is None:
                    return
                yield batch
        finally:
            connection.interrupt()  # what nobody asks for any more goes on in DuckDB's own threads
            while not future.done():
                wait([future], INTERRUPT_SECONDS)
                connection.interrupt()  # one that comes before the work has begun is lost


def _reader(connection: Any, query: str) -> Any:
    import duckdb

    try:
        relation = connection.sql(query)
        if relation is None:
            raise InvalidArgumentError("that gives no rows: a SELECT is expected")
        return relation.to_arrow_reader(BATCH_ROWS)
    except duckdb.Error as err:
        raise _refusal(str(err)) from err


def _next(reader: Any) -> Any:
    """Return the next batch; None at the end."""
    import duckdb
    import pyarrow as pa

    try:
        return reader.read_next_batch()
    except StopIteration:
        return None
    except (duckdb.Error, pa.ArrowException) as err:
        raise _refusal(str(err)) from err


def _refusal(told: str) -> OpenManagerError:
    """Return DuckDB's error as ours."""
    if "No such file" in told or "FileNotFoundError" in told:
        raise FileNotFoundError  # it was merged in between
    if "disabled by configuration" in told or "disabled through configuration" in told:
        return InvalidArgumentError("only the views of history can be asked: no files, extensions or other databases")
    if "has been locked" in told:
        return InvalidArgumentError("the database's settings are fixed")
    return InvalidArgumentError(told.strip())


def _print_table(batches: Iterator[Any]) -> None:
    import pyarrow as pa

    schema = next(batches)
    numbers = tuple(
        field.name for field in schema if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
    )
    made = render.table(*schema.names, right=numbers)
    for column in made.columns:
        column.overflow = "fold"
        column.no_wrap = column.header in numbers
    count = 0
    for batch in batches:
        for row in batch.slice(0, max(0, TABLE_ROWS - count)).to_pylist():
            made.add_row(*(_cell(value) for value in row.values()))
        count += len(batch)
    out = render.console()
    out.print(made)
    shown = f"{TABLE_ROWS:,} of " if count > TABLE_ROWS else ""
    hint = "; --csv has them all" if shown else ""
    out.print(f"\n{shown}{render.show_count(count, 'row')}{hint}", style="dim")


def _cell(value: Any) -> str:
    from datetime import datetime

    if value is None:
        return render.NOTHING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return render.show_moment(value) if value.tzinfo else value.isoformat(" ")
    if isinstance(value, float):
        return render.show_value(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _print_csv(batches: Iterator[Any]) -> None:
    from openmanager.cli.text import csv_lines, header_line

    out = sys.stdout.buffer
    out.write(header_line(next(batches).names))
    for batch in batches:
        out.write(csv_lines(batch.columns))
    out.flush()


def _print_json(batches: Iterator[Any]) -> None:
    next(batches)
    for batch in batches:
        for row in batch.to_pylist():
            click.echo(json.dumps(row, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    from datetime import UTC, date, datetime

    if isinstance(value, datetime):
        moment = value.astimezone(UTC) if value.tzinfo else value
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return value.isoformat() if isinstance(value, date) else str(value)
