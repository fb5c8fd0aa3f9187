"""A copy of everything a mesh cannot do without, of one moment, while it runs: what a backup stores and a restore finds.

::

    manifest.json       what is in it
    checksums.parquet   a checksum for each series of each tier
    timeseries/         the log, the blocks, the tiers, and how far their readers have come
    analysis/           what the detector has learnt
    database/           a file for each table
    data/               of a data directory: its keys, and what vouches for the audit log

What is not in it is made again: Redis and the engines are filled from the log and the blocks.

The order makes it one moment's: keys and the audit's second place first, for the log of the database must not be shorter
than what is vouched for; then the files of history, the analysis, the end of the log, and at last the database, which has
every server and every piece of evidence that the files before it say it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmanager.config import Configuration, Secret
from openmanager.datadir import RESTORING, DataDir, DataDirError, runtime_path
from openmanager.errors import ConfigurationError, DataLossError, FailedPreconditionError, UnavailableError
from openmanager.version import VERSION

if TYPE_CHECKING:
    from openmanager_timeseries.checksum import Checksums

FORMAT = 1
MANIFEST, CHECKSUMS = "manifest.json", "checksums.parquet"
# Beside the files of history, for it holds links to them.
WORK = "backup"
DATA = ("VERSION", "credentials", "audit-public.pem", "audit-checkpoints.jsonl")
START_SECONDS = 60.0
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where everything is: a data directory of `up`, or the folders of services; a database, or the embedded one."""

    root: Path | None
    timeseries: Path
    analysis: Path | None
    database_url: Secret = field(repr=False)
    loaded: Configuration = field(repr=False)

    @property
    def work(self) -> Path:
        """The folder of the copy."""
        return self.timeseries / WORK


def sources(data_dir: Path | None) -> Sources:
    """Return where everything is, as `up` or the services are told; ConfigurationError when the database is not said."""
    from openmanager_metadata.config import MetadataConfig

    from openmanager.cli import configuration, layout
    from openmanager.cli.up import default_data_dir

    loaded = configuration.load()
    url = loaded.section(MetadataConfig).database_url
    own = {name: loaded.values[name, "data_dir"] for name in ("timeseries", "analysis")}
    if data_dir is None and own["timeseries"].origin != "default":
        if not url:
            raise ConfigurationError("DATABASE_URL is not set: a backup without the database is none")
        analysis = Path(own["analysis"].value) if own["analysis"].origin != "default" else None
        return Sources(
            root=None, timeseries=Path(own["timeseries"].value), analysis=analysis, database_url=url, loaded=loaded
        )
    root = (data_dir or default_data_dir()).resolve()
    if (root / RESTORING).exists():
        raise ConfigurationError(f"the data directory {root} holds a restore that has not ended")
    shards = layout.held_shards(root)
    if shards not in {None, 1}:
        raise ConfigurationError(
            f"the data directory {root} holds {shards} shards: back up the folders of each, as docs/scale.md says"
        )
    if not (root / "VERSION").exists():
        raise ConfigurationError(f"{root} is no data directory: name another with --data-dir")
    return Sources(
        root=root, timeseries=root / "timeseries", analysis=root / "analysis", database_url=url, loaded=loaded
    )


@contextmanager
def working(place: Sources) -> Iterator[Path]:
    """Hold the folder of the copy, for one backup at a time; what a killed one has left in it goes."""
    if not place.timeseries.is_dir():
        raise FailedPreconditionError(f"{place.timeseries} holds no history")
    place.work.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(place.work / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    copy = place.work / "copy"
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise FailedPreconditionError("another backup is being made") from err
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir(mode=0o700)
        try:
            yield copy
        finally:
            shutil.rmtree(copy, ignore_errors=True)
    finally:
        os.close(descriptor)


def make(place: Sources, copy: Path, say: Say) -> dict[str, Any]:
    """Make the copy (blocking) and return its manifest."""
    import pyarrow.parquet as pq
    from openmanager_timeseries.checksum import checksums
    from openmanager_timeseries.duplicate import copy_files, copy_log

    began = datetime.now(UTC)
    say("copying the files")
    if place.root is not None:
        for name in DATA:
            _copy(place.root / name, copy / "data" / name)
    newest = copy_files(place.timeseries, copy / "timeseries")
    if place.analysis is not None:
        _copy(place.analysis, copy / "analysis")
    copy_log(place.timeseries, copy / "timeseries", newest)
    say("copying the database")
    database = asyncio.run(_dump(place, copy / "database"))
    say("computing checksums")
    found = checksums(copy / "timeseries", place.work / "checksums")
    pq.write_table(found.table, copy / CHECKSUMS, compression="zstd")
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "host": socket.gethostname(),
        "time": began.isoformat(timespec="milliseconds"),
        "log": {"position": found.position, "accepted_sample_count": found.accepted},
        "series_count": series_count(found),
        "bytes": sum(path.stat().st_size for path in copy.rglob("*") if path.is_file()),
        "damaged_files": list(found.damaged),
        "database": database,
    }
    (copy / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return manifest


def read_manifest(copy: Path) -> dict[str, Any]:
    """Return the manifest of a copy; DataLossError when it has none, FailedPreconditionError for a newer format."""
    try:
        manifest: dict[str, Any] = json.loads((copy / MANIFEST).read_text(encoding="utf-8"))
        is_newer = manifest["format"] > FORMAT
    except (OSError, ValueError, LookupError, TypeError) as err:
        raise DataLossError("the backup has no manifest that can be read") from err
    if is_newer:
        raise FailedPreconditionError(f"the backup was made by the newer version {manifest['version']}")
    return manifest


def check(copy: Path, manifest: dict[str, Any]) -> int:
    """Compare a copy with the checksums that were made with it (blocking), and return the number of series.

    DataLossError names what differs.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from openmanager_metadata.backends.tables import check_files
    from openmanager_timeseries.checksum import checksums, differences

    try:
        expected = pq.read_table(copy / CHECKSUMS)
    except (OSError, pa.ArrowException) as err:
        raise DataLossError("the backup has no checksums that can be read") from err
    found = checksums(copy / "timeseries")
    wrong = [f"series {each}" for each in differences(expected, found.table)]
    if found.position != manifest["log"]["position"]:
        wrong.append(f"the log ends at {found.position} and not at {manifest['log']['position']}")
    wrong += [f"table {each}" for each in check_files(copy / "database", manifest["database"])]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise DataLossError(f"the backup does not hold what was backed up: {wrong[0]}{more}")
    return series_count(found)


def series_count(found: Checksums) -> int:
    """Return how many series there are, whatever the tiers."""
    count: int = found.table.select(["server", "metric"]).group_by(["server", "metric"]).aggregate([]).num_rows
    return count


async def _dump(place: Sources, folder: Path) -> dict[str, Any]:
    from openmanager_metadata.backends.tables import dump

    if place.database_url:
        return await dump(place.database_url.reveal(), folder)
    assert place.root is not None  # noqa: S101  (without one there is a URL)
    try:
        data = DataDir.open(place.root)
    except DataDirError:  # the mesh runs
        try:
            url = (runtime_path(place.root) / "database_url").read_text(encoding="utf-8")
        except OSError as err:
            raise UnavailableError("the mesh of this data directory is starting or ending: try again") from err
        return await dump(url, folder)
    with data:
        async with embedded_postgresql(data, place.loaded) as own:
            return await dump(own.reveal(), folder)


@asynccontextmanager
async def embedded_postgresql(data: DataDir, loaded: Configuration) -> AsyncIterator[Secret]:
    """Run the PostgreSQL of a data directory, and yield its URL."""
    from openmanager import embedded
    from openmanager.runtime.supervisor import Supervisor

    store = embedded.postgresql(data, loaded.section(embedded.EmbeddedConfig))
    async with Supervisor([store.spec]) as children:
        try:
            async with asyncio.timeout(START_SECONDS):
                await children.wait_ready()
        except TimeoutError as err:
            raise UnavailableError(f"PostgreSQL did not start within {START_SECONDS:.0f} s") from err
        yield store.url


def _copy(source: Path, target: Path) -> None:
    """Copy a file, or the files of a folder, if it is there; what is being written there is left out."""
    if source.is_dir():
        for path in source.iterdir():
            if not path.name.startswith(".") and path.suffix != ".new":
                _copy(path, target / path.name)
        return
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(source, target)
