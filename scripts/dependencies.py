"""What the locks pin, as it is installed here: versions, hashes, licences, who needs whom, and what for.

Names are normalised (PEP 503). A pin whose marker does not hold here, of another system or Python, is not installed.
"""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"  # everything; the other two are parts of it
IMAGE_LOCK = ROOT / "requirements-image.lock"
BUILD_LOCK = ROOT / "requirements-build.lock"
LOCKS = (LOCK, IMAGE_LOCK, BUILD_LOCK)

_PIN = re.compile(
    r"(?P<name>[a-z0-9-]+)==(?P<version>[a-z0-9.!+]+)(?: ; (?P<marker>[^\\\n]+?))?"
    r"(?P<hashes>(?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n"
)


class Use(StrEnum):
    """What a dependency is there for."""

    PROGRAM = "program"  # in the image, and wherever openmanager is installed
    EXTRA = "extra"  # where somebody asks for it: openmanager[embedded], openmanager[sql]
    DEVELOPMENT = "development"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A line of a lock; `hashes` are the SHA-256 of the files that are taken for it, in hexadecimal."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    @property
    def is_installed(self) -> bool:
        """Whether it is for this system and this Python."""
        return not self.marker or Marker(self.marker).evaluate()


def parse(text: str) -> list[Pin]:
    """Return the pins of a lock; ValueError, with the line, for whatever is not one version with its SHA-256 hashes."""
    found, at = [], 0
    while at < len(text):
        match = _PIN.match(text, at)
        if match is None:
            raise ValueError(f"this is not a version pinned with its hashes: {text[at:].partition(chr(10))[0]!r}")
        hashes = tuple(match["hashes"].split("sha256:")[1:])
        hashes = tuple(each[:64] for each in hashes)
        found.append(Pin(name=match["name"], version=match["version"], marker=match["marker"] or "", hashes=hashes))
        at = match.end()
    return found


def pins(lock: Path) -> list[Pin]:
    """Return the pins of a lock file."""
    return parse(lock.read_text(encoding="utf-8"))


@cache
def project() -> dict[str, Any]:
    """Return what pyproject.toml says."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def own_needs(*extras: str) -> list[Requirement]:
    """Return what the program needs itself, with some extras."""
    own = project()["project"]
    texts = [*own["dependencies"], *(text for extra in extras for text in own["optional-dependencies"][extra])]
    return [Requirement(text) for text in texts]


def needs(name: str, extras: Iterable[str] = ()) -> Iterator[Requirement]:
    """Yield what an installed package needs here, with some of its extras."""
    for text in importlib.metadata.requires(name) or ():
        need = Requirement(text)
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield need


def closure(requirements: Iterable[Requirement]) -> dict[str, set[str]]:
    """Return all that some requirements bring, each with what it needs itself."""
    found: dict[str, set[str]] = {}
    asked: set[tuple[str, frozenset[str]]] = set()
    open_ = list(requirements)
    while open_:
        requirement = open_.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in asked:
            continue
        asked.add((name, extras))
        more = list(needs(name, extras))
        found.setdefault(name, set()).update(canonicalize_name(need.name) for need in more)
        open_ += more
    return found


def uses() -> dict[str, Use]:
    """Return what each dependency of the lock is there for."""
    program = {pin.name for pin in pins(IMAGE_LOCK)}
    extras = closure(own_needs(*project()["project"]["optional-dependencies"]))
    return {
        pin.name: Use.PROGRAM if pin.name in program else Use.EXTRA if pin.name in extras else Use.DEVELOPMENT
        for pin in pins(LOCK)
    }
