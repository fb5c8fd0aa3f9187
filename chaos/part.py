"""A part of a mesh: a process that a supervisor keeps, reached through a proxy, and what can happen to any of them."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Self

from chaos.mesh import family, signalled
from chaos.proxy import ChaosProxy, Trouble, Upstream
from openmanager.runtime.supervisor import ChildSpec, State, Supervisor

RESTART_SECONDS = 60.0


class Part:
    """A process by its name. `folder` is where it keeps what it holds, `upstream` how it is reached without the proxy."""

    def __init__(self, spec: ChildSpec, folder: Path, upstream: Upstream, seed: int) -> None:
        self.name = spec.name
        self.folder = folder
        self.proxy = ChaosProxy(upstream, seed=seed)
        self._prepare = spec.prepare
        self.spec = replace(spec, prepare=self._before_start)
        # What is done once, before the next start, while no process has its files open.
        self._change: Callable[[], None] | None = None
        self._children: Supervisor | None = None

    def kept_by(self, children: Supervisor) -> Self:
        """Tell it who keeps its process."""
        self._children = children
        return self

    async def _before_start(self) -> None:
        change, self._change = self._change, None
        if change is not None:
            await asyncio.to_thread(change)
        if self._prepare is not None:
            await self._prepare()

    @property
    def pid(self) -> int | None:
        """Its process, None while it has none."""
        status = next(each for each in self._children.children() if each.name == self.name) if self._children else None
        return status.pid if status is not None else None

    def kill(self) -> None:
        """Kill it at once; it is started again."""
        signalled([self.pid or 0], signal.SIGKILL)

    async def restart(
        self, change: Callable[[], None] | None = None, *, number: signal.Signals = signal.SIGKILL
    ) -> None:
        """End it, change its files while nobody has them open, and return when it is ready again."""
        assert self._children is not None
        before, self._change = self.pid, change
        signalled([before or 0], number)
        await self.ready_again(before)

    async def ready_again(self, before: int | None = None) -> None:
        """Return when it is ready, as another process than `before`."""
        end = time.monotonic() + RESTART_SECONDS
        while self.pid in {before, None} or not self._is_ready():
            if time.monotonic() > end:
                raise TimeoutError(f"{self.name} was not ready again within {RESTART_SECONDS:.0f} s")
            await asyncio.sleep(0.02)

    def _is_ready(self) -> bool:
        assert self._children is not None
        return any(each.name == self.name and each.state is State.READY for each in self._children.children())

    # ── what can happen to it ──────────────────────────────────────────────────────────────────────────────────────

    @contextlib.asynccontextmanager
    async def trouble(self, trouble: Trouble) -> AsyncIterator[None]:
        """Do something to its connections."""
        async with self.proxy.while_(trouble):
            yield

    @contextlib.asynccontextmanager
    async def flapping(self, seconds: float) -> AsyncIterator[None]:
        """Let it go down and come up, for so many seconds each, all the while."""
        task = asyncio.create_task(self.proxy.flap(10_000, seconds))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.proxy.set(Trouble())

    @contextlib.asynccontextmanager
    async def killed(self) -> AsyncIterator[None]:
        """Kill it; nobody listens until it may come back."""
        async with self.proxy.while_(Trouble(down=True)):
            self.kill()
            yield

    @contextlib.asynccontextmanager
    async def stopped(self) -> AsyncIterator[None]:
        """Stop it and all below it: it is there and does not answer."""
        pids = family(self.pid or 0)
        signalled(pids, signal.SIGSTOP)
        try:
            yield
        finally:
            signalled(pids, signal.SIGCONT)

    @contextlib.asynccontextmanager
    async def restarted_with(self, change: Callable[[], None]) -> AsyncIterator[None]:
        """Kill it and change its files before it is started again; nobody listens meanwhile."""
        async with self.proxy.while_(Trouble(down=True)):
            await self.restart(change)
            yield

    def restarted_empty(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Let it come back without anything that it held."""
        return self.restarted_with(lambda: emptied(self.folder))

    @contextlib.asynccontextmanager
    async def restarted_old(self, seconds: float = 3.0) -> AsyncIterator[None]:
        """Let it come back with what it held some seconds ago."""
        copy = self.folder.with_name(f"{self.folder.name}.old")
        shutil.rmtree(copy, ignore_errors=True)
        await self.restart(lambda: copied(self.folder, copy))
        await asyncio.sleep(seconds)

        def put_back() -> None:
            emptied(self.folder)
            copied(copy, self.folder)

        async with self.restarted_with(put_back):
            yield
        shutil.rmtree(copy, ignore_errors=True)

    def disk_full(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Fill the file system that its folder is on, which should be one of its own."""
        return full(self.folder)


@contextlib.asynccontextmanager
async def full(folder: Path) -> AsyncIterator[None]:
    """Keep the file system of a folder full."""
    filler = folder / "filler"
    task = asyncio.create_task(_fill_forever(filler))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        filler.unlink(missing_ok=True)


def emptied(folder: Path) -> None:
    """Delete all that is in a folder; the folder may be where a file system is mounted."""
    for each in folder.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()


def copied(source: Path, target: Path) -> None:
    """Copy a folder, with owners where that is allowed."""
    target.mkdir(parents=True, exist_ok=True)
    for each in source.rglob("*"):
        there = target / each.relative_to(source)
        if each.is_dir():
            there.mkdir(exist_ok=True)
        elif each.is_file():
            shutil.copy2(each, there)
        with contextlib.suppress(OSError):
            found = each.stat()
            there.chmod(found.st_mode & 0o7777)
            shutil.chown(there, found.st_uid, found.st_gid)


async def _fill_forever(file: Path) -> None:
    """Write to a file whatever fits, and again what becomes free."""
    with file.open("wb", buffering=0) as out:
        while True:
            for size in (16 << 20, 4096):
                with contextlib.suppress(OSError):
                    while await asyncio.to_thread(out.write, bytes(size)) == size:
                        pass
            await asyncio.sleep(0.1)
