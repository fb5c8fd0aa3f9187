"""What chaos changes inside the processes of a mesh, without a word of it in their code.

The folder `within` is on the path of these processes, so Python runs the `sitecustomize` in it before anything else. It
asks for changes to modules, each of which is made right after the module is imported.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from chaos.wall_clock import CLOCK, install

PLANTED = "CHAOS_PLANTED"


def environment(planted: str = "") -> dict[str, str]:
    """Return what the processes of a mesh are to be given, with the bug that is planted in them if any."""
    return {"PYTHONPATH": str(Path(__file__).parent / "within"), PLANTED: planted}


def prepare() -> None:
    """Have a kill be a power cut for timeseries' log; set the clock and plant a bug if that is asked for."""
    if file := os.environ.get(CLOCK):
        install(file)
    finder = Changed()
    finder.after("openmanager_timeseries.disk", _cut_power)
    if name := os.environ.get(PLANTED):
        from chaos.planted import BUGS

        for module, change in BUGS[name].changes:
            finder.after(module, change)
    sys.meta_path.insert(0, finder)


def _cut_power(disk: ModuleType) -> None:
    from chaos.power import PowerDisk

    disk.PosixDisk = PowerDisk  # type: ignore[attr-defined]


class Changed(MetaPathFinder):
    """Finds modules as everybody does, and changes some once they are loaded."""

    def __init__(self) -> None:
        self._changes: dict[str, list[Callable[[ModuleType], None]]] = defaultdict(list)

    def after(self, module: str, change: Callable[[ModuleType], None]) -> None:
        """Make a change after a module is loaded."""
        self._changes[module].append(change)

    def find_spec(self, fullname: str, *_: Sequence[str] | ModuleType | None) -> ModuleSpec | None:
        """Return where a module that is to be changed is, with a loader that changes it."""
        changes = self._changes.pop(fullname, None)  # so that the others are asked below
        spec = find_spec(fullname) if changes else None
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            for change in changes:
                change(module)

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec
