"""A bare HTTP/2 connection to a gRPC server: sends any frames, right or wrong, and notes what came back."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

import hpack
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS = 1
RST_STREAM = 3
SETTINGS = 4
PING = 6
WINDOW_UPDATE = 8
CONTINUATION = 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4
HEAD_BYTES = 9
READ_BYTES = 1 << 16
LAST_PING = b"the last"
Headers = Iterable[tuple[bytes, bytes]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def block(path: bytes, extra: Headers = ()) -> bytes:
    """Return the header block of a call; it refers to nothing before it, so that it may be sent again and again."""
    call = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"fuzz"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]
    encoded: bytes = hpack.Encoder().encode([*call, *extra])
    return encoded


def message(body: bytes, *, compressed: bool = False) -> bytes:
    """Return a message as gRPC frames it."""
    return struct.pack(">BI", compressed, len(body)) + body


def settings(values: Mapping[int, int]) -> bytes:
    """Return a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *item) for item in values.items()))


def window_update(stream: int, count: int) -> bytes:
    """Return the leave to send `count` bytes more."""
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", count))


class Connection:
    """A connection as a client sees it.

    `settings` is what the server announced, `statuses` the grpc-status of each stream that ended, `resets` the error code of each that was reset, `goaway`
    the error code that the server went with; `received` counts bytes of data. Whoever `reads` gives leave for more.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, reads: bool) -> None:
        self.statuses: dict[int, int] = {}
        self.resets: dict[int, int] = {}
        self.settings: dict[int, int] = {}
        self.goaway: int | None = None
        self.received = 0
        self.closed = False
        self._reader, self._writer, self._reads = reader, writer, reads
        self._decoder = hpack.Decoder()
        self._changed = asyncio.Event()
        self._greeted = asyncio.Event()
        self._ponged = False
        self._listener = asyncio.create_task(self._listen())

    @property
    def over(self) -> bool:
        """Whether nothing more can be had of it."""
        return self.closed or self.goaway is not None

    async def send(self, data: bytes) -> bool:
        """Send bytes and wait until the system has taken them; False when the server has hung up."""
        if self.closed:
            return False
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError:
            self._close()
            return False
        return True

    async def status(self, stream: int, seconds: float) -> str:
        """Return how a stream ended: a gRPC status by number, `reset`, `closed`; `open` when it did not in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while stream not in self.statuses and stream not in self.resets and not self.over:
                    await self._changed.wait()
                    self._changed.clear()
        if stream in self.statuses:
            return str(self.statuses[stream])
        if stream in self.resets:
            return "reset"
        return "closed" if self.over else "open"

    async def greeted(self, seconds: float) -> None:
        """Wait for the server's own SETTINGS."""
        async with asyncio.timeout(seconds):
            await self._greeted.wait()

    async def answers(self, seconds: float) -> bool:
        """Say whether a PING is answered: the server has taken all that came before it."""
        self._ponged = False
        await self.send(frame(PING, 0, 0, LAST_PING))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._ponged and not self.over:
                    await self._changed.wait()
                    self._changed.clear()
        return self._ponged

    async def _listen(self) -> None:
        held = b""
        with contextlib.suppress(OSError, hpack.HPACKError, HyperframeError):
            while data := await self._reader.read(READ_BYTES):
                held += data
                at = 0
                while len(held) - at >= HEAD_BYTES:
                    found, size = Frame.parse_frame_header(memoryview(held)[at : at + HEAD_BYTES])
                    if len(held) - at - HEAD_BYTES < size:
                        break
                    found.parse_body(memoryview(held)[at + HEAD_BYTES : at + HEAD_BYTES + size])
                    at += HEAD_BYTES + size
                    self._take(found)
                held = held[at:]
                self._changed.set()
        self._close()

    def _take(self, found: Frame) -> None:
        match found:
            case HeadersFrame():
                for name, value in self._decoder.decode(found.data, raw=True):
                    if name == b"grpc-status":
                        self.statuses[found.stream_id] = int(value)
            case DataFrame() if found.data:
                self.received += len(found.data)
                if self._reads:
                    self._answer(window_update(0, len(found.data)) + window_update(found.stream_id, len(found.data)))
            case RstStreamFrame():
                self.resets[found.stream_id] = found.error_code
            case GoAwayFrame():
                self.goaway = found.error_code
            case SettingsFrame() | PingFrame():
                self._take_control(found)

    def _take_control(self, found: SettingsFrame | PingFrame) -> None:
        is_answer = "ACK" in found.flags
        match found:
            case SettingsFrame() if not is_answer:
                self.settings |= found.settings
                self._greeted.set()
                self._answer(frame(SETTINGS, ACK, 0))
            case PingFrame() if is_answer:
                self._ponged |= found.opaque_data == LAST_PING
            case PingFrame():
                self._answer(frame(PING, ACK, 0, found.opaque_data))

    def _answer(self, data: bytes) -> None:
        if not self.closed:
            self._writer.write(data)

    def _close(self) -> None:
        self.closed = True
        self._changed.set()
        self._writer.close()

    async def close(self) -> None:
        """Hang up."""
        self._listener.cancel()
        await asyncio.gather(self._listener, return_exceptions=True)
        self._close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


@contextlib.asynccontextmanager
async def connected(
    address: str, *, reads: bool = True, values: Mapping[int, int] | None = None
) -> AsyncIterator[Connection]:
    """Connect, with the preface and SETTINGS sent; hang up in the end."""
    host, _, port = address.rpartition(":")
    connection = Connection(*await asyncio.open_connection(host, int(port)), reads=reads)
    try:
        await connection.send(PREFACE + settings(values or {}))
        yield connection
    finally:
        await connection.close()


def call(
    stream: int, path: bytes, body: bytes, *, extra: Sequence[tuple[bytes, bytes]] = (), end: bool = True
) -> bytes:
    """Return a call with one message, or its beginning."""
    return frame(HEADERS, END_HEADERS, stream, block(path, extra)) + frame(0, END_STREAM if end else 0, stream, body)
