"""Run child processes: start, watch, restart with back-off, stop in order; knows no service.

Every child is a session of its own (a Ctrl-C at the terminal reaches the supervisor alone) with a parent-death signal,
so that nothing outlives a killed supervisor. Children inherit an exclusive lock: whatever happened to a supervisor
before, a child starts only when every process of its predecessor has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import math
import os
import signal
import threading
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from io import FileIO
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from openmanager.errors import ConfigurationError, UnavailableError
from openmanager.runtime import launch
from openmanager.runtime.clock import Clock, SystemClock, to_datetime

BACKOFF_FIRST_SECONDS = 0.2
BACKOFF_LAST_SECONDS = 10.0
BACKOFF_RESET_SECONDS = 5.0  # a child that lived so long starts again at once: only what cannot start waits longer
# Group 0 takes requests, group 1 answers them, group 2 stores what they say: 11 s in all.
STOP_BUDGETS: Mapping[int, float] = MappingProxyType({0: 3.0, 1: 6.0, 2: 2.0})
LOG_FILES = 4
LOG_FILE_BYTES = 4 << 20

_LEFTOVER_SECONDS = 5.0  # a predecessor's processes end by their parent-death signal; then they are killed
_AFTER_KILL_SECONDS = 0.5  # a process in an uninterruptible wait must not keep us
_LAST_OUTPUT_SECONDS = 0.5  # a grandchild may hold the pipe open
_LONGEST_LINE_BYTES = 64 << 10
_READY_POLL_SECONDS = (0.02, 0.2)


class State(StrEnum):
    """What a child is doing."""

    WAITING = "waiting"  # for its back-off, or for its predecessor to end
    STARTING = "starting"  # prepared or running, and not ready
    READY = "ready"
    REFUSED = "refused"  # its configuration is bad: not restarted
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """A program to keep running.

    `env` is the whole environment. `prepare` runs before every start, under the child's lock; ConfigurationError from
    it is final, any other error is tried again. `ready` is asked until it is true; None means ready once started.
    `death_signal` is what the child gets when the supervisor dies: only SIGKILL cannot be ignored.
    """

    name: str
    argv: Sequence[str]
    log_path: Path
    lock_path: Path
    stop_group: int = 1
    env: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold passwords
    cwd: Path | None = None
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGKILL
    prepare: Callable[[], Awaitable[None]] | None = None
    ready: Callable[[], Awaitable[bool]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildStatus:
    """A child at one moment: `since` when it is in its state, `last_error` why it last ended without being asked to.

    `seconds_to_ready` is what its last start took, preparation included.
    """

    name: str
    state: State
    pid: int | None
    restarts: int
    since: datetime
    last_error: str
    seconds_to_ready: float | None


class LogFile:
    """A file that is appended to, and rotated so that it and its predecessors stay within a budget.

    `path` is the newest, `path.1` the one before. A full disk loses lines; it never ends a child or the supervisor.
    """

    def __init__(self, path: Path, *, files: int = LOG_FILES, file_bytes: int = LOG_FILE_BYTES) -> None:
        self._path = path
        self._files = files
        self._file_bytes = file_bytes
        self._out: FileIO | None = None
        self._size = 0

    def write(self, lines: bytes) -> None:
        """Append; blocks for a write to the page cache."""
        try:
            out = self._out or self._open()
            if self._size and self._size + len(lines) > self._file_bytes:
                self._rotate()
                out = self._open()
            self._size += out.write(lines)
        except OSError:
            self.close()

    def close(self) -> None:
        """Close the file; the next write opens it again."""
        if self._out is not None:
            with contextlib.suppress(OSError):
                self._out.close()
            self._out = None

    def _open(self) -> FileIO:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._out = out = FileIO(self._path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600))
        self._size = out.tell()
        return out

    def _rotate(self) -> None:
        self.close()
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{n}") for n in range(1, self._files))]
        for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
            if newer.exists():
                newer.replace(older)


class _Output(asyncio.Protocol):
    """Copies whole lines from a pipe to the log, and remembers the last one."""

    def __init__(self, log: LogFile) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._log = log
        self._rest = b""
        self._last = b""

    @property
    def last_line(self) -> str:
        """The last line that was not empty, shortened to what fits into a table."""
        return self._last.decode("utf-8", "replace").strip()[:300]

    def data_received(self, data: bytes) -> None:
        """Log what is complete."""
        lines, newline, self._rest = (self._rest + data).rpartition(b"\n")
        if len(self._rest) > _LONGEST_LINE_BYTES:
            lines, newline, self._rest = lines + newline + self._rest, b"\n", b""
        if newline:
            self._take(lines + newline)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        """Log the rest; nobody holds the other end any more."""
        if self._rest:
            self._take(self._rest + b"\n")
        if not self.ended.done():
            self.ended.set_result(None)

    def _take(self, lines: bytes) -> None:
        self._log.write(lines)
        if text := lines.rstrip():
            self._last = text.rpartition(b"\n")[2]


class _Child:
    """One child: its loop of starts, and its end."""

    def __init__(self, spec: ChildSpec, *, clock: Clock, log: LogFile, changed: Callable[[], None]) -> None:
        self.spec = spec
        self.state = State.WAITING
        self.last_error = ""
        self.task: asyncio.Task[None] | None = None
        self._clock = clock
        self._log = log
        self._changed = changed
        self._process: Process | None = None
        self._restarts = 0
        self._since = clock.now_nanos()
        self._began = 0.0
        self._spawned = math.inf
        self._seconds_to_ready: float | None = None
        self._stopping = False

    def status(self) -> ChildStatus:
        """Return what there is to print."""
        return ChildStatus(
            name=self.spec.name,
            state=self.state,
            pid=self._process.pid if self._process else None,
            restarts=self._restarts,
            since=to_datetime(self._since),
            last_error=self.last_error,
            seconds_to_ready=self._seconds_to_ready,
        )

    async def run(self) -> None:
        """Keep the child running until it is stopped or refused."""
        delay = BACKOFF_FIRST_SECONDS
        try:
            while not self._stopping:
                self._began, self._spawned = self._clock.monotonic(), math.inf
                if not await self._run_once():
                    self._enter(State.REFUSED)
                    return
                if self._stopping:
                    break
                if self._clock.monotonic() - self._spawned >= BACKOFF_RESET_SECONDS:
                    delay = 0.0
                self._enter(State.WAITING)
                await asyncio.sleep(delay)
                delay = min(max(BACKOFF_FIRST_SECONDS, 2 * delay), BACKOFF_LAST_SECONDS)
                self._restarts += 1
        finally:
            self.kill()
            self._process = None
            self._log.close()
            if self.state is not State.REFUSED:
                self._enter(State.STOPPED)

    def prevent_restart(self) -> None:
        """Let the next end be the last."""
        self._stopping = True

    async def stop(self, budget: float) -> None:
        """End the child: its signal, and SIGKILL for its whole process group when `budget` seconds have passed."""
        self.prevent_restart()
        if self.task is None or self.task.done():
            return
        if self._process is None:
            self.task.cancel()
        else:
            self._enter(State.STOPPING)
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(self.spec.stop_signal)
        if not (await asyncio.wait([self.task], timeout=budget))[0]:
            self.last_error = f"did not end within {budget:g} s: killed"
            self.kill()
            # What made a session of its own, as PostgreSQL's processes do, is in no group of the child's.
            _kill_holders(self.spec.lock_path)
            await asyncio.wait([self.task], timeout=_AFTER_KILL_SECONDS)
        self.task.cancel()

    def kill(self) -> None:
        """End the child's process group now, with what the child itself left behind in it."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _enter(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            self._since = self._clock.now_nanos()
            self._changed()

    async def _run_once(self) -> bool:
        """Start the child and wait for its end; False when its configuration is bad."""
        try:
            async with _predecessor_ended(self.spec.lock_path) as lock:
                self._enter(State.STARTING)
                if self.spec.prepare is not None:
                    await self.spec.prepare()
                with _pipe() as (out_read, out_write), _pipe() as (err_read, err_write):
                    self._process = await self._spawn(lock, out_write, err_write)
                    self._spawned = self._clock.monotonic()
                    outputs = [await self._connect(end) for end in (out_read, err_read)]
        except ConfigurationError as err:
            self.last_error = err.message
            return False
        except Exception as err:  # noqa: BLE001  (whatever is wrong with one child, the others go on)
            self.last_error = f"cannot start: {err or type(err).__name__}"
            return True
        return await self._watch(self._process, outputs)

    async def _spawn(self, lock: int, out: int, err: int) -> Process:
        return await asyncio.create_subprocess_exec(
            *launch.argv(self.spec.argv, user=self.spec.user, death_signal=self.spec.death_signal),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            pass_fds=(lock,),
            env=self.spec.env,
            cwd=self.spec.cwd,
            start_new_session=True,
        )

    async def _connect(self, end: int) -> tuple[asyncio.BaseTransport, _Output]:
        loop = asyncio.get_running_loop()
        # A duplicate, so that one place closes each descriptor: the pipe's block its own, the transport this one.
        return await loop.connect_read_pipe(lambda: _Output(self._log), os.fdopen(os.dup(end), "rb", buffering=0))

    async def _watch(self, process: Process, outputs: list[tuple[asyncio.BaseTransport, _Output]]) -> bool:
        """Wait for the end of a process; False when it says that its configuration is bad."""
        probe = asyncio.create_task(self._until_ready())
        exited = asyncio.create_task(process.wait())
        try:
            await asyncio.wait([exited])
        finally:
            probe.cancel()
            self.kill()
            endings: list[asyncio.Future[Any]] = [probe, exited, *(output.ended for _, output in outputs)]
            await asyncio.wait(endings, timeout=_LAST_OUTPUT_SECONDS)
            for transport, _ in outputs:
                transport.close()
            self._process = None
        code, last_line = exited.result(), outputs[1][1].last_line
        refused = code == launch.BAD_CONFIGURATION and not self._stopping
        if not self._stopping:
            self.last_error = last_line if refused and last_line else f"{_ended(code)}: {last_line}".removesuffix(": ")
        return not refused

    async def _until_ready(self) -> None:
        delay, longest = _READY_POLL_SECONDS
        earlier = self.last_error
        while self.spec.ready is not None:
            try:
                if await self.spec.ready():
                    break
            except Exception as err:  # noqa: BLE001  (a probe that fails is a child that is not ready)
                self.last_error = f"not ready: {err or type(err).__name__}"
            await asyncio.sleep(delay)
            delay = min(1.5 * delay, longest)
        if not self._stopping:
            self.last_error = earlier
            self._seconds_to_ready = self._clock.monotonic() - self._began
            self._enter(State.READY)


def _ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended by signal {-code}"


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """Yield both ends of a pipe, closed here when the block ends."""
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


@asynccontextmanager
async def _predecessor_ended(path: Path) -> AsyncIterator[int]:
    """Yield the descriptor of a held lock, to be inherited; wait for all who inherited it before.

    flock(2) locks belong to the open file, so the lock lasts until the last process that inherited it has ended.
    Unlike a pid file it cannot name the wrong process.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            async with asyncio.timeout(_LEFTOVER_SECONDS):
                await _take(fd)
        except TimeoutError:
            _kill_holders(path)
            async with asyncio.timeout(_LEFTOVER_SECONDS):
                await _take(fd)
        yield fd
    finally:
        os.close(fd)


async def _take(fd: int) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.sleep(0.02)
        else:
            return


def _kill_holders(path: Path) -> None:
    """Kill the processes that hold the lock of a file, as far as we may see."""
    wanted = path.stat()
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _holds(process, wanted):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(process.name), signal.SIGKILL)


def _holds(process: Path, wanted: os.stat_result) -> bool:
    with contextlib.suppress(OSError):  # it ended, or it is not ours to look at
        for name in os.listdir(process / "fd"):  # noqa: PTH208  (a lazy iterator would see the process end in mid-way)
            if not os.path.samestat((process / "fd" / name).stat(), wanted):
                continue
            # Who only waits for the lock has the file open too, without this line: proc_pid_fdinfo(5).
            if "FLOCK" in (process / "fdinfo" / name).read_text(encoding="ascii"):
                return True
    return False


class Supervisor:
    """Keeps children running while its `async with` block runs, and stops them in order at its end.

    `budgets` has the seconds that each stop group gets; groups stop one after another, lowest first.
    """

    def __init__(
        self,
        specs: Sequence[ChildSpec] = (),
        *,
        budgets: Mapping[int, float] = STOP_BUDGETS,
        clock: Clock | None = None,
        on_change: Callable[[ChildStatus], None] | None = None,
    ) -> None:
        self._specs = specs
        self._budgets = budgets
        self._clock = clock or SystemClock()
        self._on_change = on_change
        self._children: dict[str, _Child] = {}
        self._tasks = asyncio.TaskGroup()
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        for spec in self._specs:
            self.start(spec)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            await self.stop()
        finally:
            for child in self._children.values():  # whatever happened above, a second Ctrl-C for one
                child.kill()
                if child.task is not None:
                    child.task.cancel()
            # The group learns of a cancellation, which may be its own; an error of the block stays as it is.
            cancelled = isinstance(err, asyncio.CancelledError)
            await self._tasks.__aexit__(*((kind, err, tb) if cancelled else (None, None, None)))

    def start(self, spec: ChildSpec) -> None:
        """Add a child and start it; ValueError for a name or a stop group that cannot be."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("children are started from the main thread: the end of the thread is what ends them")
        if spec.name in self._children:
            raise ValueError(f"there is a child {spec.name} already")
        if spec.stop_group not in self._budgets:
            raise ValueError(f"there is no stop group {spec.stop_group}")
        child = _Child(spec, clock=self._clock, log=LogFile(spec.log_path), changed=lambda: self._notify(child))
        self._children[spec.name] = child
        child.task = self._tasks.create_task(child.run(), name=f"child {spec.name}")

    def children(self) -> list[ChildStatus]:
        """Return the status of every child, in the order of their starts."""
        return [child.status() for child in self._children.values()]

    async def wait_ready(self, *names: str) -> None:
        """Wait until the children of these names, or all, are ready; ConfigurationError as soon as one is refused.

        UnavailableError when one is stopped meanwhile. There is no deadline: set one with `asyncio.timeout`.
        """
        waited = [self._children[name] for name in names or self._children]
        while any(child.state is not State.READY for child in waited):
            for child in waited:
                if child.state is State.REFUSED:
                    raise ConfigurationError(f"{child.spec.name} does not start: {child.last_error}")
                if child.state is State.STOPPED:
                    raise UnavailableError(f"{child.spec.name} was stopped")
            await self._changed.wait()

    async def stop(self) -> None:
        """Stop every child, group by group, each group within its budget."""
        for child in self._children.values():
            child.prevent_restart()
        for group in sorted(self._budgets):
            async with asyncio.TaskGroup() as stopping:
                for child in self._children.values():
                    if child.spec.stop_group == group:
                        stopping.create_task(child.stop(self._budgets[group]))

    def _notify(self, child: _Child) -> None:
        # Everybody who waits sees this event; who comes later waits for the next.
        self._changed.set()
        self._changed = asyncio.Event()
        if self._on_change is not None:
            self._on_change(child.status())
