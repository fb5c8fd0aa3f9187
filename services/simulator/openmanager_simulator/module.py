"""Assembly of the simulator."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path

from openmanager.errors import ConfigurationError
from openmanager.runtime.background import working
from openmanager.runtime.module import Runtime, Service
from openmanager_simulator.backfill import Backfill
from openmanager_simulator.catalogue import load_catalogue
from openmanager_simulator.config import SimulatorConfig
from openmanager_simulator.fault import Fault
from openmanager_simulator.fault_record import load_scenario
from openmanager_simulator.faults import FaultDesk
from openmanager_simulator.fleet import MAX_SERVERS, Server
from openmanager_simulator.gateway import GatewayHistory, GatewayWriter
from openmanager_simulator.record_book import RecordBook
from openmanager_simulator.service import FaultService, SimulatorService
from openmanager_simulator.simulation import Simulation
from openmanager_simulator.ticker import Settings, Ticker

PACKAGE = "openmanager.api.simulator.v1"
WRITES = "openmanager.api.gateway.v1.GatewayService"


class SimulatorModule:
    """The module `simulator`."""

    name = "simulator"
    config = SimulatorConfig

    @contextlib.asynccontextmanager
    async def open(self, runtime: Runtime) -> AsyncIterator[Service]:
        """Build the fleet and, unless told otherwise, begin to tick."""
        config: SimulatorConfig = runtime.section(SimulatorConfig)
        settings = _settings(config)
        scenario = _scenario(config.scenario)
        catalogue = await asyncio.to_thread(load_catalogue)

        def make(settings: Settings, fleet: tuple[Server, ...], faults: Sequence[Fault]) -> Simulation:
            return Simulation(
                fleet=fleet,
                catalogue=catalogue,
                seed=settings.seed,
                interval_nanos=settings.interval_millis * 1_000_000,
                faults=faults,
                schedule=config.faults,
                noise=config.noise,
            )

        async with runtime.peer("gateway", WRITES) as gateway:
            ticker = Ticker(
                settings=settings,
                catalogue=catalogue,
                writer=GatewayWriter(gateway),
                clock=runtime.clock,
                jitter=random.Random(),  # noqa: S311  (jitter)
                buffer_frames=config.buffer_frames,
                make=make,
            )
            ticker.set_faults(scenario)
            book = RecordBook(peer=gateway, replayed=scenario, on_change=ticker.set_faults)
            backfill = Backfill(
                ticker=ticker,
                store=GatewayHistory(gateway),
                clock=runtime.clock,
                noise=config.noise,
                schedule=config.faults,
            )
            desk = FaultDesk(ticker=ticker, book=book, clock=runtime.clock, schedule=config.faults)
            async with contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(working(ticker.deliver(), book.keep()))
                stack.push_async_callback(ticker.stop)
                if config.autostart:
                    await ticker.start(settings)
                yield Service(
                    servicers={
                        f"{PACKAGE}.SimulatorService": SimulatorService(ticker, backfill),
                        f"{PACKAGE}.FaultService": FaultService(desk, runtime.clock),
                    }
                )


def _settings(config: SimulatorConfig) -> Settings:
    millis = config.interval / timedelta(milliseconds=1)
    if not 100 <= millis <= 3_600_000 or millis != int(millis):
        raise ConfigurationError("simulator.interval must be 100 ms–1 h in whole milliseconds")
    if not 1 <= config.servers <= MAX_SERVERS:
        raise ConfigurationError("simulator.servers must be 1–100,000")
    if not 0 <= config.seed < 2**63:
        raise ConfigurationError("simulator.seed must be 0 … 2^63 − 1")
    return Settings(server_count=config.servers, interval_millis=int(millis), seed=config.seed)


def _scenario(path: Path) -> tuple[Fault, ...]:
    if path == Path():
        return ()
    try:
        return load_scenario(path)
    except (OSError, ValueError) as err:
        raise ConfigurationError(f"simulator.scenario cannot be used: {err}") from err


module = SimulatorModule()
