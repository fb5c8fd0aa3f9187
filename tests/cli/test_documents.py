"""Every command that a document names is one that there is, with the options that it has."""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from openmanager.cli.main import cli

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
# In prose a command may be named without what it needs, and a value be one in capitals.
OPEN = (click.BadParameter, click.BadOptionUsage, click.exceptions.NoArgsIsHelpError)


def commands() -> Iterator[Any]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fenced = "\n".join(re.findall(r"^```(?:console|shell|sh|bash)\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
        prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        # A text in quotes may go over several lines.
        shown = re.findall(
            r"""^(?:\$ )?(?:\w+=\S* )*openmanager ((?:[^'"\n]|'[^']*'|"[^"]*")*)$""",
            fenced.replace("\\\n", " "),
            re.MULTILINE,
        )
        named = [each.replace("\n", " ") for each in re.findall(r"`openmanager (\w[^`]*)`", prose)]
        for forgiven, lines in (((), shown), (OPEN, named)):
            for line in dict.fromkeys(lines):
                if "…" not in line and "[" not in line:
                    yield pytest.param(line, forgiven, id=f"{page.relative_to(ROOT)}: {line}")


@pytest.fixture(autouse=True)
def _every_file_is_there(monkeypatch):
    monkeypatch.setattr(click.Path, "convert", lambda _self, value, *_: Path(value))


@pytest.mark.parametrize(("line", "forgiven"), list(commands()))
def test_a_document_names_commands_that_there_are(line, forgiven):
    with contextlib.suppress(*forgiven):
        understand(words_of(line))


@pytest.mark.parametrize("line", ["statsu", "status --wach", "backup verify --deep | less", "query a --last soon"])
def test_a_command_that_there_is_not_is_noticed(line):
    with pytest.raises(click.UsageError):
        understand(words_of(line))


def words_of(line: str) -> list[str]:
    """Return the words of a command up to a comment, or to what becomes of what it prints."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|<>&")
    lexer.whitespace_split = True
    return list(itertools.takewhile(lambda word: word.strip("|<>&"), lexer))


def understand(words: list[str]) -> None:
    """Parse a command as the program does, without running it; click.UsageError when it cannot be."""
    command: click.Command | None = cli
    parent: click.Context | None = None
    while command is not None:
        parent = command.make_context(command.name, words, parent)
        rest = [*parent._protected_args, *parent.args]
        if not isinstance(command, click.Group) or not rest:
            return
        _, command, words = command.resolve_command(parent, rest)
