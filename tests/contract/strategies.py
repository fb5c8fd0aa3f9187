"""Hypothesis strategies for any message, from its descriptor: what has broken other programs, and anything else."""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message
from hypothesis import strategies as st

from fuzz import values

DEPTH = 4
_BITS = {
    Field.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    Field.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    Field.CPPTYPE_UINT32: (0, 2**32 - 1),
    Field.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def wire(descriptor: Descriptor) -> st.SearchStrategy[bytes]:
    """Return bytes: of a message, of two after each other (both sides of a oneof, fields in parts), or of none."""
    one = message(descriptor).map(lambda made: made.SerializeToString())
    return st.one_of(one, st.tuples(one, one).map(b"".join), st.binary(max_size=100))


@cache
def message(descriptor: Descriptor, depth: int = DEPTH) -> st.SearchStrategy[Message]:
    """Return messages of a type, nested up to a depth."""
    cls: Any = message_factory.GetMessageClass(descriptor)
    fields = {field.name: _value(field, depth) for field in descriptor.fields if depth or field.message_type is None}
    return st.fixed_dictionaries({}, optional=fields).map(lambda found: cls(**found))


def _value(field: Field, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        return st.dictionaries(_one(key, depth), _one(value, depth), max_size=3)
    if not field.is_repeated:
        return _one(field, depth)
    few = st.lists(_one(field, depth), max_size=3)
    if field.message_type is not None:
        return few
    return few | st.tuples(_one(field, depth), st.sampled_from((101, 1001))).map(lambda found: [found[0]] * found[1])


def _one(field: Field, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return st.deferred(lambda: _message(field.message_type, depth - 1))
    match field.type:
        case Field.TYPE_ENUM:
            found = st.sampled_from([value.number for value in field.enum_type.values]) | st.sampled_from((-1, 999))
        case Field.TYPE_BOOL:
            found = st.booleans()
        case Field.TYPE_STRING:
            found = st.sampled_from((*values.MEANT.get(field.name, ()), *values.TEXTS)) | st.text(max_size=10)
        case Field.TYPE_BYTES:
            found = st.sampled_from(values.BYTES[:5]) | st.binary(max_size=20)
        case _:
            found = _number(field)
    return found


def _number(field: Field) -> st.SearchStrategy[Any]:
    if field.name in values.SMALL:
        return st.sampled_from(values.SMALL[field.name])
    nasty = st.sampled_from(values.NUMBERS[field.type])
    if field.cpp_type in _BITS:
        return nasty | st.integers(*_BITS[field.cpp_type])
    return nasty | st.floats(width=32 if field.type == Field.TYPE_FLOAT else 64)


def _message(descriptor: Descriptor, depth: int) -> st.SearchStrategy[Message]:
    seconds = {"google.protobuf.Timestamp": values.SECONDS, "google.protobuf.Duration": values.LENGTHS}
    found = seconds.get(descriptor.full_name)
    if found is None:
        return message(descriptor, max(0, depth))
    cls: Any = message_factory.GetMessageClass(descriptor)
    return st.builds(cls, seconds=st.sampled_from(found), nanos=st.sampled_from(values.NANOS))
