"""Write docs/licences.md: each dependency, its licence and what it is there for; with --check, only compare.

Ends with code 1, and what to do, when a licence is neither permissive nor excepted in licences.toml.
"""

from __future__ import annotations

import importlib.metadata
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from boolean import ParseError
from dependencies import LOCK, ROOT, Use, pins, uses
from license_expression import AND, OR, ExpressionError, LicenseExpression, get_spdx_licensing

TARGET = ROOT / "docs" / "licences.md"
POLICY = Path(__file__).with_name("licences.toml")
HEAD = """# Licences of the dependencies

What `requirements.lock` pins, as each package itself says (`scripts/licences.toml` where it does not). `program` is in the
image and wherever OpenManager is installed, `extra` where somebody asks for it, `development` neither. What wheels carry
beside, as numpy does OpenBLAS, is in the licence files that they install. This page is generated: `make licences`.

| package | licence | for |
|---|---|---|
"""
KEPT = """
These files of others are in the package as they were published, with their licences beside them:

"""
EXCEPTIONS = """
These are not among the permissive licences that any dependency may have, and are there for a reason each:

"""

_SPDX = get_spdx_licensing()


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendored:
    """Files of others that are in the package; `name` is that of npm's registry."""

    name: str
    version: str
    licence: str
    folder: str


VENDORED = (
    Vendored(
        name="uplot",
        version="1.6.32",
        licence="MIT",
        folder="services/console/openmanager_console/page/vendor/uplot",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exempt:
    """A package that may have one licence more, and why."""

    licence: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What licences.toml says."""

    permissive: frozenset[str]
    words: Mapping[str, str] = field(default_factory=dict)
    read: Mapping[str, str] = field(default_factory=dict)
    exceptions: Mapping[str, Exempt] = field(default_factory=dict)

    @classmethod
    def load(cls, file: Path = POLICY) -> Self:
        """Read a file."""
        found = tomllib.loads(file.read_text(encoding="utf-8"))
        exceptions = {name: Exempt(**entry) for name, entry in found.pop("exceptions").items()}
        return cls(permissive=frozenset(found.pop("permissive")), exceptions=exceptions, **found)


def parse(text: str) -> LicenseExpression | None:
    """Return an SPDX expression, None for another text, such as that of a whole licence."""
    if not text or "\n" in text:
        return None
    try:
        return _SPDX.parse(text, validate=True)
    except (ExpressionError, ParseError):
        return None


def licence(said: Iterable[str], read: str, words: Mapping[str, str]) -> str:
    """Return the SPDX expression for the first of what a package says that is one, else for what was read; or ''."""
    for text in (*said, read):
        found = parse(words.get(text, text))
        if found is not None:
            return str(found)
    return ""


def said_by(name: str) -> list[str]:
    """Return what an installed package says of its licence, the most exact first; nothing for one that is not there."""
    try:
        about = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return []
    classifiers = [text.split(" :: ") for text in about.get_all("Classifier") or ()]
    names = [parts[-1] for parts in classifiers if parts[0] == "License"]
    # Several classifiers do not say whether one may choose.
    return [*filter(None, (about.get("License-Expression"), about.get("License"))), *(names if len(names) == 1 else ())]


def is_permissive(found: LicenseExpression, permissive: frozenset[str]) -> bool:
    """Say whether an expression leaves a way of permissive licences alone."""
    if isinstance(found, AND | OR):
        enough: Callable[[Iterable[bool]], bool] = all if isinstance(found, AND) else any
        return enough(is_permissive(part, permissive) for part in found.args)
    return str(found) in permissive


def complaint(name: str, text: str, policy: Policy) -> str:
    """Return what is wrong with the licence of a package, '' when nothing is."""
    found = parse(text)
    if found is None:
        return f"{name} does not say its licence: read its licence file, and add it to [read] in scripts/licences.toml"
    if is_permissive(found, policy.permissive):
        return f"{name} needs no exception any more" if name in policy.exceptions else ""
    exempt = policy.exceptions.get(name)
    if exempt is None:
        return f"{name} has the licence {text}, which is not permissive: do without it, or say why it may stay"
    return "" if exempt.licence == text else f"{name} is excepted for {exempt.licence}, and has {text} now"


def licences(policy: Policy) -> dict[str, str]:
    """Return the licence of every package in the lock."""
    names = sorted({pin.name for pin in pins(LOCK)})
    return {name: licence(said_by(name), policy.read.get(name, ""), policy.words) for name in names}


def complaints(found: Mapping[str, str], policy: Policy) -> list[str]:
    """Return all that is wrong."""
    wrong = [complaint(name, text, policy) for name, text in found.items()]
    gone = sorted({*policy.exceptions, *policy.read} - set(found))
    return [*filter(None, wrong), *(f"{name} is in scripts/licences.toml, and in no lock" for name in gone)]


def render(found: Mapping[str, str], used: Mapping[str, Use], policy: Policy) -> str:
    """Return the page."""
    rows = "".join(f"| {name} | {text} | {used[name]} |\n" for name, text in found.items())
    reasons = "".join(f"- {name}, {each.licence}: {each.reason}\n" for name, each in policy.exceptions.items())
    kept = "".join(f"- {each.name} {each.version}, {each.licence}: `{each.folder}`\n" for each in VENDORED)
    return HEAD + rows + KEPT + kept + EXCEPTIONS + reasons


def main() -> None:
    """Generate or check."""
    policy = Policy.load()
    found = licences(policy)
    if wrong := complaints(found, policy):
        sys.exit("\n".join(wrong))
    text = render(found, uses(), policy)
    if "--check" not in sys.argv:
        TARGET.write_text(text, encoding="utf-8")
    elif not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != text:
        sys.exit("docs/licences.md is not that of the lock: run `make licences`")


if __name__ == "__main__":
    main()
