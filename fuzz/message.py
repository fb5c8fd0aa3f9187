"""Messages of any type, built from its descriptor and a dice: often meant well, often not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message

from fuzz import values

# How deep messages are nested: mostly, and at most, which is where parsers stop.
USUAL_DEPTH, MAX_DEPTH = 4, 95
# How many messages one is made of.
MAX_PARTS = 200
Heard = dict[str, list[str]]


class Builder:
    """Builds messages. `heard` are texts from replies, by the name of the field that takes them."""

    def __init__(self, dice: random.Random, heard: Heard) -> None:
        self._dice = dice
        self._heard = heard
        self._depth, self._parts = USUAL_DEPTH, 0

    def build(self, descriptor: Descriptor) -> Message:
        """Return a message."""
        dice = self._dice
        self._parts = 0
        self._depth = USUAL_DEPTH if dice.random() < 0.98 else dice.randint(USUAL_DEPTH, MAX_DEPTH)
        return self._message(descriptor, 0, dice.choice((0.3, 0.7, 0.95)))

    def _message(self, descriptor: Descriptor, depth: int, share: float) -> Message:
        self._parts += 1
        special = _SPECIAL.get(descriptor.full_name)
        if special is not None and self._dice.random() < 0.9:
            return special(self._dice)
        message = message_factory.GetMessageClass(descriptor)()
        fields = [field for field in descriptor.fields if self._dice.random() < share]
        if any(field.containing_oneof is not None for field in fields):
            self._dice.shuffle(fields)  # of a oneof the last one wins
        for field in fields:
            if field.message_type is None or self._goes_on(depth):
                self._fill(message, field, depth, share)
        return message

    def _goes_on(self, depth: int) -> bool:
        return depth < self._depth and self._parts < MAX_PARTS

    def _fill(self, message: Message, field: Field, depth: int, share: float) -> None:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._fill_map(getattr(message, field.name), field, depth, share)
        elif field.is_repeated:
            items = getattr(message, field.name)
            for _ in range(self._count(field)):
                if field.message_type is not None:
                    items.append(self._message(field.message_type, depth + 1, share))
                else:
                    items.append(self._scalar(field))
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(self._message(field.message_type, depth + 1, share))
        else:
            setattr(message, field.name, self._scalar(field))

    def _fill_map(self, entries: Any, field: Field, depth: int, share: float) -> None:
        key, value = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
        for _ in range(self._dice.choice((0, 1, 1, 2, 3, 65))):
            if value.message_type is None:
                entries[self._scalar(key)] = self._scalar(value)
            elif self._goes_on(depth):
                entries[self._scalar(key)].CopyFrom(self._message(value.message_type, depth + 2, share))

    def _count(self, field: Field) -> int:
        few = self._dice.choice((0, 1, 1, 2, 3))
        if field.message_type is not None or self._dice.random() < 0.99:
            return few
        return self._dice.choice((101, 1000, 1001, 10_001))

    def _scalar(self, field: Field) -> Any:
        dice = self._dice
        if field.type == Field.TYPE_ENUM:
            known = field.enum_type.values
            return dice.choice(known).number if dice.random() < 0.9 else dice.choice((99, 999, -1, 2**31 - 1))
        if field.type == Field.TYPE_BOOL:
            return dice.random() < 0.5
        if field.type == Field.TYPE_STRING:
            return self._text(field.name)
        if field.type == Field.TYPE_BYTES:
            return dice.choice(values.BYTES[:7] if dice.random() < 0.99 else values.BYTES)
        if field.name in values.SMALL:
            return dice.choice(values.SMALL[field.name])
        return dice.choice(values.NUMBERS[field.type])

    def _text(self, name: str) -> str:
        dice = self._dice
        heard = self._heard.get(name)
        if heard and dice.random() < 0.5:
            return dice.choice(heard)
        meant = values.MEANT.get(name)
        return dice.choice(meant if meant and dice.random() < 0.7 else values.TEXTS)


def _timestamp(dice: random.Random) -> Message:
    usual = dice.random() < 0.7
    seconds = dice.choice(values.SECONDS[3:10] if usual else values.SECONDS)
    return _time(_TIMESTAMP, seconds, 0 if usual else dice.choice(values.NANOS))


def _duration(dice: random.Random) -> Message:
    usual = dice.random() < 0.7
    return _time(_DURATION, dice.choice(values.LENGTHS[:7] if usual else values.LENGTHS), dice.choice(values.NANOS))


def _time(cls: type[Any], seconds: int, nanos: int) -> Message:
    made: Message = cls(seconds=seconds, nanos=nanos)
    return made


def _frame(dice: random.Random) -> Message:
    """Return a frame whose columns fit, mostly of the last hour."""
    from openmanager.api.frame.v1 import frame_pb2

    servers, metrics, times = _names(dice)
    second = 10**9
    start = (values.NOW - dice.choice((0, 60, 3600, 3 * 3600, 30 * 86_400, -86_400))) * second
    count = len(times) * len(servers) * len(metrics)
    columns = [dice.choice(values.NUMBERS[Field.TYPE_DOUBLE]) for _ in range(count)]
    message = frame_pb2.Frame(
        time_unix_nanos=[start + each * second for each in times], servers=servers, metrics=metrics, values=columns
    )
    if dice.random() < 0.3:
        message.server_infos.add(id=dice.choice(servers), role="web", labels={"a": dice.choice(values.TEXTS)})
    return message


def _rollups(dice: random.Random) -> Message:
    """Return buckets whose columns fit."""
    from openmanager.api.timeseries.v1 import timeseries_pb2

    servers, metrics, times = _names(dice)
    width = dice.choice((300, 3600))
    start = (values.NOW // width - dice.choice((0, 3, 24, 2000))) * width
    size = len(times) * len(servers) * len(metrics)
    message = timeseries_pb2.RollupFrame(
        tier=dice.choice(("5m", "1h", "")),
        time_unix_nanos=[(start + each * width) * 10**9 for each in times],
        servers=servers,
        metrics=metrics,
    )
    low = dice.choice((0.0, -1.0, 1e300))
    for name, value in (
        ("min", low),
        ("max", low + 1),
        ("sum", 2 * low),
        ("count", dice.choice((0, 1, 2, 1.5))),
        ("last", low),
    ):
        getattr(message, name).extend([value] * size)
    return message


def _names(dice: random.Random) -> tuple[list[str], list[str], range]:
    servers = dice.sample(values.SERVERS, dice.randint(1, 3))
    if dice.random() < 0.1:
        servers.append(f"s{dice.randint(0, 10_000)}")
    return servers, dice.sample(values.METRICS, dice.randint(1, 3)), range(dice.randint(1, 4))


def _class(name: str) -> type[Any]:
    from google.protobuf import descriptor_pool, duration_pb2, timestamp_pb2  # noqa: F401  (so that they are known)

    found: type[Any] = message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))
    return found


_TIMESTAMP, _DURATION = _class("google.protobuf.Timestamp"), _class("google.protobuf.Duration")
_SPECIAL: dict[str, Callable[[random.Random], Message]] = {
    "google.protobuf.Timestamp": _timestamp,
    "google.protobuf.Duration": _duration,
    "openmanager.api.frame.v1.Frame": _frame,
    "openmanager.api.timeseries.v1.RollupFrame": _rollups,
}
