"""Faults at random: which, of whom, and for how long, from a seed; and how long it takes until all is well again."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from dataclasses import dataclass

from chaos.mesh import SERVICES, Mesh, Probe, family, signalled
from chaos.part import full
from chaos.proxy import Trouble, Way
from chaos.stores import Stores

RECOVERY_SECONDS = 30.0
# A fault that does not end by itself is held for so long, at most.
HELD_SECONDS = 1.5
# Of a hundred faults. Those of the wire are made by the proxies before the stores; a full disk takes a file system of
# its own, and so root.
KINDS = {
    "kill": 40,
    "stop": 25,
    "slow": 10,
    "silent": 3,
    "sliced": 2,
    "reset": 5,
    "down": 3,
    "half open": 2,
    "empty": 5,
    "disk full": 5,
}
_PROCESS = frozenset({"kill", "stop"})
HISTORY = "timeseries"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault that was made: when it began on the monotonic clock, and how long it took until all was well after it."""

    kind: str
    victim: str
    began: float
    held: float
    recovered: float | None

    @property
    def end(self) -> float:
        """When it was no longer felt."""
        return self.began + self.held + (self.recovered if self.recovered is not None else RECOVERY_SECONDS)


async def make(mesh: Mesh, behind: Stores, probe: Probe, dice: random.Random) -> Fault:
    """Make one fault, and wait until all is well again."""
    kind = dice.choices(list(KINDS), list(KINDS.values()))[0]
    victim, seconds = dice.choice(_victims(kind, behind)), dice.uniform(0.2, HELD_SECONDS)
    return await one(kind, victim, seconds if kind != "empty" else 0.0, mesh, behind, probe, dice)


async def one(
    kind: str, victim: str, seconds: float, mesh: Mesh, behind: Stores, probe: Probe, dice: random.Random
) -> Fault:
    """Make a fault of a kind for so long, and wait until all is well again."""
    began = time.monotonic()
    if kind in _PROCESS:
        await _break_process(kind, behind.pid(victim) if victim in behind.parts else mesh.pid(victim), seconds)
    else:
        async with _made(kind, victim, mesh, behind, dice):
            await asyncio.sleep(seconds)
    held = time.monotonic() - began if kind != "kill" else 0.0
    return Fault(kind=kind, victim=victim, began=began, held=held, recovered=await probe.works(RECOVERY_SECONDS))


def _victims(kind: str, behind: Stores) -> list[str]:
    """Return whom a kind of fault may happen to."""
    if kind in _PROCESS:
        return [*SERVICES, *behind.parts]
    return [*behind.parts, HISTORY] if kind == "disk full" else list(behind.parts)


def _made(
    kind: str, victim: str, mesh: Mesh, behind: Stores, dice: random.Random
) -> contextlib.AbstractAsyncContextManager[None]:
    """Return a fault that is there as long as the context is open."""
    if victim == HISTORY:
        return full(mesh.data)
    store = behind.parts[victim]
    if kind == "empty":
        return store.emptied()
    if kind == "disk full":
        return store.disk_full()
    return store.trouble(
        {
            "slow": Trouble(latency=dice.uniform(0.1, 2.0), jitter=0.1),
            "reset": Trouble(reset_after=dice.randint(0, 5000)),
            "down": Trouble(down=True),
            "silent": Trouble(silent=frozenset(Way)),
            "half open": Trouble(silent=frozenset({Way.BACK})),
            "sliced": Trouble(slice_bytes=1),
        }[kind]
    )


async def _break_process(kind: str, pid: int | None, seconds: float) -> None:
    if pid is None:
        return  # it is being started again already
    if kind == "kill":
        signalled([pid], signal.SIGKILL)
        return
    pids = family(pid)
    signalled(pids, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        signalled(pids, signal.SIGCONT)
