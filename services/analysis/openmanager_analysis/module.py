"""Assembly of the analysis service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

from openmanager import datadir
from openmanager.errors import ConfigurationError
from openmanager.runtime.background import working
from openmanager.runtime.clock import Clock
from openmanager.runtime.module import Runtime, Service
from openmanager.runtime.status import Storage
from openmanager_analysis.alert_service import AlertService, RuleService, SilenceService
from openmanager_analysis.alerting.keeper import Keeper, Post
from openmanager_analysis.alerting.outbox import Cadence
from openmanager_analysis.alerting.policy_store import PolicyStore
from openmanager_analysis.alerting.polling import Inventory, Outlooks, Stores
from openmanager_analysis.alerting.receivers import Receiver, load
from openmanager_analysis.analyst import Analyst
from openmanager_analysis.collector import Names
from openmanager_analysis.config import AnalysisConfig
from openmanager_analysis.faults import Faults
from openmanager_analysis.found import Found
from openmanager_analysis.history import History
from openmanager_analysis.measure import observe_anomalies
from openmanager_analysis.reach import Reach
from openmanager_analysis.service import AnalysisService, AnomalyService
from openmanager_analysis.watcher import Watcher

PACKAGE = "openmanager.api.analysis.v1"
STATE, ALERTS = "detector.state", "alerts.state"
LEAST_REPEAT_NANOS = 60 * 10**9


class AnalysisModule:
    """The module `analysis`."""

    name = "analysis"
    config = AnalysisConfig

    @contextlib.asynccontextmanager
    async def open(self, runtime: Runtime) -> AsyncIterator[Service]:
        """Follow the log with the detector, and answer questions about history."""
        config: AnalysisConfig = runtime.section(AnalysisConfig)
        interval = _nanos(config.interval)
        await asyncio.to_thread(datadir.claim, config.data_dir)
        await asyncio.to_thread(runtime.shard.claim, config.data_dir)
        async with contextlib.AsyncExitStack() as stack:
            log = await stack.enter_async_context(runtime.peer("timeseries"))
            # Of several shards each can answer for all history, which the gateway puts together.
            everything = "timeseries" if runtime.shard.count == 1 else "gateway"
            asked, cache, simulator = [
                await stack.enter_async_context(runtime.peer(name, passes_on=True))
                for name in (everything, "cache", "simulator")
            ]
            metadata, gateway = [
                await stack.enter_async_context(runtime.peer(name)) for name in ("metadata", "gateway")
            ]
            names = Names(most=config.max_series)
            keeper = _keeper(config, names, runtime.clock)
            watcher = Watcher(
                timeseries=log,
                clock=runtime.clock,
                path=config.data_dir / STATE,
                interval_nanos=interval,
                save_seconds=config.save_interval.total_seconds(),
                names=names,
                alerts=keeper,
                mark="" if runtime.shard.count == 1 else f"-{runtime.shard.index}",
            )
            keeper.is_following = lambda: watcher.follower.view.following
            seconds = config.query_timeout.total_seconds()
            faults, reach = Faults(simulator), Reach(cache, runtime.clock)
            analyst, own = Analyst(History(asked, seconds), faults), Analyst(History(log, seconds), faults)
            found = Found(watcher, asked if runtime.shard.count > 1 else None)
            policies = PolicyStore(metadata, keeper, runtime.clock, is_alone=runtime.shard.count == 1)
            await keeper.load()
            await watcher.load()
            observe_anomalies(lambda: watcher.register)
            async with contextlib.AsyncExitStack() as beside:
                beside.push_async_callback(watcher.save)
                beside.push_async_callback(keeper.save)
                outlooks = Outlooks(own, keeper, runtime.clock, config.outlook_interval.total_seconds())
                await beside.enter_async_context(
                    working(
                        watcher.run(),
                        keeper.run(),
                        policies.follow(),
                        # One shard tells of stores: the others would tell the same.
                        *((Stores(gateway, keeper, runtime.clock).run(),) if runtime.shard.index == 0 else ()),
                        outlooks.run(),
                        Inventory(cache, names).run(),
                    )
                )
                yield Service(
                    servicers={
                        f"{PACKAGE}.AnalysisService": AnalysisService(analyst, found, runtime.clock),
                        f"{PACKAGE}.AnomalyService": AnomalyService(analyst, watcher, reach, runtime.clock),
                        f"{PACKAGE}.RuleService": RuleService(keeper, policies, runtime.clock),
                        f"{PACKAGE}.SilenceService": SilenceService(keeper, policies, runtime.clock),
                        f"{PACKAGE}.AlertService": AlertService(keeper, reach),
                    },
                    storages=[
                        Storage(
                            name="detector",
                            role="what is usual",
                            engine="files",
                            check=watcher.find,
                            clock=runtime.clock,
                        ),
                        Storage(
                            name="alerts",
                            role="rules and alerts",
                            engine="files",
                            check=keeper.find,
                            clock=runtime.clock,
                        ),
                    ],
                )


def _keeper(config: AnalysisConfig, names: Names, clock: Clock) -> Keeper:
    wait, interval, repeat = (
        round(each.total_seconds() * 1e9) for each in (config.alert_wait, config.alert_interval, config.alert_repeat)
    )
    if repeat < LEAST_REPEAT_NANOS:
        raise ConfigurationError("analysis.alert_repeat must be 1m or more")
    if config.outlook_interval < timedelta(seconds=1):
        raise ConfigurationError("analysis.outlook_interval must be 1s or more")
    return Keeper(
        names=names,
        path=config.data_dir / ALERTS,
        clock=clock,
        cadence=Cadence(wait_nanos=wait, interval_nanos=interval, repeat_nanos=repeat),
        outlook_nanos=round(config.outlook_interval.total_seconds() * 1e9),
        receivers=_receivers(config.receivers),
        external_url=config.external_url,
        save_seconds=config.save_interval.total_seconds(),
    )


def _receivers(file: Path) -> list[tuple[Receiver, Post]]:
    """Return the receivers of a file, each with the way to it; most meshes have none, and are spared an HTTP client."""
    if not (found := load(file)):
        return []
    from openmanager_analysis.alerting.webhook import Webhook

    return [(receiver, Webhook(receiver)) for receiver in found]


def _nanos(interval: timedelta) -> int:
    millis = interval / timedelta(milliseconds=1)
    if not 1_000 <= millis <= 3_600_000 or millis != int(millis):
        raise ConfigurationError("analysis.interval must be 1s–1h in whole milliseconds")
    return int(millis) * 1_000_000


module = AnalysisModule()
