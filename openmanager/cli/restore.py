"""`openmanager restore`: a backup into an empty data directory, from which `up` or the services start."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from openmanager.cli import backup_copy, configuration, render
from openmanager.cli.backup import open_repository, repository_option, show_size
from openmanager.cli.progress import Bar
from openmanager.config import Configuration
from openmanager.datadir import RESTORING, DataDir, sync_directory
from openmanager.errors import ConfigurationError, FailedPreconditionError

HALF = ".restore"
# Of one shard, or of several.
HISTORY = ("timeseries", "analysis", "shards")
# What a restore makes, and the next one deletes where it did not end.
MADE = frozenset({HALF, *backup_copy.DATA, *HISTORY, "postgresql", "valkey", "locks", "logs", "lock", RESTORING})
IGNORED = frozenset({"lost+found"})


@click.command(
    epilog=render.examples(
        "restore --from /mnt/backups --to ./data",
        "restore --from s3:https://s3.example.net/openmanager --to ./data --snapshot 1f2e3d4c",
    )
)
@repository_option("--from")
@click.option(
    "--to",
    "target",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="An empty one.",
)
@click.option("--snapshot", metavar="ID", default="latest", show_default=True, help="The backup to restore.")
@render.json_option
def restore(*, place: str | None, target: Path, snapshot: str, as_json: bool) -> None:
    """Restore a backup into the empty data directory DIR, and compare it with its checksums.

    The database goes into DIR too, or where DATABASE_URL is set into that one, which must be empty. Until it has ended
    nothing starts from DIR; what is interrupted is begun anew by the same command.
    """
    loaded = configuration.load()
    repository = open_repository(place)
    began = time.monotonic()
    with Bar("opening the repository") as bar:
        chosen = repository.find(snapshot)
        with _restoring(target) as half:
            repository.restore(chosen.id, half, lambda: show_size(bar, half, chosen))
            bar.retitle("comparing checksums")
            manifest = backup_copy.read_manifest(half)
            count = backup_copy.check(half, manifest)
            bar.retitle("filling the database")
            for name in HISTORY:
                if (half / name).is_dir():
                    _move(half / name, target / name)
            if (half / "data").is_dir():
                _move(half / "data", target)
            asyncio.run(_load(target, half / "database", manifest["database"], loaded))
    found = {
        "snapshot": chosen.id,
        "time": manifest["time"],
        "log": manifest["log"],
        "series_count": count,
        "table_count": len(manifest["database"]["tables"]),
        "seconds": round(time.monotonic() - began, 3),
    }
    if as_json:
        render.print_document(found)
        return
    click.echo(
        f"restored {chosen.id} of {render.show_moment(chosen.time)} into {target}:"
        f" {count:,} series and {render.show_count(found['table_count'], 'table')} are what was backed"
        f" up, in {found['seconds']:.1f} s"
    )


@contextmanager
def _restoring(target: Path) -> Iterator[Path]:
    """Mark a folder as half restored, yield where in it the files go first, and take the mark away at the end.

    FailedPreconditionError when it is not empty: what is deleted in it was made by a restore that did not end.
    """
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        marker = target / RESTORING
        if not marker.exists() and (held := _content(target)):
            raise FailedPreconditionError(
                f"{target} is not empty, it has {held}: a backup is restored into a new folder"
            )
        descriptor = os.open(marker, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as err:
        raise ConfigurationError(f"{target} cannot be written: {err.strerror}") from err
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise FailedPreconditionError(f"another restore into {target} is going on") from err
        sync_directory(target)
        _clear(target)
        half = target / HALF
        half.mkdir(mode=0o700)
        try:
            yield half
        except OSError as err:
            raise FailedPreconditionError(f"{target} cannot be written: {err.strerror}") from err
        shutil.rmtree(half)
        os.sync()  # of many files by other programs: all of them are durable before anybody relies on them
        marker.unlink()
        sync_directory(target)
    finally:
        os.close(descriptor)


def _content(folder: Path) -> str:
    """Return the name of something that is in a folder: a file, or a folder that is not empty, as a volume may be."""
    for path in sorted(folder.iterdir()):
        if path.name in IGNORED:
            continue
        if not path.is_dir() or path.is_symlink() or _content(path):
            return path.name
    return ""


def _clear(target: Path) -> None:
    """Delete what a restore that did not end has left."""
    for path in list(target.iterdir()):
        if path.name in MADE - {RESTORING}:
            if path.is_dir():
                _empty(path)
            else:
                path.unlink()
    with contextlib.suppress(FileNotFoundError):
        (target / HALF).rmdir()
    strange = next((path.name for path in target.iterdir() if path.name not in MADE | IGNORED), "")
    if strange and (not (target / strange).is_dir() or _content(target / strange)):
        raise FailedPreconditionError(f"{target} has {strange} in it, which no restore has made")


def _empty(folder: Path) -> None:
    """Delete what is in a folder, and the folders in it unless volumes are mounted there."""
    for path in list(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            _empty(path)
            with contextlib.suppress(OSError):
                path.rmdir()
        elif path.name not in IGNORED:
            path.unlink()


def _move(source: Path, target: Path) -> None:
    """Move what is in a folder to another, which may be there already, on a volume of its own."""
    target.mkdir(mode=0o700, exist_ok=True)
    for path in list(source.iterdir()):
        try:
            path.rename(target / path.name)
        except OSError as err:
            if err.errno not in {errno.EXDEV, errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY}:
                raise
            if path.is_dir():
                _move(path, target / path.name)
            else:
                shutil.move(path, target / path.name)


async def _load(target: Path, folder: Path, about: dict[str, Any], loaded: Configuration) -> None:
    """Fill the database: that of the URL, as who owns its tables, or the embedded one of the data directory."""
    from openmanager_metadata.backends.tables import load
    from openmanager_metadata.config import MetadataConfig

    config = loaded.section(MetadataConfig)
    if url := config.migration_url or config.database_url:
        await load(url.reveal(), folder, about)
        return
    with DataDir.open(target, restoring=True) as data:
        async with backup_copy.embedded_postgresql(data, loaded) as own:
            await load(own.reveal(), folder, about)
