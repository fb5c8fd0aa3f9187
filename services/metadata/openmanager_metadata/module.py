"""Assembly of the metadata service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from openmanager.errors import OpenManagerError
from openmanager.runtime.clock import Clock
from openmanager.runtime.module import Runtime, Service
from openmanager.runtime.status import Storage
from openmanager_metadata.backends.postgresql import open_database
from openmanager_metadata.config import MetadataConfig
from openmanager_metadata.inventory import Inventory, Snapshot
from openmanager_metadata.policy import Policies
from openmanager_metadata.service import PolicyService, ServerService

PACKAGE = "openmanager.api.metadata.v1"
TIDY_SECONDS = 3600.0

log = logging.getLogger(__name__)


class MetadataModule:
    """The module `metadata`."""

    name = "metadata"
    config = MetadataConfig

    @contextlib.asynccontextmanager
    async def open(self, runtime: Runtime) -> AsyncIterator[Service]:
        """Connect in the background, and keep a copy of the inventory for when PostgreSQL is away."""
        config: MetadataConfig = runtime.section(MetadataConfig)
        database = open_database(config, runtime.clock)
        inventory, snapshot = Inventory(database), Snapshot()
        async with database.connecting():
            task = asyncio.create_task(_keep_snapshot(inventory, snapshot, config, runtime.clock))
            try:
                yield Service(
                    servicers={
                        f"{PACKAGE}.ServerService": ServerService(inventory, snapshot, runtime.clock),
                        f"{PACKAGE}.PolicyService": PolicyService(Policies(database)),
                    },
                    storages=[
                        Storage(
                            name="postgresql",
                            role="metadata",
                            engine="postgresql",
                            check=database.look,
                            clock=runtime.clock,
                            breakers=database.breakers,
                        )
                    ],
                )
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


async def _keep_snapshot(inventory: Inventory, snapshot: Snapshot, config: MetadataConfig, clock: Clock) -> None:
    tidied = -TIDY_SECONDS
    while True:
        try:
            snapshot.take(await inventory.all(config.snapshot_servers), clock.now_nanos())
            if clock.monotonic() - tidied >= TIDY_SECONDS:
                await inventory.forget_requests()
                tidied = clock.monotonic()
        except OpenManagerError:
            pass  # the status of the store says it
        except Exception:
            log.exception("the copy of the inventory could not be renewed")
        await asyncio.sleep(config.snapshot_interval.total_seconds() if snapshot.servers is not None else 0.2)


module = MetadataModule()
