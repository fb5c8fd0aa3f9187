"""Become a program that does not outlive the process that started it.

Run as `python -m openmanager.runtime.launch [--user NAME] [--signal NAME] [--parent PID] -- PROGRAM ARGS…`. Only the
standard library, and little of it: every child of a supervisor pays for this start, about 20 ms when run isolated
(see `argv`). The exit code is 78 when the command line or the user is wrong, 126 or 127 when the program cannot be run.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

BAD_CONFIGURATION = 78  # EX_CONFIG of sysexits.h
_CANNOT_RUN = 126
_NOT_FOUND = 127
_PR_SET_PDEATHSIG = 1


def argv(
    program: Sequence[str],
    *,
    user: str | None = None,
    death_signal: signal.Signals = signal.SIGTERM,
    parent: int | None = None,
) -> list[str]:
    """Return the command line that runs `program` through this module.

    By path, isolated and without `site`: nothing in the environment or the working directory can be imported instead,
    and no .pth file is read. It must be started from the main thread: the signal comes when the starting *thread* ends.
    """
    return [
        *(sys.executable, "-I", "-S", __file__),
        *(("--user", user) if user else ()),
        *("--signal", death_signal.name.removeprefix("SIG")),
        *("--parent", str(os.getpid() if parent is None else parent)),
        *("--", *program),
    ]


def main(args: Sequence[str]) -> NoReturn:
    """Drop privileges, ask for the signal at the parent's death, and become the program."""
    options, program = _parse(args)
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the passwords
    try:
        _reset_signals()
        # Looked up as who we are: the user we become may be unable to read Python's own files.
        prctl = _prctl()
        if "--user" in options:
            _become(options["--user"])
        # After setuid, which clears it; exec keeps it.
        prctl(_PR_SET_PDEATHSIG, getattr(signal, "SIG" + options.get("--signal", "TERM")))
    except (OSError, KeyError, AttributeError) as err:
        _fail(BAD_CONFIGURATION, f"cannot start {program[0]}: {err}")
    # The parent may have died before the kernel knew of our wish.
    if os.getppid() != int(options.get("--parent", os.getppid())):
        _fail(1, f"the parent of {program[0]} is gone")
    try:
        os.execvp(program[0], program)  # noqa: S606  (no shell is the point)
    except FileNotFoundError:
        _fail(_NOT_FOUND, f"{program[0]} does not exist")
    except OSError as err:
        _fail(_CANNOT_RUN, f"cannot run {program[0]}: {err.strerror}")


def _parse(args: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the options and the program; by hand, because argparse doubles the start time."""
    if "--" not in args:
        _fail(BAD_CONFIGURATION, "a program is expected after --")
    split = args.index("--")
    options = dict(zip(args[:split:2], args[1:split:2], strict=False))
    if split % 2 or not set(options) <= {"--user", "--signal", "--parent"} or split + 1 == len(args):
        _fail(BAD_CONFIGURATION, "usage: [--user NAME] [--signal NAME] [--parent PID] -- PROGRAM ARGS…")
    return options, list(args[split + 1 :])


def _reset_signals() -> None:
    """Undo what Python or a `nohup` above us set: an ignored signal stays ignored across exec, and would not stop us."""
    ignored: Iterable[signal.Signals] = (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _become(user: str) -> None:
    """Become a user, with that user's own group alone."""
    import pwd

    entry = pwd.getpwnam(user)
    os.setgroups([entry.pw_gid])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def _prctl() -> Callable[[int, int], None]:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def prctl(option: int, value: int) -> None:
        zero = ctypes.c_ulong(0)
        if libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero) != 0:
            raise OSError(ctypes.get_errno(), "prctl")

    return prctl


def _fail(code: int, why: str) -> NoReturn:
    sys.stderr.write(f"{why}\n")
    raise SystemExit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
