"""Configuration: defaults, then a TOML file, then the environment, then flags. An unknown key is an error.

A section is a frozen dataclass whose fields are made by `setting`; each module owns its section, and `suite.py` says
which there are. The key `interval` of the section `simulator` is `[simulator] interval` in the file and
`OPENMANAGER_SIMULATOR_INTERVAL` in the environment, unless the setting names other variables.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NewType, Self, TypeVar

from openmanager.errors import ConfigurationError

PREFIX = "OPENMANAGER_"
# Of no section: the configuration file, the failpoints of fault tests, and what commands come to the gateway with.
RESERVED_VARIABLES = frozenset(
    {
        "OPENMANAGER_CONFIG",
        "OPENMANAGER_FAILPOINT",
        "OPENMANAGER_TLS_CA",
        "OPENMANAGER_TLS_CERTIFICATE",
        "OPENMANAGER_TLS_KEY",
        "OPENMANAGER_TLS_SERVER_NAME",
        "OPENMANAGER_TOKEN",
        "OPENMANAGER_TOKEN_FILE",
    }
)

Size = NewType("Size", int)
T = TypeVar("T")

_SIZE = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB|TiB)?")
_SIZE_UNITS = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
# User and password before the host; too much rather than too little, where a password holds what it must not.
_USERINFO = re.compile(r"(?<=://)\S*@")
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Secret(str):
    """A text that never shows in a repr or a table; `reveal` gives it. It may come from a file."""

    __slots__ = ("_file",)
    _file: Path | None

    def __new__(cls, text: Any, file: Path | None = None) -> Self:
        """Keep a text and where it was read."""
        made = super().__new__(cls, text)
        made._file = file
        return made

    def __repr__(self) -> str:
        return "***" if self else "''"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def reveal(self) -> str:
        """Return the text itself."""
        return str.__str__(self)

    def renewed(self) -> Secret:
        """Return what its file holds now (blocking); itself when it has none, or the file cannot be read."""
        if self._file is None:
            return self
        try:
            return Secret(_read(self._file), self._file)
        except (OSError, UnicodeDecodeError):
            return self  # it is being replaced


def setting(default: Any, doc: str, *, env: str | None = None) -> Any:
    """Declare a setting: its default, a sentence for the reference, and the variable's name where it is not derived."""
    return dataclasses.field(default=default, metadata={"doc": doc, "env": env})


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One setting as the reference and `config show` print it."""

    section: str
    name: str
    variable: str
    kind: Any
    default: Any
    doc: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """The value of a setting and where it came from: `default`, `file`, `environment` or `flag`."""

    key: Key
    value: Any
    origin: str


class Configuration:
    """Every setting of every section, checked."""

    def __init__(self, sections: Mapping[str, type[Any]], values: Mapping[tuple[str, str], Value]) -> None:
        self.values = dict(values)
        self._sections = {
            name: cls(**{field.name: values[name, field.name].value for field in dataclasses.fields(cls)})
            for name, cls in sections.items()
        }

    def section(self, cls: type[T]) -> T:
        """Return the section of a class."""
        for section in self._sections.values():
            if isinstance(section, cls):
                return section
        raise KeyError(cls.__name__)


def keys(sections: Mapping[str, type[Any]]) -> list[Key]:
    """Return every setting of the sections, in order."""
    found = []
    for section, cls in sections.items():
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            variable = field.metadata["env"] or f"{PREFIX}{section}_{field.name}".upper()
            found.append(
                Key(
                    section=section,
                    name=field.name,
                    variable=variable,
                    kind=hints[field.name],
                    default=field.default,
                    doc=field.metadata["doc"],
                )
            )
    return found


def load(
    sections: Mapping[str, type[Any]],
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[tuple[str, str], Any] | None = None,
) -> Configuration:
    """Return the configuration; ConfigurationError, in one sentence, for the first thing that is wrong."""
    known = {(key.section, key.name): key for key in keys(sections)}
    values = {place: Value(key=key, value=key.default, origin="default") for place, key in known.items()}
    for place, raw in _from_file(file, known).items():
        values[place] = Value(key=known[place], value=_parse(known[place], raw, f"in {file}"), origin="file")
    for place, (raw, variable) in _from_environment(environ or {}, known).items():
        values[place] = Value(key=known[place], value=_parse(known[place], raw, f"in {variable}"), origin="environment")
    for place, raw in (flags or {}).items():
        values[place] = Value(key=known[place], value=_parse(known[place], raw, "on the command line"), origin="flag")
    return Configuration(sections, values)


def _from_file(file: Path | None, known: Mapping[tuple[str, str], Key]) -> dict[tuple[str, str], Any]:
    if file is None:
        return {}
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigurationError(f"cannot read the configuration file {file}: {err.strerror}") from err
    except (ValueError, RecursionError) as err:  # a number of thousands of digits is no TOMLDecodeError
        raise ConfigurationError(f"{file} is not a TOML file: {err}") from err
    found = {}
    for section, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigurationError(f"{file} has {section!r} outside a section")
        for name, raw in table.items():
            if (section, name) not in known:
                raise ConfigurationError(f"{file} has the unknown key {section}.{name}{_nearest(section, name, known)}")
            found[section, name] = raw
    return found


def _nearest(section: str, name: str, known: Mapping[tuple[str, str], Key]) -> str:
    import difflib

    close = difflib.get_close_matches(f"{section}.{name}", [f"{s}.{n}" for s, n in known], n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _from_environment(
    environ: Mapping[str, str], known: Mapping[tuple[str, str], Key]
) -> dict[tuple[str, str], tuple[str, str]]:
    places = {key.variable: place for place, key in known.items()}
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for variable, raw in environ.items():
        plain = variable.removesuffix("_FILE")
        if variable in places:
            found[places[variable]] = (raw, variable)
        elif plain in places and plain != variable and plain not in environ:
            place, secret = places[plain], _read_secret(variable, raw)
            found[place] = (secret if known[place].kind is Secret else secret.reveal(), variable)
        elif variable.startswith(PREFIX) and variable not in RESERVED_VARIABLES and plain not in places:
            raise ConfigurationError(f"the environment has the unknown variable {variable}")
    return found


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip()


def _read_secret(variable: str, path: str) -> Secret:
    try:
        return Secret(_read(Path(path)), Path(path))
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigurationError(f"{variable} names a file that cannot be read") from err


def _parse(key: Key, raw: Any, where: str) -> Any:
    try:
        return _convert(key.kind, raw)
    except (ValueError, TypeError, OverflowError) as err:
        shown = "***" if key.kind is Secret else repr(raw)
        raise ConfigurationError(masked(f"{key.section}.{key.name} {where} is {shown}: {err}")) from err


def _convert(kind: Any, raw: Any) -> Any:  # noqa: PLR0911  (one line for each kind)
    if kind is Size:
        return parse_size(raw)
    if kind is timedelta:
        return raw if isinstance(raw, timedelta) else parse_duration(raw)
    if kind is bool:
        return _parse_bool(raw)
    if kind in {int, float} and not isinstance(raw, bool):
        return kind(raw)
    if kind is Path:
        return Path(str(raw))
    if kind is Secret:
        return raw if isinstance(raw, Secret) else Secret(raw)
    if kind is str and isinstance(raw, str):
        return raw
    if (choices := typing.get_args(kind)) and raw in choices:
        return raw
    raise ValueError(
        f"one of {', '.join(map(str, choices))} is expected" if choices else f"{kind.__name__} is expected"
    )


def _parse_bool(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if str(raw).lower() not in words:
        raise ValueError("true or false is expected")
    return words[str(raw).lower()]


def parse_size(raw: Any) -> Size:
    """Return the bytes of a size such as `64MiB` or a number of bytes; ValueError when it is neither."""
    match = _SIZE.fullmatch(str(raw).strip())
    if isinstance(raw, bool) or match is None:
        raise ValueError("a size such as 64MiB is expected")
    return Size(int(match[1]) * _SIZE_UNITS[match[2]])


def parse_duration(raw: Any) -> timedelta:
    """Return the duration of a text such as `250ms`, `10s`, `1h30m` or `7d`; ValueError when it is none."""
    text = str(raw).strip()
    parts = _DURATION.findall(text)
    if not parts or _DURATION.sub("", text).strip():
        raise ValueError("a duration such as 10s, 5m or 24h is expected")
    return timedelta(seconds=sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts))


def show(value: Any) -> str:
    """Return a value as it would be written in the file."""
    if isinstance(value, timedelta):
        return show_duration(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def masked(text: str) -> str:
    """Return a text without the user and the password of a URL in it."""
    return _USERINFO.sub("***@", text)


def show_size(size: int) -> str:
    """Return a size in the largest unit that divides it."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{unit}"
    return f"{size}B"


def show_duration(value: timedelta) -> str:
    """Return a duration in the largest unit that divides it."""
    millis = round(value.total_seconds() * 1000)
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if millis and millis % length == 0:
            return f"{millis // length}{unit}"
    return f"{millis}ms"
