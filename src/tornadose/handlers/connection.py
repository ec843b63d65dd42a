"""A client's socket: writes that never wait, and writes that wait for their turn."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sized
from ssl import SSLSocket, SSLWantReadError, SSLWantWriteError
from typing import TYPE_CHECKING, Any

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPServerRequest
from tornado.iostream import IOStream
from tornado.iostream import StreamClosedError as ConnectionClosed

if TYPE_CHECKING:
    from tornado.websocket import WebSocketProtocol

__all__ = ("SLICE", "Connection", "ConnectionClosed", "open_stream")

log = logging.getLogger("tornadose")

SLICE = 65536  # bytes that the client must take within the write time limit
NOT_NOW = (BlockingIOError, SSLWantReadError, SSLWantWriteError)
INT_MAX = (1 << 31) - 1  # what a socket option can hold


class Connection:
    """Writes to a stream that Tornado has opened, and closes when the client stalls.

    While nothing waits in the stream's buffer, bytes go straight to the socket; the
    stream takes over what the socket refuses.

    Args:
        stream: Of a request whose headers are written.
        write_timeout: Seconds in which the client must take the next 64 KiB.
        send_buffer: Size of the socket's send buffer, in bytes; ``None`` is the system's.
        protocol: Of a WebSocket, where nothing may follow the closing frame.

    Raises:
        ConnectionClosed: If the client is gone.
    """

    __slots__ = (
        "_ended",
        "_protocol",
        "_queued",
        "_socket",
        "_stream",
        "_timer",
        "_turn",
        "_unwritten",
        "_write_timeout",
    )

    def __init__(
        self,
        stream: IOStream,
        write_timeout: float,
        send_buffer: int | None,
        protocol: WebSocketProtocol | None = None,
    ) -> None:
        if stream.socket is None:
            raise ConnectionClosed(stream.error)
        self._ended = False
        self._protocol = protocol
        self._queued = 0  # calls of `write` that are not done
        self._stream = stream
        # To ask the stream whether it is writing would be a twentieth of a delivery.
        buffer: Any = stream._write_buffer  # pyright: ignore[reportPrivateUsage]
        self._unwritten: Sized = buffer._buffers
        self._write_timeout = write_timeout
        self._turn: asyncio.Lock | None = None
        self._timer: asyncio.TimerHandle | None = None
        stream.set_nodelay(True)
        sock = stream.socket
        self._socket = _TLSSocket(sock) if isinstance(sock, SSLSocket) else sock
        _tune(sock, write_timeout, send_buffer)

    @property
    def writing(self) -> bool:
        """Whether earlier bytes still wait."""
        return self._stream.writing()

    def write_nowait(self, data: bytes) -> bool:
        """Take the bytes at once and return true, or nothing while earlier ones wait.

        Raises:
            ConnectionClosed: If the client turns out to be gone.
        """
        if self._queued or self._ended or self._unwritten:
            return False
        self._send(data)
        return True

    def end(self) -> None:
        """Take no more bytes: the response is complete."""
        self._ended = True

    def abort(self) -> None:
        """Close the socket, whatever still waits."""
        self._stream.close()

    async def write(self, data: bytes) -> None:
        """Take the bytes as soon as those of earlier calls are with the socket.

        Cancelled, it has written all of them or nothing.

        Raises:
            ConnectionClosed: If the client is gone, or does not read.
        """
        if self._turn is None:
            self._turn = asyncio.Lock()
        self._queued += 1
        try:
            async with self._turn:
                while self._stream.writing():
                    flushed = self._stream.write(b"")
                    self._watch(flushed)
                    await asyncio.wait({flushed})
                if self._stream.closed() or self._ended:
                    raise ConnectionClosed(self._stream.error)
                self._send(data)
        finally:
            self._queued -= 1

    def watch(self) -> None:
        """Give the client the time limit also for what Tornado has written by itself."""
        if self._timer is None and not self._stream.closed() and self._stream.writing():
            self._watch(self._stream.write(b""))

    def append(self, data: bytes) -> None:
        """Put the last bytes behind whatever still waits."""
        if not self._stream.closed():
            self._hand_over(memoryview(data))

    def _send(self, data: bytes) -> None:
        """Write while nothing waits."""
        if self._protocol is not None and self._protocol.server_terminated:
            raise ConnectionClosed
        try:
            sent = self._socket.send(data)
        except NOT_NOW:
            sent = 0
        except OSError as error:
            self._stream.close(exc_info=error)
            raise ConnectionClosed(error) from error
        if sent < len(data):
            self._hand_over(memoryview(data)[sent:])

    def _hand_over(self, rest: memoryview) -> None:
        """Let the stream write what the socket refused, slice by slice."""
        for start in range(0, len(rest), SLICE):
            self._watch(self._stream.write(rest[start : start + SLICE]))

    def _watch(self, written: asyncio.Future[None], slices: int = 1) -> None:
        """Give the client the time limit for each slice, anew when this is written."""
        if self._timer is None and self._stream.writing():
            limit = self._write_timeout * slices
            self._timer = asyncio.get_running_loop().call_later(limit, self._expire)
        written.add_done_callback(self._progress)

    def _progress(self, written: asyncio.Future[None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.watch()

    def _expire(self) -> None:
        log.info("a client does not read; its connection is closed")
        self._stream.close()


class _TLSSocket:
    """Offers no more than a slice: what TLS has begun to send, it must be offered again."""

    __slots__ = ("_socket",)

    def __init__(self, sock: SSLSocket) -> None:
        self._socket = sock

    def send(self, data: bytes) -> int:
        return self._socket.send(memoryview(data)[:SLICE])


def _tune(sock: socket.socket, write_timeout: float, send_buffer: int | None) -> None:
    """Let the kernel notice a client that has vanished, and buffer no more than asked."""
    if send_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, min(send_buffer, INT_MAX))
    if hasattr(socket, "TCP_USER_TIMEOUT") and sock.family in (socket.AF_INET, socket.AF_INET6):
        milliseconds = min(max(1, round(write_timeout * 1000)), INT_MAX)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def open_stream(request: HTTPServerRequest) -> IOStream | None:
    """Return the stream below a request; ``None`` if the client is gone.

    Raises:
        TypeError: If the server is not Tornado's HTTP/1 server.
    """
    if not isinstance(request.connection, HTTP1Connection):
        raise TypeError(f"expected Tornado's HTTP1Connection, not {request.connection!r}")
    stream: IOStream | None = request.connection.stream
    return None if stream is None or stream.closed() else stream
