"""Failpoints: places where a process can be made to die at once, as if somebody had pulled the plug.

`OPENMANAGER_FAILPOINT=log.before-sync:3` ends the process with exit code 137 when it passes that place for the third
time; without `:3` the first time. Nothing is flushed, closed or said. Without the variable a failpoint costs one
comparison.
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
    }
)

_name = ""
_left = 0


def arm(text: str) -> None:
    """Set the failpoint of this process, as the variable does; ConfigurationError when there is no such place."""
    global _name, _left
    name, _, count = text.partition(":")
    if text and (name not in NAMES or not (count or "1").isdecimal() or int(count or "1") < 1):
        places = ", ".join(sorted(NAMES))
        raise ConfigurationError(f"{VARIABLE} is {text!r}: a place, or place:count, is expected; places are {places}")
    _name, _left = name, int(count or "1")


def passed(name: str) -> None:
    """Die here if this is the place and its time has come (in any thread)."""
    global _left  # noqa: PLW0603
    if name == _name:
        _left -= 1
        if _left <= 0:
            os._exit(EXIT_CODE)
