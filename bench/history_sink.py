"""The limit of a durable write over gRPC: a stock grpc.aio server that appends what it gets, syncs and answers.

What arrives while the disk syncs goes into one sync, as the log does it; nothing is looked at.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import grpc


class Sink:
    """Appends messages to a file, many to one fdatasync."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT)
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()

    async def commit(self) -> None:
        """Write and sync what waits, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._waiting = self._waiting, []
            await asyncio.to_thread(self._sync, [data for data, _ in batch])
            for _, done in batch:
                done.set_result(None)

    def _sync(self, batch: list[bytes]) -> None:
        for data in batch:
            os.write(self._file, data)
        os.fdatasync(self._file)

    async def write(self, requests: object, context: grpc.aio.ServicerContext) -> None:
        """Answer each message when it is durable, in order."""
        under_way: asyncio.Queue[asyncio.Future[None] | None] = asyncio.Queue(64)

        async def receive() -> None:
            async for data in requests:  # type: ignore[attr-defined]
                done = asyncio.get_running_loop().create_future()
                self._waiting.append((data, done))
                self._wake.set()
                await under_way.put(done)
            await under_way.put(None)

        receiver = asyncio.create_task(receive())
        while (done := await under_way.get()) is not None:
            await done
            await context.write(b"")
        await receiver


async def main(port: int, path: str) -> None:
    sink = Sink(Path(path))
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 << 20)]
    server = grpc.aio.server(options=options)
    handlers = {"Write": grpc.stream_stream_rpc_method_handler(sink.write)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Sink", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    await sink.commit()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
