"""What the README shows is run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Mesh, clean_environment
from transcript import Step, assert_alike, blocks, steps

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
INTERACTIONS = (ROOT / "docs" / "interactions.md").read_text(encoding="utf-8")
PORT = "127.0.0.1:50050"
# Run by other tests, without an end of their own, or of more history than a new mesh has.
ELSEWHERE = ("make run", "openmanager agent", "openmanager trend", "openmanager forecast ", "grpcurl")


def commands(document: str = README) -> list[str]:
    joined = "\n".join(blocks("console", document)).replace("\\\n", " ")
    return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


def in_the_small_fleet(mesh: Mesh, command: str) -> str:
    """Return a command for the mesh of the tests: it has three servers, and the README's fleet twenty."""
    text = command.replace(PORT, mesh.gateway).replace("web-aws-01", "web-onpremise-01")
    return text.replace("cache-aws-01", "web-onpremise-02")


def run(mesh: Mesh, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / arguments[0]
    environment = {**clean_environment(), "OPENMANAGER_GATEWAY": mesh.gateway}
    return subprocess.run(
        [str(program), *arguments[1:]],
        cwd=mesh.data,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("command", [each for each in commands() if not each.startswith(ELSEWHERE)])
def test_a_command_of_the_readme_works(mesh: Mesh, command: str):
    text = in_the_small_fleet(mesh, command)
    if "backfill" in text:  # a year takes minutes
        text = text.replace("365d", "3h")
    found = run(mesh, shlex.split(text))
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip()


@pytest.mark.parametrize("step", steps(README, "grpcurl"), ids=lambda step: step.command)
def test_a_transcript_of_grpcurl_is_what_it_prints(mesh: Mesh, step: Step):
    found = run(mesh, shlex.split(in_the_small_fleet(mesh, step.command)))
    assert found.returncode == 0, found.stderr
    assert_alike(step.shown, found.stdout)


def test_the_commands_of_the_page_on_interactions_work_one_after_the_other(mesh: Mesh):
    for command in commands(INTERACTIONS):
        found = run(mesh, shlex.split(command))
        assert found.returncode == 0, (command, found.stderr)
        assert found.stdout.strip() or "export" in command, command


def test_the_example_of_the_readme_works(mesh: Mesh):
    (example,) = blocks("python", README)
    found = run(mesh, ["python", "-c", example.replace(PORT, mesh.gateway)])
    assert found.returncode == 0, found.stderr
    assert "web-onpremise-01" in found.stdout


def test_the_commands_that_up_suggests_work(mesh: Mesh):
    for command in ("status", "top --once", "query cpu_usage --last 15m"):
        found = run(mesh, ["openmanager", *command.split()])
        assert found.returncode == 0, found.stderr


def test_every_link_of_the_documents_leads_somewhere():
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        prose = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)#]+)\)", prose):
            if "://" not in target:
                assert (document.parent / target).exists(), (document, target)
