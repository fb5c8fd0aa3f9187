"""kill −9 of the analysis while alerts begin and end: nobody misses one, and nothing is told again in the same life.

`KILL_ROUNDS=20 pytest tests/analysis/test_alert_kill.py` kills it twenty times, instead of the two of every day.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web
from analysis.alerting import CADENCE, OUTLOOK, rule
from client.mesh import LocalMesh
from conftest import clean_environment, free_ports, wait_until
from openmanager_analysis.alerting.keeper import Keeper
from openmanager_analysis.collector import Names

from openmanager.client import Client
from openmanager.errors import DeadlineExceededError, UnavailableError
from openmanager.frame import Frame
from openmanager.runtime.clock import SystemClock

ROUNDS = int(os.environ.get("KILL_ROUNDS", "2"))
# A busy machine may take its time to start a process.
PATIENCE = 120.0
SERVERS = 12
# A server and when it began to fire, as a message says it.
Trouble = tuple[str, str]


@dataclass
class Life:
    """The analysis, killed and started again, and a receiver that notes in which life it was told what."""

    folder: Path
    environment: dict[str, str]
    number: int = 0
    firing: Counter[tuple[int, Trouble]] = field(default_factory=Counter)
    resolved: Counter[tuple[int, Trouble]] = field(default_factory=Counter)
    ends: dict[Trouble, set[str]] = field(default_factory=dict)
    dies_at_next_message: bool = False
    mood: str = ""  # of the receiver: how it takes messages
    refused: Counter[str] = field(default_factory=Counter)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.number += 1
        command = [sys.executable, "-m", "openmanager.cli", "serve", "analysis"]
        with (self.folder / "analysis.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    @property
    def is_dead(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    async def told(self, request: web.Request) -> web.Response:
        document = await request.json()
        if self.mood in {"answers 500", "hangs up"}:
            self.refused[self.mood] += 1
            if self.mood == "hangs up" and request.transport is not None:
                request.transport.close()
            return web.Response(status=500)
        if self.mood == "is slow":
            await asyncio.sleep(0.3)
        for each in document["alerts"]:
            trouble = each["labels"]["server"], each["startsAt"]
            if each["status"] == "firing":
                self.firing[self.number, trouble] += 1
            else:
                self.resolved[self.number, trouble] += 1
                self.ends.setdefault(trouble, set()).add(each["endsAt"])
        if self.dies_at_next_message:  # told, and nobody can note it
            self.dies_at_next_message = False
            self.kill()
        return web.Response()

    def knows(self, trouble: Trouble) -> bool:
        return any(known == trouble for _, known in self.firing)


@contextlib.asynccontextmanager
async def lived(folder: Path, mesh: LocalMesh) -> AsyncIterator[Life]:
    life = Life(
        folder,
        {
            **clean_environment(),
            "OPENMANAGER_GATEWAY": mesh.gateway,
            **{
                f"OPENMANAGER_MESH_{name.upper()}": mesh.addresses[name] for name in ("timeseries", "cache", "metadata")
            },
            "OPENMANAGER_SERVER_LISTEN": f"127.0.0.1:{free_ports(1)}",
            "OPENMANAGER_ALLOW_INSECURE": "1",
            "OPENMANAGER_ANALYSIS_DATA_DIR": str(folder / "analysis"),
            "OPENMANAGER_ANALYSIS_RECEIVERS": str(folder / "receivers.toml"),
            "OPENMANAGER_ANALYSIS_ALERT_WAIT": "10ms",
            "OPENMANAGER_ANALYSIS_ALERT_INTERVAL": "10ms",
        },
    )
    app = web.Application()
    app.router.add_post("/", life.told)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    (folder / "receivers.toml").write_text(f'[ops]\nurl = "http://127.0.0.1:{port}/"\nallow_private = true\n')
    # The rule is what is known from before: there is no metadata service.
    keeper = Keeper(
        names=Names(most=10),
        path=folder / "analysis" / "alerts.state",
        clock=SystemClock(),
        cadence=CADENCE,
        outlook_nanos=OUTLOOK,
    )
    keeper.alerting.adopt([rule(metrics=("cpu_usage",))], time.time_ns())
    await keeper.save()
    try:
        life.start()
        yield life
    finally:
        life.kill()
        await runner.cleanup()


class Fleet:
    """Servers that get into trouble and out of it; what was acknowledged of that should be told."""

    def __init__(self, client: Client, chance: random.Random) -> None:
        self._client, self._chance = client, chance
        self._last = 0
        self.going_on: dict[str, str] = {}
        self.over: dict[Trouble, str] = {}

    async def turn(self, server: str) -> None:
        """Let a server get into trouble, or out of it."""
        self._last = max(self._last + 1, time.time_ns() // 10**6)
        is_well = server in self.going_on
        frame = Frame(
            times=np.array([self._last * 10**6]),
            servers=(server,),
            metrics=("cpu_usage",),
            values=np.full((1, 1, 1), 10.0 if is_well else 95.0),
        )

        async def is_written() -> bool:
            with contextlib.suppress(UnavailableError, DeadlineExceededError):
                await self._client.write_frame(frame)
                return True
            return False

        await wait_until(is_written, PATIENCE)
        at = f"{datetime.fromtimestamp(self._last // 1000, UTC):%Y-%m-%dT%H:%M:%S}.{self._last % 1000:03d}Z"
        if is_well:
            self.over[server, self.going_on.pop(server)] = at
        else:
            self.going_on[server] = at

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self.turn(f"web-{self._chance.randrange(SERVERS)}")
            await asyncio.sleep(self._chance.uniform(0.0, 0.03))


@pytest.mark.timeout(120 + 60 * ROUNDS)
async def test_a_kill_while_alerts_begin_and_end_loses_none_and_repeats_none_in_the_same_life(tmp_path: Path):
    chance = random.Random(5)
    mesh = LocalMesh(tmp_path / "timeseries", {})
    await mesh.start()
    try:
        async with Client(mesh.gateway) as client, lived(tmp_path, mesh) as life:
            canaries, fleet = Fleet(client, chance), Fleet(client, chance)

            await is_followed(life, canaries)
            for turn in range(ROUNDS):
                stop = asyncio.Event()
                writing = asyncio.create_task(fleet.run(stop))
                await asyncio.sleep(chance.uniform(0.05, 0.6))
                if turn % 2:
                    life.kill()
                else:
                    life.dies_at_next_message = True
                    await wait_until(lambda: _died(life), PATIENCE)
                await asyncio.sleep(chance.uniform(0.0, 0.2))
                life.start()
                count = len(life.firing) + len(life.resolved)
                if turn % 3:  # else it may be killed again while it starts
                    await wait_until(lambda known=count: _more(life, known), PATIENCE)
                stop.set()
                await writing

            await wait_until(lambda: told_all(life, fleet), PATIENCE)
            assert {each: life.ends[each] for each in fleet.over} == {each: {at} for each, at in fleet.over.items()}
            assert [each for each, count in life.resolved.items() if count > 1] == []
            assert fleet.over
    finally:
        await mesh.stop()


@pytest.mark.timeout(180)
async def test_a_receiver_in_trouble_is_told_each_end_once_when_it_is_well_though_the_analysis_was_killed_meanwhile(
    tmp_path: Path,
):
    mesh = LocalMesh(tmp_path / "timeseries", {})
    await mesh.start()
    try:
        async with Client(mesh.gateway) as client, lived(tmp_path, mesh) as life:
            canaries, fleet = Fleet(client, random.Random(6)), Fleet(client, random.Random(7))
            await is_followed(life, canaries)
            for life.mood in ("is slow", "answers 500", "hangs up"):
                for server in range(SERVERS):
                    await fleet.turn(f"web-{server}")
                if life.mood != "is slow":
                    await wait_until(lambda: _refused(life), PATIENCE)
            life.kill()
            for server in range(0, SERVERS, 2):
                await fleet.turn(f"web-{server}")
            life.mood = ""
            life.start()
            await wait_until(lambda: told_all(life, fleet), PATIENCE)
            assert len(fleet.over) == SERVERS + SERVERS // 2
            assert {each: life.ends[each] for each in fleet.over} == {each: {at} for each, at in fleet.over.items()}
            taken = Counter(trouble for _, trouble in life.resolved.elements())
            assert {taken[each] for each in fleet.over} == {1}
    finally:
        await mesh.stop()


async def is_followed(life: Life, canaries: Fleet) -> None:
    """Return when the analysis follows the log: what comes from now on is judged."""

    async def canary() -> bool:
        assert not life.is_dead, (life.folder / "analysis.log").read_text()
        await canaries.turn("canary")
        return bool(life.firing or life.resolved)

    await wait_until(canary, PATIENCE)


async def told_all(life: Life, fleet: Fleet) -> bool:
    """Say whether the receiver knows of all that is over, and of all that goes on."""
    return all(each in life.ends for each in fleet.over) and all(life.knows(each) for each in fleet.going_on.items())


async def _refused(life: Life) -> bool:
    return life.refused[life.mood] > 0


async def _died(life: Life) -> bool:
    return life.is_dead


async def _more(life: Life, count: int) -> bool:
    return len(life.firing) + len(life.resolved) > count
