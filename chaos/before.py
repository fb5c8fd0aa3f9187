"""The last release, installed beside this version: its own program with what its own lock pins."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from openmanager.version import VERSION

ROOT = Path(__file__).resolve().parent.parent
# What `git archive` leaves, and `python -m venv` makes, below the folder of a release.
SOURCE, ENVIRONMENT = "source", "environment"
# Asked of each version's own interpreter.
_ASKED = """
import json
from importlib import resources
from openmanager import datadir, suite
names = [file.name for file in resources.files("openmanager_metadata").joinpath("migrations").iterdir()]
numbers = [int(name[:4]) for name in names if name.endswith(".sql")]
print(json.dumps({"services": suite.NAMES, "migration": max(numbers), "layout": datadir.LAYOUT_VERSION}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """An installed version: its interpreter, its services, its database's last migration, its folders' layout."""

    version: str
    python: Path
    services: tuple[str, ...]
    migration: int
    layout: int


def this() -> Release:
    """Return what runs here."""
    return _asked(f"{VERSION} here", Path(sys.executable), ROOT)


def named() -> tuple[str, str]:
    """Return the last release's version and its revision in git, by pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    release = project["tool"]["openmanager"]["release"]
    return release["version"], release["revision"]


def before(folder: Path) -> Release:
    """Return the last release, installed into a folder that keeps it; SystemExit when its revision is not here."""
    version, revision = named()
    place = folder.resolve() / f"openmanager-{version}"
    python = place / ENVIRONMENT / "bin" / "python"
    if not (place / "done").exists():
        _install(place, python, revision)
    return _asked(version, python, place)


def _asked(version: str, python: Path, folder: Path) -> Release:
    # In a folder of its own, for what is in the current one would be imported first.
    told = subprocess.run([python, "-c", _ASKED], cwd=folder, stdout=subprocess.PIPE, check=True).stdout
    found = json.loads(told)
    return Release(version=version, python=python, **{**found, "services": tuple(found["services"])})


def _install(place: Path, python: Path, revision: str) -> None:
    source = place / SOURCE
    source.mkdir(parents=True, exist_ok=True)
    archive = subprocess.run(["git", "-C", ROOT, "archive", revision], capture_output=True, check=False)
    if archive.returncode:
        sys.exit(f"the revision {revision} of the last release is not in this clone: git fetch --unshallow")
    subprocess.run(["tar", "-x", "-C", source], input=archive.stdout, check=True)
    print(f"installing the last release into {place} (once; about a minute)", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--require-hashes", "-r", source / "requirements.lock"], check=True)
    subprocess.run([*install, "--no-deps", "--no-build-isolation", source], check=True)
    (place / "done").touch()
