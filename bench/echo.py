"""The peers of every RPC row: stock servers that answer a fixed number of bytes, each in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

OPTIONS = [("grpc.so_reuseport", 0)]
THREADS = 10
ECHO = "/bench.Echo/Echo"


async def with_asyncio(port: int, reply: bytes) -> None:
    """Answer with grpc.aio."""

    async def echo(request: bytes, context: object) -> bytes:  # noqa: ARG001
        return reply

    server = grpc.aio.server(options=OPTIONS)
    await _serving(server, port, echo).start()
    print("ready", flush=True)
    await server.wait_for_termination()


def with_threads(port: int, reply: bytes) -> None:
    """Answer with a pool of threads."""
    server = grpc.server(ThreadPoolExecutor(THREADS), options=OPTIONS)
    _serving(server, port, lambda request, context: reply).start()  # noqa: ARG005
    print("ready", flush=True)
    server.wait_for_termination()


async def passing_on(port: int, target: str, path: str) -> None:
    """Pass the bytes of one method on to the server at `target`, with grpc.aio: a gateway that does nothing else."""
    async with grpc.aio.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(path)

        async def forward(request: bytes, context: object) -> bytes:  # noqa: ARG001
            reply: bytes = await call(request, timeout=5)
            return reply

        server = grpc.aio.server(options=OPTIONS)
        await _serving(server, port, forward, path).start()
        print("ready", flush=True)
        await server.wait_for_termination()


def _serving(server, port: int, behaviour, path: str = ECHO):  # type: ignore[no-untyped-def]
    service, _, method = path.strip("/").partition("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(behaviour)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    return server


if __name__ == "__main__":
    kind, port, *rest = sys.argv[1:]
    if kind == "aio":
        asyncio.run(with_asyncio(int(port), b"x" * int(rest[0])))
    elif kind == "threads":
        with_threads(int(port), b"x" * int(rest[0]))
    else:
        asyncio.run(passing_on(int(port), *rest))
