"""Server reflection, v1alpha and v1: the two are identical on the wire, grpcio ships the first only."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from openmanager.runtime.grpc_server import GuardedServer

V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
V1 = "grpc.reflection.v1.ServerReflection"


def add(server: GuardedServer, services: Sequence[str]) -> None:
    """Serve reflection for the named services on a server."""
    _v1_descriptor()
    servicer = ReflectionServicer([*services, V1ALPHA, V1])
    request, reply = reflection_pb2.ServerReflectionRequest, reflection_pb2.ServerReflectionResponse
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo, _lenient(request), reply.SerializeToString
    )
    for name in (V1ALPHA, V1):
        server.add_registered_method_handlers(name, {"ServerReflectionInfo": handler})


def _lenient(cls: type[reflection_pb2.ServerReflectionRequest]):  # type: ignore[no-untyped-def]  # noqa: ANN202
    def decode(data: bytes) -> reflection_pb2.ServerReflectionRequest:
        try:
            return cls.FromString(data)
        except Exception:  # noqa: BLE001  (what cannot be read is answered as an empty question: unimplemented)
            return cls()

    return decode


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
