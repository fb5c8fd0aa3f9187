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
from openmanager_metadata.backends import Database
from openmanager_metadata.backends.postgresql import open_database
from openmanager_metadata.config import MetadataConfig
from openmanager_metadata.interaction_service import InteractionService
from openmanager_metadata.interaction_upkeep import Upkeep
from openmanager_metadata.inventory import Inventory
from openmanager_metadata.memory import Memory
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
        memory = Memory(runtime.clock, config.snapshot_servers)
        database = open_database(config, memory, runtime.clock)
        inventory = Inventory(database)
        upkeep = Upkeep(database)
        async with database.connecting():
            tasks = [
                asyncio.create_task(_keep_copy(database, memory, config, runtime.clock)),
                asyncio.create_task(upkeep.run()),
            ]
            try:
                yield Service(
                    servicers={
                        f"{PACKAGE}.ServerService": ServerService(inventory, memory.snapshot, runtime.clock),
                        f"{PACKAGE}.PolicyService": PolicyService(Policies(database)),
                        f"{PACKAGE}.InteractionService": InteractionService(database, upkeep, runtime.clock),
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
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


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


module = MetadataModule()
