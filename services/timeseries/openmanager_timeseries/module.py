"""Assembly of the time-series service."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

from openmanager import datadir
from openmanager.api.status.v1 import status_pb2
from openmanager.runtime.audit import Auditor, PeerRecorder
from openmanager.runtime.background import working
from openmanager.runtime.module import Runtime, Service
from openmanager.runtime.status import Finding, Storage, as_calls_find
from openmanager_timeseries import evidence
from openmanager_timeseries.config import TimeseriesConfig
from openmanager_timeseries.consumer import Runner
from openmanager_timeseries.disk import PosixDisk
from openmanager_timeseries.engine_link import STATES, Condition, EngineLink
from openmanager_timeseries.engine_reader import EngineReader
from openmanager_timeseries.engines import open_engine
from openmanager_timeseries.history import History
from openmanager_timeseries.inventory import MetadataInventory
from openmanager_timeseries.log_service import LogService
from openmanager_timeseries.opening import open_history
from openmanager_timeseries.policy_store import MetadataPolicies, follow
from openmanager_timeseries.port import Consumer
from openmanager_timeseries.registrar import Registrar
from openmanager_timeseries.retention_service import ImportService, RetentionService
from openmanager_timeseries.service import TimeseriesService

PACKAGE = "openmanager.api.timeseries.v1"


class TimeseriesModule:
    """The module `timeseries`."""

    name = "timeseries"
    config = TimeseriesConfig

    @contextlib.asynccontextmanager
    async def open(self, runtime: Runtime) -> AsyncIterator[Service]:
        """Open log, head and blocks, and run the consumers of this process."""
        config: TimeseriesConfig = runtime.section(TimeseriesConfig)
        await asyncio.to_thread(datadir.claim, config.data_dir)
        await asyncio.to_thread(runtime.shard.claim, config.data_dir)
        disk = await asyncio.to_thread(PosixDisk, config.data_dir / "log")
        async with (
            open_history(config, disk, runtime.clock, runtime.shard) as history,
            runtime.peer("metadata") as metadata,
            Auditor(PeerRecorder(metadata), self.name, clock=runtime.clock) as auditor,
        ):
            policies = MetadataPolicies(metadata)
            registrar = Registrar(MetadataInventory(metadata), runtime.clock, history.catalog.info_of)
            link = _engine_link(config, history, runtime)
            consumers: list[Consumer] = [registrar]
            kept = history.retention
            running = [
                follow(policies, history, alone=runtime.shard.count == 1),
                evidence.tell(kept.evidence, kept.save, auditor),
            ]
            if link is not None:
                seconds = config.engine_query_timeout.total_seconds()
                history.engine = EngineReader(link, history.catalog, seconds, runtime.clock)
                consumers.append(link)
                running.append(link.watch())
            running += [_runner(each, history, runtime).run() for each in consumers]
            async with contextlib.AsyncExitStack() as stack:
                if link is not None:
                    stack.push_async_callback(link.engine.close)
                await stack.enter_async_context(working(*running))
                yield Service(
                    servicers={
                        f"{PACKAGE}.TimeseriesService": TimeseriesService(history, runtime.clock),
                        f"{PACKAGE}.RetentionService": RetentionService(history, policies),
                        f"{PACKAGE}.LogService": LogService(history, {each.name: each for each in consumers}),
                        f"{PACKAGE}.ImportService": ImportService(history),
                    },
                    storages=_storages(history, link, runtime),
                    auditor=auditor,
                    ledger=lambda: history.ledger.message(history.log),
                    breakers=(link.reads, link.writes) if link is not None else (),
                )


def _engine_link(config: TimeseriesConfig, history: History, runtime: Runtime) -> EngineLink | None:
    engine = open_engine(config, shard=runtime.shard)
    if engine is None:
        return None
    return EngineLink(engine, history, runtime.clock, config.data_dir / f"{engine.name}.json")


def _runner(consumer: Consumer, history: History, runtime: Runtime) -> Runner:
    return Runner(
        consumer=consumer,
        source=history.log,
        ledger=history.ledger,
        clock=runtime.clock,
        jitter=random.Random(),  # noqa: S311  (jitter)
    )


def _storages(history: History, link: EngineLink | None, runtime: Runtime) -> list[Storage]:
    async def look_at_log() -> Finding:
        state = history.log.state
        readonly = state.full or state.failure
        warnings = [f"{state.damaged_regions} damaged regions set aside"] if state.damaged_regions else []
        warnings += [
            f"the books of {name} do not balance: see `openmanager log`" for name in history.ledger.unbalanced()
        ]
        return Finding(
            state=status_pb2.STORAGE_STATE_READONLY if readonly else status_pb2.STORAGE_STATE_OK,
            reason="disk full" if state.full else state.failure,
            size_bytes=history.log.size_bytes(),
            item_count=state.head_position - history.log.first_position + 1,
            warnings=(*warnings, *history.warnings),
        )

    async def look_at_head() -> Finding:
        return Finding(size_bytes=history.head.nbytes, item_count=history.catalog.alive)

    async def look_at_blocks() -> Finding:
        stores = [store for _, store in history.stores()]
        damaged = sum(len(store.quarantined) for store in stores)
        return Finding(
            size_bytes=sum(store.size_bytes for store in stores),
            item_count=sum(len(store.files) for store in stores),
            warnings=(f"{damaged} files are damaged",) if damaged else (),
        )

    storages = [
        Storage(name="log", role="log", engine="files", check=look_at_log, clock=runtime.clock),
        Storage(name="head", role="recent history", engine="memory", check=look_at_head, clock=runtime.clock),
        Storage(name="blocks", role="blocks and tiers", engine="parquet", check=look_at_blocks, clock=runtime.clock),
    ]
    if link is not None:
        storages.append(_engine_storage(link, runtime))
    return storages


def _engine_storage(link: EngineLink, runtime: Runtime) -> Storage:
    async def look() -> Finding:
        found, warnings = link.found, list(link.found.warnings) if link.found else []
        if letters := link.dead_letters:
            warnings.append(f"{letters} dead letters: see `openmanager log dead-letters`")
        reason = str(link.condition)
        if link.condition is Condition.FILLING and link.progress.total:
            reason += f": {link.progress.done} of {link.progress.total} blocks"
        shown = Finding(
            state=STATES[link.condition],
            certain=True,
            version=found.version if found else "",
            reason=reason,
            size_bytes=found.size_bytes if found else 0,
            warnings=tuple(warnings),
        )
        return as_calls_find(shown, (link.reads, link.writes))

    return Storage(name=link.name, role="raw history", engine=link.name, check=look, clock=runtime.clock)


module = TimeseriesModule()
