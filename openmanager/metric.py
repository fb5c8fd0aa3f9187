r"""Metric keys: `name` or `name{key=value,…}`, keys sorted, `\\` escaping `\ , = { }`.

The key is the identity of a metric within a server, on the wire, in the log and in the blocks.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from openmanager.errors import InvalidArgumentError, invalid

MAX_KEY_BYTES = 512
MAX_NAME_LENGTH = 255
MAX_ATTRIBUTES = 30

# Names that a store downstream keeps for itself: taking them in would make a frame undeliverable there.
RESERVED = frozenset({"_field", "_measurement", "_time", "_value", "time", "__name__"})
RESERVED_PREFIX = "om_"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:/-]*")
_SPECIAL = re.compile(r"([\\,={}])")
_PART = re.compile(r"((?:[^\\,={}]|\\[\\,={}])*)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def escape(text: str) -> str:
    """Return an attribute name or value as it stands in a key."""
    return _SPECIAL.sub(r"\\\1", text)


def unescape(text: str) -> str:
    """Undo `escape`."""
    return re.sub(r"\\([\\,={}])", r"\1", text)


def make_key(name: str, attributes: Mapping[str, str] | None = None) -> str:
    """Return the key of a metric name and its attributes, the attributes sorted by name."""
    if not attributes:
        return name
    return f"{name}{{{','.join(f'{escape(k)}={escape(v)}' for k, v in sorted(attributes.items()))}}}"


@lru_cache(maxsize=65536)
def parse_key(key: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return the name and the attributes of a key; InvalidArgumentError when it is none.

    The result is in canonical order; whether the key was canonical is for `check_key` to say.
    """
    name, brace, rest = key.partition("{")
    if not brace:
        return name, ()
    if not rest.endswith("}") or _odd_escapes(rest[:-1]):
        raise _malformed(key, "ends inside its attributes")
    attributes: list[tuple[str, str]] = []
    body, offset = rest[:-1], 0
    while offset < len(body):
        left = _PART.match(body, offset)
        if left is None or not left.group(1) or body[left.end() : left.end() + 1] != "=":
            raise _malformed(key, "has an attribute that is not name=value")
        right = _PART.match(body, left.end() + 1)
        if right is None or body[right.end() : right.end() + 1] not in {"", ","}:
            raise _malformed(key, "has an attribute that is not name=value")
        attributes.append((unescape(left.group(1)), unescape(right.group(1))))
        offset = right.end() + 1
        if offset == len(body) and body.endswith(",") and right.end() < len(body):
            raise _malformed(key, "has an attribute that is not name=value")
    return name, tuple(sorted(attributes))


def _odd_escapes(text: str) -> bool:
    return (len(text) - len(text.rstrip("\\"))) % 2 == 1


def _malformed(key: str, why: str) -> InvalidArgumentError:
    return invalid("frame.metrics", f"holds {_shown(key)}, which {why}")


def _shown(key: str) -> str:
    return repr(key if len(key) <= 80 else key[:77] + "…")


def check_key(key: str) -> None:
    """Raise InvalidArgumentError unless `key` is a canonical metric key within the limits."""
    if not key:
        raise invalid("frame.metrics", "holds an empty key")
    if len(key.encode("utf-8", "surrogatepass")) > MAX_KEY_BYTES:
        raise invalid("frame.metrics", f"holds {_shown(key)}, which is longer than {MAX_KEY_BYTES} bytes")
    if _CONTROL.search(key):
        raise invalid("frame.metrics", f"holds {_shown(key)}, which has a control character")
    name, attributes = parse_key(key)
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME_LENGTH:
        raise _malformed(key, f"does not begin with a name of {_NAME.pattern}, at most {MAX_NAME_LENGTH} characters")
    names = [attribute for attribute, _ in attributes]
    if len(names) > MAX_ATTRIBUTES or len(set(names)) != len(names):
        raise _malformed(key, f"has an attribute twice, or more than {MAX_ATTRIBUTES}")
    if name in names:
        raise _malformed(key, "has an attribute with the metric's own name")
    for reserved in (name, *names):
        if reserved in RESERVED or reserved.startswith(RESERVED_PREFIX):
            raise _malformed(key, f"uses the reserved name {reserved!r}")
    if make_key(name, dict(attributes)) != key:
        raise _malformed(key, f"is not canonical: write {make_key(name, dict(attributes))!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """One entry of a selector's metrics: a key, a name, or a glob over either."""

    name: str
    attributes: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Return the pattern of `text`; InvalidArgumentError when it is malformed."""
        if not text or len(text.encode("utf-8", "surrogatepass")) > MAX_KEY_BYTES:
            raise invalid("selector.metrics", f"holds a pattern that is empty or longer than {MAX_KEY_BYTES} bytes")
        try:
            name, attributes = parse_key(text)
        except InvalidArgumentError as err:
            raise invalid("selector.metrics", f"holds {_shown(text)}, which is no key, name or glob") from err
        return cls(name=name, attributes=attributes)

    def matcher(self) -> Callable[[str], bool]:
        """Return a function that says whether a key is chosen."""
        name, attributes = glob(self.name), self.attribute_matcher()

        def matches(key: str) -> bool:
            own_name, own = parse_key(key)
            return bool(name(own_name)) and attributes(dict(own))

        return matches

    def attribute_matcher(self) -> Callable[[Mapping[str, str]], bool]:
        """Return a function that says whether a key with the right name is chosen by its attributes."""
        wanted = [(key, glob(value)) for key, value in self.attributes]
        return lambda own: all(key in own and match(own[key]) for key, match in wanted)


def _is_glob(pattern: str) -> bool:
    return "*" in pattern or "?" in pattern


def glob(pattern: str) -> Callable[[str], object]:
    """Return a matcher for `*` and `?`; runs of stars are one, so that matching stays linear in practice."""
    if not _is_glob(pattern):
        return pattern.__eq__
    literal = re.sub(r"\*+", "*", pattern).replace("[", "[[]")
    return re.compile(fnmatch.translate(literal)).match


class _Choice:
    """What some patterns, all of one name, say of the attributes of a key."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self.everything = any(not pattern.attributes for pattern in patterns)
        # Each pattern stands under its rarest attribute: whoever lists a thousand keys has each asked for a few only.
        often = Counter(pair for pattern in patterns for pair in pattern.attributes)
        self._by_pair: dict[tuple[str, str], list[Callable[[Mapping[str, str]], bool]]] = {}
        self._others: list[Callable[[Mapping[str, str]], bool]] = []
        for pattern in patterns:
            literal = [pair for pair in pattern.attributes if not _is_glob(pair[1])]
            under = self._by_pair.setdefault(min(literal, key=often.__getitem__), []) if literal else self._others
            under.append(pattern.attribute_matcher())

    def takes(self, key: str) -> bool:
        """Say whether a key of that name is chosen."""
        if self.everything:
            return True
        pairs = parse_key(key)[1]
        asked = [*self._others, *itertools.chain(*(self._by_pair[pair] for pair in pairs if pair in self._by_pair))]
        if not asked:
            return False
        own = dict(pairs)
        return any(matches(own) for matches in asked)


def select(keys: Sequence[str], patterns: Iterable[str]) -> list[int]:
    """Return the indices of the keys that any of the patterns chooses, ascending; all of them without patterns."""
    parsed = dict.fromkeys(Pattern.parse(text) for text in patterns)
    if not parsed:
        return list(range(len(keys)))
    by_name: dict[str, list[Pattern]] = {}
    globs: list[tuple[Callable[[str], object], Pattern]] = []
    for pattern in parsed:
        if _is_glob(pattern.name):
            globs.append((glob(pattern.name), pattern))
        else:
            by_name.setdefault(pattern.name, []).append(pattern)
    choices: dict[str, _Choice | None] = {}  # by name: many keys have the same
    chosen = []
    for index, key in enumerate(keys):
        name = key.partition("{")[0]
        if name not in choices:
            found = by_name.get(name, []) + [pattern for match, pattern in globs if match(name)]
            choices[name] = _Choice(found) if found else None
        choice = choices[name]
        if choice is not None and choice.takes(key):
            chosen.append(index)
    return chosen
