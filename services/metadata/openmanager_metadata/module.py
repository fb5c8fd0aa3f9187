"""Assembly of the metadata service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import replace

from openmanager.errors import OpenManagerError
from openmanager.runtime.clock import Clock
from openmanager.runtime.module import Runtime, Service
from openmanager.runtime.status import Finding, Storage
from openmanager_metadata.audit.checkpoint import Checkpoints
from openmanager_metadata.audit.log import AuditLog
from openmanager_metadata.audit.pruning import Pruning
from openmanager_metadata.audit.reader import AuditReader
from openmanager_metadata.audit_service import AuditService
from openmanager_metadata.backends import Database
from openmanager_metadata.backends.postgresql import open_database
from openmanager_metadata.config import MetadataConfig
from openmanager_metadata.inventory import Inventory
from openmanager_metadata.memory import Memory
from openmanager_metadata.policy import Policies
from openmanager_metadata.service import PolicyService, ServerService

PACKAGE = "openmanager.api.metadata.v1"
TIDY_SECONDS = 3600.0
# Between two portions of audit entries that are too old.
PRUNE_SECONDS = 1.0

log = logging.getLogger(__name__)


class MetadataModule:
    """The module `metadata`."""

    name = "metadata"
    config = MetadataConfig

    @contextlib.asynccontextmanager
    async def open(self, runtime: Runtime) -> AsyncIterator[Service]:
        """Connect in the background, and keep a copy of the inventory for when PostgreSQL is away."""
        config: MetadataConfig = runtime.section(MetadataConfig)
        memory = Memory(runtime.clock, config.snapshot_servers)
        database = open_database(config, memory, runtime.clock)
        inventory = Inventory(database)
        audit = AuditLog(database, runtime.clock)
        reader = AuditReader(database, runtime.clock)
        checkpoints = Checkpoints(
            database,
            audit,
            runtime.clock,
            key=config.audit_key,
            copy=config.audit_checkpoints,
            entries=config.audit_checkpoint_entries,
            seconds=config.audit_checkpoint_interval.total_seconds(),
        )

        async def look() -> Finding:
            found = await database.look()
            return replace(found, warnings=(*found.warnings, *checkpoints.warnings))

        async with database.connecting(), audit.running():
            tasks = (
                asyncio.create_task(_keep_copy(database, memory, config, runtime.clock)),
                asyncio.create_task(checkpoints.keep()),
                asyncio.create_task(_prune(Pruning(database, audit, runtime.clock))),
            )
            try:
                yield Service(
                    servicers={
                        f"{PACKAGE}.ServerService": ServerService(inventory, memory.snapshot, runtime.clock),
                        f"{PACKAGE}.PolicyService": PolicyService(Policies(database)),
                        f"{PACKAGE}.AuditService": AuditService(audit, reader, checkpoints),
                    },
                    storages=[
                        Storage(
                            name="postgresql",
                            role="metadata",
                            engine="postgresql",
                            check=look,
                            clock=runtime.clock,
                            breakers=database.breakers,
                        )
                    ],
                )
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await checkpoints.finish()


async def _keep_copy(database: Database, memory: Memory, config: MetadataConfig, clock: Clock) -> None:
    tidied = -TIDY_SECONDS
    while True:
        try:
            await memory.copy(database)
            if clock.monotonic() - tidied >= TIDY_SECONDS:
                await Inventory(database).forget_requests()
                tidied = clock.monotonic()
        except OpenManagerError:
            pass  # the status of the store says it
        except Exception:
            log.exception("the copy of the inventory could not be renewed")
        known = memory.snapshot.servers is not None
        await asyncio.sleep(config.snapshot_interval.total_seconds() if known else 0.2)


async def _prune(pruning: Pruning) -> None:
    """Delete audit entries that are too old, in small portions, and look again in an hour when there are no more."""
    while True:
        gone = 0
        try:
            gone = await pruning.prune()
        except OpenManagerError:
            pass  # the status of the store says it
        except Exception:
            log.exception("audit entries that are too old could not be deleted")
        await asyncio.sleep(PRUNE_SECONDS if gone else TIDY_SECONDS)


module = MetadataModule()
