"""Assembly of the metadata service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from openmanager.errors import OpenManagerError
from openmanager.runtime.attempts import Attempts
from openmanager.runtime.audit import Auditor
from openmanager.runtime.background import working
from openmanager.runtime.clock import Clock, until_next
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
from openmanager_metadata.directory import Directory
from openmanager_metadata.first_admin import FirstAdmin
from openmanager_metadata.identity_service import KeyService, RoleService, SessionService, UserService
from openmanager_metadata.interaction_service import InteractionService
from openmanager_metadata.interaction_upkeep import Upkeep
from openmanager_metadata.inventory import Inventory
from openmanager_metadata.keyring import Keyring
from openmanager_metadata.keys import Keys
from openmanager_metadata.memory import Memory
from openmanager_metadata.password import Passwords
from openmanager_metadata.policy import Policies
from openmanager_metadata.service import PolicyService, ServerService
from openmanager_metadata.sessions import Sessions
from openmanager_metadata.users import Users

PACKAGE = "openmanager.api.metadata.v1"
TIDY_SECONDS = 3600.0
FIRST_COPY_SECONDS = 1.0
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
        keyring = Keyring(config.identity_key)
        directory = Directory(keyring, runtime.clock)
        memory = Memory(runtime.clock, config.snapshot_servers, directory)
        database = open_database(config, memory, runtime.clock)
        inventory = Inventory(database)
        users = Users(database, directory, keyring, Passwords(), Attempts(runtime.clock))
        sessions = Sessions(database, directory, keyring)
        first_admin = FirstAdmin(users, config.admin_file)
        erasures = Upkeep(database)
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
        keeping = _Keeping(database, memory, sessions, first_admin, config, runtime.clock)

        async def look() -> Finding:
            found = await database.look()
            return replace(found, warnings=(*found.warnings, *checkpoints.warnings))

        async with (
            database.connecting(),
            audit.running(),
            Auditor(audit, self.name, clock=runtime.clock) as auditor,
        ):
            await keeping.begin()
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(checkpoints.finish)
                prune = _prune(Pruning(database, audit, runtime.clock))
                await stack.enter_async_context(working(keeping.run(), erasures.run(), checkpoints.keep(), prune))
                yield Service(
                    servicers={
                        f"{PACKAGE}.ServerService": ServerService(inventory, memory.snapshot, runtime.clock),
                        f"{PACKAGE}.PolicyService": PolicyService(Policies(database)),
                        f"{PACKAGE}.UserService": UserService(users, sessions),
                        f"{PACKAGE}.RoleService": RoleService(),
                        f"{PACKAGE}.KeyService": KeyService(Keys(database, directory, keyring)),
                        f"{PACKAGE}.SessionService": SessionService(sessions, users),
                        f"{PACKAGE}.InteractionService": InteractionService(database, erasures, runtime.clock),
                        f"{PACKAGE}.AuditService": AuditService(audit, reader, checkpoints),
                    },
                    auditor=auditor,
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


@dataclass(frozen=True, slots=True)
class _Keeping:
    """What is done all the time: the copy in memory, and now and then what is past is removed."""

    database: Database
    memory: Memory
    sessions: Sessions
    first_admin: FirstAdmin
    config: MetadataConfig
    clock: Clock

    async def begin(self) -> None:
        """Take the first copy before anybody is answered, if it does not take long: who knows nobody refuses everybody."""
        with contextlib.suppress(OpenManagerError, TimeoutError):
            async with asyncio.timeout(FIRST_COPY_SECONDS):
                await self._copy()

    async def _copy(self) -> None:
        await self.memory.copy(self.database)
        await self.first_admin.look()

    async def run(self) -> None:
        """Go on until cancelled."""
        tidied = -TIDY_SECONDS
        while True:
            try:
                await self._copy()
                if self.clock.monotonic() - tidied >= TIDY_SECONDS:
                    await Inventory(self.database).forget_requests()
                    await self.sessions.forget_ended()
                    tidied = self.clock.monotonic()
            except OpenManagerError:
                pass  # the status of the store says it
            except Exception:
                log.exception("the copy of the inventory could not be renewed")
            known = self.memory.snapshot.servers is not None
            await asyncio.sleep(until_next(self.config.snapshot_interval.total_seconds()) if known else 0.2)


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
