"""`openmanager backup`: everything a mesh holds, into a folder or S3-compatible storage, while it runs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from openmanager.cli import backup_copy, configuration, folder, render
from openmanager.cli.progress import Bar
from openmanager.restic import BackupConfig, Repository, Snapshot


def repository_option(name: str) -> Callable[[Any], Any]:
    """Give a command an option for where the backups are."""
    return click.option(
        name,
        "place",
        metavar="REPOSITORY",
        help="A folder, or s3:https://HOST/BUCKET/PATH.  [default: OPENMANAGER_BACKUP_REPOSITORY]",
    )


@click.group(
    invoke_without_command=True,
    epilog=render.examples(
        "backup --to /mnt/backups",
        "backup --to s3:https://s3.example.net/openmanager",
        "backup list --from /mnt/backups",
        "backup verify --from /mnt/backups",
    ),
)
@folder.data_dir_option
@repository_option("--to")
@render.json_option
@click.pass_context
def backup(ctx: click.Context, *, data_dir: Path | None, place: str | None, as_json: bool) -> None:
    """Back up everything a mesh holds, also while it runs; only what is new is stored.

    It is encrypted with the password in the file that OPENMANAGER_BACKUP_PASSWORD_FILE names, and does not need the
    gateway: it is run where the files are. What is interrupted is done by the next one; `openmanager restore` restores.
    """
    if ctx.invoked_subcommand is not None:
        return
    sources = backup_copy.sources(data_dir)
    repository = open_repository(place, cache=sources.work / "cache")
    began = time.monotonic()
    with Bar("copying") as bar, backup_copy.working(sources) as copy:
        manifest = backup_copy.make(sources, copy, bar.retitle)
        bar.retitle("storing")
        summary = repository.backup(copy, _facts(manifest), lambda status: _show(bar, status))
    found = {
        "snapshot": summary.snapshot[:8],
        "time": manifest["time"],
        "log": manifest["log"],
        "series_count": manifest["series_count"],
        "table_count": len(manifest["database"]["tables"]),
        "total_bytes": summary.total_bytes,
        "added_bytes": summary.added_bytes,
        "damaged_files": manifest["damaged_files"],
        "seconds": round(time.monotonic() - began, 3),
    }
    if as_json:
        render.print_document(found)
        return
    for name in found["damaged_files"]:
        click.echo(f"{name} is damaged, and is backed up as it is", err=True)
    click.echo(
        f"backup {found['snapshot']}: {found['series_count']:,} series,"
        f" {render.show_count(found['table_count'], 'table')}, {render.show_bytes(found['total_bytes'])},"
        f" of which {render.show_bytes(found['added_bytes'])} were new, in {found['seconds']:.1f} s"
    )


@backup.command("list", epilog=render.examples("backup list --from /mnt/backups"))
@repository_option("--from")
@render.json_option
def list_command(*, place: str | None, as_json: bool) -> None:
    """List the backups, the oldest first."""
    made = open_repository(place).snapshots()
    if as_json:
        render.print_document({"backups": [_document(each) for each in made]})
        return
    shown = render.table("id", "time", "host", "samples", "series", right=("samples", "series"))
    for each in made:
        counts = [f"{int(each.facts.get(name, 0)):,}" for name in ("samples", "series")]
        shown.add_row(each.id, render.show_moment(each.time), each.host, *counts)
    render.console().print(shown)


@backup.command("verify", epilog=render.examples("backup verify --from /mnt/backups", "backup verify --quick"))
@repository_option("--from")
@click.option(
    "--snapshot", metavar="ID", default="latest", show_default=True, help="The backup to restore and compare."
)
@click.option("--quick", is_flag=True, help="Look at the repository alone, and restore nothing.")
@click.option("--read-all", is_flag=True, help="Read every byte of every backup in the repository.")
@click.option("--scratch", metavar="DIR", type=click.Path(path_type=Path, file_okay=False), help="Where there is room.")
@render.json_option
def verify(
    *, place: str | None, snapshot: str, quick: bool, read_all: bool, scratch: Path | None, as_json: bool
) -> None:
    """Verify that the repository is whole, and that a backup gives what was backed up: every series and every table.

    The backup is restored into a folder for that, which is deleted again, and compared with its checksums.
    """
    repository = open_repository(place)
    found: dict[str, Any] = {}
    with Bar("looking at the repository") as bar:
        chosen = repository.find(snapshot)
        repository.check(read_all=read_all)
        if not quick:
            with tempfile.TemporaryDirectory(prefix="openmanager-verify-", dir=scratch) as made:
                copy = Path(made)
                repository.restore(chosen.id, copy, lambda: show_size(bar, copy, chosen))
                bar.retitle("comparing checksums")
                manifest = backup_copy.read_manifest(copy)
                found["series_count"] = backup_copy.check(copy, manifest)
                found["table_count"] = len(manifest["database"]["tables"])
    if as_json:
        render.print_document({**_document(chosen), **found})
    elif quick:
        click.echo("the repository is whole")
    else:
        click.echo(
            f"backup {chosen.id} is good: {found['series_count']:,} series and"
            f" {render.show_count(found['table_count'], 'table')} are what was backed up"
        )


@backup.command("prune", epilog=render.examples("backup prune --from /mnt/backups --daily 7 --weekly 5 --monthly 12"))
@repository_option("--from")
@click.option("--last", type=click.IntRange(1), metavar="N", help="Keep the newest N.")
@click.option("--daily", type=click.IntRange(1), metavar="N", help="Keep the newest of each of N days.")
@click.option("--weekly", type=click.IntRange(1), metavar="N", help="And of each of N weeks.")
@click.option("--monthly", type=click.IntRange(1), metavar="N", help="And of each of N months.")
@render.json_option
def prune(*, place: str | None, as_json: bool, **counts: int | None) -> None:
    """Delete the backups that none of these keeps, and free what only they needed."""
    keep = {name: count for name, count in counts.items() if count is not None}
    if not keep:
        raise click.UsageError("say what is kept: --last, --daily, --weekly or --monthly")
    with Bar("deleting old backups"):
        gone = open_repository(place).forget(keep)
    if as_json:
        render.print_document({"deleted": gone})
    else:
        click.echo(f"{render.show_count(len(gone), 'backup')} deleted")


def open_repository(place: str | None, *, cache: Path | None = None) -> Repository:
    """Return the repository that an option names, or the configuration."""
    config = configuration.load().section(BackupConfig)
    return Repository(place or config.repository, config, cache=cache)


def show_size(bar: Bar, copy: Path, snapshot: Snapshot) -> None:
    """Show how much of a backup is there."""
    if bar.is_shown:
        done = sum(path.stat().st_blocks * 512 for path in copy.rglob("*") if path.is_file())
        total = int(snapshot.facts.get("bytes", 0)) or None
        bar.show(done, total, render.show_bytes(done), title="restoring")


def _show(bar: Bar, status: Mapping[str, Any]) -> None:
    done, total = int(status.get("bytes_done", 0)), int(status.get("total_bytes", 0))
    bar.show(done, total or None, f"{render.show_bytes(done)} of {render.show_bytes(total)}")


def _facts(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return what a list of backups shows of one."""
    return {
        "samples": str(manifest["log"]["accepted_sample_count"]),
        "series": str(manifest["series_count"]),
        "bytes": str(manifest["bytes"]),
    }


def _document(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "snapshot": snapshot.id,
        "time": snapshot.time.isoformat(),
        "host": snapshot.host,
        "accepted_sample_count": int(snapshot.facts.get("samples", 0)),
        "series_count": int(snapshot.facts.get("series", 0)),
    }
