"""The catalogue of bad input, row by row, on every method that has a field it can be put into."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message

from contract.answer import Answer, answer
from fuzz.mesh import Method
from fuzz.run import exchange, good_calls
from openmanager.runtime import validate

pytestmark = pytest.mark.asyncio(loop_scope="session")

CATALOGUE = yaml.safe_load(Path(__file__).with_name("catalogue.yaml").read_text(encoding="utf-8"))
KINDS = {
    "google.protobuf.Timestamp": "time",
    "google.protobuf.Duration": "duration",
    "google.protobuf.FieldMask": "mask",
    "google.protobuf.Struct": "struct",
}
MOST_SECONDS, PATIENCE_SECONDS = 5.0, 30.0


def kind_of(field: Field) -> str:
    """Return what a field takes: text, number, enum, time, duration, mask, labels, or nothing that the rows have."""
    if field.type == Field.TYPE_MESSAGE:
        named = "labels" if field.message_type.GetOptions().map_entry else ""
        return KINDS.get(field.message_type.full_name, named)
    if field.type == Field.TYPE_ENUM:
        return "enum"
    return {Field.CPPTYPE_STRING: "text", Field.CPPTYPE_BOOL: ""}.get(field.cpp_type, "number")


def places(descriptor: Descriptor, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths to the fields that rows can be about."""
    for field in descriptor.fields:
        path = (*above, field.name)
        if kind_of(field):
            yield path
        elif field.message_type is not None and len(path) < 5:
            yield from places(field.message_type, path)


def changed(message: Message, path: tuple[str, ...], value: Any) -> Message:
    """Return a copy with one field set; of what is repeated the first."""
    made = copy.deepcopy(message)
    parent: Any = made
    for name in path[:-1]:
        parent = getattr(parent, name)
        if isinstance(parent, Message):
            continue
        parent = parent[0] if len(parent) else parent.add()
    field = parent.DESCRIPTOR.fields_by_name[path[-1]]
    if kind_of(field) in {"time", "duration", "mask"}:
        getattr(parent, path[-1]).CopyFrom(validate.message_class(field.message_type)(**value))
    elif kind_of(field) == "labels" or field.is_repeated:
        parent.ClearField(path[-1])
        getattr(parent, path[-1]).update(value) if isinstance(value, dict) else getattr(parent, path[-1]).append(value)
    else:
        setattr(parent, path[-1], value)
    return made


def values(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the values of a row with the kind of field that takes them."""
    for text in row.get("texts", ()):
        yield "text", text["text"] * text["times"] if isinstance(text, dict) else text
    for number in row.get("numbers", ()):
        yield row.get("kind", "number"), number
    for moment in row.get("times", ()):
        yield row.get("kind", "time"), moment
        if "kind" not in row:
            yield "duration", moment
    for paths in row.get("paths", ()):
        yield "mask", {"paths": [paths["path"]] * paths["times"] if isinstance(paths, dict) else paths}
    for labels in row.get("labels", ()):
        yield "labels", labels


def is_about(row: dict[str, Any], method: Method, path: tuple[str, ...], kind: str) -> bool:
    """Say whether a row is about a field."""
    whole = f".{method.descriptor.containing_service.name}.{method.descriptor.name}.{'.'.join(path)}"
    if any(whole.endswith(f".{name}") for name in row.get("but", ())):
        return False
    if "fields" in row:
        return any(whole.endswith(f".{name}") for name in row["fields"])
    return kind == row["kind"]


def good(method: Method) -> Message:
    name = f"{method.descriptor.containing_service.name}.{method.descriptor.name}"
    message = validate.message_class(method.descriptor.input_type)()
    return json_format.ParseDict(CATALOGUE["good"].get(name, {}), message)


def cases(row: dict[str, Any], method: Method) -> Iterator[tuple[str, Message]]:
    """Yield the requests that a row makes of a method, each with what was done."""
    message = good(method)
    for path in places(method.descriptor.input_type):
        parent = method.descriptor.input_type
        for name in path[:-1]:
            parent = parent.fields_by_name[name].message_type
        kind = kind_of(parent.fields_by_name[path[-1]])
        for of_kind, value in values(row):
            if of_kind == kind and is_about(row, method, path, kind):
                yield f"{method}.{'.'.join(path)} = {str(value)[:60]!r}", changed(message, path, value)


async def told(method: Method, *messages: bytes) -> Answer:
    """Return the answer of a method; a store that a busy machine made slow is left alone for a while, and asked again."""
    end = time.monotonic() + PATIENCE_SECONDS
    while (found := await _told(method, messages)).reason == "STORE_UNAVAILABLE" and time.monotonic() < end:
        await asyncio.sleep(0.1)
    return found


async def _told(method: Method, messages: Sequence[bytes]) -> Answer:
    call = method.call(None if method.descriptor.client_streaming else messages[0], MOST_SECONDS)
    try:
        await exchange(call, method, messages, 1)
    except grpc.aio.AioRpcError as failure:
        return answer(failure.code(), failure.details() or "", failure.trailing_metadata())
    finally:
        call.cancel()
    return Answer("OK", "", "", "", "")


@pytest.mark.parametrize("row", CATALOGUE["rows"], ids=[row["input"] for row in CATALOGUE["rows"]])
async def test_bad_input_is_answered_as_it_says(local: dict[str, Method], row: dict[str, Any]):
    wrong, count = [], 0
    for method in local.values():
        if not method.path.startswith("/openmanager."):
            continue
        for what, message in cases(row, method):
            found = await told(method, message.SerializeToString())
            count += 1
            if found.code not in row["codes"] or found.fault:
                wrong.append(f"{what}: {found.code} {found.text[:100]} {found.fault}")
    assert wrong == []
    assert count > 0
    for name, request in good_calls():
        assert (await told(local[name], request)).code == "OK", name


async def test_every_method_is_asked_well(local: dict[str, Method]):
    """Else a row would find fault with something else than what it changes."""
    names = {f"{each.descriptor.containing_service.name}.{each.descriptor.name}" for each in local.values()}
    assert set(CATALOGUE["good"]) <= names
    for method in local.values():
        if method.path.startswith("/openmanager.") and good(method).ByteSize():
            assert (await told(method, good(method).SerializeToString())).code in {
                "OK",
                "NOT_FOUND",
                "ALREADY_EXISTS",
            }, method
