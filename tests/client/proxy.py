"""A TCP proxy that can cut its connections, or stop to carry anything."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Proxy:
    """Carries bytes to a target while `open` is set."""

    def __init__(self, target: str) -> None:
        self.address = ""
        self.open = asyncio.Event()
        self.open.set()
        self.cut_after = 0  # bytes that are still carried before a cut; 0: none is to come
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """End every connection there is; new ones are taken."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._host, self._port)
        self._writers |= {writer, back}
        try:
            async with asyncio.TaskGroup() as carrying:
                carrying.create_task(self._carry(reader, back))
                carrying.create_task(self._carry(there, writer))
        finally:
            self._writers -= {writer, back}
            writer.close()
            back.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                await self.open.wait()
                writer.write(data)
                await writer.drain()
                if self.cut_after:
                    self.cut_after = max(0, self.cut_after - len(data))
                    if not self.cut_after:
                        self.cut()
        writer.close()


@contextlib.asynccontextmanager
async def proxy(target: str) -> AsyncIterator[Proxy]:
    made = Proxy(target)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(made.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    made.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
