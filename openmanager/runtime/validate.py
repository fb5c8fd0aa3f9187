"""What every request must fulfil whatever its meaning, checked from its descriptor.

Enumerations hold known values, Timestamps and Durations are within their types' limits, and unknown fields stay within
64 KiB. What a field *means* is checked at the edge of its service.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from openmanager.errors import InvalidArgumentError, OutOfRangeError, Reason, invalid, missing

MAX_UNKNOWN_BYTES = 64 * 1024
MAX_PATHS = 100
# google.protobuf.Timestamp: 0001-01-01T00:00:00Z to 9999-12-31T23:59:59.999999999Z; Duration: ±10,000 years.
_TIMESTAMP_SECONDS = (-62_135_596_800, 253_402_300_799)
_DURATION_SECONDS = 315_576_000_000
_NANOS = 1_000_000_000

Check = Callable[[Message, str], None]


def decode(cls: type[Message], data: bytes) -> Message:
    """Return the checked message of some bytes; InvalidArgumentError when they are none."""
    try:
        message = cls.FromString(data)
    except DecodeError as err:
        raise InvalidArgumentError(
            f"the bytes are not a {cls.DESCRIPTOR.name}", reason=Reason.MALFORMED_MESSAGE
        ) from err
    check(message, len(data))
    return message


@dataclass(frozen=True, slots=True)
class Years:
    """The times that somebody takes, both ends included, in nanoseconds since 1970, and the years that they are of."""

    first_nanos: int
    last_nanos: int
    words: str

    def time_of(self, request: Any, name: str, default: int | None, prefix: str = "") -> int:
        """Return a time of a request in nanoseconds, `default` where it is not set; None as default: it is required."""
        if not request.HasField(name):
            if default is None:
                raise missing(prefix + name)
            return default
        nanos: int = getattr(request, name).ToNanoseconds()
        if not self.first_nanos <= nanos <= self.last_nanos:
            raise OutOfRangeError(f"{prefix}{name} is outside the years {self.words}", field=prefix + name)
        return nanos


def mask(paths: Sequence[str], known: Collection[str]) -> list[str]:
    """Return the paths of an `update_mask`, each once; InvalidArgumentError unless all are known ones."""
    if not paths:
        raise missing("update_mask")
    if len(paths) > MAX_PATHS:
        raise invalid("update_mask", f"has more than {MAX_PATHS} paths")
    for path in paths:
        if path not in known:
            raise invalid("update_mask", f"has the path {path[:40]!r}; it may have {', '.join(known)}")
    return list(dict.fromkeys(paths))


def check(message: Message, size: int) -> None:
    """Raise InvalidArgumentError or OutOfRangeError, naming the field, for what no request may hold."""
    check_unknown(message, size)
    for path, field_check in _checks(message.DESCRIPTOR.full_name):
        field_check(message, path)


def check_unknown(message: Message, size: int) -> None:
    """Raise InvalidArgumentError when a message of `size` bytes has more than 64 KiB of fields that nobody knows.

    At any depth and of any type: from a message that could have that many they are taken out, which tells how many.
    """
    if size <= MAX_UNKNOWN_BYTES:
        return
    before = message.ByteSize()
    message.DiscardUnknownFields()
    if before - message.ByteSize() > MAX_UNKNOWN_BYTES:
        raise InvalidArgumentError(
            "the message has more than 64 KiB of unknown fields", reason=Reason.MALFORMED_MESSAGE
        )


@cache
def _checks(full_name: str) -> tuple[tuple[str, Check], ...]:
    """Return what to check in a message type; empty for most, so that they cost nothing."""
    from google.protobuf import descriptor_pool

    return tuple(_plan(descriptor_pool.Default().FindMessageTypeByName(full_name), (full_name,)))


def _plan(descriptor: Descriptor, above: tuple[str, ...]) -> list[tuple[str, Check]]:
    plan: list[tuple[str, Check]] = []
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_ENUM:
            plan.append((field.name, _enum_check(field)))
        elif field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        elif field.message_type.full_name == "google.protobuf.Timestamp":
            plan.append((field.name, _well_known_check(field, _check_timestamp)))
        elif field.message_type.full_name == "google.protobuf.Duration":
            plan.append((field.name, _well_known_check(field, _check_duration)))
        elif field.message_type.full_name not in above and field.message_type.file.package.startswith("openmanager."):
            inner = _plan(field.message_type, (*above, field.message_type.full_name))
            if inner:
                plan.append((field.name, _nested_check(field, inner)))
    return plan


def _enum_check(field: FieldDescriptor) -> Check:
    enum: Any = field.enum_type
    known = frozenset(enum.values_by_number)

    def run(message: Message, path: str) -> None:
        value = getattr(message, field.name)
        if (field.is_repeated and not known.issuperset(value)) or (not field.is_repeated and value not in known):
            raise invalid(path, f"is not a value of {enum.name}")

    return run


def _well_known_check(field: FieldDescriptor, inner: Check) -> Check:
    def run(message: Message, path: str) -> None:
        if field.is_repeated:
            for item in getattr(message, field.name):
                inner(item, path)
        elif message.HasField(field.name):
            inner(getattr(message, field.name), path)

    return run


def _nested_check(field: FieldDescriptor, inner: list[tuple[str, Check]]) -> Check:
    def run(message: Message, path: str) -> None:
        if field.is_repeated:
            items = getattr(message, field.name)
        elif message.HasField(field.name):
            items = (getattr(message, field.name),)
        else:
            return
        for item in items:
            for name, field_check in inner:
                field_check(item, f"{path}.{name}")

    return run


def _check_timestamp(item: Message, path: str) -> None:
    if not 0 <= item.nanos < _NANOS:  # type: ignore[attr-defined]
        raise invalid(path, "has nanos outside 0–999,999,999")
    if not _TIMESTAMP_SECONDS[0] <= item.seconds <= _TIMESTAMP_SECONDS[1]:  # type: ignore[attr-defined]
        raise OutOfRangeError(f"{path} is outside the years 1–9999", field=path)


def _check_duration(item: Message, path: str) -> None:
    seconds, nanos = item.seconds, item.nanos  # type: ignore[attr-defined]
    if not -_NANOS < nanos < _NANOS or (seconds > 0 > nanos) or (seconds < 0 < nanos):
        raise invalid(path, "has nanos outside ±999,999,999 or of the other sign than its seconds")
    if abs(seconds) > _DURATION_SECONDS:
        raise invalid(path, "is longer than 10,000 years")


def message_class(descriptor: Descriptor) -> type[Message]:
    """Return the Python class of a message type."""
    return message_factory.GetMessageClass(descriptor)
