"""The contracts as a proxy reads them: a descriptor set with the `google.api.http` option of every method."""

from __future__ import annotations

from collections.abc import Iterable

from google.api import annotations_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.rpc import error_details_pb2, status_pb2

from openmanager.runtime.module import service_descriptor

# What errors are told in: `grpc-status-details-bin` is turned into JSON by these.
_ERRORS: tuple[FileDescriptor, ...] = (status_pb2.DESCRIPTOR, error_details_pb2.DESCRIPTOR)


def descriptor_set(services: Iterable[str]) -> bytes:
    """Return a serialized FileDescriptorSet of the files of some services, each after the files that it imports."""
    files: dict[str, FileDescriptor] = {}
    for file in (annotations_pb2.DESCRIPTOR, *_ERRORS, *(service_descriptor(name).file for name in services)):
        _collect(file, files)
    found = FileDescriptorSet()
    for file in files.values():
        file.CopyToProto(found.file.add())
    return found.SerializeToString(deterministic=True)


def _collect(file: FileDescriptor, files: dict[str, FileDescriptor]) -> None:
    if file.name not in files:
        for each in file.dependencies:
            _collect(each, files)
        files[file.name] = file
