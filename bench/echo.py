"""The peer of every RPC row: a stock grpc.aio server that answers a fixed number of bytes, in a process of its own."""

from __future__ import annotations

import asyncio
import sys

import grpc


async def main(port: int, size: int) -> None:
    reply = b"x" * size

    async def echo(request: bytes, context: object) -> bytes:  # noqa: ARG001
        return reply

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
