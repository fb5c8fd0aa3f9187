"""A database in memory over the files of history: views of samples and rollups that SQL can ask, and nothing else.

DuckDB is given the files as Arrow datasets and no way to any file: `allowed_paths` would also allow to write them, by
`COPY … TO` inside a query. That is how exact row groups are read, too: they are known by the metrics that they hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmanager.errors import FailedPreconditionError, InvalidArgumentError

if TYPE_CHECKING:
    from openmanager_timeseries.sealed import Sealed
    from openmanager_timeseries.span import Spans

KEY = ("metric", "server", "time")
NUMBER = "file_number"
# Beyond so many the times that two files share are taken together: each is a condition in every query.
MAX_SHARED = 64
# `value` is a double that is no decimal; `scaled` and `large` are decimals without their point.
SAMPLE = {"value": "coalesce(value, coalesce(large, scaled)::double / pow(10, exponent))"}


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A view: its name, the folder of its files, and the expression of each of its columns."""

    name: str
    folder: Path
    columns: dict[str, str]


def bucket_columns() -> dict[str, str]:
    """Return the expression of each column of a bucket."""
    from openmanager_timeseries.rollup_file import scaled_name

    from openmanager.rollup import COLUMNS

    return {
        name: name if name == "count" else f'coalesce("{name}", {scaled_name(name)}::double / pow(10, exponent))'
        for name in COLUMNS
    }


def views(timeseries: Path) -> list[View]:
    """Return the views of a folder of history: `samples` and one for each tier; FailedPreconditionError for none."""
    blocks, tiers = timeseries / "blocks", timeseries / "tiers"
    if not blocks.is_dir():
        raise FailedPreconditionError(f"{timeseries} holds no history: name another with --data-dir")
    found = [View(name="samples", folder=blocks, columns=SAMPLE)]
    found += [
        View(name=f"tier_{folder.name}", folder=folder, columns=bucket_columns())
        for folder in (sorted(tiers.iterdir()) if tiers.is_dir() else [])
        if folder.is_dir() and folder.name.isalnum()
    ]
    return found


def connect(wanted: Iterable[View], damaged: list[str]) -> Any:
    """Return a connection that has the views; `damaged` takes the names of files that are left out.

    FailedPreconditionError when the extra `sql` is not installed.
    """
    try:
        import duckdb
    except ImportError as err:
        raise FailedPreconditionError("openmanager sql needs DuckDB: pip install 'openmanager[sql]'") from err
    made = duckdb.connect(
        config={
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "python_enable_replacements": False,
            "temp_directory": "",
        }
    )
    made.execute("SET enable_external_access = false")
    for view in wanted:
        _create(made, view, damaged)
    made.execute("SET lock_configuration = true")
    return made


def _create(database: Any, view: View, damaged: list[str]) -> None:
    files = list(_files(view.folder, damaged))
    database.register(f"{view.name}_files", _dataset(files, view))
    database.execute(f"CREATE VIEW {view.name} AS {_query(view, _shared(files))}")


def _files(folder: Path, damaged: list[str]) -> Iterator[Sealed]:
    """Yield the files of a folder, ascending in their numbers, without those that others have replaced.

    Read only: a service may be using the folder.
    """
    import pyarrow as pa
    from openmanager_timeseries import sealed

    found: list[Sealed] = []
    for path in sorted(folder.glob(f"*{sealed.SUFFIX}")):
        try:
            found.append(sealed.open_sealed(path))
        except FileNotFoundError:
            continue  # it was merged in between, with others that are still there
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
            damaged.append(path.name)
    for file in found:
        if file.about.row_count and not any(_replaces(other, file) for other in found):
            yield file


def _replaces(new: Sealed, old: Sealed) -> bool:
    """Say whether a file holds all that another does: a merge of it with its neighbours, or a later revision."""
    if new is old or not (new.about.first <= old.about.first and old.about.last <= new.about.last):
        return False
    same = (new.about.first, new.about.last) == (old.about.first, old.about.last)
    return not same or new.about.revision > old.about.revision


def _dataset(files: Sequence[Sealed], view: View) -> Any:
    """Return the row groups of files as one dataset, each known by its metrics and times; files are numbered."""
    import pyarrow as pa
    import pyarrow.dataset as ds
    from openmanager_timeseries.block import FORMAT
    from openmanager_timeseries.rollup_file import ROLLUPS
    from pyarrow import fs

    stored = FORMAT.schema if view.columns is SAMPLE else ROLLUPS.schema
    # Only of plain strings does Arrow see that a row group cannot hold them.
    names = {name: pa.field(name, pa.string()) for name in KEY[:2]}
    schema = pa.schema([*(names.get(field.name, field) for field in stored), pa.field(NUMBER, pa.int32())])
    parquet, local, fragments = ds.ParquetFileFormat(), fs.LocalFileSystem(), []
    for number, file in enumerate(files):
        low, high = (
            pa.scalar(nanos // 1_000_000).cast(pa.timestamp("ms", "UTC"))
            for nanos in (file.about.min_time, file.about.max_time)
        )
        within = (ds.field("time") >= low) & (ds.field("time") <= high) & (ds.field(NUMBER) == number)
        for index, metrics in enumerate(file.groups):
            held = within & (ds.field("metric") >= metrics[0]) & (ds.field("metric") <= metrics[-1])
            fragments.append(parquet.make_fragment(str(file.path), local, held, row_groups=[index]))
    return ds.FileSystemDataset(fragments, schema, parquet, local)


def _shared(files: Sequence[Sealed]) -> Spans:
    """Return the times of which more than one file may have rows."""
    from openmanager_timeseries import span

    seen: Spans = ()
    shared: Spans = ()
    for file in files:
        shared = span.union((*shared, *span.intersection(seen, file.spans)))
        seen = span.union((*seen, *file.spans))
    return shared if len(shared) <= MAX_SHARED else ((shared[0][0], shared[-1][1]),)


def _query(view: View, shared: Spans) -> str:
    """Return the query of a view: of two rows of one series and time the one in the file of the higher number counts."""
    key, values = ", ".join(KEY), ", ".join(f'{text} AS "{name}"' for name, text in view.columns.items())
    plain = f"SELECT {key}, {values} FROM {view.name}_files"  # noqa: S608  (our own names)
    if not shared:
        return plain
    twice = " OR ".join(f"(time >= {_moment(low)} AND time < {_moment(high + 999_999)})" for low, high in shared)
    fields = ", ".join(f'"{name}" := {text}' for name, text in view.columns.items())
    names = ", ".join(f'row_."{name}"' for name in view.columns)
    newest = f"SELECT {key}, arg_max(struct_pack({fields}), {NUMBER}) AS row_ FROM {view.name}_files"  # noqa: S608
    return f"{plain} WHERE NOT ({twice}) UNION ALL SELECT {key}, {names} FROM ({newest} WHERE {twice} GROUP BY {key})"  # noqa: S608


def _moment(nanos: int) -> str:
    """Return a moment in SQL, to the millisecond below."""
    return f"make_timestamptz({nanos // 1_000_000 * 1000})"


def view_of_tier(found: Sequence[View], tier: str) -> View:
    """Return the view of a tier; InvalidArgumentError when there is none."""
    wanted = "samples" if tier == "raw" else f"tier_{tier}"
    for view in found:
        if view.name == wanted:
            return view
    known = ", ".join("raw" if view.name == "samples" else view.name.removeprefix("tier_") for view in found)
    raise InvalidArgumentError(f"there is no tier {tier!r} here; there is {known}")
