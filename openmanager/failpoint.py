"""Failpoints: places where a process can be made to die at once, as if somebody had pulled the plug.

`OPENMANAGER_FAILPOINT=log.before-sync:3` ends the process with exit code 137 when it passes that place for the third
time; without `:3` the first time. Nothing is flushed, closed or said. With a third part, the name of a file, it dies only
if it can make that file: so a process that is started again lives on, until somebody deletes the file. Without the
variable a failpoint costs one comparison.
"""

from __future__ import annotations

import os

from openmanager.errors import ConfigurationError

VARIABLE = "OPENMANAGER_FAILPOINT"
EXIT_CODE = 137  # that of a process killed by SIGKILL, as shells say it

# What each place stands for: just before or after the step that it names.
NAMES = frozenset(
    {
        "log.before-append",  # a batch was taken, nothing of it is in the file
        "log.before-sync",  # it is in the file, and may be torn
        "log.before-ack",  # it is durable, nobody was told
        "log.amid-trim",  # one of several segments was deleted
        "ledger.before-save",  # positions have advanced in memory only
        "ledger.after-save",
        "sealed.before-rename",  # a block or a tier's file is whole, under another name
        "sealed.after-rename",  # and nobody knows of it yet
        "durable.before-rename",  # the same of a small file: the catalogue, the roller's state
        "reshard.amid-names",  # new folders are whole and compared, some have their names
        "reshard.before-use",  # all have, and the old ones are still used
    }
)

_name = ""
_left = 0
_once = ""


def arm(text: str) -> None:
    """Set the failpoint of this process, as the variable does; ConfigurationError when there is no such place."""
    global _name, _left, _once
    name, _, rest = text.partition(":")
    count, _, once = rest.partition(":")
    if text and (name not in NAMES or not (count or "1").isdecimal() or int(count or "1") < 1):
        places = ", ".join(sorted(NAMES))
        raise ConfigurationError(
            f"{VARIABLE} is {text!r}: place, place:count or place:count:file is expected; places are {places}"
        )
    _name, _left, _once = name, int(count or "1"), once


def passed(name: str) -> None:
    """Die here if this is the place and its time has come (in any thread)."""
    global _left  # noqa: PLW0603
    if name == _name:
        _left -= 1
        if _left <= 0 and (not _once or _made(_once)):
            os._exit(EXIT_CODE)


def _made(path: str) -> bool:
    """Make a file; say whether it was not there."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except OSError:
        return False
    return True
