import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from openmanager.errors import ConfigurationError, UnavailableError
from openmanager.runtime import launch, supervisor
from openmanager.runtime.supervisor import ChildSpec, LogFile, State, Supervisor

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
DEADLINE = 8.0
# $! and not exec: the shell must stay to ignore what it is sent.
STUBBORN = "trap '' TERM INT; echo $$ > {0}.tmp; sleep 60 & echo $! >> {0}.tmp; mv {0}.tmp {0}; while :; do wait; done"


class FixedClock:
    """Every look at the clock is `step` seconds after the one before."""

    def __init__(self, step):
        self._step = step
        self._now = 0.0

    def now_nanos(self):
        return time.time_ns()

    def monotonic(self):
        self._now += self._step
        return self._now


@pytest.fixture
def spec(tmp_path):
    """Make the spec of a shell script."""

    def make(script, name="child", **options):
        return ChildSpec(
            name=name,
            argv=("/bin/sh", "-c", script),
            env={"PATH": "/usr/bin:/bin"},
            log_path=tmp_path / f"{name}.log",
            lock_path=tmp_path / f"{name}.lock",
            **options,
        )

    return make


async def until(condition, what):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE} s: {what}"
        await asyncio.sleep(0.01)


def alive(pid):
    """Whether a process runs; a zombie, which only waits for its parent to look, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def named(pid):
    """Return what a process runs, and as whom."""
    proc = Path(f"/proc/{pid}")
    return (proc / "comm").read_text().strip(), proc.owner()


def pauses(changes):
    """Return the seconds of each pause between an end and the next start."""
    return [
        later - earlier
        for (earlier, before), (later, after) in pairwise(changes)
        if (before, after) == (State.WAITING, State.STARTING)
    ]


async def test_a_child_that_dies_is_started_again_after_growing_pauses(spec):
    changes = []
    children = Supervisor(
        [spec("echo good >&2; echo bad >&2; exit 3")],
        on_change=lambda child: changes.append((time.monotonic(), child.state)),
    )
    async with children:
        await until(lambda: children.children()[0].restarts >= 3, "three restarts")
        status = children.children()[0]
    assert status.last_error == "exit code 3: bad"
    first, second, third = pauses(changes)[:3]
    assert first >= 0.19  # measured from outside, so a little less than the pause may be seen
    assert second >= 0.39
    assert third >= 0.79


async def test_the_pause_is_short_again_after_a_long_life(spec):
    changes = []
    children = Supervisor(
        [spec("exit 0")],
        clock=FixedClock(step=31.0),
        on_change=lambda child: changes.append((time.monotonic(), child.state)),
    )
    async with children:
        await until(lambda: children.children()[0].restarts >= 4, "four restarts")
    assert max(pauses(changes)) < 1.2  # it would have doubled to 1.6


async def test_a_child_with_a_bad_configuration_is_not_started_again(spec, tmp_path):
    async def never():
        return False

    refused = spec(
        f"echo x >> {tmp_path}/starts; echo starting >&2; echo 'no such key: colour' >&2; exit 78", ready=never
    )
    async with Supervisor([refused, spec("exec sleep 60", name="other")]) as children:
        with pytest.raises(ConfigurationError, match=r"^child does not start: no such key: colour$"):
            await children.wait_ready()
        first, other = children.children()
        assert (first.state, first.last_error, first.pid) == (State.REFUSED, "no such key: colour", None)
        await children.wait_ready("other")
        assert alive(other.pid or children.children()[1].pid)
    assert (tmp_path / "starts").read_text() == "x\n"
    assert children.children()[0].state is State.REFUSED


async def test_a_child_is_ready_when_its_probe_says_so(spec, tmp_path):
    answers = iter([False, RuntimeError("too early"), True])

    async def ready():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with Supervisor([spec("exec sleep 60", ready=ready)]) as children:
        await children.wait_ready("child")
        (status,) = children.children()
    assert (status.state, status.restarts, status.last_error) == (State.READY, 0, "")
    assert status.seconds_to_ready > 0
    assert list(answers) == []


async def test_preparation_that_fails_is_tried_again(spec):
    tries = iter([OSError(28, "No space left on device"), None])

    async def prepare():
        if (err := next(tries)) is not None:
            raise err

    async with Supervisor([spec("exec sleep 60", prepare=prepare)]) as children:
        await children.wait_ready()
        assert children.children()[0].last_error == "cannot start: [Errno 28] No space left on device"


async def test_preparation_may_refuse(spec):
    async def prepare():
        raise ConfigurationError("not like this")

    async with Supervisor([spec("exec sleep 60", prepare=prepare)]) as children:
        with pytest.raises(ConfigurationError, match="not like this"):
            await children.wait_ready()


async def test_a_program_that_is_not_there_is_named(spec):
    missing = ChildSpec(
        name="missing",
        argv=("/no/such/program",),
        log_path=spec("").log_path,
        lock_path=spec("").lock_path,
    )
    async with Supervisor([missing]) as children:
        await until(lambda: children.children()[0].last_error, "an error")
    assert children.children()[0].last_error == "exit code 127: /no/such/program does not exist"


async def test_groups_stop_one_after_another(spec, tmp_path):
    ended = tmp_path / "ended"
    script = "trap 'sleep 0.1; echo {0} >> {1}; exit 0' TERM; touch {1}.{0}; while :; do sleep 0.01; done"
    names = ["store", "service", "gateway"]

    def running(name):
        async def ready():
            return (tmp_path / f"ended.{name}").exists()

        return ready

    specs = [
        spec(script.format(name, ended), name=name, stop_group=2 - place, ready=running(name))
        for place, name in enumerate(names)
    ]
    async with Supervisor(specs) as children:
        await children.wait_ready()
    assert ended.read_text().split() == ["gateway", "service", "store"]
    assert [child.state for child in children.children()] == [State.STOPPED] * 3


async def test_a_child_is_stopped_by_the_signal_it_asks_for(spec, tmp_path):
    script = f"trap 'echo INT > {tmp_path}/got; exit 0' INT; touch {tmp_path}/up; while :; do sleep 0.01; done"
    async with Supervisor([spec(script, stop_signal=signal.SIGINT)]):
        await until((tmp_path / "up").exists, "the child's start")
    assert (tmp_path / "got").read_text() == "INT\n"


async def test_a_child_that_ignores_its_signal_is_killed_with_its_group_when_its_budget_ends(spec, tmp_path):
    pids = tmp_path / "pids"
    async with Supervisor([spec(STUBBORN.format(pids))], budgets={1: 0.4}) as children:
        await until(pids.exists, "the child's start")
        began = time.monotonic()
    assert 0.4 <= time.monotonic() - began < 2
    assert children.children()[0].last_error == "did not end within 0.4 s: killed"
    left = [int(pid) for pid in pids.read_text().split()]
    assert len(left) == 2
    await until(lambda: not any(alive(pid) for pid in left), "the end of the whole group")


async def test_what_made_a_session_of_its_own_is_killed_with_a_child_that_does_not_end(spec, tmp_path):
    pids = tmp_path / "pids"
    script = STUBBORN.replace("sleep 60 &", "setsid sleep 60 &").format(pids)
    async with Supervisor([spec(script)], budgets={1: 0.4}):
        await until(pids.exists, "the child has started")
        apart = int(pids.read_text().split()[1])
        assert alive(apart)
    await until(lambda: not alive(apart), "it is killed")


async def test_what_a_child_leaves_in_its_group_does_not_outlive_it(spec, tmp_path):
    async with Supervisor([spec(f"sleep 60 & echo $! > {tmp_path}/pid; exit 0")]) as children:
        await until(lambda: children.children()[0].restarts >= 1, "a restart")
        await until(lambda: not alive(int((tmp_path / "pid").read_text() or 0)), "the end of what was left")


async def test_a_stop_during_a_pause_or_a_preparation_is_immediate(spec):
    never = asyncio.Event()
    specs = [spec("exit 1"), spec("exec sleep 60", name="preparing", prepare=never.wait)]
    async with Supervisor(specs) as children:
        await until(lambda: children.children()[0].restarts >= 3, "a pause of 1.6 s")
        began = time.monotonic()
    assert time.monotonic() - began < 1


async def test_an_error_of_the_block_stops_the_children_and_stays_itself(spec):
    pids = []

    async def fail():
        async with Supervisor([spec("exec sleep 60")]) as children:
            await children.wait_ready()
            pids.append(children.children()[0].pid)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fail()
    assert not alive(pids[0])


async def test_a_cancelled_block_stops_the_children(spec):
    pids = []

    async def run():
        async with Supervisor([spec("exec sleep 60")]) as children:
            await children.wait_ready()
            pids.append(children.children()[0].pid)
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await until(lambda: pids, "the child's start")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(pids[0])


async def test_who_waits_for_a_child_that_is_stopped_learns_of_it(spec):
    never = asyncio.Event()
    async with Supervisor([spec("exec sleep 60", ready=never.wait)]) as children, asyncio.TaskGroup() as tasks:
        await until(lambda: children.children()[0].pid, "the child's start")
        tasks.create_task(children.stop())
        with pytest.raises(UnavailableError, match="child was stopped"):
            await children.wait_ready()


async def test_a_name_or_a_group_that_cannot_be_is_refused(spec):
    async with Supervisor([spec("exec sleep 60")]) as children:
        with pytest.raises(ValueError, match="there is a child child already"):
            children.start(spec("exec sleep 60"))
        with pytest.raises(ValueError, match="no stop group 9"):
            children.start(spec("exec sleep 60", name="other", stop_group=9))


@contextmanager
def supervising_process(tmp_path, scripts, user=None):
    """Run a process that supervises shell scripts; yields it and the pids of its children."""
    program = f"""
import asyncio, json, signal
from pathlib import Path
from openmanager.runtime.supervisor import ChildSpec, Supervisor
async def main():
    specs = [
        ChildSpec(name=f"c{{n}}", argv=("/bin/sh", "-c", script), env={{"PATH": "/usr/bin:/bin"}}, user={user!r},
                  log_path=Path({str(tmp_path)!r}, f"c{{n}}.log"), lock_path=Path({str(tmp_path)!r}, f"c{{n}}.lock"))
        for n, script in enumerate({scripts!r})
    ]
    async with Supervisor(specs) as children:
        await children.wait_ready()
        print(json.dumps([child.pid for child in children.children()]), flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


async def test_a_killed_supervisor_leaves_no_orphan(tmp_path):
    pids = tmp_path / "pids"
    with supervising_process(tmp_path, [STUBBORN.format(pids), "exec sleep 60"]) as (process, children):
        await until(pids.exists, "the stubborn child's start")
        assert all(alive(pid) for pid in children)
        process.send_signal(signal.SIGKILL)
        await until(lambda: not any(alive(pid) for pid in children), "the end of the children")
    os.kill(int(pids.read_text().split()[1]), signal.SIGKILL)  # a grandchild is its parent's affair


@needs_root
async def test_a_killed_supervisor_leaves_no_orphan_of_another_user(tmp_path):
    with supervising_process(tmp_path, ["exec sleep 60"], user="nobody") as (process, children):
        await until(lambda: named(children[0]) == ("sleep", "nobody"), "the program")
        process.send_signal(signal.SIGKILL)
        await until(lambda: not alive(children[0]), "the end of the child")


async def test_a_stopped_supervisor_can_be_followed_at_once_by_another(tmp_path, spec):
    pids = tmp_path / "pids"
    with supervising_process(tmp_path, [STUBBORN.format(pids)]) as (process, _):
        await until(pids.exists, "the child's start")
        process.send_signal(signal.SIGKILL)
        orphan = int(pids.read_text().split()[1])
        assert alive(orphan)  # it has inherited the lock, and is in the way of its successor
        async with Supervisor([spec("exec sleep 60", name="c0")]) as children:
            await until(lambda: children.children()[0].state is State.WAITING, "the wait")
            os.kill(orphan, signal.SIGKILL)
            await children.wait_ready()
            assert children.children()[0].last_error == ""


def sleeper(inherited):
    return subprocess.Popen(["sleep", "60"], pass_fds=inherited)


@pytest.mark.parametrize("with_waiter", [False, True])
async def test_a_predecessor_that_does_not_end_is_killed_and_nobody_else(tmp_path, spec, monkeypatch, with_waiter):
    monkeypatch.setattr(supervisor, "_LEFTOVER_SECONDS", 0.3)
    child = spec("exec sleep 60")
    with child.lock_path.open("w") as held, child.lock_path.open("w") as waits:
        fcntl.flock(held, fcntl.LOCK_EX)
        predecessor = sleeper([held.fileno()])
        bystander = sleeper([waits.fileno()] if with_waiter else [])
        held.close()
        try:
            async with Supervisor([child]) as children:
                await children.wait_ready()
                assert predecessor.wait() == -signal.SIGKILL
                assert bystander.poll() is None
        finally:
            bystander.kill()
            bystander.wait()


async def test_what_a_child_prints_is_in_its_log(spec, tmp_path):
    script = f"echo out; echo err >&2; printf 'no newline'; touch {tmp_path}/done; exec sleep 60"
    log = tmp_path / "child.log"
    async with Supervisor([spec(script)]):
        await until((tmp_path / "done").exists, "all that it prints")
        await until(lambda: log.exists() and log.read_text().count("\n") == 2, "two lines")
    assert sorted(log.read_text().splitlines()) == ["err", "no newline", "out"]


async def test_the_log_of_a_child_stays_within_its_budget(spec, tmp_path):
    script = (
        f"head -c 20000000 /dev/zero | tr '\\0' x | fold -w 1000; echo; echo end; touch {tmp_path}/done; exec sleep 60"
    )
    async with Supervisor([spec(script)]):
        await until((tmp_path / "done").exists, "20 MB of output")
        await until(lambda: (tmp_path / "child.log").read_bytes().endswith(b"\nend\n"), "the last line")
    sizes = [path.stat().st_size for path in tmp_path.glob("child.log*")]
    assert len(sizes) == 4
    assert max(sizes) <= 4 << 20
    assert sum(sizes) > 8 << 20


def test_a_log_file_keeps_the_newest_lines_whole(tmp_path):
    path = tmp_path / "logs" / "x.log"
    for start in (0, 50):  # closed and opened in between
        log = LogFile(path, files=3, file_bytes=1000)
        for number in range(start, start + 50):
            log.write(b"line %043d\n" % number)
        log.close()
    files = [path.with_name("x.log.2"), path.with_name("x.log.1"), path]
    lines = [int(line.split()[1]) for file in files for line in file.read_text().splitlines()]
    assert lines == list(range(lines[0], 100))
    assert all(file.stat().st_size <= 1000 for file in files)
    assert len(lines) > 40
    assert sorted(path.parent.iterdir()) == sorted(files)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_disk_loses_lines_and_nothing_else():
    log = LogFile(Path("/dev/full"))
    log.write(b"lost\n")
    log.write(b"lost too\n")
    log.close()


def run(command, **options):
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False, **options)


@needs_root
def test_a_program_runs_as_the_user_and_with_that_users_group_alone():
    done = run(launch.argv(["/bin/sh", "-c", "id -un; id -G; umask"], user="nobody"))
    assert (done.returncode, done.stdout.split()) == (0, ["nobody", "65534", "0077"])


def test_a_user_that_does_not_exist_is_a_bad_configuration():
    done = run(launch.argv(["/bin/true"], user="no-such-user"))
    assert (done.returncode, done.stderr.count("\n")) == (78, 1)
    assert "no-such-user" in done.stderr


def test_a_program_whose_parent_is_gone_is_not_run():
    done = run(launch.argv(["/bin/echo", "run"], parent=2**22 + 1))
    assert (done.returncode, done.stdout) == (1, "")


def test_the_module_runs_by_name_and_refuses_what_it_does_not_know():
    by_name = [sys.executable, "-m", "openmanager.runtime.launch"]
    assert run([*by_name, "--signal", "INT", "--", "/bin/echo", "--", "a b"]).stdout == "-- a b\n"
    for wrong in (["--colour", "red", "--", "/bin/true"], ["--user", "--", "/bin/true"], ["--"], [], ["/bin/true"]):
        assert run([*by_name, *wrong]).returncode == 78
    assert run([*by_name, "--signal", "NONE", "--", "/bin/true"]).returncode == 78


def test_an_ignored_signal_of_the_parent_is_not_inherited():
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); import subprocess, sys; "
    script += "from openmanager.runtime import launch; "
    script += "sys.exit(subprocess.call(launch.argv(['/bin/sh', '-c', 'kill -TERM $$; exit 5'])))"
    assert run([sys.executable, "-c", script]).returncode == 256 - signal.SIGTERM
