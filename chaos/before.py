"""The last release, installed beside this version: its own program with what its own lock pins."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from openmanager import suite
from openmanager.version import VERSION

ROOT = Path(__file__).resolve().parent.parent
# What `git archive` leaves, and `python -m venv` makes, below the folder of a release.
SOURCE, ENVIRONMENT = "source", "environment"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """An installed version: its interpreter, and the services that it has."""

    version: str
    python: Path
    services: tuple[str, ...]


def this() -> Release:
    """Return what runs here."""
    return Release(version=f"{VERSION}+", python=Path(sys.executable), services=suite.NAMES)


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
    asked = "import json; from openmanager import suite; print(json.dumps(suite.NAMES))"
    names = json.loads(subprocess.run([python, "-c", asked], capture_output=True, check=True).stdout)
    return Release(version=version, python=python, services=tuple(names))


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
