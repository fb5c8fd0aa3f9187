"""Builds the programs of this folder, each from the published protos, where their toolchains are."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PROTOS = HERE.parents[1] / "protos"
BIN = Path(sys.executable).parent
BUILD_SECONDS = 900
# Where distributions put toolchains that are not on everybody's path.
ELSEWHERE = ("/usr/local/go/bin", str(Path.home() / ".cargo/bin"))
# What package managers say when a registry cannot be reached, or does not have it.
UNREACHABLE = (
    "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ENOTFOUND", "ETIMEDOUT",
    "dial tcp", "i/o timeout",
    "Could not transfer artifact", "Unable to resolve artifact",
    "Could not resolve host", "failed to download",
)  # fmt: skip
PATH = os.pathsep.join((os.environ["PATH"], *ELSEWHERE, str(BIN)))
NPM_OPTIONS = (
    "--no-audit",
    "--no-fund",
    "--no-package-lock",
    "--ignore-scripts",
    "--loglevel=error",
    "--fetch-retries=1",
)
# Debian's, where it is installed; otherwise the one that Maven finds.
JAVA_PLUGIN = [f"-DprotocPluginExecutable={found}" for found in [shutil.which("grpc_java_plugin")] if found]


@dataclass(frozen=True)
class Program:
    """How a language builds its program and runs it, both in a copy of its folder that is kept between runs."""

    tools: Sequence[str]
    build: Sequence[Sequence[str]]
    run: Sequence[str]
    variables: dict[str, str] = field(default_factory=dict)


PROGRAMS: dict[str, Program] = {
    "node": Program(
        tools=("node", "npm"),
        build=(("npm", "install", *NPM_OPTIONS),),
        run=("node", "main.js"),
    ),
    "go": Program(
        tools=("go",),
        build=(("buf", "generate", str(PROTOS)), ("go", "build", "-o", "client", ".")),
        run=("./client",),
    ),
    "java": Program(
        tools=("java", "mvn"),
        build=(("mvn", "--quiet", "--batch-mode", f"-Dprotos={PROTOS}", *JAVA_PLUGIN, "compile"),),
        run=("java", "-XX:TieredStopAtLevel=1", "-cp", "target/classes:target/dependency/*", "fleet.Main"),
    ),
    "rust": Program(
        tools=("cargo",),
        build=(("cargo", "build", "--quiet"),),
        run=("target/debug/fleet",),
        variables={"PROTOS": str(PROTOS)},
    ),
}


def kept(language: str) -> Path:
    """Return the folder of this machine where a program is built."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "openmanager" / "clients" / language


def environment(language: str) -> dict[str, str]:
    """Return what the tools of a language are told."""
    return {**os.environ, "PATH": PATH, "PROTOC": str(kept(language) / "protoc"), **PROGRAMS[language].variables}


def build(language: str) -> None:
    """Build a program; skip the test where that cannot be done."""
    program, folder = PROGRAMS[language], kept(language)
    for tool in program.tools:
        if shutil.which(tool, path=PATH) is None:
            pytest.skip(f"{tool} is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:  # another checkout may build at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        _build(language, program, folder)


def _build(language: str, program: Program, folder: Path) -> None:
    shutil.copytree(HERE / language, folder, dirs_exist_ok=True, copy_function=_copy_changed)
    protoc = folder / "protoc"
    protoc.write_text(f'#!/bin/sh\nexec {sys.executable} -m grpc_tools.protoc "$@"\n')
    protoc.chmod(0o755)
    for command in program.build:
        done = _call(language, command, BUILD_SECONDS)
        said = done.stdout + done.stderr
        if done.returncode and any(words in said for words in UNREACHABLE):
            pytest.skip(f"a registry does not give what {command[0]} needs")
        assert done.returncode == 0, f"{' '.join(command)}\n{said}"


def run(language: str, *arguments: str, variables: dict[str, str], seconds: float = 50) -> str:
    """Run a program that was built; return what it prints."""
    done = _call(language, [*PROGRAMS[language].run, *arguments], seconds, variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _call(
    language: str, command: Sequence[str], seconds: float, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=kept(language),
        env={**environment(language), **(variables or {})},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def _copy_changed(source: str, target: str) -> None:
    """Copy a file unless it is there already: tools build again what is newer."""
    place = Path(target)
    if not place.exists() or place.read_bytes() != Path(source).read_bytes():
        shutil.copyfile(source, target)
