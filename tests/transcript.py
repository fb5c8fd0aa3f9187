"""What documents show of a terminal: commands, and what they print."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

ELISION = "…"


@dataclass(frozen=True)
class Step:
    """A command, on one line, and what stands below it."""

    command: str
    shown: str


def blocks(language: str, document: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document, re.DOTALL | re.MULTILINE)


def steps(document: str, program: str) -> list[Step]:
    """Return the commands of a program in the `console` blocks of a document, in order."""
    found = []
    for block in blocks("console", document):
        for part in re.split(r"^\$ ", block.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            if command.split()[0] == program:
                found.append(Step(re.sub(r"\s+", " ", command), shown.strip()))
    return found


def assert_alike(shown: str, printed: str) -> None:
    """Compare JSON in shape: what is shown is there and of its kind, whatever it is just now; other text as it is."""
    if not shown.startswith("{"):
        assert printed.strip().splitlines() == shown.splitlines()
        return
    whole = re.sub(r",(\s*[}\]])", r"\1", re.sub(rf"\s*{ELISION},?", "", shown))
    expected, actual = list(_documents(whole)), list(_documents(printed))
    assert len(actual) >= len(expected), printed
    for left, right in zip(expected, actual, strict=False):
        _compare(left, right, "")


def _documents(text: str) -> Any:
    decoder, rest = json.JSONDecoder(), text.strip()
    while rest:
        document, end = decoder.raw_decode(rest)
        yield document
        rest = rest[end:].lstrip()


def _compare(shown: Any, actual: Any, place: str) -> None:
    assert type(shown) is type(actual), place
    if isinstance(shown, dict):
        assert shown.keys() <= actual.keys(), place
        for name, value in shown.items():
            _compare(value, actual[name], f"{place}.{name}")
    elif isinstance(shown, list):
        assert bool(shown) == bool(actual), place
        for left, right in zip(shown, actual, strict=False):
            _compare(left, right, f"{place}[]")
    elif isinstance(shown, str):
        assert shown.isdigit() == actual.isdigit(), place
