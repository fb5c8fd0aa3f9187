from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest

from openmanager.config import Secret, Size, load, parse_duration, parse_size, setting, show_duration, show_size
from openmanager.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An example."""

    size: Size = setting(Size(64 << 20), "A size.")
    wait: timedelta = setting(timedelta(seconds=1), "A wait.")
    url: Secret = setting(Secret(""), "A URL.", env="EXAMPLE_URL")
    kind: Literal["", "a", "b"] = setting("", "A kind.")
    on: bool = setting(False, "A switch.")
    count: int = setting(3, "A count.")


SECTIONS = {"example": Example}


def example(**given) -> Example:
    return load(SECTIONS, **given).section(Example)


def test_flags_go_before_the_environment_before_the_file_before_defaults(tmp_path: Path):
    file = tmp_path / "c.toml"
    file.write_text('[example]\ncount = 4\nwait = "2s"\nsize = "1MiB"\n')
    environ = {"OPENMANAGER_EXAMPLE_WAIT": "3s", "OPENMANAGER_EXAMPLE_SIZE": "2MiB"}
    found = load(SECTIONS, file=file, environ=environ, flags={("example", "size"): "3MiB"})
    section = found.section(Example)
    assert (section.count, section.wait, section.size, section.on) == (4, timedelta(seconds=3), 3 << 20, False)
    origins = {name: value.origin for (_, name), value in found.values.items()}
    assert origins == {
        "count": "file",
        "wait": "environment",
        "size": "flag",
        "on": "default",
        "kind": "default",
        "url": "default",
    }


def test_a_message_does_not_repeat_the_password_of_a_url():
    with pytest.raises(ConfigurationError) as caught:
        example(environ={"OPENMANAGER_EXAMPLE_SIZE": "http://me:hunter2@host/x"})
    assert "hunter2" not in str(caught.value)
    assert "'http://***@host/x'" in str(caught.value)


def test_a_secret_is_read_from_a_file_and_never_shown(tmp_path: Path):
    file = tmp_path / "secret"
    file.write_text("hunter2\n")
    section = example(environ={"EXAMPLE_URL_FILE": str(file)})
    assert section.url.reveal() == "hunter2"
    assert "hunter2" not in f"{section} {section.url} {section.url!r} {section.url:>10}"
    file.write_text("hunter3\n")
    again = section.url.renewed()
    assert (section.url.reveal(), again.reveal(), again.renewed().reveal()) == ("hunter2", "hunter3", "hunter3")
    assert "hunter3" not in f"{again!r}"
    file.unlink()
    assert again.renewed().reveal() == "hunter3"


def test_a_setting_that_is_no_secret_may_come_from_a_file_too(tmp_path: Path):
    (tmp_path / "count").write_text("7\n")
    assert example(environ={"OPENMANAGER_EXAMPLE_COUNT_FILE": str(tmp_path / "count")}).count == 7


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"OPENMANAGER_EXAMPLE_COUNT": "x"}, "example.count in OPENMANAGER_EXAMPLE_COUNT is 'x'"),
        ({"OPENMANAGER_EXAMPLE_SIZE": "64MB"}, "a size such as 64MiB"),
        ({"OPENMANAGER_EXAMPLE_WAIT": "10"}, "a duration such as 10s"),
        ({"OPENMANAGER_EXAMPLE_KIND": "c"}, "one of , a, b is expected"),
        ({"OPENMANAGER_EXAMPLE_ON": "maybe"}, "true or false"),
        ({"OPENMANAGER_EXAMPLE_COLOUR": "1"}, "unknown variable OPENMANAGER_EXAMPLE_COLOUR"),
        ({"OPENMANAGER_TYPO": "1"}, "unknown variable OPENMANAGER_TYPO"),
        ({"EXAMPLE_URL_FILE": "/nowhere"}, "EXAMPLE_URL_FILE names a file that cannot be read"),
    ],
)
def test_a_wrong_variable_is_one_sentence(environ: dict[str, str], text: str):
    with pytest.raises(ConfigurationError) as failure:
        example(environ=environ)
    assert text in failure.value.message


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[example]\ncuont = 1\n", "unknown key example.cuont; did you mean example.count?"),
        ("[other]\nx = 1\n", "unknown key other.x"),
        ("count = 1\n", "'count' outside a section"),
        ("[example\n", "is not a TOML file"),
        ("[example]\ncount = 1\ncount = 2\n", "is not a TOML file"),
        ("[example]\non = 1e999\n", "true or false"),
        ("\ufeff[example]\ncount = 5\n", "is not a TOML file"),
        (f"[example]\ncount = {'[' * 10_000}{']' * 10_000}\n", "is not a TOML file"),
        (f"[example]\ncount = {'9' * 5000}\n", "is not a TOML file"),
        ("[example]\ncount = 1e999\n", "example.count"),
        ("[example]\ncount = nan\n", "example.count"),
        ("[example]\ncount = [1,,2]\n", "is not a TOML file"),
        ("[example]\ncount = '\0'\n", "is not a TOML file"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, content: str, text: str):
    file = tmp_path / "c.toml"
    file.write_text(content)
    with pytest.raises(ConfigurationError) as failure:
        example(file=file)
    assert text in failure.value.message


@pytest.mark.parametrize("text", ["250ms", "10s", "5m", "24h", "14d", "90m"])
def test_durations_are_written_as_they_are_read(text: str):
    assert parse_duration(show_duration(parse_duration(text))) == parse_duration(text)


@pytest.mark.parametrize("text", ["1B", "64MiB", "3GiB", "1023KiB"])
def test_sizes_are_written_as_they_are_read(text: str):
    assert show_size(parse_size(text)) == text
