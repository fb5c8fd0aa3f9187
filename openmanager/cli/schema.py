"""`openmanager schema`: which tables the database has, and the way back to those of an earlier version."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import folder, render
from openmanager.errors import ConfigurationError, FailedPreconditionError, UnavailableError

if TYPE_CHECKING:
    from openmanager.config import Configuration

CONNECT_SECONDS = 5.0
# Tables are counted and indexes made anew.
SECONDS = 600.0


@click.command(epilog=render.examples("schema", "schema --back-to 1", "schema --back-to 1 --discard"))
@folder.data_dir_option
@click.option("--back-to", type=click.IntRange(min=1), metavar="NUMBER", help="Undo the migrations after this one.")
@click.option("--discard", is_flag=True, help="Do it, although what the earlier version has no place for is deleted.")
def schema(data_dir: Path | None, back_to: int | None, *, discard: bool) -> None:
    """Show the last migration of the database, or undo migrations before an earlier version is started again.

    The database is that of DATABASE_MIGRATION_URL or DATABASE_URL, else the embedded one of the data directory, while
    `openmanager up` does not run. Without --discard nothing is changed, and what would be deleted is listed. What the
    earlier version knew stays; make a backup first for what it did not.
    """
    from openmanager.cli import configuration

    if discard and back_to is None:
        raise click.UsageError("--discard goes with --back-to")
    loaded = configuration.load()
    for line in asyncio.run(_run(loaded, data_dir, back_to, discard=discard)):
        click.echo(line)


async def _run(loaded: Configuration, data_dir: Path | None, back_to: int | None, *, discard: bool) -> list[str]:
    from openmanager_metadata.backends.migration import SchemaError, go_back, migrations, version

    known = migrations()[-1][0]
    async with _connected(loaded, data_dir) as connection:
        try:
            found = await version(connection)
            if back_to is None:
                return [f"the database has migration {found}, this version knows {known}"]
            if back_to >= found:
                return [f"the database has migration {found}: there is nothing to undo"]
            gone = await go_back(connection, back_to, discard=discard)
        except SchemaError as err:
            raise FailedPreconditionError(f"the database {err}") from err
    if discard:
        return [f"the database has migration {back_to} now, and no longer:", *gone]
    return ["nothing is changed. With --discard, these would be deleted:", *gone]


@contextlib.asynccontextmanager
async def _connected(loaded: Configuration, data_dir: Path | None) -> AsyncIterator[Any]:
    """Yield a connection as who owns the tables."""
    import asyncpg
    from openmanager_metadata.config import MetadataConfig

    from openmanager.cli import backup_copy
    from openmanager.cli.up import default_data_dir
    from openmanager.datadir import DataDir

    config = loaded.section(MetadataConfig)
    async with contextlib.AsyncExitStack() as stack:
        url = config.migration_url or config.database_url
        if data_dir is not None or not url:
            root = data_dir or default_data_dir()
            if not (root / "VERSION").exists():
                raise ConfigurationError(f"{root} is no data directory: name another with --data-dir")
            data = stack.enter_context(DataDir.open(root))
            url = await stack.enter_async_context(backup_copy.embedded_postgresql(data, loaded))
        try:
            connection = await asyncpg.connect(url.reveal(), timeout=CONNECT_SECONDS, command_timeout=SECONDS)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as err:
            raise UnavailableError("PostgreSQL does not answer, or refuses who we are") from err
        except ValueError as err:  # asyncpg's own words repeat what may be the password
            raise ConfigurationError("the URL of the database cannot be read") from err
        try:
            yield connection
        except asyncpg.InsufficientPrivilegeError as err:
            raise FailedPreconditionError(
                "PostgreSQL does not let our role do this: set DATABASE_MIGRATION_URL"
            ) from err
        except asyncpg.DependentObjectsStillExistError as err:
            raise FailedPreconditionError("something of others, such as a view, needs what would be deleted") from err
        except (OSError, TimeoutError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError) as err:
            raise UnavailableError("the connection to PostgreSQL was lost: look again what it has") from err
        finally:
            connection.terminate()
