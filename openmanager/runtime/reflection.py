"""Server reflection, v1alpha and v1: the two are identical on the wire, grpcio ships the first only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from openmanager.runtime import validate
from openmanager.runtime.edge import Edge, raw

V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
V1 = "grpc.reflection.v1.ServerReflection"


def add(edge: Edge, services: Sequence[str]) -> None:
    """Serve reflection for the named services, in both versions."""
    servicer = _Reflection([*services, V1ALPHA, V1])
    for descriptor in (reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"], _v1_descriptor()):
        edge.add(descriptor, servicer)


class _Reflection:
    """grpcio's servicer behind our edge; it takes bytes, which are the same in both versions."""

    def __init__(self, services: Sequence[str]) -> None:
        self._servicer = ReflectionServicer(services)

    @raw
    async def ServerReflectionInfo(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Answer each question about the services, their methods and messages."""
        decoded = (validate.decode(reflection_pb2.ServerReflectionRequest, data) async for data in requests)
        async for reply in self._servicer.ServerReflectionInfo(decoded, context):
            yield reply


def _v1_descriptor() -> ServiceDescriptor:
    """Return the v1 service, made from v1alpha's descriptor by renaming its package, once."""
    pool = descriptor_pool.Default()
    try:
        return pool.FindServiceByName(V1)
    except KeyError:
        pass
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = "grpc/reflection/v1/reflection.proto", "grpc.reflection.v1"
    for message in file.message_type:
        for field in message.field:
            if field.HasField("type_name"):
                field.type_name = field.type_name.replace(".v1alpha.", ".v1.")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(".v1alpha.", ".v1.")
        method.output_type = method.output_type.replace(".v1alpha.", ".v1.")
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName(V1)
