"""Assembly of the analysis service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta

from openmanager.errors import ConfigurationError
from openmanager.runtime.module import Runtime, Service
from openmanager.runtime.status import Storage
from openmanager_analysis.analyst import Analyst
from openmanager_analysis.config import AnalysisConfig
from openmanager_analysis.faults import Faults
from openmanager_analysis.history import History
from openmanager_analysis.reach import Reach
from openmanager_analysis.service import AnalysisService, AnomalyService
from openmanager_analysis.watcher import Watcher

PACKAGE = "openmanager.api.analysis.v1"
STATE = "detector.state"


class AnalysisModule:
    """The module `analysis`."""

    name = "analysis"
    config = AnalysisConfig

    @contextlib.asynccontextmanager
    async def open(self, runtime: Runtime) -> AsyncIterator[Service]:
        """Follow the log with the detector, and answer questions about history."""
        config: AnalysisConfig = runtime.section(AnalysisConfig)
        interval = _nanos(config.interval)
        async with contextlib.AsyncExitStack() as stack:
            log = await stack.enter_async_context(runtime.peer("timeseries"))
            asked, cache, simulator = [
                await stack.enter_async_context(runtime.peer(name, passes_on=True))
                for name in ("timeseries", "cache", "simulator")
            ]
            watcher = Watcher(
                timeseries=log,
                clock=runtime.clock,
                path=config.data_dir / STATE,
                interval_nanos=interval,
                save_seconds=config.save_interval.total_seconds(),
                max_series=config.max_series,
            )
            history = History(asked, config.query_timeout.total_seconds())
            analyst = Analyst(history, Faults(simulator))
            await watcher.load()
            watching = asyncio.create_task(watcher.run())
            try:
                yield Service(
                    servicers={
                        f"{PACKAGE}.AnalysisService": AnalysisService(analyst, watcher, runtime.clock),
                        f"{PACKAGE}.AnomalyService": AnomalyService(
                            analyst, watcher, Reach(cache, runtime.clock), runtime.clock
                        ),
                    },
                    storages=[
                        Storage(
                            name="detector",
                            role="what is usual",
                            engine="files",
                            check=watcher.find,
                            clock=runtime.clock,
                        )
                    ],
                )
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                await watcher.save()


def _nanos(interval: timedelta) -> int:
    millis = interval / timedelta(milliseconds=1)
    if not 1_000 <= millis <= 3_600_000 or millis != int(millis):
        raise ConfigurationError("analysis.interval must be 1s–1h in whole milliseconds")
    return int(millis) * 1_000_000


module = AnalysisModule()
