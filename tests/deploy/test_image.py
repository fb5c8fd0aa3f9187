"""The image: what the Dockerfile promises, and its installation carried out here, without a container engine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import pytest
from deploy.composed import EXAMPLE, OWN, ROOT, SERVICES

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ("requirements-image.lock", "requirements-build.lock")
PIN = re.compile(r"^([a-z0-9._-]+)==(\S+)", re.MULTILINE)
INSTALL_SECONDS = 240  # of a busy machine


@dataclass(frozen=True)
class Stage:
    """A FROM and what follows it."""

    base: str
    steps: list[tuple[str, str]]

    def all(self, instruction: str) -> list[str]:
        return [rest for name, rest in self.steps if name == instruction]


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]


def stages() -> list[Stage]:
    found: list[Stage] = []
    for name, rest in instructions():
        if name == "FROM":
            found.append(Stage(rest, []))
        elif found:
            found[-1].steps.append((name, rest))
    return found


RESTIC, BUILDER, FINAL = stages()


def ignored(path: str) -> bool:
    """Say whether .dockerignore keeps a path out of the build: the last pattern that matches it decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#") and matches(path, pattern.removeprefix("!")):
            out = not pattern.startswith("!")
    return out


def matches(path: str, pattern: str) -> bool:
    """Say whether a pattern is that of a path or of a folder above it; `**/` stands for any folders or none."""
    pure = PurePosixPath(path)
    ways = [str(way) for way in (pure, *pure.parents) if str(way) != "."]
    if pattern.startswith("**/"):
        return any(fnmatch(way.rpartition("/")[2], pattern.removeprefix("**/")) for way in ways)
    return any(way.count("/") == pattern.count("/") and fnmatch(way, pattern) for way in ways)


# --- what the Dockerfile says -------------------------------------------------------------------------------------


def test_both_stages_are_built_on_the_one_base_image():
    (default,) = [rest.partition("=")[2] for name, rest in instructions() if (name, rest[:10]) == ("ARG", "BASE_IMAGE")]
    assert default == EXAMPLE["BASE_IMAGE"]
    assert re.fullmatch(r"python:3\.\d+-slim", default)
    assert (BUILDER.base, FINAL.base) == ("${BASE_IMAGE} AS builder", "${BASE_IMAGE}")


def test_the_final_stage_takes_only_the_installed_program_and_installs_nothing():
    assert FINAL.all("COPY") == [
        "--from=builder /opt/openmanager /opt/openmanager",
        "--from=restic /usr/bin/restic /usr/local/bin/restic",
    ]
    assert FINAL.all("ADD") == []
    assert not re.search(r"apt|pip|curl|wget|gcc", " ".join(FINAL.all("RUN")))


def test_the_program_runs_as_a_fixed_user_that_is_not_root():
    assert FINAL.all("USER") == ["10001:10001"]
    (made,) = FINAL.all("RUN")
    assert "--uid 10001 --gid 10001" in made
    assert "-o 10001 -g 10001 -m 0700 /var/lib/openmanager" in made
    names = [name for name, _ in FINAL.steps]
    assert names.index("USER") > max(index for index, name in enumerate(names) if name in {"RUN", "COPY"})


def test_the_entry_point_is_the_program():
    assert FINAL.all("ENTRYPOINT") == ['["openmanager"]']
    assert FINAL.all("CMD") == ['["--help"]']
    assert FINAL.all("HEALTHCHECK")[0].endswith('CMD ["openmanager", "health"]')


def test_the_working_folder_is_the_volume_that_compose_mounts():
    (mount,) = [entry for entry in SERVICES["timeseries"]["volumes"] if not entry.endswith(":ro")]
    assert FINAL.all("WORKDIR") == [mount.split(":")[1]]


def test_the_labels_are_those_of_the_project():
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', " ".join(FINAL.all("LABEL"))))
    assert labels == {
        "title": "OpenManager",
        "description": PROJECT["description"],
        "version": PROJECT["version"],
        "revision": "${REVISION}",
        "licenses": PROJECT["license"],
    }


def test_no_instruction_sets_a_secret():
    values = [rest for name, rest in instructions() if name in {"ARG", "ENV", "LABEL"}]
    assert [rest for rest in values if re.search(r"PASSWORD|TOKEN|SECRET|_URL|_KEY", rest, re.IGNORECASE)] == []


def test_the_build_sees_what_it_copies_and_nothing_private():
    copied = [source for rest in BUILDER.all("COPY") for source in shlex.split(rest)[:-1]]
    assert [source for source in copied if ignored(source) or not (ROOT / source).exists()] == []
    private = [
        "secrets/mesh_key",
        ".env",
        ".env.local",
        ".git/config",
        ".venv/bin/python",
        "data/timeseries/log",
        "tests/conftest.py",
    ]
    private += [
        "openmanager/.env",
        "services/cache/.env.production",
        "openmanager/__pycache__/x.pyc",
        "docker-compose.yml",
    ]
    assert [path for path in private if not ignored(path)] == []


# --- the locks ----------------------------------------------------------------------------------------------------


def pins(name: str) -> set[tuple[str, str]]:
    return set(PIN.findall((ROOT / name).read_text()))


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_of_the_image_pins_what_was_tested(name):
    assert pins(name)
    assert pins(name) <= pins("requirements.lock")


def test_the_image_has_what_the_program_needs_and_neither_tools_nor_stores():
    locked = {name for name, _ in pins("requirements-image.lock")}
    needed = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["agent"]]
    assert {re.split(r"[<>=!~\[; ]", need)[0] for need in needed} <= locked
    unwanted = {"pytest", "ruff", "mypy", "grpcio-tools", "hatchling", "pip", "setuptools"}
    unwanted |= {re.split(r"[<>=!~\[; ]", need)[0] for need in PROJECT["optional-dependencies"]["embedded"]}
    assert locked & unwanted == set()


# --- the installation ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Image:
    """What the builder's steps leave, below a folder that stands for the image's root."""

    root: Path
    environment: dict[str, str]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, check=False, timeout=30
        )


def context(target: Path) -> None:
    """Copy what .dockerignore lets into the build."""

    def out(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if ignored(str((Path(folder) / name).relative_to(ROOT)))}

    for path in ROOT.iterdir():
        if not ignored(path.name):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, target / path.name, **({"ignore": out} if path.is_dir() else {}))


def build(root: Path, build_context: Path, environment: dict[str, str]) -> None:
    """Carry out the builder's steps with every absolute path below `root`."""
    inside = lambda text: re.sub(r"(?<![\w./])/(?=opt/|src\b)", f"{root}/", text)  # noqa: E731
    folder = root
    for name, rest in BUILDER.steps:
        if name == "ENV":
            environment |= dict(pair.split("=", 1) for pair in shlex.split(rest))
        elif name == "WORKDIR":
            folder = Path(inside(rest))
            folder.mkdir(parents=True)
        elif name == "COPY":
            *sources, target = shlex.split(rest)
            for source in sources:
                place = folder / target / ("" if target != "./" else source)
                copy = shutil.copytree if (build_context / source).is_dir() else shutil.copy
                copy(build_context / source, place)
        else:
            assert name == "RUN", f"the test does not know {name}"
            done = subprocess.run(
                ["sh", "-c", inside(rest)],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=INSTALL_SECONDS,
            )
            assert done.returncode == 0, f"{rest}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The installed program, in the place and with the environment of the image."""
    folder = tmp_path_factory.mktemp("image")
    root, build_context, tools = folder / "root", folder / "context", folder / "tools"
    for each in (root, build_context, tools):
        each.mkdir()
    (tools / "python").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    kept = {key: value for key, value in os.environ.items() if key.startswith(("PIP_", "SSL_", "REQUESTS_", "HOME"))}
    kept |= {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")}
    # To compile everything takes as long as all the rest, and shows nothing.
    environment = {**kept, "PATH": f"{tools}:/usr/bin:/bin", "PIP_NO_COMPILE": "1"}
    require_an_index(folder, environment)
    context(build_context)
    build(root, build_context, environment)
    yield Image(root, {"PATH": f"{root}/opt/openmanager/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"})
    shutil.rmtree(folder, ignore_errors=True)


def require_an_index(folder: Path, environment: dict[str, str]) -> None:
    """Skip when pip cannot fetch one small package of the lock."""
    name, version = next(pin for pin in sorted(pins("requirements-build.lock")) if pin[0] == "pluggy")
    command = ["python", "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", f"{name}=={version}"]
    done = subprocess.run(
        [*command, "--dest", str(folder / "probe")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=INSTALL_SECONDS,
    )
    if done.returncode:
        pytest.skip(f"pip cannot reach a package index here: {name} {version} could not be downloaded")


@pytest.mark.timeout(2 * INSTALL_SECONDS)
def test_the_installed_program_tells_its_version(image):
    done = image.run("openmanager", "version")
    assert (done.returncode, done.stderr) == (0, "")
    assert PROJECT["version"] in done.stdout


@pytest.mark.timeout(2 * INSTALL_SECONDS)
@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["health", "--help"]])
def test_the_installed_program_explains_its_commands(image, arguments):
    done = image.run("openmanager", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: openmanager")


@pytest.mark.timeout(2 * INSTALL_SECONDS)
def test_every_service_can_be_imported_from_what_is_installed(image):
    code = "from openmanager import suite; print(*[suite.load_module(name).name for name in suite.NAMES])"
    done = image.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == set(OWN)


@pytest.mark.timeout(2 * INSTALL_SECONDS)
def test_no_installer_compiler_or_build_backend_is_copied_to_the_final_stage(image):
    installed = image.run("python", "-c", "import importlib.util as u; print(*map(u.find_spec, ['pip', 'hatchling']))")
    assert installed.stdout.split() == ["None", "None"]
    names = {path.name for path in (image.root / "opt/openmanager").rglob("*") if path.is_file()}
    assert not any(fnmatch(name, pattern) for name in names for pattern in ("pip", "pip3*", "gcc*", "cc1*", ".env*"))


@pytest.mark.timeout(2 * INSTALL_SECONDS)
def test_the_installed_program_needs_to_write_nowhere_in_its_folder(image):
    before = sorted((image.root / "opt/openmanager").rglob("*"))
    image.run("openmanager", "version")
    image.run("openmanager", "serve", "--help")
    assert sorted((image.root / "opt/openmanager").rglob("*")) == before
